package leader

import (
	"context"
	"errors"
	"fmt"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// Reason is why a request about a Lease failed. Its String is the metric label
// and the log field.
type Reason uint8

// The reasons.
const (
	ReasonNone        Reason = iota // it did not
	ReasonMissing                   // there is no Lease
	ReasonForbidden                 // the service account may not
	ReasonConflict                  // somebody else changed the Lease; tried again
	ReasonFailed                    // the API server cannot serve the request
	ReasonUnreachable               // no answer
	reasonEnd
)

var reasons = [reasonEnd]struct{ label, advice string }{
	ReasonNone:        {"none", ""},
	ReasonMissing:     {"missing", "create the Lease with an empty spec, as the Helm chart does; until then nobody leads the market"},
	ReasonForbidden:   {"forbidden", "allow get and update on the Lease to the service account, as the Role of the Helm chart does"},
	ReasonConflict:    {"conflict", ""},
	ReasonFailed:      {"failed", "see to the API server; without it no leadership is gained, and that of the market is lost"},
	ReasonUnreachable: {"unreachable", "see to the API server and the way to it; without it no leadership is gained, and that of the market is lost"},
}

// String is the metric label.
func (r Reason) String() string { return reasons[r].label }

func (r Reason) advice() string { return reasons[r].advice }

func reasonOf(err error) Reason {
	var answer apierrors.APIStatus
	switch {
	case err == nil:
		return ReasonNone
	case !errors.As(err, &answer):
		return ReasonUnreachable
	case apierrors.IsNotFound(err):
		return ReasonMissing
	case apierrors.IsForbidden(err), apierrors.IsUnauthorized(err):
		return ReasonForbidden
	case apierrors.IsConflict(err):
		return ReasonConflict
	}
	return ReasonFailed
}

// change is a change of leadership. Its label is that of the metric.
type change uint8

const (
	changeAcquired change = iota
	changeLost            // could not be renewed, or was taken away
	changeReleased        // given up, for the process stops
	changeEnd
)

var changeLabels = [changeEnd]string{"acquired", "lost", "released"}

func (c *candidate) change(to change) { c.changes[to].Add(1) }

// Observe registers the metrics of all markets.
func (k *Kubernetes) Observe(meter metric.Meter) error {
	leader, err1 := meter.Int64ObservableGauge("relay_fanout_leader",
		metric.WithDescription("1 while this process leads the market by its Lease."))
	changes, err2 := meter.Int64ObservableCounter("relay_fanout_leader_changes_total",
		metric.WithDescription("Leaderships that this process acquired, lost, or released, by change."))
	failures, err3 := meter.Int64ObservableCounter("relay_fanout_lease_errors_total",
		metric.WithDescription("Requests about the Lease that failed, by reason."))
	if err := errors.Join(err1, err2, err3); err != nil {
		return fmt.Errorf("leader: metrics: %w", err)
	}
	_, err := meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		for _, c := range k.candidates {
			market := attribute.String("market", c.market)
			leads := int64(0)
			if c.leads.Load() {
				leads = 1
			}
			o.ObserveInt64(leader, leads, metric.WithAttributes(market))
			for to, label := range changeLabels {
				o.ObserveInt64(changes, int64(c.changes[to].Load()),
					metric.WithAttributes(market, attribute.String("change", label)))
			}
			for reason := ReasonNone + 1; reason < reasonEnd; reason++ {
				o.ObserveInt64(failures, int64(c.errors[reason].Load()),
					metric.WithAttributes(market, attribute.String("reason", reason.String())))
			}
		}
		return nil
	}, leader, changes, failures)
	if err != nil {
		return fmt.Errorf("leader: metrics: %w", err)
	}
	return nil
}
