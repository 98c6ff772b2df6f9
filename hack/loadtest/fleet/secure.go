package fleet

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
	"syscall"
	"time"
)

const (
	// carrySize is how much a connection with TLS reads at once, in bytes.
	carrySize = 16 << 10

	// writeWait is how long the kernel may take for what a connection with TLS
	// sends.
	writeWait = 5 * time.Second
)

// secured is the part of a connection that TLS needs. One goroutine connects
// and reads, and waits for the loop before each read; another one writes, as
// long as there is something.
type secured struct {
	// Static after construction.
	cancel  context.CancelFunc
	proceed chan int // bytes that may be read next; closed at the end
	writers *sync.WaitGroup

	// Owned by Fleet.Run; not thread-safe.
	waiting  bool // the goroutine waits for proceed
	finished bool

	// Guarded by mu.
	mu      sync.Mutex
	conn    *tls.Conn // nil until the handshake is done
	out     []byte
	writing bool
	done    bool
}

// note is what the goroutine of a connection with TLS has for the loop, which
// it then waits for: at most one of each connection is under way.
type note struct {
	c     *Conn
	stage Stage // of err
	data  []byte
	at    int64 // unix nanoseconds
	err   error
}

func (f *Fleet) note(n note) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.notes = append(f.notes, n)
	f.wakeLocked()
}

// secure begins a connection with TLS.
func (f *Fleet) secure(ctx context.Context, c *Conn) {
	ctx, cancel := context.WithCancel(ctx)
	c.tls = &secured{cancel: cancel, proceed: make(chan int, 1), writers: &f.carriers}
	f.secured[c] = struct{}{}
	p := *c.opening.plan
	f.carriers.Go(func() { f.carry(ctx, c, &p) })
}

// carry connects and reads.
func (f *Fleet) carry(ctx context.Context, c *Conn, p *Plan) {
	dialer := net.Dialer{}
	if p.Source.IsValid() {
		dialer.LocalAddr = &net.TCPAddr{IP: p.Source.AsSlice()}
		dialer.Control = func(_, _ string, raw syscall.RawConn) error {
			var failed error
			if err := raw.Control(func(fd uintptr) { failed = bindLater(fd) }); err != nil {
				return err
			}
			return failed
		}
	}
	plain, err := dialer.DialContext(ctx, "tcp", p.Target.address(p.Source).String())
	if err != nil {
		f.note(note{c: c, stage: StageConnect, err: err})
		return
	}
	config := f.options.TLS.Clone()
	if config.ServerName == "" {
		config.ServerName = p.Target.name
	}
	conn := tls.Client(plain, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = plain.Close()
		f.note(note{c: c, stage: StageTLS, err: err})
		return
	}
	if !c.tls.adopt(conn) {
		return
	}
	f.note(note{c: c})
	buf := make([]byte, carrySize)
	for most := range c.tls.proceed {
		n, err := conn.Read(buf[:min(most, carrySize)])
		f.note(note{c: c, stage: StageLive, data: buf[:n], at: time.Now().UnixNano(), err: err})
		if err != nil {
			return
		}
	}
}

// carried takes a note.
func (f *Fleet) carried(n note) {
	c := n.c
	if c.over {
		return
	}
	c.tls.waiting = n.err == nil
	if c.stage == StageConnect {
		if n.err != nil {
			c.stage = n.stage
			f.fail(c, n.err)
			return
		}
		f.upgrade(c)
		c.tls.readMore(carrySize)
		return
	}
	if len(n.data) > 0 {
		f.received = n.at
		f.counts.Reads++
		copy(f.buf[f.headroom:], n.data)
		f.take(c, len(n.data))
	}
	switch {
	case c.over:
	case n.err != nil:
		f.fail(c, n.err)
	case !c.limited():
		c.tls.readMore(carrySize)
	}
}

// readMore lets the goroutine read once, if it waits.
func (s *secured) readMore(most int) {
	if s.waiting {
		s.waiting = false
		s.proceed <- most
	}
}

// adopt sets the connection; false: it came too late and is closed.
func (s *secured) adopt(conn *tls.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.done {
		_ = conn.NetConn().Close()
		return false
	}
	s.conn = conn
	return true
}

func (s *secured) write(data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.out)+len(data) <= maxOut {
		s.out = append(s.out, data...)
	}
	s.startLocked()
}

// finish ends the connection when everything is sent.
func (s *secured) finish() {
	if s.finished {
		return
	}
	s.finished = true
	s.cancel()
	close(s.proceed)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.done = true
	s.startLocked()
}

func (s *secured) startLocked() {
	if !s.writing && s.conn != nil {
		s.writing = true
		s.writers.Go(s.flush)
	}
}

// flush sends until there is nothing more to send.
func (s *secured) flush() {
	for {
		s.mu.Lock()
		data := s.out
		s.out = nil
		if len(data) == 0 {
			if s.done {
				_ = s.conn.NetConn().Close()
			}
			s.writing = false
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
		_ = s.conn.SetWriteDeadline(time.Now().Add(writeWait))
		// An error shows when the connection is read.
		_, _ = s.conn.Write(data)
	}
}
