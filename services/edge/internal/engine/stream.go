package engine

import (
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cutemarkets/relay/services/edge/internal/dialect"
	"github.com/cutemarkets/relay/services/edge/internal/frame"
	"github.com/cutemarkets/relay/services/internal/lifecycle"
)

const (
	// writePiece is the most that is written to a connection at once, so that
	// control frames have their turn.
	writePiece = 32 << 10
	// readBuffer is what a connection holds while it waits for its client.
	readBuffer = 512
)

// stream is the portable transport: a net.Conn with a goroutine that reads and
// one that writes.
type stream struct {
	// Static after start.
	conn       net.Conn
	inbox      *inbox
	stats      *counters
	ref        ref
	closes     chan struct{} // closed when closing begins
	readerDone chan struct{}
	stir       atomic.Bool // for stirred

	// Owned by the reader; not thread-safe.
	early   []byte
	parser  frame.Parser
	pending uint32 // of the parser, when the deadline was set

	// Guarded by mu.
	mu      sync.Mutex
	work    *sync.Cond
	out     backlog
	watched bool // the shard is to be told when nothing waits
	closing bool
	timeUp  *time.Timer // since closing: cuts the connection
	broken  bool        // nothing can be written any more
}

func newStream(s *shard, conn net.Conn, early []byte, parser frame.Parser) *stream {
	t := &stream{
		conn:       conn,
		inbox:      s.clients,
		stats:      s.stats,
		closes:     make(chan struct{}),
		readerDone: make(chan struct{}),
		early:      early,
		parser:     parser,
	}
	t.work = sync.NewCond(&t.mu)
	return t
}

// start implements carrier.
func (t *stream) start(r ref) {
	t.ref = r
	lifecycle.Go("engine reader", t.read)
	lifecycle.Go("engine writer", t.write)
}

// abandon implements carrier.
func (t *stream) abandon() { t.cut() }

// send implements transport.
func (t *stream) send(frames []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.queueLocked(frames)
}

func (t *stream) queueLocked(frames []byte) {
	if t.broken {
		t.stats.discarded.Add(uint64(len(frames)))
		return
	}
	t.out.add(frames, 0, time.Now())
	t.stats.queued.Add(int64(len(frames)))
	t.work.Signal()
}

// hasten implements transport.
func (t *stream) hasten(frames []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.broken && !t.closing {
		t.out.hasten(frames)
		t.work.Signal()
	}
}

// pong implements transport.
func (t *stream) pong(payload []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.broken && !t.closing {
		t.out.answer(payload)
		t.work.Signal()
	}
}

// discard implements transport.
func (t *stream) discard() {
	t.mu.Lock()
	defer t.mu.Unlock()
	dropped := t.out.discard()
	t.stats.queued.Add(-int64(dropped))
	t.stats.discarded.Add(uint64(dropped))
}

// backlog implements transport.
func (t *stream) backlog() (int, time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.watched = !t.out.empty()
	return t.out.held(), t.out.since()
}

// stirred implements transport.
func (t *stream) stirred() bool { return t.stir.Swap(false) }

// close implements transport.
func (t *stream) close(final []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.queueLocked(final)
	t.closing = true
	_ = t.conn.SetWriteDeadline(time.Now().Add(closeWait)) // a broken socket ends the write by itself
	t.timeUp = time.AfterFunc(closeWait+lingerWait, t.cut)
	close(t.closes)
	t.work.Signal()
}

// deadline implements transport: the goroutines have their own.
func (*stream) deadline() time.Time { return time.Time{} }

// expire implements transport.
func (*stream) expire(*connection) {}

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
			t.stir.Store(true)
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
		switch {
		case err != nil:
			t.inbox.post(input{kind: inputBroken, ref: t.ref, reason: violation(err)}, nil)
			return false
		case event.Kind == frame.None:
			t.limitMessageTime()
			return true
		}
		t.inbox.post(input{kind: inputFrame, ref: t.ref, frame: event.Kind, code: event.Code, compressed: event.Compressed}, event.Payload)
		if event.Kind == frame.Close {
			return false
		}
		in = rest
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
	for piece := t.next(); piece != nil; piece = t.next() {
		n, err := t.conn.Write(piece)
		t.stats.writes.Add(1)
		t.stats.sentBytes.Add(uint64(n))
		t.wrote(n, err)
	}
	t.linger()
	<-t.readerDone
	_ = t.conn.Close() // nothing can be done about it, and nothing is lost
	t.mu.Lock()
	t.timeUp.Stop()
	t.mu.Unlock()
	t.inbox.force(input{kind: inputDone, ref: t.ref})
}

// next waits for something to write; nil: nothing more will come.
func (t *stream) next() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	for {
		if piece := t.out.next(); len(piece) > 0 {
			piece = piece[:min(len(piece), writePiece)]
			t.out.claim(len(piece))
			return piece
		}
		if t.closing {
			return nil
		}
		t.work.Wait()
	}
}

// wrote notes what was written, and reports the first failure and the end of
// what waited.
func (t *stream) wrote(n int, err error) {
	t.mu.Lock()
	if n > 0 && t.out.stuck(time.Now()) {
		t.stir.Store(true)
	}
	before := t.out.size
	t.out.took(n)
	t.stats.queued.Add(int64(t.out.size - before))
	report := err != nil && !t.broken && !t.closing
	if err != nil {
		t.broken = true
		t.stats.queued.Add(-int64(t.out.size))
		t.stats.discarded.Add(uint64(t.out.size))
		t.out.release()
	}
	relieved := t.watched && t.out.empty() && !t.closing
	t.watched = t.watched && !relieved
	t.mu.Unlock()
	switch {
	case report:
		t.inbox.force(input{kind: inputGone, ref: t.ref})
	case relieved:
		t.inbox.force(input{kind: inputRelieved, ref: t.ref})
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
