// Package vendor is the least of a market data vendor that a relay needs: it
// speaks the vendor's protocol on one connection and sends what it is given. The
// conversation is feedsim's; the events are the caller's.
//
// Run starts one goroutine for each connection, which reads it. Nothing is
// queued: Write waits for the socket, and a connection that comes takes the
// place of the one before.
package vendor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"github.com/gobwas/ws"
	"github.com/gobwas/ws/wsutil"
	"golang.org/x/sync/errgroup"

	"github.com/cutemarkets/relay/hack/feedsim/session"
	"github.com/cutemarkets/relay/hack/feedsim/tape"
)

// ErrNobody is the error of Write while no connection is authenticated.
var ErrNobody = errors.New("vendor: nobody is connected")

// Vendor is a vendor of one market, stocks.
type Vendor struct {
	// Static after construction.
	listener net.Listener

	// Guarded by mu.
	mu     sync.Mutex
	client net.Conn // authenticated; nil: none
}

// New listens on a free port of loopback.
func New(ctx context.Context) (*Vendor, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("vendor: %w", err)
	}
	return &Vendor{listener: l}, nil
}

// URL is where a relay connects to; the path does not matter, nor does the key.
func (v *Vendor) URL() string { return "ws://" + v.listener.Addr().String() }

// Run serves until ctx is done. Call it once: it closes the listener.
func (v *Vendor) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	defer context.AfterFunc(ctx, func() { _ = v.listener.Close() })()
	for {
		c, err := v.listener.Accept()
		if err != nil {
			if ctx.Err() == nil {
				err = fmt.Errorf("vendor: %w", err)
			} else {
				err = nil
			}
			return errors.Join(err, group.Wait())
		}
		group.Go(func() error {
			defer context.AfterFunc(ctx, func() { _ = c.Close() })()
			v.serve(c)
			return nil
		})
	}
}

// serve holds the conversation until the connection ends.
func (v *Vendor) serve(c net.Conn) {
	defer func() {
		v.mu.Lock()
		if v.client == c {
			v.client = nil
		}
		v.mu.Unlock()
		_ = c.Close()
	}()
	if _, err := ws.Upgrade(c); err != nil {
		return
	}
	s := session.New(session.Rules{Market: tape.Stocks, Accept: func(session.Key) bool { return true }})
	if v.send(c, []byte(session.Connected)) != nil {
		return
	}
	// Pongs go out between the frames of Write.
	rw := struct {
		io.Reader
		io.Writer
	}{c, pongs{v, c}}
	for {
		message, err := wsutil.ReadClientText(rw)
		if err != nil {
			return
		}
		answer := s.Handle(message)
		if answer.Frame != "" && v.send(c, []byte(answer.Frame)) != nil {
			return
		}
		for _, frame := range session.Frames(answer.Objects) {
			if v.send(c, frame) != nil {
				return
			}
		}
		if answer.Change == session.Authenticated {
			v.mu.Lock()
			v.client = c
			v.mu.Unlock()
		}
	}
}

func (v *Vendor) send(c net.Conn, payload []byte) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return wsutil.WriteServerText(c, payload)
}

// Write sends whole frames to the client.
func (v *Vendor) Write(frames []byte) (int, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.client == nil {
		return 0, ErrNobody
	}
	return v.client.Write(frames)
}

// pongs writes control frames, each in one call.
type pongs struct {
	vendor *Vendor
	conn   net.Conn
}

func (p pongs) Write(frame []byte) (int, error) {
	p.vendor.mu.Lock()
	defer p.vendor.mu.Unlock()
	return p.conn.Write(frame)
}
