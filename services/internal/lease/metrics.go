package lease

import (
	"context"
	"fmt"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

var opNames = [opEnd]string{opAcquire: "acquire", opRefresh: "refresh", opRestore: "restore", opRelease: "release"}

var outcomeNames = [outcomeEnd]string{mine: "mine", other: "other", absent: "missing", refused: "refused", unknown: "unknown"}

// change is one of a lease in this process.
type change uint8

const (
	changeAcquired change = iota
	changeLost            // expired or taken
	changeReleased        // work ended while it held the lease
	changeEnd
)

var changeNames = [changeEnd]string{"acquired", "lost", "released"}

// metrics are the package's instruments, all label values made at zero.
type metrics struct {
	operations metric.Int64Counter
	changes    metric.Int64Counter
	results    [opEnd][outcomeEnd]metric.MeasurementOption
	kinds      [changeEnd]metric.MeasurementOption
}

func newMetrics(meter metric.Meter, l *Lease) (*metrics, error) {
	m := &metrics{}
	name := attribute.String("lease", l.config.Name)
	var err error
	fail := func(err error) (*metrics, error) { return nil, fmt.Errorf("lease: make metric: %w", err) }
	_, err = meter.Int64ObservableGauge("relay_lease_held",
		metric.WithDescription("1 while this process holds the lease."),
		metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error {
			holds := int64(0)
			if l.Valid() {
				holds = 1
			}
			o.Observe(holds, metric.WithAttributes(name))
			return nil
		}))
	if err != nil {
		return fail(err)
	}
	m.changes, err = meter.Int64Counter("relay_lease_changes",
		metric.WithDescription("Times that this process acquired the lease, lost it, or gave it up, by change."))
	if err != nil {
		return fail(err)
	}
	m.operations, err = meter.Int64Counter("relay_lease_operations",
		metric.WithDescription("Operations on the lease, by result: mine (set, extended or deleted), other (another's), missing, refused (not run), unknown."))
	if err != nil {
		return fail(err)
	}
	ctx := context.Background()
	for c, label := range changeNames {
		m.kinds[c] = metric.WithAttributes(name, attribute.String("change", label))
		m.changes.Add(ctx, 0, m.kinds[c])
	}
	for o := opNone + 1; o < opEnd; o++ {
		for r := range outcomeEnd {
			m.results[o][r] = metric.WithAttributes(name, attribute.String("op", opNames[o]), attribute.String("result", outcomeNames[r]))
			m.operations.Add(ctx, 0, m.results[o][r])
		}
	}
	return m, nil
}

func (m *metrics) done(a answer) {
	m.operations.Add(context.Background(), 1, m.results[a.op][a.outcome])
}

func (m *metrics) change(c change) { m.changes.Add(context.Background(), 1, m.kinds[c]) }
