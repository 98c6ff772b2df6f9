package engine

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/cutemarkets/relay/services/edge/internal/dialect"
	"github.com/cutemarkets/relay/services/edge/internal/frame"
	"github.com/cutemarkets/relay/services/edge/internal/principal"
	"github.com/cutemarkets/relay/services/edge/internal/session"
	"github.com/cutemarkets/relay/services/internal/secret"
)

// connection is one client socket inside its shard; it is the Host of its
// session. All of it is owned by the shard. Times are nanoseconds of the
// shard's clock, which is never zero.
type connection struct {
	// Static after construction.
	shard    *shard
	ref      ref
	carrier  *carrier // nil: the raw socket; as most have none, it takes one word
	from     [16]byte // address of the client
	opened   uint32   // ticks of the shard's clock, modulo 2^32
	asked    uint32   // for a topic, the last time, or was told of a gap that lasts; in such ticks
	label    uint8    // index of the market; one past the last: none
	conflate bool     // the client wants the latest quotes rather than all

	live     bool      // it gets the events of its market
	pinged   bool      // a ping waits for a word of the client
	overflow bool      // the send queue was full; the session is to be told
	closed   bool      // Close was called
	lock     lockState // of the backend
	broken   bool      // nothing can be written any more
	shut     bool      // all has been written, after Close
	deaf     bool      // nothing more of the client counts
	ended    bool      // the client's side has ended
	stir     bool      // of the raw socket, for stirred

	// The raw socket.
	fd  int32    // -1: closed, or none
	out *backlog // nil: nothing waits

	topics   []subscription // by topic slot
	heard    int64          // the last word of the client, or the ping that waits for one; closed: when closing is over
	commands allowance
	controls allowance
	held     Lock
	aside    *aside // nil: none of it is needed
	session  session.Session
}

// aside is what a connection needs for some time only.
type aside struct {
	cancel  context.CancelFunc // of the call of the backend in flight; nil: none
	in      *inbound           // of the raw socket; nil: no message has begun
	slow    *slow              // nil: it keeps up
	drainAt int64              // 0: not draining
	probe   *probe             // nil: nobody asks, or has asked of late
}

// inbound is a message that has begun.
type inbound struct {
	early   []byte // sent right behind the request, still to be parsed
	parser  frame.Parser
	pending uint32 // of the parser, when the time began
	until   int64  // ns of the shard's clock
}

// meanwhile is what of its aside a connection has now, to be read.
func (c *connection) meanwhile() aside {
	if c.aside == nil {
		return aside{}
	}
	return *c.aside
}

// keep returns the connection's aside, to put something there.
func (c *connection) keep() *aside {
	if c.aside == nil {
		c.aside = new(aside)
	}
	return c.aside
}

// encoding is how it gets its events.
func (c *connection) encoding() *encoding { return c.shard.slots[c.ref.slot].encoding }

// market is the market whose events it gets, once it is live.
func (c *connection) market() *market { return c.shard.markets[c.label] }

// subscription is a topic of a connection and the place the connection has
// among the topic's subscribers.
type subscription struct {
	topic    int32 // slot
	position int32
}

// hears takes what the client said.
func (c *connection) hears(event frame.Event) {
	switch event.Kind {
	case frame.Text:
		c.message(event)
	case frame.Ping:
		if c.control() {
			c.transport().pong(event.Payload)
		}
	case frame.Pong:
		c.control()
	case frame.Close:
		c.session.ClientClosed(c.shard.now, event.Code)
	}
}

// violation is the reason to end a connection for bytes that break a rule.
func violation(err error) dialect.Reason {
	if v := (*frame.Error)(nil); errors.As(err, &v) {
		return v.Reason
	}
	return dialect.ProtocolError
}

// message takes a message of the client.
func (c *connection) message(event frame.Event) {
	c.hear()
	c.shard.counts.received++
	if !c.commands.take(time.Duration(c.shard.clock()), c.encoding().interval, c.encoding().policy.CommandBurst) {
		c.session.End(c.shard.now, dialect.CommandRate)
		return
	}
	text, err := frame.Inflated(event, c.encoding().policy.MaxMessage, &c.shard.inflated)
	if err != nil {
		c.session.End(c.shard.now, violation(err))
		return
	}
	c.session.Message(c.shard.now, text)
}

// control counts a control frame; it reports false when there are too many.
func (c *connection) control() bool {
	c.hear()
	if c.controls.take(time.Duration(c.shard.clock()), controlInterval, controlBurst) {
		return true
	}
	c.session.End(c.shard.now, dialect.ControlRate)
	return false
}

func (c *connection) hear() {
	c.heard, c.pinged = c.shard.clock(), false
	if c.live {
		c.alive()
	}
}

// ping asks for a word of the client.
func (c *connection) ping() {
	if !c.pinged {
		c.heard, c.pinged = c.shard.clock(), true
	}
	c.transport().hasten(pingFrame)
}

// unanswered ends a client that has not answered a ping in time.
func (c *connection) unanswered() {
	c.heard, c.pinged = c.shard.clock(), false
	c.session.End(c.shard.now, dialect.PongTimeout)
}

// settle follows every input: it tells the session of a full queue and sets
// the time of the next look.
func (c *connection) settle() {
	for c.overflow && !c.closed {
		c.overflow = false
		c.tooSlow()
	}
	s := c.shard
	at := s.since(c.transport().deadline())
	if !c.closed {
		at = earlier(at, c.liveness())
		at = earlier(at, c.meanwhile().drainAt)
		at = earlier(at, c.meanwhile().probe.due())
		at = earlier(at, s.since(c.session.Deadline()))
		at = earlier(at, c.lagging())
	}
	if at != 0 {
		s.timers.set(c.ref.slot, at, s.clock())
	}
	if a := c.aside; a != nil && a.cancel == nil && a.in == nil && a.slow == nil && a.drainAt == 0 && a.probe == nil {
		c.aside = nil
	}
}

// liveness is when the client's silence wants something done.
func (c *connection) liveness() int64 {
	if c.pinged {
		return c.heard + int64(pongWait)
	}
	return c.heard + int64(pingAfter)
}

// wakeUp does what is due.
func (c *connection) wakeUp() {
	now, clock := c.shard.now, c.shard.clock()
	if at := c.transport().deadline(); !at.IsZero() && !now.Before(at) {
		c.transport().expire(c)
	}
	if !c.closed {
		if at := c.session.Deadline(); !at.IsZero() && !now.Before(at) {
			c.session.Tick(now)
		}
	}
	if at := c.meanwhile().drainAt; !c.closed && at != 0 && clock >= at {
		c.aside.drainAt = 0
		c.session.End(now, dialect.Draining)
	}
	if !c.closed && clock >= c.liveness() {
		if c.pinged {
			c.unanswered()
		} else {
			c.ping()
		}
	}
	if at := c.meanwhile().probe.due(); !c.closed && at != 0 && clock >= at {
		c.probed()
	}
	if !c.closed {
		c.look()
	}
	c.settle()
}

var pingFrame = frame.AppendPing(nil)

// Dialect implements session.Host.
func (c *connection) Dialect() dialect.Dialect { return c.encoding().dialect }

// Market implements session.Host.
func (c *connection) Market() string {
	if int(c.label) < len(c.shard.markets) {
		return c.shard.markets[c.label].name
	}
	return ""
}

// Send implements session.Host.
func (c *connection) Send(message []byte) {
	s := c.shard
	switch {
	case len(message) == 0:
	case len(message) > maxMessage:
		s.counts.oversized++
	default:
		s.deliver(c.ref.slot)
		s.small = frame.AppendText(s.small[:0], message)
		c.carry(s.small)
		s.counts.frames++
	}
}

// Authenticate implements session.Host.
func (c *connection) Authenticate(market string, credential secret.Secret) {
	c.shard.engine.authenticate(c, market, credential)
}

// Refused implements session.Host.
func (c *connection) Refused(r dialect.Reason) { c.charge(r) }

// Acquire implements session.Host.
func (c *connection) Acquire(p principal.Principal) {
	c.lock = lockAsked
	c.shard.engine.acquire(c, p)
}

// acquired takes the answer to Acquire.
func (c *connection) acquired(lock Lock, r dialect.Reason) {
	c.answered()
	switch {
	case c.lock == lockAsked && lock != nil:
		c.lock, c.held = lockHeld, lock
		c.session.Acquired(c.shard.now, dialect.OK)
	case c.lock == lockAsked:
		c.lock = lockNone
		c.session.Acquired(c.shard.now, r)
	case lock != nil: // given up meanwhile
		c.lock = lockNone
		lock.Release()
	default:
		c.lock = lockNone
		c.session.Released(c.shard.now)
	}
}

// answered notes that no call of the backend is in flight.
func (c *connection) answered() {
	if cancel := c.meanwhile().cancel; cancel != nil {
		cancel()
		c.aside.cancel = nil
	}
}

// Release implements session.Host.
func (c *connection) Release() {
	switch c.lock {
	case lockHeld:
		c.lock = lockNone
		held := c.held
		c.held = nil
		held.Release()
	case lockAsked: // the answer says whether there is one to give back
		c.lock = lockGivenUp
		c.aside.cancel()
	default:
		c.session.Released(c.shard.now)
	}
}

// Hold implements session.Host.
func (c *connection) Hold(user string, least time.Duration) time.Duration {
	return c.shard.engine.tarpit.Refused(user, least, c.shard.now)
}

// Live implements session.Host.
func (c *connection) Live(market string) {
	if market == "" || market != c.Market() {
		panic("engine: live on a market that is not the connection's")
	}
	c.live = true
	c.market().join(c)
}

// Subscribe implements session.Host.
func (c *connection) Subscribe(topic string) (problem string) {
	m := c.market()
	slot, known := m.slots[topic]
	at := 0
	if known {
		var have bool
		if at, have = c.find(slot); have {
			return ""
		}
	}
	policy := &c.encoding().policy
	if len(c.topics) >= policy.MaxTopics {
		return dialect.TopicLimit
	}
	if dialect.Scarce(m.name, topic) && c.scarce() >= policy.MaxScarce {
		return dialect.ScarceLimit
	}
	if !known {
		if slot, known = m.add(topic); !known {
			return dialect.TopicLimit
		}
		at, _ = c.find(slot)
	}
	c.asked = c.shard.ticks()
	t := &m.topics[slot]
	if n := len(c.topics); n == cap(c.topics) { // few have many, and those who have keep them
		c.topics = append(make([]subscription, 0, n+max(1, min(n, 4), n/4)), c.topics...)
	}
	c.topics = slices.Insert(c.topics, at, subscription{topic: slot, position: int32(len(t.subscribers))})
	t.subscribers = append(t.subscribers, c.ref.slot)
	return ""
}

// scarce counts the connection's scarce topics.
func (c *connection) scarce() (n int) {
	m := c.market()
	for _, s := range c.topics {
		if dialect.Scarce(m.name, m.topics[s.topic].name) {
			n++
		}
	}
	return n
}

// Unsubscribe implements session.Host.
func (c *connection) Unsubscribe(topic string) {
	c.sendKept()
	if slot, ok := c.market().slots[topic]; ok {
		if at, have := c.find(slot); have {
			c.market().leave(c.topics[at])
			c.topics = slices.Delete(c.topics, at, at+1)
		}
	}
}

// find returns the place of a topic among the connection's.
func (c *connection) find(slot int32) (int, bool) {
	return slices.BinarySearchFunc(c.topics, slot, func(s subscription, slot int32) int { return int(s.topic - slot) })
}

// Stop implements session.Host.
func (c *connection) Stop() {
	c.shard.deliver(c.ref.slot)
	for _, s := range c.topics {
		c.market().leave(s)
	}
	c.topics = nil
	c.live, c.overflow = false, false // what is sent from here on is little, and not judged
	if c.aside != nil {
		c.aside.slow = nil
	}
}

// Close implements session.Host.
func (c *connection) Close(code uint16, text string, r dialect.Reason) {
	s := c.shard
	var closing []byte
	if code != 0 {
		s.small = frame.AppendClose(s.small[:0], code, text)
		closing = s.small
	}
	c.closed = true
	c.transport().close(closing)
	c.answered()
	c.gone()
	c.charge(r)
	s.stats.closes[r].Add(1)
	s.engine.metrics.closed(time.Duration(s.ticks()-c.opened) * time.Duration(tick))
}
