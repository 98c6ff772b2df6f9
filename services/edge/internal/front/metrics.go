package front

import (
	"context"
	"errors"
	"sync/atomic"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/cutemarkets/relay/services/edge/internal/dialect"
)

// results are what a request can come to: the label values of
// relay_edge_upgrades_total.
var results = []dialect.Reason{
	dialect.OK, dialect.BadRequest, dialect.NotFound, dialect.MethodNotAllowed, dialect.UpgradeRequired,
	dialect.URITooLong, dialect.OriginForbidden, dialect.HandshakeRate, dialect.KeyRate, dialect.FailureRate,
	dialect.PodFull, dialect.PodDraining, dialect.ClientGone, dialect.Draining,
}

// Kinds of errors of net/http.
const (
	errorAccept = iota // no connection can be accepted
	errorTLS           // a TLS handshake failed
	errorOther
	errorKinds
)

var errorNames = [errorKinds]string{"accept", "tls_handshake", "other"}

type metrics struct {
	upgrades   [256]atomic.Int64 // by dialect.Reason
	httpErrors [errorKinds]atomic.Int64
	duration   metric.Float64Histogram
}

func newMetrics(m metric.Meter, opening func() int, limit int) (*metrics, error) {
	s := new(metrics)
	var errs [5]error
	_, errs[0] = m.Int64ObservableCounter("relay_edge_upgrades",
		metric.WithDescription("Requests on the public listener by result: ok, or why there was no upgrade."),
		metric.WithInt64Callback(s.observeUpgrades()))
	_, errs[1] = m.Int64ObservableCounter("relay_edge_http_errors",
		metric.WithDescription("Errors of connections before a request was read, by kind: accept, tls_handshake, other."),
		metric.WithInt64Callback(s.observeErrors()))
	_, errs[2] = m.Int64ObservableGauge("relay_edge_handshakes",
		metric.WithDescription("Connections that are being opened: accepted, not yet upgraded or refused."),
		metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error {
			o.Observe(int64(opening()))
			return nil
		}))
	_, errs[3] = m.Int64ObservableGauge("relay_edge_handshakes_limit",
		metric.WithDescription("Connections being opened beyond which handshakes get 503."),
		metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error {
			o.Observe(int64(limit))
			return nil
		}))
	s.duration, errs[4] = m.Float64Histogram("relay_edge_handshake_duration",
		metric.WithUnit("s"),
		metric.WithDescription("Time from the accepted connection to the hand-over of the upgraded socket."),
		metric.WithExplicitBucketBoundaries(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10))
	return s, errors.Join(errs[:]...)
}

func (s *metrics) observeUpgrades() metric.Int64Callback {
	labels := make([]metric.MeasurementOption, len(results))
	for i, r := range results {
		labels[i] = metric.WithAttributeSet(attribute.NewSet(attribute.String("result", r.String())))
	}
	return func(_ context.Context, o metric.Int64Observer) error {
		for i, r := range results {
			o.Observe(s.upgrades[r].Load(), labels[i])
		}
		return nil
	}
}

func (s *metrics) observeErrors() metric.Int64Callback {
	return func(_ context.Context, o metric.Int64Observer) error {
		for i, name := range errorNames {
			o.Observe(s.httpErrors[i].Load(), metric.WithAttributes(attribute.String("kind", name)))
		}
		return nil
	}
}

// upgrade counts what a request came to.
func (s *metrics) upgrade(r dialect.Reason) { s.upgrades[r].Add(1) }
