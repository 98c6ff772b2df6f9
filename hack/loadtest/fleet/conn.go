package fleet

import (
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"syscall"
	"time"

	"github.com/cutemarkets/relay/hack/loadtest/fleet/wire"
)

// maxOut bounds what waits to be sent on one connection, in bytes: a subscription
// of a thousand topics and some pongs. Pongs beyond are left out.
const maxOut = 128 << 10

// Conn is one connection.
type Conn struct {
	// Static after construction.
	tag int
	tls *secured // nil: none

	// Guarded by Fleet.mu.
	closing bool // Close was called

	// Owned by Fleet.Run; not thread-safe.
	fd         int32 // -1: none
	limit      int32 // bytes per second; 0: none; -1: nothing is read
	stage      Stage
	over       bool // Closed was called
	hangup     bool // the server sends nothing more: what is there is read at once
	reset      bool // a write found out; the read that follows sees only the end
	deflate    bool
	compressed bool // of message
	binary     bool // of message
	opening    *opening
	need       int     // bytes of the frame that partial is a part of; 0: not known
	partial    *buffer // a frame, or an answer to the upgrade, that came in part
	message    *buffer // the frames so far of a message in several
	out        *buffer // not taken by the kernel yet
}

// opening is what a connection needs until it is ready.
type opening struct {
	plan     *Plan
	times    Times
	refused  string // label of a status that says so
	answers  int    // topics not answered yet
	accepted int    // topics that were granted
}

// Tag is that of the plan.
func (c *Conn) Tag() int { return c.tag }

// limited says that the socket is not to be read when it can be.
func (c *Conn) limited() bool {
	return c.limit != 0 && c.stage == StageLive && !c.hangup && !c.over
}

func (o *opening) since() time.Duration { return time.Since(o.plan.Scheduled) }

// connected looks how the connection attempt ended; false: it has not, or badly.
func (f *Fleet) connected(c *Conn, r readiness) bool {
	if !r.writable && !r.hangup {
		return false
	}
	if err := connectError(int(c.fd)); err != nil {
		f.fail(c, err)
		return false
	}
	f.upgrade(c)
	return true
}

// upgrade sends the request on a connection that stands.
func (f *Fleet) upgrade(c *Conn) {
	o := c.opening
	o.times.Connected = o.since()
	c.stage = StageUpgrade
	bearer := o.plan.Key
	if o.plan.InQuery {
		bearer = ""
	}
	f.frame = wire.AppendRequest(f.frame[:0], o.plan.Target.host, o.plan.Target.requestPath(o.plan.Key, o.plan.InQuery), bearer, o.plan.Deflate)
	f.write(c, f.frame)
}

// read reads once, at most so many bytes.
func (f *Fleet) read(c *Conn, most int) {
	n, err := readSocket(int(c.fd), f.buf[f.headroom:f.headroom+most])
	switch {
	case err != nil && errors.Is(err, errAgain):
		return
	case err != nil:
		f.fail(c, err)
		return
	case n == 0:
		f.fail(c, io.EOF)
		return
	}
	f.received = time.Now().UnixNano()
	f.counts.Reads++
	if !c.over {
		f.take(c, n)
	}
	if (n == readSize || c.hangup) && c.fd >= 0 {
		f.again = append(f.again, c)
	}
}

// take parses n bytes that lie in the buffer behind the headroom, together with
// what came before.
func (f *Fleet) take(c *Conn, n int) {
	f.counts.Bytes += uint64(n)
	data := f.buf[f.headroom : f.headroom+n]
	if c.partial != nil {
		before := c.partial.data
		if len(before)+n < c.need {
			c.partial = f.pool.add(c.partial, data)
			return
		}
		start := f.headroom - len(before)
		copy(f.buf[start:], before)
		data = f.buf[start : f.headroom+n]
		f.pool.release(c.partial)
		c.partial = nil
	}
	for len(data) > 0 && !c.over {
		var used int
		if c.stage == StageUpgrade {
			used = f.answer(c, data)
		} else {
			used = f.oneFrame(c, data)
		}
		if used == 0 {
			c.partial = f.pool.add(nil, data)
			return
		}
		data = data[used:]
	}
}

// answer takes the answer to the upgrade; it returns 0 while bytes are missing.
func (f *Fleet) answer(c *Conn, data []byte) (used int) {
	o := c.opening
	a, ok, fault := wire.ParseAnswer(data, o.plan.Deflate)
	switch {
	case fault != "":
		f.misframed(c, fault, data)
		f.end(c, End{Stage: c.stage, HTTP: a.Code, Reason: ReasonMisframed, By: ByUs}, false)
		return len(data)
	case !ok:
		c.need = 0
		return 0
	case a.Code != 101:
		f.end(c, End{Stage: c.stage, HTTP: a.Code, RetryAfter: a.RetryAfter, Reason: httpReason(a.Code), By: ByServer}, false)
		return len(data)
	}
	o.times.Upgraded = o.since()
	c.stage, c.deflate = StageAuth, a.Deflate
	return a.Size
}

// oneFrame takes one frame; it returns 0 while bytes of it are missing.
func (f *Fleet) oneFrame(c *Conn, data []byte) (used int) {
	h, ok, fault := wire.ParseHeader(data, c.deflate)
	collected := 0
	if c.message != nil {
		collected = len(c.message.data)
	}
	switch {
	case fault != "":
	case !ok:
		c.need = 0
		return 0
	case h.Length > f.options.MaxMessage-collected && !h.Control():
		fault = wire.MessageTooBig
	case !h.Control() && (h.Opcode == wire.OpContinuation) != (c.message != nil):
		fault = wire.FrameContinuation
	}
	if fault != "" {
		f.broken(c, fault, data)
		return len(data)
	}
	used = h.Size + h.Length
	if len(data) < used {
		c.need = used
		return 0
	}
	payload := data[h.Size:used:used]
	switch h.Opcode {
	case wire.OpPing:
		f.send(c, wire.OpPong, payload)
	case wire.OpPong:
	case wire.OpClose:
		f.closeByServer(c, payload)
	default:
		f.counts.Frames++
		f.data(c, h, payload)
	}
	return used
}

// data takes a data frame.
func (f *Fleet) data(c *Conn, h wire.Header, payload []byte) {
	if h.Opcode != wire.OpContinuation {
		c.compressed, c.binary = h.Compressed, h.Opcode == wire.OpBinary
		if h.Final {
			f.whole(c, payload)
			return
		}
	}
	c.message = f.pool.add(c.message, payload)
	if !h.Final {
		return
	}
	message := c.message
	c.message = nil
	f.whole(c, message.data)
	f.pool.release(message)
}

// whole takes a whole message.
func (f *Fleet) whole(c *Conn, message []byte) {
	if c.binary {
		f.misframed(c, wire.Binary, message)
		return
	}
	if c.compressed {
		inflated, fault := f.inflater.Inflate(message, f.options.MaxMessage)
		if fault != "" {
			f.broken(c, fault, message)
			return
		}
		message = inflated
	}
	for array := wire.Split(message); ; {
		object, ok := array.Next()
		switch {
		case !ok:
			if fault := array.Fault(); fault != "" {
				f.misframed(c, fault, message)
			}
			return
		case wire.IsStatus(object):
			if f.status(c, object); c.over {
				return
			}
		case c.stage < StageSubscribe:
			f.misframed(c, wire.Early, object)
		default:
			f.counts.Events++
			f.handler.Event(c, object, f.received)
		}
	}
}

// The acknowledgements of a relay; the topic follows.
const (
	subscribedTo    = "subscribed to: "
	cannotSubscribe = "cannot subscribe to: "
)

func (f *Fleet) status(c *Conn, object []byte) {
	status, message, ok := wire.ParseStatus(object)
	if !ok {
		f.misframed(c, wire.NotStatus, object)
		return
	}
	switch {
	case c.stage == StageAuth && string(status) == "auth_success":
		f.authenticated(c)
	case c.stage == StageAuth:
		if reason := statusReason(status, message); reason != "" {
			c.opening.refused = reason
		}
	case string(status) == "success" && strings.HasPrefix(string(message), subscribedTo):
		f.answered(c, true)
	default:
		f.handler.Status(c, string(status), string(message), object)
		if c.stage == StageSubscribe && string(status) == "error" && strings.HasPrefix(string(message), cannotSubscribe) {
			f.answered(c, false)
		}
	}
}

func (f *Fleet) authenticated(c *Conn) {
	o := c.opening
	o.times.Authenticated = o.since()
	c.stage = StageSubscribe
	if o.answers = topics(o.plan.Topics); o.answers == 0 {
		f.live(c)
		return
	}
	f.send(c, wire.OpText, subscription(o.plan.Topics))
}

// subscription is the message that subscribes to a list of topics.
func subscription(topics string) []byte {
	const head, tail = `{"action":"subscribe","params":"`, `"}`
	message := make([]byte, 0, len(head)+len(topics)+len(tail))
	message = append(message, head...)
	for i := range len(topics) {
		if topics[i] == '"' || topics[i] == '\\' {
			message = append(message, '\\')
		}
		message = append(message, topics[i])
	}
	return append(message, tail...)
}

// answered counts the answer to a topic.
func (f *Fleet) answered(c *Conn, granted bool) {
	o := c.opening
	if o == nil || o.answers == 0 {
		return
	}
	o.answers--
	if granted {
		o.accepted++
	}
	switch {
	case o.answers > 0:
	case o.accepted == 0:
		f.closeByUs(c, 1000, ReasonNoTopic)
	default:
		o.times.Subscribed = o.since()
		f.live(c)
	}
}

func (f *Fleet) live(c *Conn) {
	o := c.opening
	c.stage, c.opening = StageLive, nil
	f.counts.Opening--
	f.counts.Open++
	f.counts.Ready++
	if c.limit > 0 {
		f.slow = append(f.slow, c)
	}
	f.handler.Ready(c, o.times)
}

func (f *Fleet) misframed(c *Conn, fault wire.Fault, raw []byte) {
	f.counts.Misframed++
	f.handler.Misframed(c, fault, raw)
}

// broken ends a connection whose stream cannot be trusted any more.
func (f *Fleet) broken(c *Conn, fault wire.Fault, raw []byte) {
	f.misframed(c, fault, raw)
	f.closeByUs(c, 1002, ReasonMisframed)
}

// closeByUs sends a close frame, or resets the connection for code 0. Before the
// upgrade TCP just ends.
func (f *Fleet) closeByUs(c *Conn, code int, reason string) {
	if c.over {
		return
	}
	upgraded := c.stage >= StageAuth
	if upgraded && code != 0 {
		f.send(c, wire.OpClose, binary.BigEndian.AppendUint16(nil, uint16(code)))
	} else if code == 0 && c.fd >= 0 {
		f.sockets[c.fd] = nil
		abortSocket(int(c.fd))
		c.fd = -1
	}
	f.end(c, End{Stage: c.stage, Code: code, Reason: reason, By: ByUs}, upgraded && code != 0)
}

// closeByServer answers a close frame.
func (f *Fleet) closeByServer(c *Conn, payload []byte) {
	code, text, fault := wire.ParseClose(payload)
	if fault != "" {
		f.broken(c, fault, payload)
		return
	}
	if code == 0 {
		payload = nil
	} else {
		payload = payload[:2]
	}
	f.send(c, wire.OpClose, payload)
	reason := closeReason(code, text)
	if o := c.opening; o != nil && o.refused != "" && closeTexts[string(text)] == "" {
		reason = o.refused
	}
	f.end(c, End{Stage: c.stage, Code: code, Reason: reason, By: ByServer}, true)
}

// fail ends a connection that an error ended.
func (f *Fleet) fail(c *Conn, err error) {
	if c.reset {
		err = syscall.ECONNRESET
	}
	e := errorEnd(err)
	e.Stage = c.stage
	if o := c.opening; o != nil && o.refused != "" {
		e.Reason, e.By = o.refused, ByServer
	}
	f.end(c, e, false)
	f.free(c)
}

// end tells that a connection has ended, once. With linger, TCP is left to the
// server for a while.
func (f *Fleet) end(c *Conn, e End, linger bool) {
	if c.over {
		return
	}
	c.over = true
	f.counts.Closed++
	if c.opening != nil {
		f.counts.Opening--
		c.opening = nil
	} else {
		f.counts.Open--
	}
	f.handler.Closed(c, e)
	f.pool.release(c.message)
	c.message = nil
	if linger && c.tls == nil {
		f.lingering.push(c, f.now+closeWait)
		// A slow reader has not been read to the end.
		f.again = append(f.again, c)
		return
	}
	f.free(c)
}

// free gives up what a connection that is over holds. Done twice it does
// nothing.
func (f *Fleet) free(c *Conn) {
	if c.fd >= 0 {
		f.sockets[c.fd] = nil
		closeSocket(int(c.fd))
		c.fd = -1
	}
	if c.tls != nil {
		delete(f.secured, c)
		c.tls.finish()
	}
	f.pool.release(c.partial)
	f.pool.release(c.out)
	c.partial, c.out = nil, nil
}

// send sends a frame.
func (f *Fleet) send(c *Conn, opcode byte, payload []byte) {
	f.frame = wire.AppendFrame(f.frame[:0], opcode, payload, rand.Uint32())
	f.write(c, f.frame)
}

// write sends bytes, behind those that wait. An error shows when the socket is
// read.
func (f *Fleet) write(c *Conn, data []byte) {
	if c.tls != nil {
		c.tls.write(data)
		return
	}
	if c.out == nil {
		n, err := writeSocket(int(c.fd), data)
		if err != nil && !errors.Is(err, errAgain) {
			c.reset = c.reset || errors.Is(err, syscall.ECONNRESET)
			return
		}
		data = data[max(n, 0):]
	}
	if len(data) > 0 && (c.out == nil || len(c.out.data)+len(data) <= maxOut) {
		c.out = f.pool.add(c.out, data)
	}
}

// flush sends what waits.
func (f *Fleet) flush(c *Conn) {
	n, err := writeSocket(int(c.fd), c.out.data)
	if err != nil && errors.Is(err, errAgain) {
		return
	}
	if err != nil || n == len(c.out.data) {
		f.pool.release(c.out)
		c.out = nil
		return
	}
	c.out.data = c.out.data[:copy(c.out.data, c.out.data[n:])]
}
