package engine

import (
	"context"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/cutemarkets/relay/services/edge/internal/dialect"
)

// counters are the figures of one shard. Each shard has its own, apart in
// memory, and they are read when somebody asks.
type counters struct {
	_ [64]byte

	received  atomic.Uint64 // messages of clients
	frames    atomic.Uint64 // messages to clients
	events    atomic.Uint64 // one per client
	writes    atomic.Uint64
	sentBytes atomic.Uint64
	discarded atomic.Uint64 // bytes
	oversized atomic.Uint64
	gaps      atomic.Uint64
	warned    atomic.Uint64 // clients that were told they are slow
	conflated atomic.Uint64 // events
	queued    atomic.Int64  // bytes

	connections []atomic.Int64  // by market; the last: none
	closes      []atomic.Uint64 // by reason

	_ [64]byte
}

// counts is what a round adds to the counters. Owned by the shard.
type counts struct {
	received, frames, events, writes, sentBytes, discarded, oversized, conflated uint64

	queued int64
}

// show adds the counts to the counters and begins anew.
func (c *counts) show(to *counters) {
	if *c == (counts{}) {
		return
	}
	to.received.Add(c.received)
	to.frames.Add(c.frames)
	to.events.Add(c.events)
	to.writes.Add(c.writes)
	to.sentBytes.Add(c.sentBytes)
	to.discarded.Add(c.discarded)
	to.oversized.Add(c.oversized)
	to.conflated.Add(c.conflated)
	to.queued.Add(c.queued)
	*c = counts{}
}

func newCounters(markets int) *counters {
	return &counters{
		connections: make([]atomic.Int64, markets+1),
		closes:      make([]atomic.Uint64, len(dialect.Reasons())+1),
	}
}

// metrics shows the counters of all shards.
type metrics struct {
	duration metric.Float64Histogram
	show     metric.Registration
}

// builder makes observable instruments and keeps how each is read.
type builder struct {
	meter       metric.Meter
	shards      []*shard
	instruments []metric.Observable
	reads       []func(o metric.Observer)
	err         error
}

// counter shows the sum over the shards of a count; each label value has one.
func (b *builder) counter(name, help string, counts map[attribute.Set]func(c *counters) uint64) {
	i, err := b.meter.Int64ObservableCounter(name, metric.WithDescription(help))
	if err != nil {
		b.err = err
		return
	}
	b.instruments = append(b.instruments, i)
	for labels, count := range counts {
		with := metric.WithAttributeSet(labels)
		b.reads = append(b.reads, func(o metric.Observer) {
			sum := uint64(0)
			for _, s := range b.shards {
				sum += count(s.stats)
			}
			o.ObserveInt64(i, int64(sum), with)
		})
	}
}

// gauge shows the sum over the shards of a level.
func (b *builder) gauge(name, help string, levels map[attribute.Set]func(c *counters) int64) {
	i, err := b.meter.Int64ObservableGauge(name, metric.WithDescription(help))
	if err != nil {
		b.err = err
		return
	}
	b.instruments = append(b.instruments, i)
	for labels, level := range levels {
		with := metric.WithAttributeSet(labels)
		b.reads = append(b.reads, func(o metric.Observer) {
			sum := int64(0)
			for _, s := range b.shards {
				sum += level(s.stats)
			}
			o.ObserveInt64(i, sum, with)
		})
	}
}

func newMetrics(meter metric.Meter, e *Engine, markets []string) (*metrics, error) {
	b := &builder{meter: meter, shards: e.shards}
	plain := attribute.NewSet()
	count := func(name, help string, of func(c *counters) *atomic.Uint64) {
		b.counter(name, help, map[attribute.Set]func(c *counters) uint64{plain: func(c *counters) uint64 { return of(c).Load() }})
	}
	count("relay_edge_commands", "Messages of clients.", func(c *counters) *atomic.Uint64 { return &c.received })
	count("relay_edge_frames", "Messages to clients.", func(c *counters) *atomic.Uint64 { return &c.frames })
	count("relay_edge_events", "Events to clients, one per client.", func(c *counters) *atomic.Uint64 { return &c.events })
	count("relay_edge_writes", "Writes to the sockets of clients.", func(c *counters) *atomic.Uint64 { return &c.writes })
	count("relay_edge_sent_bytes", "Bytes written to the sockets of clients.", func(c *counters) *atomic.Uint64 { return &c.sentBytes })
	count("relay_edge_discarded_bytes", "Bytes queued for a client and dropped because it was closed.", func(c *counters) *atomic.Uint64 { return &c.discarded })
	count("relay_edge_oversized_events", "Events and messages never sent because no client takes that much.", func(c *counters) *atomic.Uint64 { return &c.oversized })
	count("relay_edge_conflated_events", "Quotes replaced by later ones of their symbol, for slow clients that asked for it.", func(c *counters) *atomic.Uint64 { return &c.conflated })
	count("relay_edge_gap_notices", "Gap notices to clients.", func(c *counters) *atomic.Uint64 { return &c.gaps })
	b.counter("relay_edge_slow_clients", "Clients that took too little, by what was done.", map[attribute.Set]func(c *counters) uint64{
		attribute.NewSet(attribute.String("action", "warned")): func(c *counters) uint64 { return c.warned.Load() },
		attribute.NewSet(attribute.String("action", "closed")): func(c *counters) uint64 { return c.closes[dialect.SlowConsumer].Load() },
	})
	closes := make(map[attribute.Set]func(c *counters) uint64)
	for _, r := range dialect.Reasons() {
		closes[attribute.NewSet(attribute.String("reason", r.String()))] = func(c *counters) uint64 { return c.closes[r].Load() }
	}
	b.counter("relay_edge_closes", "Connections ended, by reason.", closes)
	open := make(map[attribute.Set]func(c *counters) int64)
	for i, name := range append(markets[:len(markets):len(markets)], "none") {
		open[attribute.NewSet(attribute.String("market", name))] = func(c *counters) int64 { return c.connections[i].Load() }
	}
	b.gauge("relay_edge_connections", "Connections, closing ones included, by market.", open)
	b.gauge("relay_edge_send_queue_bytes", "Bytes queued for all clients.", map[attribute.Set]func(c *counters) int64{
		plain: func(c *counters) int64 { return c.queued.Load() },
	})
	limit, err := meter.Int64ObservableGauge("relay_edge_connections_limit", metric.WithDescription("Connections allowed."))
	if err != nil {
		return nil, err
	}
	b.instruments = append(b.instruments, limit)
	b.reads = append(b.reads, func(o metric.Observer) { o.ObserveInt64(limit, e.maxSockets) })
	if b.err != nil {
		return nil, b.err
	}
	m := &metrics{}
	if m.duration, err = meter.Float64Histogram("relay_edge_connection_duration_seconds",
		metric.WithDescription("How long connections lasted."),
		metric.WithExplicitBucketBoundaries(1, 10, 60, 600, 3600, 6*3600, 24*3600)); err != nil {
		return nil, err
	}
	m.show, err = meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		for _, read := range b.reads {
			read(o)
		}
		return nil
	}, b.instruments...)
	return m, err
}

// closed notes how long a connection lasted.
func (m *metrics) closed(after time.Duration) {
	m.duration.Record(context.Background(), after.Seconds())
}

// close stops showing the counters.
func (m *metrics) close() error { return m.show.Unregister() }
