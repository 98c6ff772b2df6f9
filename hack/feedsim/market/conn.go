package market

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/gobwas/ws"
	"github.com/gobwas/ws/wsutil"

	"github.com/cutemarkets/relay/hack/feedsim/session"
	"github.com/cutemarkets/relay/hack/feedsim/source"
)

const (
	// maxMessage bounds an inbound message: about 40,000 topics.
	maxMessage = 1 << 20

	// closeWait is how long the last frames may take to leave, and the client
	// to close in turn.
	closeWait = 2 * time.Second

	// rejectWait is how long a connection over the limit may wait with its first
	// subscribe: the vendor's refusal comes after the acknowledgements.
	rejectWait = time.Second

	// maxPongs bounds the pongs waiting to be written, in bytes. RFC 6455 section
	// 5.5.3 allows to answer only the latest pings.
	maxPongs = 4 << 10
)

// conn is one WebSocket of a client. Two goroutines serve it: run reads, write
// writes. Events come from the market's own goroutine.
type conn struct {
	// Static after construction.
	market *Market
	net    net.Conn
	in     io.Reader // net, after what came with the handshake

	// Owned by run; not thread-safe.
	session  *session.Session
	rejected bool // over the limit, and to be told so

	// Guarded by market.mu.
	topics     topics
	pending    []byte           // the array of events of this tick, without its last bracket
	subscribed bool             // to anything, ever
	carries    bool             // gets events; the ground truth has it so
	held       []session.Answer // to be sent as one
	heldUntil  time.Time
	left       bool      // run has ended
	lost       bool      // ended, and noticed by the market
	ghostUntil time.Time // lost, but counted against the limit

	written chan struct{} // closed when write has returned

	mu      sync.Mutex
	wake    sync.Cond    // on mu: something to write, or ending
	out     bytes.Buffer // frames to write; its bound is Config.Buffer
	pongs   bytes.Buffer // written before out
	writing int          // bytes of out that write has taken and not finished
	ending  bool         // nothing more is accepted; the reason is counted
}

func newConn(m *Market, nc net.Conn, in io.Reader) *conn {
	c := &conn{
		market:  m,
		net:     nc,
		in:      in,
		session: session.New(m.cfg.Rules),
		written: make(chan struct{}),
	}
	c.wake.L = &c.mu
	return c
}

// run serves the connection until it has ended.
func (c *conn) run() {
	defer c.net.Close()
	go c.write()
	e := c.read()
	c.market.leave(c)
	c.end(e)
	<-c.written
	// The client reads what is on its way to it only if we do not reset the
	// connection, which closing with unread input would do. end set a deadline.
	_, _ = io.Copy(io.Discard, c.in)
}

// read handles the client's frames until the connection is to end.
func (c *conn) read() ending {
	c.setReadDeadline(time.Now().Add(c.market.cfg.AuthTimeout))
	c.send([]byte(session.Connected))
	r := wsutil.Reader{
		Source:         c.in,
		State:          ws.StateServerSide,
		CheckUTF8:      true,
		MaxFrameSize:   maxMessage,
		MaxMessageSize: maxMessage,
		OnIntermediate: c.control,
	}
	for {
		h, err := r.NextFrame()
		if err != nil {
			return c.readEnding(err)
		}
		if h.OpCode.IsControl() {
			if err := c.control(h, &r); err != nil {
				return c.readEnding(err)
			}
			continue
		}
		message, err := io.ReadAll(&r)
		if err != nil {
			return c.readEnding(err)
		}
		if e, over := c.handle(message); over {
			return e
		}
	}
}

// closeReceived is the client's close frame, as an error.
type closeReceived struct{ code ws.StatusCode }

func (closeReceived) Error() string { return "market: close frame received" }

func (c *conn) control(h ws.Header, r io.Reader) error {
	payload := make([]byte, h.Length)
	if _, err := io.ReadFull(r, payload); err != nil {
		return err
	}
	switch h.OpCode {
	case ws.OpPing:
		c.pong(payload)
	case ws.OpClose:
		code, reason := ws.ParseCloseFrameData(payload)
		if code.Empty() {
			return closeReceived{ws.StatusNormalClosure}
		}
		if err := ws.CheckCloseFrameData(code, reason); err != nil {
			return err
		}
		return closeReceived{code}
	}
	return nil
}

func (c *conn) readEnding(err error) ending {
	var closed closeReceived
	var protocol ws.ProtocolError
	switch {
	case errors.As(err, &closed):
		return ending{reason: Gone, code: closed.code}
	case errors.Is(err, os.ErrDeadlineExceeded) && c.rejected:
		return kick(Rejected)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return ending{reason: NoKey, frames: [][]byte{[]byte(session.AuthTimeout)}}
	case errors.Is(err, wsutil.ErrFrameTooLarge), errors.Is(err, wsutil.ErrMessageTooLarge):
		return ending{reason: BadFrame, code: ws.StatusMessageTooBig}
	case errors.Is(err, wsutil.ErrInvalidUTF8):
		return ending{reason: BadFrame, code: ws.StatusInvalidFramePayloadData}
	case errors.As(err, &protocol):
		return ending{reason: BadFrame, code: ws.StatusProtocolError}
	default:
		return ending{reason: Gone, abort: true}
	}
}

// handle answers one message; over says that the connection ends with it.
func (c *conn) handle(message []byte) (e ending, over bool) {
	a := c.session.Handle(message)
	switch a.Change {
	case session.AuthFailed:
		return ending{reason: BadKey, frames: [][]byte{[]byte(a.Frame)}}, true
	case session.Subscribe, session.Unsubscribe:
		if c.rejected {
			e = kick(Rejected)
			e.frames = append(session.Frames(a.Objects), e.frames...)
			return e, true
		}
		c.market.change(c, a)
	case session.Authenticated:
		c.send([]byte(a.Frame))
		c.setReadDeadline(time.Time{})
		if !c.market.admit(c) {
			c.rejected = true
			c.setReadDeadline(time.Now().Add(rejectWait))
		}
	default:
		if a.Frame != "" {
			c.send([]byte(a.Frame))
		}
	}
	return ending{}, false
}

// deliver sends what the client subscribed to of some events, as one array
// unless it grows beyond a frame. The last frame is spoilt if broken is not nil.
// The caller holds market.mu.
func (c *conn) deliver(events []source.Event, b *broken, now time.Time) (sent int) {
	for i := range events {
		e := &events[i]
		if !c.topics.has(e) {
			continue
		}
		if len(c.pending) > 0 && len(c.pending)+len(e.Data)+2 > session.MaxFrame {
			c.flush(nil, now)
		}
		if len(c.pending) == 0 {
			c.pending = append(c.pending, '[')
		} else {
			c.pending = append(c.pending, ',')
		}
		c.pending = append(c.pending, e.Data...)
		sent++
	}
	if sent > 0 {
		c.flush(b, now)
	}
	return sent
}

func (c *conn) flush(b *broken, now time.Time) {
	c.pending = append(c.pending, ']')
	frame := c.pending
	c.pending = c.pending[:0]
	if record := c.market.cfg.Record; record != nil {
		record.Frame(c.market.name, now, frame)
	}
	if b == nil {
		c.send(frame)
		return
	}
	c.sendAll(b.spoil(frame))
}

func (c *conn) sendAll(frames [][]byte) {
	for _, f := range frames {
		c.send(f)
	}
}

// send queues one text frame. A client that lets the queue run full is ended:
// what is queued is thrown away, and it gets close 1008 without a reason.
func (c *conn) send(payload []byte) {
	c.mu.Lock()
	if c.ending {
		c.mu.Unlock()
		return
	}
	if c.out.Len()+c.writing+len(payload) > c.market.cfg.Buffer {
		c.mu.Unlock()
		c.end(slow())
		return
	}
	appendFrame(&c.out, ws.NewTextFrame(payload))
	c.wake.Signal()
	c.mu.Unlock()
}

func (c *conn) pong(payload []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.ending && c.pongs.Len() < maxPongs {
		appendFrame(&c.pongs, ws.NewPongFrame(payload))
		c.wake.Signal()
	}
}

// end starts the end of the connection. Only the first call counts.
func (c *conn) end(e ending) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ending {
		return
	}
	c.ending = true
	c.market.countEnd(e.reason)
	if e.abort || e.lossy {
		c.out.Reset()
	}
	if e.abort {
		if tcp, ok := c.net.(interface{ SetLinger(sec int) error }); ok {
			_ = tcp.SetLinger(0)
		}
		_ = c.net.Close()
	} else {
		e.appendTo(&c.out)
		_ = c.net.SetDeadline(time.Now().Add(closeWait))
	}
	c.wake.Signal()
}

func (c *conn) ended() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ending
}

// queued is the number of bytes that wait for the client.
func (c *conn) queued() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ending {
		return 0
	}
	return c.out.Len() + c.writing
}

// setReadDeadline leaves the deadline alone that end has set.
func (c *conn) setReadDeadline(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.ending {
		_ = c.net.SetReadDeadline(t)
	}
}

// write writes whole frames, pongs first, until the connection has ended.
func (c *conn) write() {
	defer close(c.written)
	var out, pongs bytes.Buffer
	for {
		c.mu.Lock()
		c.writing = 0
		for c.out.Len()+c.pongs.Len() == 0 && !c.ending {
			c.wake.Wait()
		}
		out, c.out = c.out, out
		pongs, c.pongs = c.pongs, pongs
		c.writing = out.Len()
		c.mu.Unlock()

		if out.Len()+pongs.Len() == 0 {
			c.closeWrite()
			return
		}
		if _, err := (&net.Buffers{pongs.Bytes(), out.Bytes()}).WriteTo(c.net); err != nil {
			// The read side is told by the closed connection.
			_ = c.net.Close()
			return
		}
		out.Reset()
		pongs.Reset()
	}
}

// closeWrite ends our direction and leaves the client time to read.
func (c *conn) closeWrite() {
	if tcp, ok := c.net.(interface{ CloseWrite() error }); ok {
		_ = tcp.CloseWrite()
	}
}
