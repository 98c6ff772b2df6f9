package lock

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
	cuts    atomic.Int64

	mu       sync.Mutex
	listener net.Listener
	conns    []net.Conn
	target   string
	command  []byte // of the next cuts
	left     int    // of them

	gate sync.RWMutex // held: no request passes
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

// cutAfter makes the connections that next send a request with the word, so many
// times, lose the replies.
func (p *proxy) cutAfter(word string, times int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.command, p.left = []byte(word), times
}

func (p *proxy) hold()   { p.gate.Lock() }
func (p *proxy) resume() { p.gate.Unlock() }

func (p *proxy) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	_ = p.listener.Close()
	for _, c := range p.conns {
		_ = c.Close()
	}
}

// moveTo puts another Redis in the place of the one there was.
func (p *proxy) moveTo(target string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = target
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
		p.mu.Lock()
		target := p.target
		p.mu.Unlock()
		server, err := net.Dial("tcp", target)
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
		p.gate.RLock()
		_, err = server.Write(request[:n])
		p.gate.RUnlock()
		if err != nil {
			return
		}
	}
}

func (p *proxy) cut(request []byte) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.left == 0 || !bytes.Contains(bytes.ToUpper(request), p.command) {
		return false
	}
	p.left--
	p.cuts.Add(1)
	return true
}
