package engine

import (
	"errors"
	"net"
	"os"
	"sync"
	"time"

	"github.com/cutemarkets/relay/services/edge/internal/dialect"
	"github.com/cutemarkets/relay/services/edge/internal/frame"
	"github.com/cutemarkets/relay/services/internal/lifecycle"
)

const (
	// closeWait bounds what is still to be written once a connection closes, and
	// lingerWait how long the client's side is read after that: closing with
	// unread input would make the kernel reset the connection and drop the close
	// frame (RFC 9112 §9.6).
	closeWait  = time.Second
	lingerWait = 500 * time.Millisecond
	// writePiece is what a client under TLS has to take within the write timeout,
	// as TLS cannot go on after a write that timed out half-way. Without TLS any
	// byte will do.
	writePiece = 32 << 10
	// readBuffer is what a connection holds while it waits for its client.
	readBuffer = 512
)

// stream is the portable transport: a net.Conn with a goroutine that reads and
// one that writes. The queue is bounded in bytes; the shard decides what
// happens when it is full.
type stream struct {
	// Static after start.
	conn         net.Conn
	inbox        *inbox
	stats        *counters
	ref          ref
	limit        int // bytes queued
	writeTimeout time.Duration
	closes       chan struct{} // closed when closing begins
	readerDone   chan struct{}

	// Owned by the reader; not thread-safe.
	early   []byte
	parser  frame.Parser
	pending uint32 // of the parser, when the deadline was set

	// Guarded by mu.
	mu       sync.Mutex
	work     *sync.Cond
	queue    []*buffer
	queued   int // bytes of queue and of the write in flight
	wantPing bool
	wantPong bool
	pongBody []byte
	final    []byte // the close frame
	closing  bool
	timeUp   *time.Timer // since closing: cuts the connection
	broken   bool        // nothing can be written any more
}

func newStream(s *shard, conn net.Conn, early []byte, maxMessage int) *stream {
	t := &stream{
		conn:         conn,
		inbox:        s.clients,
		stats:        s.stats,
		limit:        s.engine.queueBytes,
		writeTimeout: s.engine.writeTimeout,
		closes:       make(chan struct{}),
		readerDone:   make(chan struct{}),
		early:        early,
		parser:       frame.NewParser(maxMessage),
	}
	t.work = sync.NewCond(&t.mu)
	return t
}

// start implements transport.
func (t *stream) start(r ref) {
	t.ref = r
	lifecycle.Go("engine reader", t.read)
	lifecycle.Go("engine writer", t.write)
}

// send implements transport. Behind a backlog frames are gathered in larger
// buffers, so that a slow client costs fewer, fuller writes, and little more
// memory than the bytes that count towards the limit.
func (t *stream) send(b *buffer) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := len(b.data)
	switch {
	case t.broken:
		t.stats.discarded.Add(uint64(n))
		b.release()
		return true
	case t.queued+n > t.limit:
		return false
	}
	t.queued += n
	t.stats.queued.Add(int64(n))
	if last := len(t.queue) - 1; last >= 0 {
		tail := t.queue[last]
		if len(tail.data)+n <= cap(tail.data) {
			tail.add(b)
			b.release()
			return true
		}
		t.queue[last] = tail.sealed()
		if n < largeBuffer/2 {
			roomy := getBuffer(largeBuffer)
			roomy.add(b)
			b.release()
			b = roomy
		}
	}
	t.queue = append(t.queue, b)
	t.work.Signal()
	return true
}

// ping implements transport.
func (t *stream) ping() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.wantPing = true
	t.work.Signal()
}

// pong implements transport.
func (t *stream) pong(payload []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.wantPong = true
	t.pongBody = append(t.pongBody[:0], payload...)
	t.work.Signal()
}

// discard implements transport.
func (t *stream) discard() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.discardLocked()
}

// discardLocked drops everything queued.
func (t *stream) discardLocked() {
	for _, b := range t.queue {
		t.stats.discarded.Add(uint64(len(b.data)))
		t.releaseLocked(b)
	}
	clear(t.queue)
	t.queue = t.queue[:0]
}

// discardEventsLocked drops the queued events, except those behind another
// message in one buffer.
func (t *stream) discardEventsLocked() {
	kept := t.queue[:0]
	for _, b := range t.queue {
		t.stats.discarded.Add(uint64(b.events))
		if b.events == len(b.data) {
			t.releaseLocked(b)
			continue
		}
		t.unqueueLocked(b.events)
		b.data = append(b.data[:0], b.data[b.events:]...)
		b.events = 0
		kept = append(kept, b)
	}
	clear(t.queue[len(kept):])
	t.queue = kept
}

func (t *stream) releaseLocked(b *buffer) {
	t.unqueueLocked(len(b.data))
	b.release()
}

func (t *stream) unqueueLocked(n int) {
	t.queued -= n
	t.stats.queued.Add(-int64(n))
}

// close implements transport.
func (t *stream) close(final []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.final = final
	t.closing = true
	t.discardEventsLocked()
	_ = t.conn.SetWriteDeadline(time.Now().Add(closeWait)) // a broken socket ends the write by itself
	t.timeUp = time.AfterFunc(closeWait+lingerWait, t.cut)
	close(t.closes)
	t.work.Signal()
}

// cut closes the socket under TLS: closing TLS first sends an alert and gives it
// 5 s, whatever deadline was set.
func (t *stream) cut() { _ = innermost(t.conn).Close() }

// read is the reader's goroutine: it hands over what the client says until the
// connection closes, and then drops what still comes.
func (t *stream) read() {
	defer close(t.readerDone)
	listening := t.hand(t.early)
	t.early = nil
	buf := make([]byte, readBuffer)
	for listening {
		n, err := t.conn.Read(buf)
		switch {
		case t.isClosing():
			listening = false
		case err != nil && n == 0:
			t.failed(err)
			listening = false
		default:
			listening = t.hand(buf[:n])
		}
	}
	<-t.closes
	for {
		if _, err := t.conn.Read(buf); err != nil {
			return
		}
	}
}

func (t *stream) isClosing() bool {
	select {
	case <-t.closes:
		return true
	default:
		return false
	}
}

// failed reports why reading ended.
func (t *stream) failed(err error) {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.inbox.post(input{kind: inputBroken, ref: t.ref, reason: dialect.MessageTimeout}, nil)
		return
	}
	t.inbox.post(input{kind: inputGone, ref: t.ref}, nil)
}

// hand parses bytes of the client and posts what they say. It reports false
// when nothing more of the client counts.
func (t *stream) hand(in []byte) bool {
	for {
		event, rest, err := t.parser.Next(in)
		if err != nil {
			reason := dialect.ProtocolError
			if violation := (*frame.Error)(nil); errors.As(err, &violation) {
				reason = violation.Reason
			}
			t.inbox.post(input{kind: inputBroken, ref: t.ref, reason: reason}, nil)
			return false
		}
		in = rest
		switch event.Kind {
		case frame.None:
			t.limitMessageTime()
			return true
		case frame.Text:
			t.inbox.post(input{kind: inputMessage, ref: t.ref}, event.Payload)
		case frame.Ping:
			t.inbox.post(input{kind: inputPing, ref: t.ref}, event.Payload)
		case frame.Pong:
			t.inbox.post(input{kind: inputPong, ref: t.ref}, nil)
		case frame.Close:
			t.inbox.post(input{kind: inputClosed, ref: t.ref, code: event.Code}, nil)
			return false
		}
	}
}

// limitMessageTime gives a message that has begun a time to end.
func (t *stream) limitMessageTime() {
	pending := t.parser.Pending()
	if pending == t.pending {
		return
	}
	t.pending = pending
	var deadline time.Time
	if pending != 0 {
		deadline = time.Now().Add(messageWait)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.closing {
		_ = t.conn.SetReadDeadline(deadline) // a broken socket ends the read by itself
	}
}

// write is the writer's goroutine. It lives until the connection has been
// closed and both directions have ended, and reports that last.
func (t *stream) write() {
	small := make([]byte, 0, 2+2*128)
	for {
		data, b, last := t.nextWrite(small[:0])
		if data != nil {
			t.wrote(b, t.push(data))
		}
		if last {
			break
		}
	}
	t.linger()
	<-t.readerDone
	_ = t.conn.Close() // nothing can be done about it, and nothing is lost
	t.mu.Lock()
	t.timeUp.Stop()
	t.discardLocked()
	t.mu.Unlock()
	t.inbox.force(input{kind: inputDone, ref: t.ref})
}

// nextWrite waits for something to write: control frames first, then the
// queue, then the close frame, which is the last one.
func (t *stream) nextWrite(small []byte) (data []byte, b *buffer, last bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for {
		switch {
		case t.closing && t.broken:
			return nil, nil, true
		case t.broken:
			t.wantPing, t.wantPong = false, false
			t.discardLocked()
		case t.wantPong || t.wantPing:
			if t.wantPong {
				small = frame.AppendPong(small, t.pongBody)
			}
			if t.wantPing {
				small = frame.AppendPing(small)
			}
			t.wantPong, t.wantPing = false, false
			return small, nil, false
		case len(t.queue) > 0:
			b = t.queue[0]
			copy(t.queue, t.queue[1:])
			t.queue[len(t.queue)-1] = nil
			t.queue = t.queue[:len(t.queue)-1]
			return b.data, b, false
		case t.closing:
			return t.final, nil, true
		}
		t.work.Wait()
	}
}

// push writes whole frames. The client has its time anew for each piece, and
// again when it took some of it: only one that takes nothing is broken off.
// Whether a client is too slow is for the bytes that wait to decide.
func (t *stream) push(data []byte) error {
	for len(data) > 0 {
		t.limitWrite()
		n, err := t.conn.Write(data[:min(len(data), writePiece)])
		t.stats.writes.Add(1)
		t.stats.sentBytes.Add(uint64(n))
		data = data[n:]
		if err != nil && (n == 0 || !errors.Is(err, os.ErrDeadlineExceeded)) {
			return err
		}
	}
	return nil
}

// limitWrite gives the next write its time; a connection that closes has one
// for all that is left.
func (t *stream) limitWrite() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.closing {
		_ = t.conn.SetWriteDeadline(time.Now().Add(t.writeTimeout)) // a broken socket ends the write by itself
	}
}

// wrote gives back what was written and reports the first failure.
func (t *stream) wrote(b *buffer, err error) {
	t.mu.Lock()
	if b != nil {
		t.releaseLocked(b)
	}
	report := err != nil && !t.broken && !t.closing
	t.broken = t.broken || err != nil
	t.mu.Unlock()
	switch {
	case report && errors.Is(err, os.ErrDeadlineExceeded):
		t.inbox.force(input{kind: inputBroken, ref: t.ref, reason: dialect.SlowConsumer})
	case report:
		t.inbox.force(input{kind: inputGone, ref: t.ref})
	}
}

// linger ends the server's direction and gives the client a moment to end its
// own.
func (t *stream) linger() {
	t.mu.Lock()
	broken := t.broken
	t.mu.Unlock()
	if half, ok := t.conn.(interface{ CloseWrite() error }); broken || !ok || half.CloseWrite() != nil {
		t.cut()
		return
	}
	_ = t.conn.SetReadDeadline(time.Now().Add(lingerWait)) // a broken socket ends the read by itself
}
