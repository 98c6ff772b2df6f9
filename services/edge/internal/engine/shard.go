package engine

import (
	"errors"
	"net/netip"
	"sync/atomic"
	"time"

	feedv1 "github.com/cutemarkets/relay/proto/feed/v1"
	"github.com/cutemarkets/relay/services/edge/internal/dialect"
	"github.com/cutemarkets/relay/services/edge/internal/frame"
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
	// lateRound is how late a round may begin before what waits for clients counts
	// as the shard's fault.
	lateRound = 250 * time.Millisecond
	// inputBuffer is what is read of a client at once.
	inputBuffer = 16 << 10
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
	dialect dialect.Dialect
	opening dialect.Opening
	client  netip.Addr
	deflate bool

	carrier carrier // nil: a raw socket
	fd      int32   // the raw socket; -1: none
	early   []byte  // sent right behind the request, for the raw socket
}

// slot is a place for a connection, with what delivering an event needs.
type slot struct {
	connection *connection // nil: free
	encoding   *encoding
	generation uint32
	pending    int32 // place in shard.pending, from 1 on; 0: nothing is pending
	fd         int32 // what may be written to without asking the transport; -1: nothing
}

// shard is one event loop and everything it owns.
type shard struct {
	// Static after construction.
	engine  *Engine
	index   int
	clients *inbox // of connections, answers and the engine
	feed    *inbox
	wake    chan struct{}
	stats   *counters
	started time.Time
	poller  *poller // nil: no connection has a raw socket

	load atomic.Int64 // connections, those on their way here included

	// Owned by run; not thread-safe.
	now        time.Time // of this round
	resumed    time.Time // when the last round began that was late
	markets    []*market
	encodings  []*encoding
	slots      []slot
	free       []int32 // slots
	live       int     // connections
	gone       []int32 // slots whose sockets have been closed
	timers     timers
	events     [][]byte  // of this round, as the vendor sent them
	pending    []pending // with the memory of earlier rounds behind its end
	joined     joined
	one        [1]int32 // a list of one event
	frames     []byte   // of one event each, of this round
	others     []int32  // events that are not conflated
	counts     counts
	draining   bool
	stopping   bool
	inputs     []input // reused by take
	arena      []byte  // reused by take
	feedInputs []input // reused by take
	feedArena  []byte  // reused by take; stays empty

	// Owned by run; of connections with compression.
	compressed      map[string]*joined // of this round, by the list of events
	compressedBytes int                // of them
	key             []byte             // of one
	plain, packed   []byte             // one frame before and after
	inflated        []byte             // a message of a client

	// Owned by run; of raw sockets.
	input  []byte // being read
	small  []byte // a frame that is being sent
	parser frame.Parser
	unread []ref // still to be read from
}

func newShard(e *Engine, index int, names []string, interests map[string]Interest) *shard {
	s := &shard{
		engine:  e,
		index:   index,
		wake:    make(chan struct{}, 1),
		stats:   newCounters(len(names)),
		started: time.Now().Add(-time.Duration(tick)), // so that the clock is never zero

		compressed: make(map[string]*joined),
	}
	s.clients = newInbox(clientsLimit, s.wake)
	s.feed = newInbox(feedLimit, s.wake)
	for i, name := range names {
		s.markets = append(s.markets, newMarket(s, i, name, interests[name]))
	}
	return s
}

// clock is the time of this round in ns since the shard's start.
func (s *shard) clock() int64 { return int64(s.now.Sub(s.started)) }

// ticks is the clock in ticks, modulo 2^32.
func (s *shard) ticks() uint32 { return uint32(s.clock() / tick) }

// since is a time on the shard's clock; 0 for the zero time. It agrees with
// comparisons with now, also for times that are of the wall clock alone, which
// may have been set since the shard's start.
func (s *shard) since(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return max(s.clock()+int64(t.Sub(s.now)), 1)
}

// run is the shard's goroutine: it waits for input or a deadline and does a
// round, until it was told to stop and its last connection has gone.
func (s *shard) run() error {
	var err error
	if s.poller != nil {
		err = s.poller.watch(s.wake)
	}
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for !s.stopping || s.live > 0 {
		if at := s.nextDeadline(); at == 0 {
			timer.Stop()
		} else {
			timer.Reset(time.Until(s.started.Add(time.Duration(at))))
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
	if s.poller != nil {
		err = errors.Join(err, s.poller.close())
	}
	return err
}

// refuse takes an input that came after the end.
func (s *shard) refuse(in input) {
	switch body := in.body.(type) {
	case *attachment:
		body.abandon()
		s.leave()
	case Lock:
		body.Release()
	case func(alive bool):
		body(false)
	}
}

// round takes all input there is and then sends what it led to: one write for
// each connection that was touched, however many events were for it.
func (s *shard) round() {
	s.now = time.Now()
	if due := s.nextDeadline(); due != 0 && s.clock()-due > int64(lateRound) {
		s.resumed = s.now
	}
	s.engine.backend.Fence() // whose lock has ended gets nothing of this round
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
	s.poll()
	for _, m := range s.markets {
		m.expire()
	}
	for slot, due := s.timers.pop(s.clock()); due; slot, due = s.timers.pop(s.clock()) {
		s.slots[slot].connection.wakeUp()
	}
	s.flush()
	for _, slot := range s.gone {
		s.detach(s.slots[slot].connection)
	}
	s.gone = s.gone[:0]
	s.counts.show(s.stats)
}

// readLater has a raw socket read in the next poll.
func (s *shard) readLater(r ref) {
	s.unread = append(s.unread, r)
	s.clients.signal()
}

// closed notes that the socket of a slot is closed, and nothing more of it comes.
func (s *shard) closed(slot int32) { s.gone = append(s.gone, slot) }

// nextDeadline is when a round is due without input, on the shard's clock; 0: never.
func (s *shard) nextDeadline() int64 {
	next := s.timers.next(s.clock())
	for _, m := range s.markets {
		next = earlier(next, s.since(m.expires))
	}
	return next
}

func (s *shard) takeFeed(in *input) {
	m := s.markets[in.market]
	switch body := in.body.(type) {
	case *feedv1.Batch:
		m.batch(body)
	case *dialect.Gap:
		if in.kind == inputUp {
			m.goUp(*body)
		} else {
			m.gap(*body)
		}
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
	case inputProbe:
		s.probe(in.ref, in.body.(func(alive bool)))
		return
	}
	c := s.lookup(in.ref)
	switch {
	case in.kind == inputDone:
		s.closed(c.ref.slot)
		return
	case c == nil || c.closed:
		if lock, ok := in.body.(Lock); ok {
			lock.Release()
		}
		return
	}
	switch in.kind {
	case inputFrame:
		c.hears(frame.Event{Kind: in.frame, Payload: payload, Code: in.code, Compressed: in.compressed})
	case inputBroken:
		c.session.End(s.now, in.reason)
	case inputGone:
		c.session.Gone(s.now)
	case inputRelieved:
		c.relieved()
	case inputAuthenticated:
		a := in.body.(*authenticated)
		c.answered()
		c.session.Authenticated(s.now, a.principal, a.reason)
	case inputAcquired:
		lock, _ := in.body.(Lock)
		c.acquired(lock, in.reason)
	case inputReleased:
		c.session.Released(s.now)
	case inputLost:
		c.discard() // another socket of the user may be live; this round's events go, too
		c.session.End(s.now, in.reason)
	}
	c.settle()
}

// lookup returns the connection of a ref; nil when it has gone.
func (s *shard) lookup(r ref) *connection {
	if sl := &s.slots[r.slot]; sl.generation == r.generation {
		return sl.connection
	}
	return nil
}

func (s *shard) attach(a *attachment) {
	n := len(s.free)
	if n == 0 {
		s.free = append(s.free, int32(len(s.slots)))
		s.slots = append(s.slots, slot{fd: -1})
		n = 1
	}
	var place int32
	place, s.free = s.free[n-1], s.free[:n-1]
	sl := &s.slots[place]
	c := &connection{
		shard:    s,
		ref:      ref{place, sl.generation},
		fd:       a.fd,
		from:     a.client.As16(),
		opened:   s.ticks(),
		heard:    s.clock(),
		label:    s.marketLabel(a.opening.Market),
		conflate: a.opening.Conflate,
	}
	if carrier := a.carrier; carrier != nil {
		c.carrier = &carrier
	}
	c.session = session.New(c, a.opening)
	sl.connection, sl.encoding = c, s.encodingOf(a.dialect, a.deflate)
	s.live++
	s.stats.connections[c.label].Add(1)
	c.start(a.early)
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
	s.timers.remove(c.ref.slot)
	sl := &s.slots[c.ref.slot]
	*sl = slot{generation: sl.generation + 1, fd: -1}
	s.free = append(s.free, c.ref.slot)
	s.live--
	s.stats.connections[c.label].Add(-1)
	s.leave()
}

// leave counts a connection out.
func (s *shard) leave() {
	s.load.Add(-1)
	s.engine.leave()
}

// drain spreads the end of all connections evenly over the window.
func (s *shard) drain(window time.Duration) {
	s.draining = true
	if s.live == 0 {
		return
	}
	step, at := int64(window)/int64(s.live), s.clock()
	for i := range s.slots {
		c := s.slots[i].connection
		if c == nil || c.closed {
			continue
		}
		c.keep().drainAt = at
		s.timers.set(c.ref.slot, at, s.clock())
		at += step
	}
}

// marketLabel is the index of a market in the counters; one past the last
// stands for none.
func (s *shard) marketLabel(name string) uint8 {
	if i, ok := s.engine.markets[name]; ok {
		return uint8(i)
	}
	return uint8(len(s.markets))
}
