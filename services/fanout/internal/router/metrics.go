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
	RingBytes  int // that the ring takes
	Resumed    uint64
	Refused    uint64 // resumes in the present epoch that the ring could not serve
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

		RingBytes: r.ring.bytes,
		Resumed:   r.resumed,
		Refused:   r.refused,
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
	ringBytes, err6 := meter.Int64ObservableGauge("relay_fanout_ring_bytes",
		metric.WithDescription("Bytes that the market's recent events take."))
	resumes, err7 := meter.Int64ObservableCounter("relay_fanout_resumes_total",
		metric.WithDescription("Streams of edges that asked to go on where one broke, by result: resumed, refused (the ring does not go back that far)."))
	for _, err := range []error{err1, err2, err3, err4, err5, err6, err7} {
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
			o.ObserveInt64(ringBytes, int64(s.RingBytes), with)
			o.ObserveInt64(resumes, int64(s.Resumed), metric.WithAttributes(market, attribute.String("result", "resumed")))
			o.ObserveInt64(resumes, int64(s.Refused), metric.WithAttributes(market, attribute.String("result", "refused")))
		}
		return nil
	}, events, gaps, topics, edges, queue, ringBytes, resumes)
	if err != nil {
		return fmt.Errorf("router: metrics: %w", err)
	}
	return nil
}
