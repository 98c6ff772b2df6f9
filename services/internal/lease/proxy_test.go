package lease

import (
	"bytes"
	"net"
	"sync"
	"sync/atomic"
	"testing"
)

// proxy is a TCP proxy in front of Redis that can swallow the reply to a command
// and cut the connection: the command has run, nobody is told.
type proxy struct {
	address string
	target  string
	cuts    atomic.Int64

	mu       sync.Mutex
	listener net.Listener
	conns    []net.Conn
	command  []byte // of the next cut; nil: none
}

func newProxy(t testing.TB, target string) *proxy {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{address: listener.Addr().String(), target: target, listener: listener}
	go p.accept()
	t.Cleanup(p.close)
	return p
}

// cutAfter makes the connection that next sends a request with the word lose
// the reply.
func (p *proxy) cutAfter(word string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.command = []byte(word)
}

func (p *proxy) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	_ = p.listener.Close()
	for _, c := range p.conns {
		_ = c.Close()
	}
}

func (p *proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", p.target)
		if err != nil {
			_ = client.Close()
			return
		}
		p.mu.Lock()
		p.conns = append(p.conns, client, server)
		p.mu.Unlock()
		go p.pump(client, server)
	}
}

// pump passes requests; the replies come back on a goroutine of their own, until
// one is to be lost.
func (p *proxy) pump(client, server net.Conn) {
	defer func() { _ = client.Close() }()
	defer func() { _ = server.Close() }()
	var lose atomic.Bool
	go func() {
		defer func() { _ = client.Close() }()
		reply := make([]byte, 64<<10)
		for {
			n, err := server.Read(reply)
			if err != nil || lose.Load() {
				return
			}
			if _, err := client.Write(reply[:n]); err != nil {
				return
			}
		}
	}()
	request := make([]byte, 64<<10)
	for {
		n, err := client.Read(request)
		if err != nil {
			return
		}
		if p.cut(request[:n]) {
			lose.Store(true)
		}
		if _, err = server.Write(request[:n]); err != nil {
			return
		}
	}
}

func (p *proxy) cut(request []byte) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.command == nil || !bytes.Contains(bytes.ToUpper(request), p.command) {
		return false
	}
	p.command = nil
	p.cuts.Add(1)
	return true
}
