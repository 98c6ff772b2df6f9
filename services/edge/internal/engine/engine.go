// Package engine carries the client sockets of an edge: delivery of events,
// order, liveness, queues, closing and drain, for every dialect alike.
//
// An Engine is a number of shards. Each shard is one goroutine that owns its
// connections, their sessions, the lists of subscribers of each topic and the
// timers; nothing on the way of an event is locked or shared. On Linux it also
// owns their sockets, by an epoll instance: an idle connection has no goroutine
// and no buffer. Elsewhere, and under TLS, a connection has two goroutines (the
// portable transport); a shard carries both kinds.
//
// What comes from outside reaches a shard through its two inboxes, one for
// clients and answers, one for the feed, so that neither can starve the other.
//
// Goroutines: one per shard, and one that sleeps on its poller; a reader and a
// writer per portable connection; one per connection that asks the backend or
// waits for its turn to, of which MaxHandshakes bounds those that do. One that has
// another connection of its user probed has no turn meanwhile.
//
// Under overload: a full inbox of the feed makes the feed wait; a client that
// takes too little is warned, conflated if it asked for that, and ended with
// SlowConsumer when too much waits for it, or for too long (slow.go); what was
// queued for it is discarded then. A user whose second connections come one right
// behind the other has them held ever longer (internal/tarpit).
package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/metric"

	feedv1 "github.com/cutemarkets/relay/proto/feed/v1"
	"github.com/cutemarkets/relay/services/edge/internal/dialect"
	"github.com/cutemarkets/relay/services/edge/internal/feed"
	"github.com/cutemarkets/relay/services/edge/internal/frame"
	"github.com/cutemarkets/relay/services/edge/internal/tarpit"
	"github.com/cutemarkets/relay/services/internal/lifecycle"
)

// Interest is the topic table of a market. Its methods do not block.
type Interest interface {
	// Acquire adds a reference to a topic and returns its id; 0: there is no room.
	Acquire(topic string) uint32
	// Release drops one reference.
	Release(id uint32)
}

// Defaults of Config.
const (
	DefaultMaxHandshakes = 1000
	DefaultQueueBytes    = 192 << 10
	DefaultBurstBytes    = 8 << 20
	DefaultQueueAge      = 5 * time.Second
	// MinQueueBytes has room for two of the largest joined frames.
	MinQueueBytes = 2 * maxFrame
)

// Kind says what carries the bytes of a connection.
type Kind string

// The kinds.
const (
	Auto     Kind = "auto"     // Epoll where it can be, else Portable
	Epoll    Kind = "epoll"    // raw sockets in the shards' event loops: Linux, without TLS
	Portable Kind = "portable" // goroutines
)

// maxShards is how many shards an Owner can name.
const maxShards = 1 << 8

// Config is what an Engine is made of. Zero values of the numbers stand for
// the defaults.
type Config struct {
	Markets map[string]Interest // by market name
	Backend Backend
	Meter   metric.Meter
	Logger  *slog.Logger
	// Refused is told the address of each client that was refused for its
	// credential or for what it asked for; nil: nobody is. It does not block.
	Refused func(client netip.Addr)

	Kind           Kind          // empty: Auto
	Shards         int           // 0: GOMAXPROCS
	MaxConnections int           // of the whole edge; required
	MaxHandshakes  int           // calls of the backend at a time, of each kind
	QueueBytes     int           // that may wait for a client for longer than burstTime
	BurstBytes     int           // that may wait for a client at all
	QueueAge       time.Duration // of the oldest byte in it
	UpstreamGrace  time.Duration // a market down for longer ends its sockets; 0: never
}

// Engine is the client side of an edge. Its methods are safe for concurrent use.
type Engine struct {
	// Static after construction.
	log        *slog.Logger
	backend    Backend
	shards     []*shard
	markets    map[string]int // index in shard.markets
	maxSockets int64
	patience   patience
	grace      time.Duration
	refused    func(client netip.Addr)
	tarpit     *tarpit.Tarpit
	metrics    *metrics

	// A token per call of the backend. Each kind has its own, so that one that
	// hangs does not hold up the other.
	authentications chan struct{}
	acquisitions    chan struct{}

	draining    atomic.Bool
	connections atomic.Int64
	empty       chan struct{} // a token when the last connection has gone
	calls       sync.WaitGroup
}

// New makes an Engine.
func New(c Config) (*Engine, error) {
	if c.Backend == nil || c.Meter == nil || c.Logger == nil || len(c.Markets) == 0 {
		return nil, errors.New("engine: markets, backend, meter and logger are required")
	}
	if c.MaxConnections <= 0 {
		return nil, fmt.Errorf("engine: %d connections allowed, want at least 1", c.MaxConnections)
	}
	if c.QueueBytes == 0 {
		c.QueueBytes = DefaultQueueBytes
	}
	if c.BurstBytes == 0 {
		c.BurstBytes = max(DefaultBurstBytes, c.QueueBytes)
	}
	if c.QueueBytes < MinQueueBytes || c.BurstBytes < c.QueueBytes {
		return nil, fmt.Errorf("engine: send queue of %d bytes, %d in a burst, want at least %d, and no less in a burst", c.QueueBytes, c.BurstBytes, MinQueueBytes)
	}
	if c.MaxHandshakes == 0 {
		c.MaxHandshakes = DefaultMaxHandshakes
	}
	if c.QueueAge == 0 {
		c.QueueAge = DefaultQueueAge
	}
	if c.Kind == "" {
		c.Kind = Auto
	}
	if c.Shards == 0 {
		c.Shards = min(runtime.GOMAXPROCS(0), maxShards)
	}
	if c.MaxHandshakes < 0 || c.QueueAge < 0 || c.Shards < 0 || c.UpstreamGrace < 0 {
		return nil, errors.New("engine: a negative limit")
	}
	if c.Shards > maxShards {
		return nil, fmt.Errorf("engine: %d shards, want at most %d", c.Shards, maxShards)
	}
	switch c.Kind {
	case Auto, Epoll, Portable:
	default:
		return nil, fmt.Errorf("engine: no kind %q: want auto, epoll or portable", c.Kind)
	}
	if c.Kind == Epoll && !rawSockets {
		return nil, errors.New("engine: epoll is there on Linux only: use portable or auto")
	}
	e := &Engine{
		log:        c.Logger.With(slog.String("component", "engine")),
		backend:    c.Backend,
		markets:    make(map[string]int, len(c.Markets)),
		maxSockets: int64(c.MaxConnections),
		patience:   patience{queue: c.QueueBytes, burst: c.BurstBytes, age: c.QueueAge},
		grace:      c.UpstreamGrace,
		refused:    c.Refused,
		tarpit:     tarpit.New(time.Now()),
		empty:      make(chan struct{}, 1),

		authentications: make(chan struct{}, c.MaxHandshakes),
		acquisitions:    make(chan struct{}, c.MaxHandshakes),
	}
	if e.refused == nil {
		e.refused = func(netip.Addr) {}
	}
	names := make([]string, 0, len(c.Markets))
	for name := range c.Markets {
		e.markets[name] = len(names)
		names = append(names, name)
	}
	for i := range c.Shards {
		s := newShard(e, i, names, c.Markets)
		if err := s.open(c.Kind != Portable); err != nil {
			return nil, errors.Join(fmt.Errorf("engine: %w", err), e.abandon())
		}
		e.shards = append(e.shards, s)
	}
	var err error
	if e.metrics, err = newMetrics(c.Meter, e, names); err != nil {
		return nil, errors.Join(fmt.Errorf("engine: metrics: %w", err), e.abandon())
	}
	return e, nil
}

// abandon gives up the shards of an engine that will never run.
func (e *Engine) abandon() (err error) {
	for _, s := range e.shards {
		if s.poller != nil {
			err = errors.Join(err, s.poller.close())
		}
	}
	return err
}

// Run carries the connections until ctx is done; then it ends those that are
// left with Draining and returns when all of them, and all calls of the
// backend, have ended. It is called once.
func (e *Engine) Run(ctx context.Context) error {
	var shards sync.WaitGroup
	failures := make([]error, len(e.shards))
	for i, s := range e.shards {
		shards.Add(1)
		lifecycle.Go("engine shard", func() {
			defer shards.Done()
			failures[i] = s.run() //nolint:contextcheck // what the shards still do when ctx is done is not its to cancel
		})
	}
	<-ctx.Done()
	e.draining.Store(true)
	for _, s := range e.shards {
		s.clients.force(input{kind: inputStop})
	}
	shards.Wait()
	e.calls.Wait()
	return errors.Join(append(failures, e.metrics.close())...)
}

// Attach hands over a connection whose upgrade has been answered, and the
// bytes the client sent right behind its request; both are the engine's from
// then on. client is its address, for Config.Refused; deflate: permessage-deflate
// was negotiated. It reports false when the engine drains or is full: the
// connection then stays the caller's.
func (e *Engine) Attach(conn net.Conn, early []byte, d dialect.Dialect, o dialect.Opening, client netip.Addr, deflate bool) bool {
	if e.connections.Add(1) > e.maxSockets || e.draining.Load() {
		e.leave()
		return false
	}
	s := e.shards[0]
	for _, other := range e.shards[1:] {
		if other.load.Load() < s.load.Load() {
			s = other
		}
	}
	s.load.Add(1)
	tune(conn)
	a := &attachment{dialect: d, opening: o, client: client, deflate: deflate}
	if s.takeOver(a, conn, early) != nil {
		s.leave()
		return false
	}
	if !s.clients.post(input{kind: inputAttach, body: a}, nil) { // the engine has stopped meanwhile
		a.abandon()
		s.leave()
	}
	return true
}

func newParser(maxMessage int, deflate bool) frame.Parser {
	p := frame.NewParser(maxMessage)
	if deflate {
		p.AcceptDeflate()
	}
	return p
}

// Lost tells that a lock was lost, to the connection that had asked for it. It
// does not block.
func (e *Engine) Lost(o Owner, r dialect.Reason) {
	shard, to := o.split()
	e.shards[shard].clients.force(input{kind: inputLost, ref: to, reason: r})
}

// Released tells that a lock is no longer held, to the connection that had given
// it back. It does not block.
func (e *Engine) Released(o Owner) {
	shard, to := o.split()
	e.shards[shard].clients.force(input{kind: inputReleased, ref: to})
}

// Full reports whether there is no room for another connection.
func (e *Engine) Full() bool { return e.connections.Load() >= e.maxSockets }

// Connections returns how many connections there are, closing ones included.
func (e *Engine) Connections() int { return int(e.connections.Load()) }

// Drain refuses new connections, ends the present ones with Draining, spread
// evenly over the window, and waits until none is left or ctx is done.
func (e *Engine) Drain(ctx context.Context, window time.Duration) error {
	e.draining.Store(true)
	for _, s := range e.shards {
		s.clients.force(input{kind: inputDrain, body: &window})
	}
	for e.connections.Load() > 0 {
		select {
		case <-e.empty:
		case <-ctx.Done():
			return fmt.Errorf("engine: drain, %d connections left: %w", e.Connections(), ctx.Err())
		}
	}
	return nil
}

// leave counts a connection out.
func (e *Engine) leave() {
	if e.connections.Add(-1) == 0 {
		select {
		case e.empty <- struct{}{}:
		default:
		}
	}
}

// Sink takes the feed of a market. It panics for a market the engine was not
// made with.
func (e *Engine) Sink(market string) feed.Sink {
	i, ok := e.markets[market]
	if !ok {
		panic("engine: no such market: " + market)
	}
	return &sink{engine: e, market: i}
}

// sink hands the feed of one market to every shard.
type sink struct {
	engine *Engine
	market int
}

// Batch implements feed.Sink.
func (s *sink) Batch(b *feedv1.Batch) { s.post(inputBatch, b, len(b.GetPayload())) }

// Gap implements feed.Sink.
func (s *sink) Gap(from, to time.Time) { s.post(inputGap, &dialect.Gap{From: from, To: to}, 0) }

// Down implements feed.Sink.
func (s *sink) Down(since time.Time) { s.post(inputDown, &since, 0) }

// Up implements feed.Sink.
func (s *sink) Up(from, to time.Time) { s.post(inputUp, &dialect.Gap{From: from, To: to}, 0) }

// TopicNotice implements feed.Sink.
func (s *sink) TopicNotice(ids []uint32, problem feedv1.TopicProblem) {
	s.post(inputNotice, &notice{ids: ids, problem: problem}, 0)
}

func (s *sink) post(k inputKind, body any, bytes int) {
	for _, shard := range s.engine.shards {
		shard.feed.post(input{kind: k, market: s.market, size: bytes, body: body}, nil)
	}
}
