package engine

import (
	"errors"
	"net"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cutemarkets/relay/services/edge/internal/dialect"
	"github.com/cutemarkets/relay/services/edge/internal/frame"
)

const (
	// readPieces is how much of one client is read in a row, in read buffers,
	// before others get their turn.
	readPieces = 4
	// maxLooks is how often a round asks the poller before it goes on.
	maxLooks = 4
	// lastBuffer is what the kernel may take, whatever the client takes, once a
	// connection closes: the client is to find its last words when it reads on.
	lastBuffer = 1 << 20
)

// socket is the transport of an event loop: a raw file descriptor, without a
// goroutine, and without a buffer while nothing waits in either direction. It is
// the connection itself, seen as what carries it, as two values would cost more.
type socket connection

// detach takes a socket from the runtime: it returns a descriptor of our own,
// and closes conn, which does not end the connection.
func detach(conn *net.TCPConn) (fd int, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	failure := raw.Control(func(theirs uintptr) {
		fd, err = unix.FcntlInt(theirs, unix.F_DUPFD_CLOEXEC, 0)
	})
	if err := errors.Join(failure, err); err != nil {
		return 0, err
	}
	_ = conn.Close() // ours stays
	return fd, nil
}

func (t *socket) connection() *connection { return (*connection)(t) }

// start begins to carry, first what the client has sent already.
func (t *socket) start(early []byte) {
	if len(early) > 0 {
		t.connection().keep().in = &inbound{early: early}
	}
	if t.shard.poller.add(int(t.fd), t.ref) != nil { // the system's limit of watches, or of memory
		_ = unix.Shutdown(int(t.fd), unix.SHUT_RDWR) // the read finds the end
	}
	t.direct()
	t.shard.readLater(t.ref)
}

// direct says whether the shard may write to the socket without asking.
func (t *socket) direct() {
	fd := int32(-1)
	if t.out == nil && !t.closed && !t.broken {
		fd = t.fd
	}
	t.shard.slots[t.ref.slot].fd = fd
}

// send implements transport.
func (t *socket) send(frames []byte) {
	switch {
	case len(frames) == 0:
	case t.broken || t.fd < 0:
		t.shard.counts.discarded += uint64(len(frames))
	case t.out != nil:
		t.queue(frames, 0)
	default:
		n := t.write(frames)
		t.sent(frames, n)
	}
}

// sent follows a write to a socket with nothing queued.
func (t *socket) sent(frames []byte, n int) {
	switch {
	case t.broken:
		t.shard.counts.discarded += uint64(len(frames) - n)
	case n < len(frames):
		t.queue(frames, n)
	}
}

// queue keeps frames of which the kernel has taken so many bytes.
func (t *socket) queue(frames []byte, taken int) {
	t.waiting().add(frames, taken, t.shard.now)
	t.shard.counts.queued += int64(len(frames) - taken)
}

// waiting returns the backlog, and makes one if there is none.
func (t *socket) waiting() *backlog {
	if t.out == nil {
		t.out = new(backlog)
		t.direct()
	}
	return t.out
}

// write writes what the kernel takes at once.
func (t *socket) write(data []byte) int {
	n, errno := writeNow(t.fd, data)
	t.shard.counts.writes++
	t.shard.counts.sentBytes += uint64(n)
	if errno != 0 && errno != unix.EAGAIN {
		t.fail()
	}
	return n
}

// fail notes that nothing can be written any more. Reading tells the session.
func (t *socket) fail() {
	t.broken = true
	t.giveUp()
	t.direct()
	t.shard.readLater(t.ref)
}

// giveUp drops all that waits to be written.
func (t *socket) giveUp() {
	if t.out != nil {
		t.unqueue(t.out.size)
		t.shard.counts.discarded += uint64(t.out.size)
		t.out.release()
		t.out = nil
	}
}

func (t *socket) unqueue(bytes int) { t.shard.counts.queued -= int64(bytes) }

// hasten implements transport.
func (t *socket) hasten(frames []byte) {
	switch {
	case t.broken || t.closed:
	case t.out != nil:
		t.out.hasten(frames)
	default:
		if n := t.write(frames); n < len(frames) && !t.broken {
			t.queue(frames, n)
		}
	}
}

// pong implements transport.
func (t *socket) pong(payload []byte) {
	if t.out != nil {
		t.out.answer(payload)
		return
	}
	t.shard.small = frame.AppendPong(t.shard.small[:0], payload)
	t.hasten(t.shard.small)
}

// discard implements transport.
func (t *socket) discard() {
	if t.out == nil {
		return
	}
	dropped := t.out.discard()
	t.unqueue(dropped)
	t.shard.counts.discarded += uint64(dropped)
	t.settle()
}

// backlog implements transport.
func (t *socket) backlog() (int, time.Time) {
	if t.out == nil {
		return 0, time.Time{}
	}
	return t.out.held(), t.out.since()
}

// stirred implements transport.
func (t *socket) stirred() bool {
	stir := t.stir
	t.stir = false
	return stir
}

// close implements transport.
func (t *socket) close(final []byte) {
	t.heard = t.shard.clock() + int64(closeWait)
	if t.out != nil {
		_ = unix.SetsockoptInt(int(t.fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, lastBuffer)
		if size, err := unix.GetsockoptInt(int(t.fd), unix.SOL_SOCKET, unix.SO_SNDBUF); err == nil && size < lastBuffer {
			_ = unix.SetsockoptInt(int(t.fd), unix.SOL_SOCKET, unix.SO_SNDBUF, lastBuffer)
		}
	}
	t.send(final)
	t.forget()
	t.deaf = true
	t.direct()
	t.drain()
}

// drain writes what waits, as far as the kernel takes it.
func (t *socket) drain() {
	for t.out != nil {
		piece := t.out.next()
		if len(piece) == 0 {
			break
		}
		before, stuck := t.out.size, t.out.stuck(t.shard.now)
		n := t.write(piece)
		t.stir = t.stir || stuck && n > 0
		if t.out == nil {
			return
		}
		t.out.took(n)
		t.unqueue(before - t.out.size)
		if n < len(piece) {
			return
		}
	}
	t.settle()
}

// settle ends the backlog when nothing waits, and our side of a connection that
// closes.
func (t *socket) settle() {
	if t.out != nil && t.out.empty() {
		t.out.release()
		t.out = nil
		t.direct()
	}
	switch {
	case !t.closed || t.fd < 0 || t.shut:
	case t.broken:
		t.cut()
	case t.out == nil:
		t.shut = true
		t.heard = t.shard.clock() + int64(lingerWait)
		if t.ended || unix.Shutdown(int(t.fd), unix.SHUT_WR) != nil {
			t.cut()
		}
	}
}

// cut closes the socket.
func (t *socket) cut() {
	t.giveUp()
	_ = unix.Close(int(t.fd)) // nothing can be done about it
	t.fd = -1
	t.direct()
	t.shard.closed(t.ref.slot)
}

// deadline implements transport.
func (t *socket) deadline() time.Time {
	switch {
	case t.fd < 0:
	case t.closed:
		return t.shard.started.Add(time.Duration(t.heard))
	case t.aside != nil && t.aside.in != nil:
		return t.shard.started.Add(time.Duration(t.aside.in.until))
	}
	return time.Time{}
}

// expire implements transport.
func (t *socket) expire(c *connection) {
	if t.closed {
		t.cut()
		return
	}
	t.forget()
	t.deaf = true
	c.session.End(t.shard.now, dialect.MessageTimeout)
}

// ready follows what the poller tells.
func (t *socket) ready(c *connection, events uint32) {
	if events&unix.EPOLLOUT != 0 && t.out != nil {
		t.drain()
		c.relieved()
	}
	if events&^uint32(unix.EPOLLOUT) != 0 {
		t.read(c, events&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0)
	}
}

// read takes what the client said. What comes after the end is dropped. A short
// read means that there is no more, except at the end of the client's side: no
// event will tell of that again.
func (t *socket) read(c *connection, last bool) {
	if in := c.meanwhile().in; in != nil && in.early != nil {
		t.forget()
		t.take(c, in.early)
	}
	for range readPieces {
		if t.fd < 0 {
			return
		}
		n, errno := readNow(t.fd, t.shard.input)
		switch {
		case errno == unix.EAGAIN:
			return
		case errno != 0 || n == 0:
			t.gone(c, errno)
			return
		}
		t.stir = true
		t.take(c, t.shard.input[:n])
		if n < len(t.shard.input) && !last {
			return
		}
		if t.deaf {
			break
		}
	}
	t.shard.readLater(c.ref)
}

// gone follows the end of the client's side.
func (t *socket) gone(c *connection, errno syscall.Errno) {
	t.ended = true
	if errno != 0 {
		t.fail()
	}
	switch {
	case !t.closed:
		c.session.Gone(t.shard.now)
	case t.shut || t.broken:
		t.cut()
	}
}

// take parses bytes of the client and hands over what they say.
func (t *socket) take(c *connection, in []byte) {
	if t.deaf {
		return
	}
	parser := &t.shard.parser
	if in := c.meanwhile().in; in != nil {
		parser = &in.parser
	} else {
		*parser = newParser(c.encoding().policy.MaxMessage, c.encoding().deflate)
	}
	for !t.deaf {
		event, rest, err := parser.Next(in)
		t.deaf = err != nil || event.Kind == frame.Close
		switch {
		case err != nil:
			c.session.End(t.shard.now, violation(err))
		case event.Kind == frame.None:
			t.keep(parser)
			return
		default:
			c.hears(event)
		}
		in = rest
	}
	t.forget()
}

// forget drops a message that has begun.
func (t *socket) forget() {
	if t.aside != nil {
		t.aside.in = nil
	}
}

// keep keeps a message that has begun until its rest comes.
func (t *socket) keep(parser *frame.Parser) {
	pending := parser.Pending()
	if pending == 0 {
		t.forget()
		return
	}
	kept := t.connection().keep()
	if kept.in == nil {
		kept.in = &inbound{parser: *parser}
	}
	if kept.in.pending != pending {
		kept.in.pending, kept.in.until = pending, t.shard.clock()+int64(messageWait)
	}
}

// deliverAll sends to every connection with pending events. Most often one event
// goes to many sockets with nothing queued: for these it makes the write without
// any call in between, because the processor has forgotten where to return to,
// and most else, when it comes back from the kernel.
func (s *shard) deliverAll() {
	var (
		encoding *encoding // of data
		event    int32     // in data, alone
		data     []byte
		n, bytes uint64 // writes that took all
	)
	for i := 0; i < len(s.pending); i++ {
		p := &s.pending[i]
		sl := &s.slots[p.slot]
		if sl.pending != int32(i+1) { // it was delivered ahead of a message
			continue
		}
		if len(p.events) > 0 || sl.fd < 0 || sl.encoding.deflate {
			s.attend(p.slot)
			continue
		}
		if p.first != event || sl.encoding != encoding {
			encoding, event = sl.encoding, p.first
			if data = s.single(encoding, event); len(data) == 0 {
				encoding = nil
				s.attend(p.slot)
				continue
			}
		}
		sl.pending = 0
		written, _, errno := syscall.RawSyscall(unix.SYS_WRITE, uintptr(sl.fd), uintptr(unsafe.Pointer(unsafe.SliceData(data))), uintptr(len(data))) //nolint:gosec // G103: data is used during the call only
		if int(written) == len(data) && errno == 0 {
			n++
			bytes += uint64(len(data))
			continue
		}
		s.counts.frames++
		s.counts.events++
		s.short(sl, data, int(written), errno)
		sl.connection.lookAfter()
	}
	s.counts.frames += n
	s.counts.events += n
	s.counts.writes += n
	s.counts.sentBytes += bytes
}

// written writes to a socket with nothing queued and reports whether all was
// taken; else the transport has the rest.
func (s *shard) written(sl *slot, frames []byte) bool {
	n, errno := writeNow(sl.fd, frames)
	if n == len(frames) {
		s.counts.writes++
		s.counts.sentBytes += uint64(n)
		return true
	}
	s.short(sl, frames, n, errno)
	return false
}

// short follows a write of which not all was taken.
func (s *shard) short(sl *slot, frames []byte, n int, errno syscall.Errno) {
	if errno != 0 {
		n = 0
	}
	s.counts.writes++
	s.counts.sentBytes += uint64(n)
	t := (*socket)(sl.connection)
	if errno != 0 && errno != unix.EAGAIN && errno != unix.EINTR {
		t.fail()
	}
	t.sent(frames, n)
}

// poll takes what the raw sockets have to tell.
func (s *shard) poll() {
	if s.poller == nil {
		return
	}
	unread := s.unread
	s.unread = nil
	for _, r := range unread {
		s.ready(r, unix.EPOLLIN|unix.EPOLLRDHUP) // what an event told may be forgotten
	}
	more := true
	for looks := 0; more && looks < maxLooks; looks++ {
		var events []unix.EpollEvent
		events, more = s.poller.take()
		for i := range events {
			s.ready(ref{events[i].Fd, uint32(events[i].Pad)}, events[i].Events)
		}
	}
	if more {
		s.clients.signal() // the others' turn first
	}
}

func (s *shard) ready(r ref, events uint32) {
	c := s.lookup(r)
	if c == nil {
		return
	}
	(*socket)(c).ready(c, events)
	c.settle()
}
