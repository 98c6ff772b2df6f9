package router

import (
	"context"
	"fmt"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// kindOther is the label of events of kinds that the vendor does not document.
const kindOther = "other"

// Stats are a router's figures. Counters grow from the start of the process.
type Stats struct {
	Events     map[string]uint64 // by kind: those of Kinds, and "other"
	Gaps       uint64
	Topics     int // with interest
	Edges      int // attached
	QueueBytes int // of all edges
}

// Stats returns the figures of now.
func (r *Router) Stats() Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := Stats{
		Events: make(map[string]uint64, len(r.prefixes)),
		Gaps:   r.gaps,
		Topics: r.topics,
		Edges:  len(r.edges),
	}
	s.Events[kindOther] = r.otherEvents
	for name, p := range r.prefixes {
		if !p.known {
			name = kindOther
		}
		s.Events[name] += p.events
	}
	for e := range r.edges {
		s.QueueBytes += e.bytes
	}
	return s
}

// Observe registers the metrics of routers.
func Observe(meter metric.Meter, routers []*Router) error {
	events, err1 := meter.Int64ObservableCounter("relay_fanout_events_total",
		metric.WithDescription("Events taken from the upstream, by kind."))
	gaps, err2 := meter.Int64ObservableCounter("relay_fanout_gaps_total",
		metric.WithDescription("Gaps announced to edges."))
	topics, err3 := meter.Int64ObservableGauge("relay_fanout_interest_topics",
		metric.WithDescription("Topics that at least one edge wants."))
	edges, err4 := meter.Int64ObservableGauge("relay_fanout_edges",
		metric.WithDescription("Edges with a stream of the market."))
	queue, err5 := meter.Int64ObservableGauge("relay_fanout_edge_queue_bytes",
		metric.WithDescription("Bytes in the queues of all edges of the market."))
	for _, err := range []error{err1, err2, err3, err4, err5} {
		if err != nil {
			return fmt.Errorf("router: metrics: %w", err)
		}
	}
	_, err := meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		for _, r := range routers {
			s := r.Stats()
			market := attribute.String("market", r.market)
			with := metric.WithAttributes(market)
			for kind, n := range s.Events {
				o.ObserveInt64(events, int64(n), metric.WithAttributes(market, attribute.String("ev", kind)))
			}
			o.ObserveInt64(gaps, int64(s.Gaps), with)
			o.ObserveInt64(topics, int64(s.Topics), with)
			o.ObserveInt64(edges, int64(s.Edges), with)
			o.ObserveInt64(queue, int64(s.QueueBytes), with)
		}
		return nil
	}, events, gaps, topics, edges, queue)
	if err != nil {
		return fmt.Errorf("router: metrics: %w", err)
	}
	return nil
}
