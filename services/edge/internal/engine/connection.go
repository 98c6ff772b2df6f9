package engine

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/cutemarkets/relay/services/edge/internal/dialect"
	"github.com/cutemarkets/relay/services/edge/internal/frame"
	"github.com/cutemarkets/relay/services/edge/internal/principal"
	"github.com/cutemarkets/relay/services/edge/internal/session"
	"github.com/cutemarkets/relay/services/internal/secret"
)

// connection is one client socket inside its shard; it is the Host of its
// session. All of it is owned by the shard.
type connection struct {
	// Static after construction.
	shard     *shard
	ref       ref
	transport transport
	encoding  *encoding
	session   *session.Session
	client    netip.Addr
	label     int // market of the counters
	opened    time.Time

	// The market.
	market *market        // nil: not live
	topics []subscription // by topic slot

	// Sending.
	out      *buffer // frames of this round
	overflow bool    // the send queue was full; the session is to be told

	// Time.
	timer    int       // place in the heap; -1: none
	wakeAt   time.Time // when the heap has it
	heard    time.Time // the last word of the client
	pinged   time.Time // zero: no ping waits for an answer
	drainAt  time.Time // zero: not draining
	commands allowance
	controls allowance

	// Calls of the backend.
	cancel context.CancelFunc // of the call in flight; nil: none
	lock   lockState
	held   release

	closed bool
}

// subscription is a topic of a connection and the place the connection has
// among the topic's subscribers.
type subscription struct {
	topic    int32 // slot
	position int32
}

// message takes a message of the client.
func (c *connection) message(payload []byte) {
	c.hear()
	c.shard.stats.received.Add(1)
	if !c.commands.take(c.shard.now.Sub(c.shard.started), c.encoding.interval, c.encoding.policy.CommandBurst) {
		c.session.End(c.shard.now, dialect.CommandRate)
		return
	}
	c.session.Message(c.shard.now, payload)
}

func (c *connection) ping(payload []byte) {
	if c.control() {
		c.transport.pong(payload)
	}
}

func (c *connection) pong() { c.control() }

// control counts a control frame; it reports false when there are too many.
func (c *connection) control() bool {
	c.hear()
	if c.controls.take(c.shard.now.Sub(c.shard.started), controlInterval, controlBurst) {
		return true
	}
	c.session.End(c.shard.now, dialect.ControlRate)
	return false
}

func (c *connection) hear() {
	c.heard = c.shard.now
	c.pinged = time.Time{}
}

// settle follows every input: it tells the session of a full queue and sets
// the time of the next look.
func (c *connection) settle() {
	for c.overflow && !c.closed {
		c.overflow = false
		c.session.End(c.shard.now, dialect.SlowConsumer)
	}
	if c.closed {
		return
	}
	at := c.liveness()
	for _, t := range [...]time.Time{c.session.Deadline(), c.drainAt} {
		if !t.IsZero() && t.Before(at) {
			at = t
		}
	}
	c.shard.timers.set(c, at)
}

// liveness is when the client's silence wants something done.
func (c *connection) liveness() time.Time {
	if c.pinged.IsZero() {
		return c.heard.Add(pingAfter)
	}
	return c.pinged.Add(pongWait)
}

// wakeUp does what is due.
func (c *connection) wakeUp() {
	now := c.shard.now
	if at := c.session.Deadline(); !at.IsZero() && !now.Before(at) {
		c.session.Tick(now)
	}
	if !c.closed && !c.drainAt.IsZero() && !now.Before(c.drainAt) {
		c.drainAt = time.Time{}
		c.session.End(now, dialect.Draining)
	}
	if !c.closed && !now.Before(c.liveness()) {
		if c.pinged.IsZero() {
			c.pinged = now
			c.transport.ping()
		} else {
			c.session.End(now, dialect.PongTimeout)
			c.hear()
		}
	}
	c.settle()
}

// Send implements session.Host.
func (c *connection) Send(message []byte) {
	if len(message) == 0 {
		return
	}
	if c.overflow {
		c.shard.stats.discarded.Add(uint64(len(message)))
		return
	}
	if len(message) > maxMessage {
		c.shard.stats.oversized.Add(1)
		return
	}
	slot := c.ref.slot
	c.shard.touch(slot)
	c.shard.joinPending(slot)
	c.reserve(frame.HeaderSize(len(message)) + len(message))
	c.out.data = frame.AppendText(c.out.data, message)
	c.shard.stats.frames.Add(1)
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
func (c *connection) acquired(lock release, r dialect.Reason) {
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
		c.shard.engine.release(c.shard, c.ref, lock)
	default:
		c.lock = lockNone
		c.session.Released(c.shard.now)
	}
}

// answered notes that no call of the backend is in flight.
func (c *connection) answered() {
	if c.cancel != nil {
		c.cancel()
		c.cancel = nil
	}
}

// Release implements session.Host.
func (c *connection) Release() {
	switch c.lock {
	case lockHeld:
		c.lock = lockNone
		c.shard.engine.release(c.shard, c.ref, c.held)
		c.held = nil
	case lockAsked: // the answer says whether there is one to give back
		c.lock = lockGivenUp
		c.cancel()
	default:
		c.session.Released(c.shard.now)
	}
}

// Live implements session.Host.
func (c *connection) Live(market string) {
	i, ok := c.shard.engine.markets[market]
	if !ok {
		panic("engine: live on a market the edge does not have")
	}
	c.market = c.shard.markets[i]
	c.market.join(c)
}

// Subscribe implements session.Host.
func (c *connection) Subscribe(topic string) bool {
	m := c.market
	slot, known := m.slots[topic]
	at := 0
	if known {
		var have bool
		if at, have = c.find(slot); have {
			return true
		}
	}
	if len(c.topics) >= c.encoding.policy.MaxTopics {
		return false
	}
	if !known {
		if slot, known = m.add(topic); !known {
			return false
		}
		at, _ = c.find(slot)
	}
	t := &m.topics[slot]
	c.topics = slices.Insert(c.topics, at, subscription{topic: slot, position: int32(len(t.subscribers))})
	t.subscribers = append(t.subscribers, c.ref.slot)
	return true
}

// Unsubscribe implements session.Host.
func (c *connection) Unsubscribe(topic string) {
	if slot, ok := c.market.slots[topic]; ok {
		if at, have := c.find(slot); have {
			c.market.leave(c.topics[at])
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
	for _, s := range c.topics {
		c.market.leave(s)
	}
	c.topics = nil
	c.market = nil
}

// Close implements session.Host.
func (c *connection) Close(code uint16, text string, r dialect.Reason) {
	s := c.shard
	s.joinPending(c.ref.slot)
	c.handOver()
	var closing []byte
	if code != 0 {
		closing = frame.AppendClose(nil, code, text)
	}
	c.transport.close(closing)
	c.closed = true
	s.timers.remove(c)
	c.answered()
	c.charge(r)
	s.stats.closes[r].Add(1)
	s.engine.metrics.closed(s.now.Sub(c.opened))
}
