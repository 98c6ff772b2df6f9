package upstream

import (
	"context"
	"errors"
	"io"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"

	"github.com/cutemarkets/relay/services/internal/lifecycle"
)

const (
	maxMessage  = 16 << 20 // bytes of one message of the vendor
	firstBuffer = 64 << 10 // bytes
	keptBuffer  = 1 << 20  // bytes; a greater buffer is not kept
	maxOutbox   = 8 << 20  // bytes waiting to be written
)

// socket is one connection to the vendor with its three goroutines.
type socket struct {
	// Static after construction.
	run       *run
	conn      *websocket.Conn
	ctx       context.Context // its end cuts the connection off
	cutOff    context.CancelFunc
	readEnded chan struct{} // closed when the reader has ended
	filled    chan struct{} // holds a token while outbox may have something; never closed
	done      sync.WaitGroup

	lastFrame atomic.Int64 // unix nanoseconds

	mu sync.Mutex
	// Guarded by mu.
	cause  Cause // of the end; the first one counts
	outbox [][]byte
	queued int // bytes of outbox
}

// dialSocket connects. ctx bounds the dialing, and nothing after it.
func dialSocket(ctx context.Context, r *run) (*socket, error) {
	dialing, cancel := context.WithTimeout(ctx, r.upstream.times.dial)
	defer cancel()
	r.lingerUntil.Store(0)
	//nolint:bodyclose // the response has no body to close, says Dial
	conn, _, err := websocket.Dial(dialing, r.upstream.url, &websocket.DialOptions{HTTPClient: r.client})
	if err != nil {
		if e, ok := errors.AsType[*url.Error](err); ok { // its text has the URL
			err = e.Err
		}
		return nil, err
	}
	conn.SetReadLimit(maxMessage)
	k := &socket{run: r, conn: conn, readEnded: make(chan struct{}), filled: make(chan struct{}, 1)}
	k.ctx, k.cutOff = context.WithCancel(context.WithoutCancel(ctx))
	return k, nil
}

func (k *socket) start() {
	k.done.Add(3)
	lifecycle.Go("upstream read", func() { defer k.done.Done(); k.read() })
	lifecycle.Go("upstream write", func() { defer k.done.Done(); k.write() })
	lifecycle.Go("upstream ping", func() { defer k.done.Done(); k.ping() })
}

// fail cuts the connection off.
func (k *socket) fail(cause Cause) {
	k.mu.Lock()
	if k.cause == CauseNone {
		k.cause = cause
	}
	k.mu.Unlock()
	k.cutOff()
}

func (k *socket) read() {
	defer close(k.readEnded)
	buffer := make([]byte, firstBuffer)
	for {
		_, reader, err := k.conn.Reader(k.ctx)
		if err != nil {
			k.fail(causeOf(err))
			return
		}
		n := 0
		for err == nil {
			if n == len(buffer) {
				buffer = append(buffer, make([]byte, len(buffer))...)
			}
			var m int
			m, err = reader.Read(buffer[n:])
			n += m
		}
		if !errors.Is(err, io.EOF) {
			k.fail(causeOf(err))
			return
		}
		k.lastFrame.Store(time.Now().UnixNano())
		k.run.frame(buffer[:n])
		if len(buffer) > keptBuffer {
			buffer = make([]byte, firstBuffer)
		}
	}
}

// causeOf tells what a read error means.
func causeOf(err error) Cause {
	switch status := websocket.CloseStatus(err); {
	case status == websocket.StatusPolicyViolation:
		return CauseSlow
	case status != -1:
		return CauseClosed
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return CauseEOF
	}
	return CauseError
}

// send queues a message to be written.
func (k *socket) send(message []byte) {
	k.mu.Lock()
	k.outbox = append(k.outbox, message)
	k.queued += len(message)
	full := k.queued > maxOutbox
	k.mu.Unlock()
	if full {
		k.fail(CauseTimeout)
	}
	select {
	case k.filled <- struct{}{}:
	default:
	}
}

func (k *socket) write() {
	for {
		select {
		case <-k.ctx.Done():
			return
		case <-k.filled:
		}
		k.mu.Lock()
		messages := k.outbox
		k.outbox, k.queued = nil, 0
		k.mu.Unlock()
		for _, message := range messages {
			ctx, cancel := context.WithTimeout(k.ctx, k.run.upstream.times.write)
			err := k.conn.Write(ctx, websocket.MessageText, message)
			timedOut := ctx.Err() != nil
			cancel()
			if err != nil {
				if timedOut {
					k.fail(CauseTimeout)
				}
				return // the reader sees the end, and why
			}
		}
	}
}

// ping asks for a sign of life; a frame is one as good as a pong, for the vendor
// has been seen to leave pongs out while busy.
func (k *socket) ping() {
	times := &k.run.upstream.times
	ticker := time.NewTicker(times.pingEvery)
	defer ticker.Stop()
	for {
		select {
		case <-k.ctx.Done():
			return
		case <-ticker.C:
		}
		sent := time.Now()
		ctx, cancel := context.WithTimeout(k.ctx, times.pingWait)
		err := k.conn.Ping(ctx)
		cancel()
		switch {
		case err == nil:
			k.run.input(k.run.session.Alive)
		case k.ctx.Err() != nil:
			return
		case k.lastFrame.Load() > sent.UnixNano():
		default:
			k.fail(CauseTimeout)
			return
		}
	}
}

// hangUp sends a close frame, waits for the vendor's close frame and for its end
// of the connection, cuts the connection off if they do not come in time, and
// waits for the goroutines. It returns why the connection ended, as far as the
// socket knows.
func (k *socket) hangUp() Cause {
	// Errors mean that the connection has ended already: the aim in any case.
	select {
	case <-k.readEnded:
	default:
		patience := k.run.upstream.times.hangUp
		k.run.lingerUntil.Store(time.Now().Add(patience).UnixNano())
		late := time.AfterFunc(patience, func() {
			k.cutOff()
			_ = k.run.conn.Load().halfCloser.Close() // what the library waits for by itself ends with it
		})
		_ = k.conn.Close(websocket.StatusNormalClosure, "")
		late.Stop()
	}
	k.cutOff()
	_ = k.conn.CloseNow()
	k.done.Wait()
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.cause
}

// halfCloser is a connection whose own side can be closed alone, as one of TCP.
type halfCloser interface {
	net.Conn
	CloseWrite() error
}

// lingering is a TCP connection whose Close waits for the end of the other side,
// so that what counts connections there has seen this one go.
type lingering struct {
	halfCloser

	until *atomic.Int64 // unix nanoseconds; Close waits no longer
}

// Close implements net.Conn.
func (c *lingering) Close() error {
	until := time.Unix(0, c.until.Load())
	if time.Now().Before(until) && c.CloseWrite() == nil && c.SetReadDeadline(until) == nil {
		_, _ = io.Copy(io.Discard, c.halfCloser) // no end in time is an end, too
	}
	return c.halfCloser.Close()
}
