package front

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cutemarkets/relay/services/edge/internal/dialect"
	"github.com/cutemarkets/relay/services/edge/internal/front/envelope"
)

// listener takes a slot for each connection it accepts. When there is none it
// waits, and the connections behind wait in the kernel.
type listener struct {
	net.Listener
	slots chan struct{}
	plain bool
	once  sync.Once
	done  chan struct{} // closed by Close
}

// conn is a connection that is being opened.
type conn struct {
	// Static after construction.
	net.Conn
	accepted time.Time
	plain    bool // not under TLS

	// Owned by the goroutine of net/http that serves the connection.
	active bool // net/http has something of a request

	received atomic.Bool // something was read
	handled  atomic.Bool // the handler has seen a request
}

// Read implements net.Conn. When the time for the request is up it answers in
// place of net/http, which would call a request that was too slow a bad one, and
// closes. Under TLS, and where nothing was received, it only closes.
func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 && !c.received.Load() {
		c.received.Store(true)
	}
	if err != nil && !c.handled.Load() && errors.Is(err, os.ErrDeadlineExceeded) {
		if c.plain && c.received.Load() {
			_, _ = c.Write(requestTimeoutAnswer()) // who was too slow may be gone
		}
		_ = c.Close()
	}
	return n, err
}

// NetConn is the connection of the kernel, whose socket options the engine sets.
// Under TLS the engine gets a *tls.Conn around this one.
func (c *conn) NetConn() net.Conn { return c.Conn }

// requestTimeoutAnswer is the whole answer to a request that came too slowly.
func requestTimeoutAnswer() []byte {
	body := envelope.Error("request_timeout", "The request did not arrive within 5 seconds. Connect again.")
	return fmt.Appendf(nil, "HTTP/1.1 408 Request Timeout\r\nContent-Type: application/json\r\nCache-Control: no-store\r\n"+
		"Connection: close\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
}

// connKey is the context key of the *conn of a request.
type connKey struct{}

func (f *Front) wrap(l net.Listener) net.Listener {
	l = &listener{Listener: l, slots: f.slots, plain: f.certs == nil, done: make(chan struct{})}
	if f.certs != nil {
		// net/http can hijack HTTP/1.1 alone.
		l = tls.NewListener(l, f.certs.Server("http/1.1"))
	}
	return l
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	accepted := time.Now()
	select {
	case l.slots <- struct{}{}:
		return &conn{Conn: c, accepted: accepted, plain: l.plain}, nil
	case <-l.done:
		_ = c.Close()
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *listener) Close() error {
	l.once.Do(func() { close(l.done) })
	return l.Listener.Close()
}

// connState follows a connection: when it is closed or handed over, its slot is
// free again; when net/http refused what came over it, that is counted.
func (f *Front) connState(nc net.Conn, state http.ConnState) {
	c := opened(nc)
	switch state {
	case http.StateActive:
		c.active = true
	case http.StateHijacked:
		<-f.slots
	case http.StateClosed:
		<-f.slots
		if c.active && !c.handled.Load() {
			f.metrics.upgrade(dialect.BadRequest)
		}
	}
}

func connContext(ctx context.Context, nc net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, opened(nc))
}

// opened is the connection as the listener made it, under TLS or not.
func opened(nc net.Conn) *conn {
	if t, ok := nc.(*tls.Conn); ok {
		nc = t.NetConn()
	}
	return nc.(*conn)
}

// handOver is the connection without what only its opening needed.
func handOver(nc net.Conn) net.Conn {
	if c, ok := nc.(*conn); ok {
		return c.Conn
	}
	return nc
}
