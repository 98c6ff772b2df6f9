package redistest

import (
	"bytes"
	"net"
	"sync"
	"sync/atomic"
	"testing"
)

// Proxy is a TCP proxy in front of Redis that can swallow the reply to a command
// and cut the connection: the command has run, nobody is told.
type Proxy struct {
	// Static after construction.
	Address  string
	listener net.Listener

	// Cuts counts the replies that were lost.
	Cuts atomic.Int64

	mu sync.Mutex
	// Guarded by mu.
	conns   []net.Conn
	target  string
	command []byte // of the next cuts
	left    int    // of them

	gate sync.RWMutex // held: no request passes
}

// NewProxy makes a proxy in front of an address, until the test ends.
func NewProxy(t testing.TB, target string) *Proxy {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{Address: listener.Addr().String(), target: target, listener: listener}
	go p.accept()
	t.Cleanup(p.Close)
	return p
}

// CutAfter makes the connections that next send a request with the word, in upper
// case, so many times, lose the replies.
func (p *Proxy) CutAfter(word string, times int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.command, p.left = []byte(word), times
}

// Hold lets no request pass until Resume.
func (p *Proxy) Hold() { p.gate.Lock() }

// Resume lets requests pass again.
func (p *Proxy) Resume() { p.gate.Unlock() }

// Close cuts all connections and takes no more.
func (p *Proxy) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	_ = p.listener.Close()
	for _, c := range p.conns {
		_ = c.Close()
	}
}

// MoveTo puts another Redis in the place of the one there was.
func (p *Proxy) MoveTo(target string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = target
	for _, c := range p.conns {
		_ = c.Close()
	}
}

func (p *Proxy) accept() {
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
		moved := p.target != target
		p.conns = append(p.conns, client, server)
		p.mu.Unlock()
		if moved {
			_, _ = client.Close(), server.Close()
			continue
		}
		go p.pump(client, server)
	}
}

// pump passes requests; the replies come back on a goroutine of their own, until
// one is to be lost.
func (p *Proxy) pump(client, server net.Conn) {
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

func (p *Proxy) cut(request []byte) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.left == 0 || !bytes.Contains(bytes.ToUpper(request), p.command) {
		return false
	}
	p.left--
	p.Cuts.Add(1)
	return true
}
