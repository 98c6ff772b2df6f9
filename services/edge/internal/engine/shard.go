package engine

import (
	"net/netip"
	"time"

	feedv1 "github.com/cutemarkets/relay/proto/feed/v1"
	"github.com/cutemarkets/relay/services/edge/internal/dialect"
	"github.com/cutemarkets/relay/services/edge/internal/session"
)

const (
	// clientsLimit and feedLimit bound the inboxes of a shard in bytes. The feed's
	// is what one round may add to the queue of a client that takes everything, so
	// it stays below the smallest send queue.
	clientsLimit = 1 << 20
	feedLimit    = MinQueueBytes / 2
	// arenaKept is the largest arena that is kept between two rounds.
	arenaKept = 256 << 10
)

// Liveness and control frames (the reasons for the numbers: docs/PROTOCOL.md).
const (
	pingAfter       = 20 * time.Second // without any word of the client
	pongWait        = 10 * time.Second
	messageWait     = 5 * time.Second // from the first byte of a message to its last
	controlInterval = 100 * time.Millisecond
	controlBurst    = 20
)

// attachment is a connection on its way to its shard.
type attachment struct {
	transport transport
	dialect   dialect.Dialect
	opening   dialect.Opening
	client    netip.Addr
}

// shard is one event loop and everything it owns.
type shard struct {
	// Static after construction.
	engine  *Engine
	clients *inbox // of connections, answers and the engine
	feed    *inbox
	wake    chan struct{}
	stats   *counters
	started time.Time

	// Owned by run; not thread-safe.
	now         time.Time // of this round
	markets     []*market
	encodings   []*encoding
	connections []*connection // by slot; nil: free
	generations []uint32      // by slot
	deliveries  []delivery    // by slot
	free        []int32       // slots
	live        int           // connections
	timers      timers
	events      [][]byte  // of this round, as the vendor sent them
	touched     []int32   // slots with something to send
	spare       [][]int32 // pending lists not in use
	draining    bool
	stopping    bool
	inputs      []input // reused by take
	arena       []byte  // reused by take
	feedInputs  []input // reused by take
	feedArena   []byte  // reused by take; stays empty
}

func newShard(e *Engine, names []string, interests map[string]Interest) *shard {
	s := &shard{
		engine:  e,
		wake:    make(chan struct{}, 1),
		stats:   newCounters(len(names)),
		started: time.Now(),
	}
	s.clients = newInbox(clientsLimit, s.wake)
	s.feed = newInbox(feedLimit, s.wake)
	for i, name := range names {
		s.markets = append(s.markets, newMarket(s, i, name, interests[name]))
	}
	return s
}

// run is the shard's goroutine: it waits for input or a deadline and does a
// round, until it was told to stop and its last connection has gone.
func (s *shard) run() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for !s.stopping || s.live > 0 {
		if at := s.nextDeadline(); at.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(time.Until(at))
		}
		select {
		case <-s.wake:
		case <-timer.C:
		}
		s.round()
	}
	for _, in := range append(s.clients.close(), s.feed.close()...) {
		s.refuse(in)
	}
}

// refuse takes an input that came after the end.
func (s *shard) refuse(in input) {
	switch body := in.body.(type) {
	case *attachment:
		body.transport.start(in.ref)
		body.transport.close(nil)
		s.engine.leave()
	case release:
		s.engine.release(s, in.ref, body)
	}
}

// round takes all input there is and then sends what it led to: one write for
// each connection that was touched, however many events were for it.
func (s *shard) round() {
	s.now = time.Now()
	s.feedInputs, s.feedArena = s.feed.take(s.feedInputs, s.feedArena)
	for i := range s.feedInputs {
		s.takeFeed(&s.feedInputs[i])
	}
	clear(s.feedInputs)
	s.inputs, s.arena = s.clients.take(s.inputs, s.arena)
	for i := range s.inputs {
		in := &s.inputs[i]
		s.takeClient(in, s.arena[in.offset:in.offset+in.size])
	}
	clear(s.inputs)
	if cap(s.arena) > arenaKept {
		s.arena = nil
	}
	for _, m := range s.markets {
		m.expire()
	}
	for c := s.timers.pop(s.now); c != nil; c = s.timers.pop(s.now) {
		c.wakeUp()
	}
	s.flush()
}

// nextDeadline is when a round is due without input; zero: never.
func (s *shard) nextDeadline() time.Time {
	next := s.timers.next()
	for _, m := range s.markets {
		if at := m.expires; !at.IsZero() && (next.IsZero() || at.Before(next)) {
			next = at
		}
	}
	return next
}

func (s *shard) takeFeed(in *input) {
	m := s.markets[in.market]
	switch body := in.body.(type) {
	case *feedv1.Batch:
		m.batch(body)
	case *dialect.Gap:
		m.gap(*body)
	case *time.Time:
		m.goDown(*body)
	case *notice:
		m.notice(body)
	}
}

// takeClient takes an input of a connection or of the engine. Inputs of a
// connection that has gone, or has been closed, change nothing.
func (s *shard) takeClient(in *input, payload []byte) {
	switch in.kind {
	case inputAttach:
		s.attach(in.body.(*attachment))
		return
	case inputDrain:
		s.drain(*in.body.(*time.Duration))
		return
	case inputStop:
		s.stopping = true
		s.drain(0)
		return
	}
	c := s.lookup(in.ref)
	switch {
	case in.kind == inputDone:
		s.detach(c)
		return
	case c == nil || c.closed:
		if lock, ok := in.body.(release); ok && lock != nil {
			s.engine.release(s, in.ref, lock)
		}
		return
	}
	switch in.kind {
	case inputMessage:
		c.message(payload)
	case inputPing:
		c.ping(payload)
	case inputPong:
		c.pong()
	case inputClosed:
		c.session.ClientClosed(s.now, in.code)
	case inputBroken:
		c.session.End(s.now, in.reason)
	case inputGone:
		c.session.Gone(s.now)
	case inputAuthenticated:
		a := in.body.(*authenticated)
		c.answered()
		c.session.Authenticated(s.now, a.principal, a.reason)
	case inputAcquired:
		lock, _ := in.body.(release)
		c.acquired(lock, in.reason)
	case inputReleased:
		c.session.Released(s.now)
	case inputLost:
		c.session.End(s.now, in.reason)
	}
	c.settle()
}

// lookup returns the connection of a ref; nil when it has gone.
func (s *shard) lookup(r ref) *connection {
	if s.generations[r.slot] == r.generation {
		return s.connections[r.slot]
	}
	return nil
}

func (s *shard) attach(a *attachment) {
	var slot int32
	if n := len(s.free); n > 0 {
		slot, s.free = s.free[n-1], s.free[:n-1]
	} else {
		slot = int32(len(s.connections))
		s.connections = append(s.connections, nil)
		s.generations = append(s.generations, 0)
		s.deliveries = append(s.deliveries, delivery{})
	}
	c := &connection{
		shard:     s,
		ref:       ref{slot, s.generations[slot]},
		transport: a.transport,
		encoding:  s.encodingOf(a.dialect),
		client:    a.client,
		opened:    s.now,
		heard:     s.now,
		timer:     -1,
		label:     s.marketLabel(a.opening.Market),
	}
	c.session = session.New(c, a.dialect, a.opening)
	s.connections[slot] = c
	s.live++
	s.stats.connections[c.label].Add(1)
	a.transport.start(c.ref)
	c.session.Start(s.now)
	if s.draining {
		c.session.End(s.now, dialect.Draining)
	}
	c.settle()
}

// detach forgets a connection whose socket is closed.
func (s *shard) detach(c *connection) {
	if !c.closed {
		panic("engine: socket closed before its session")
	}
	slot := c.ref.slot
	s.connections[slot] = nil
	s.generations[slot]++
	s.free = append(s.free, slot)
	s.live--
	s.stats.connections[c.label].Add(-1)
	s.engine.leave()
}

// drain spreads the end of all connections evenly over the window.
func (s *shard) drain(window time.Duration) {
	s.draining = true
	if s.live == 0 {
		return
	}
	step, at := window/time.Duration(s.live), s.now
	for _, c := range s.connections {
		if c == nil || c.closed {
			continue
		}
		c.drainAt = at
		s.timers.set(c, at)
		at = at.Add(step)
	}
}

// marketLabel is the index of a market in the counters; one past the last
// stands for none.
func (s *shard) marketLabel(name string) int {
	if i, ok := s.engine.markets[name]; ok {
		return i
	}
	return len(s.markets)
}
