package lock

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

var opNames = [opEnd]string{opAcquire: "acquire", opRefresh: "refresh", opReacquire: "reacquire", opRelease: "release"}

var outcomeNames = [outcomeEnd]string{mine: "mine", other: "other", absent: "missing", refused: "refused", unknown: "unknown"}

var probeNames = [probeEnd]string{probeGone: "gone", probeAlive: "alive", probeNoAnswer: "no_answer", probeFailed: "failed"}

var triggerNames = [triggerEnd]string{generation: "generation", vanished: "missing"}

// metrics are the package's instruments, all label values made at zero.
type metrics struct {
	operations metric.Int64Counter
	durations  metric.Float64Histogram
	guards     metric.Int64Counter
	probes     metric.Int64Counter
	strange    metric.Int64Counter
	triggers   [triggerEnd]metric.MeasurementOption
	answers    [probeEnd]metric.MeasurementOption
	results    [opEnd][outcomeEnd]metric.MeasurementOption
	ops        [opEnd]metric.MeasurementOption
}

func newMetrics(meter metric.Meter, held *atomic.Int64) (*metrics, error) {
	m := &metrics{}
	var err error
	fail := func(err error) (*metrics, error) { return nil, fmt.Errorf("lock: make metric: %w", err) }
	_, err = meter.Int64ObservableGauge("relay_edge_locks",
		metric.WithDescription("Locks held by sockets of this edge."),
		metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error {
			o.Observe(held.Load())
			return nil
		}))
	if err != nil {
		return fail(err)
	}
	m.operations, err = meter.Int64Counter("relay_edge_lock_operations",
		metric.WithDescription("Operations on locks, by result: mine (set, extended or deleted), other (another token), missing, refused (not run), unknown."))
	if err != nil {
		return fail(err)
	}
	m.durations, err = meter.Float64Histogram("relay_edge_lock_operation_duration", metric.WithUnit("s"),
		metric.WithDescription("Time of a Redis round trip, once for each operation on locks that had a part in it."),
		metric.WithExplicitBucketBoundaries(.0002, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1))
	if err != nil {
		return fail(err)
	}
	m.guards, err = meter.Int64Counter("relay_edge_lock_guards",
		metric.WithDescription("Times that newcomers were refused and all locks asserted anew because Redis may have lost some, by trigger: generation (Redis is another process than before), missing (a lock was gone while its lease was valid)."))
	if err != nil {
		return fail(err)
	}
	m.probes, err = meter.Int64Counter("relay_edge_lock_probes",
		metric.WithDescription("Probes of who holds the lock of a user that was refused, by result: gone (the lock may be free now), alive (its client lives), no_answer (its edge was killed or is late), failed (Redis was not reached, or does not permit it)."))
	if err != nil {
		return fail(err)
	}
	m.strange, err = meter.Int64Counter("relay_edge_lock_bad_messages",
		metric.WithDescription("Messages on the channel of this edge that no edge sends."))
	if err != nil {
		return fail(err)
	}
	m.strange.Add(context.Background(), 0)
	for r := range probeEnd {
		m.answers[r] = metric.WithAttributes(attribute.String("result", probeNames[r]))
		m.probes.Add(context.Background(), 0, m.answers[r])
	}
	for t := noTrigger + 1; t < triggerEnd; t++ {
		m.triggers[t] = metric.WithAttributes(attribute.String("trigger", triggerNames[t]))
		m.guards.Add(context.Background(), 0, m.triggers[t])
	}
	for o := opNone + 1; o < opEnd; o++ {
		m.ops[o] = metric.WithAttributes(attribute.String("op", opNames[o]))
		for r := range outcomeEnd {
			m.results[o][r] = metric.WithAttributes(attribute.String("op", opNames[o]), attribute.String("result", outcomeNames[r]))
			m.operations.Add(context.Background(), 0, m.results[o][r])
		}
	}
	return m, nil
}

// probed counts a probe.
func (m *metrics) probed(r probeResult) { m.probes.Add(context.Background(), 1, m.answers[r]) }

// malformed counts a message that is none.
func (m *metrics) malformed() { m.strange.Add(context.Background(), 1) }

// guarded counts a guard that has begun.
func (m *metrics) guarded(t trigger) { m.guards.Add(context.Background(), 1, m.triggers[t]) }

// done counts an operation of a round trip and what it meant for each lock.
func (m *metrics) done(o op, took time.Duration, got []outcome) {
	ctx := context.Background()
	m.durations.Record(ctx, took.Seconds(), m.ops[o])
	var counts [outcomeEnd]int64
	for _, g := range got {
		counts[g]++
	}
	for g, n := range counts {
		if n > 0 {
			m.operations.Add(ctx, n, m.results[o][g])
		}
	}
}
