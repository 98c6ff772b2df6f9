package authn

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// storeBuckets are in seconds: a look-up takes tens of microseconds, a caller
// waits a second or two.
var storeBuckets = []float64{0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5}

// metrics counts decisions and measures the store.
type metrics struct {
	// Static after construction.
	storeSeconds metric.Float64Histogram
	lookupOK     metric.MeasurementOption
	lookupError  metric.MeasurementOption
	pingOK       metric.MeasurementOption
	pingError    metric.MeasurementOption

	decisions [outcomes]atomic.Int64
	inFlight  atomic.Int64
	storeUp   atomic.Bool
}

func newMetrics(meter metric.Meter) (*metrics, error) {
	m := &metrics{
		lookupOK:    storeLabels("lookup", "ok"),
		lookupError: storeLabels("lookup", "error"),
		pingOK:      storeLabels("ping", "ok"),
		pingError:   storeLabels("ping", "error"),
	}
	var err1, err2, err3, err4 error
	m.storeSeconds, err1 = meter.Float64Histogram("relay_auth_store_duration",
		metric.WithUnit("s"),
		metric.WithDescription("Time the key store took, by operation (lookup, ping) and result (ok, error)."),
		metric.WithExplicitBucketBoundaries(storeBuckets...))
	_, err2 = meter.Int64ObservableCounter("relay_auth_decisions",
		metric.WithDescription("Answers to Authenticate, by result (allowed, refused, error) and reason."),
		metric.WithInt64Callback(m.observeDecisions))
	_, err3 = meter.Int64ObservableGauge("relay_auth_store_up",
		metric.WithDescription("1 while the key store answers, else 0."),
		metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error {
			up := int64(0)
			if m.storeUp.Load() {
				up = 1
			}
			o.Observe(up)
			return nil
		}))
	_, err4 = meter.Int64ObservableGauge("relay_auth_calls_in_flight",
		metric.WithDescription("Calls of Authenticate being answered."),
		metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error {
			o.Observe(m.inFlight.Load())
			return nil
		}))
	return m, errors.Join(err1, err2, err3, err4)
}

func storeLabels(operation, result string) metric.MeasurementOption {
	return metric.WithAttributeSet(attribute.NewSet(
		attribute.String("operation", operation), attribute.String("result", result)))
}

var decisionLabels = func() (labels [outcomes]metric.MeasurementOption) {
	for i, a := range answers {
		labels[i] = metric.WithAttributeSet(attribute.NewSet(
			attribute.String("result", a.result), attribute.String("reason", a.reason)))
	}
	return labels
}()

func (m *metrics) observeDecisions(_ context.Context, o metric.Int64Observer) error {
	for i := range m.decisions {
		o.Observe(m.decisions[i].Load(), decisionLabels[i])
	}
	return nil
}

func (m *metrics) observeLookup(ctx context.Context, took time.Duration, ok bool) {
	m.storeSeconds.Record(ctx, took.Seconds(), pick(ok, m.lookupOK, m.lookupError))
}

func (m *metrics) observePing(ctx context.Context, took time.Duration, ok bool) {
	m.storeSeconds.Record(ctx, took.Seconds(), pick(ok, m.pingOK, m.pingError))
}

func pick(ok bool, yes, no metric.MeasurementOption) metric.MeasurementOption {
	if ok {
		return yes
	}
	return no
}
