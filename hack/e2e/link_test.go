package e2e

import (
	"errors"
	"io"
	"net"
	"sync"
	"testing"
)

// linkState is what a link does with what it is given.
type linkState uint8

const (
	whole linkState = iota // everything passes
	cut                    // nothing passes and nobody is told; what waits passes later
	shut                   // connections are reset, those that come too
)

// link is the way from one part of a relay to another, on a port of its own. Each
// connection is served by two goroutines, which hold 64 KiB at most: the rest of
// what waits is with the kernel, and with the sender.
type link struct {
	// Static after construction.
	target   string
	listener net.Listener
	served   sync.WaitGroup

	// Guarded by mu.
	mu      sync.Mutex
	state   linkState
	changed chan struct{} // closed when the state changes
	closed  bool
	conns   map[net.Conn]struct{}
}

// newLink runs a link until the test ends.
func newLink(t *testing.T, target string) *link {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &link{target: target, listener: listener, changed: make(chan struct{}), conns: map[net.Conn]struct{}{}}
	l.served.Go(l.serve)
	t.Cleanup(func() {
		_ = listener.Close()
		l.mu.Lock()
		l.closed = true
		l.mu.Unlock()
		l.turn(shut)
		l.served.Wait()
	})
	return l
}

func (l *link) address() string { return l.listener.Addr().String() }

// turn changes the state.
func (l *link) turn(state linkState) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state = state
	close(l.changed)
	l.changed = make(chan struct{})
	if state != shut {
		return
	}
	for c := range l.conns {
		reset(c)
	}
}

func reset(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = c.Close()
}

func (l *link) serve() {
	for {
		near, err := l.listener.Accept()
		if err != nil {
			return
		}
		if !l.add(near) {
			continue
		}
		l.served.Go(func() { l.join(near) })
	}
}

// add notes a connection; false: it was reset.
func (l *link) add(c net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state == shut || l.closed {
		reset(c)
		return false
	}
	l.conns[c] = struct{}{}
	return true
}

func (l *link) drop(c net.Conn) {
	l.mu.Lock()
	delete(l.conns, c)
	l.mu.Unlock()
	_ = c.Close()
}

// join carries a connection to the target until both sides have ended.
func (l *link) join(near net.Conn) {
	defer l.drop(near)
	if !l.await() {
		return
	}
	far, err := net.Dial("tcp", l.target)
	if err != nil {
		reset(near)
		return
	}
	if !l.add(far) {
		return
	}
	defer l.drop(far)
	var back sync.WaitGroup
	back.Go(func() { l.carry(near, far) })
	l.carry(far, near)
	back.Wait()
}

// carry copies one direction to its end. A broken connection breaks the other.
func (l *link) carry(to, from net.Conn) {
	buffer := make([]byte, 64<<10)
	for {
		n, err := from.Read(buffer)
		if !l.await() {
			return
		}
		if n > 0 {
			if _, failed := to.Write(buffer[:n]); failed != nil {
				reset(from)
				reset(to)
				return
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			_ = to.(*net.TCPConn).CloseWrite()
			return
		case err != nil:
			reset(to)
			reset(from)
			return
		}
	}
}

// await waits until the link is whole; false: it was shut.
func (l *link) await() bool {
	for {
		l.mu.Lock()
		state, changed := l.state, l.changed
		l.mu.Unlock()
		switch state {
		case whole:
			return true
		case shut:
			return false
		}
		<-changed
	}
}

// links are those of a relay, by the names of the parts that they join.
type links struct {
	t   *testing.T
	all map[[2]string]*link
}

func newLinks(t *testing.T) *links { return &links{t: t, all: map[[2]string]*link{}} }

// way is for cluster.Options.
func (ls *links) way(from, to, address string) string {
	l := newLink(ls.t, address)
	ls.all[[2]string{from, to}] = l
	return l.address()
}

// turn changes the links between parts; "" stands for any.
func (ls *links) turn(from, to string, state linkState) {
	for names, l := range ls.all {
		if (from == "" || names[0] == from) && (to == "" || names[1] == to) {
			l.turn(state)
		}
	}
}
