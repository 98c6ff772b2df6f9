package leader

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/cutemarkets/relay/services/internal/lease"
	"github.com/cutemarkets/relay/services/internal/lifecycle"
)

// Reason is why a request about a lease failed. Its String is the metric label
// and the log field.
type Reason uint8

// The reasons.
const (
	ReasonNone        Reason = iota // it did not
	ReasonMissing                   // there is no Lease
	ReasonForbidden                 // the service account, or the user of Redis, may not
	ReasonConflict                  // somebody else changed the Lease; tried again
	ReasonFailed                    // the API server, or Redis, cannot serve the request
	ReasonUnreachable               // no answer
	reasonEnd
)

var reasonLabels = [reasonEnd]string{"none", "missing", "forbidden", "conflict", "failed", "unreachable"}

// String is the metric label.
func (r Reason) String() string { return reasonLabels[r] }

// withoutStore ends an advice.
const withoutStore = "without it nobody begins to lead, and who leads keeps the upstream but makes no new connection"

// change is a change of leadership. Its label is that of the metric.
type change uint8

const (
	changeAcquired change = iota
	changeDegraded        // not proven any more
	changeLost            // taken away
	changeReleased        // given up, for the process stops
	changeEnd
)

var changeLabels = [changeEnd]string{"acquired", "degraded", "lost", "released"}

// tally is what the election of one market tells of itself.
type tally struct {
	// Static after construction.
	market   string
	identity string // of this process
	advice   [reasonEnd]string
	log      *slog.Logger

	proof   atomic.Pointer[lease.Proof] // of the leadership; nil: it does not lead
	changes [changeEnd]atomic.Uint64
	errors  [reasonEnd]atomic.Uint64

	// Owned by the goroutine that makes requests; not thread-safe.
	problem Reason // of the last request
}

func (t *tally) change(to change) { t.changes[to].Add(1) }

// lead runs work in ctx. lost tells why the leadership is lost, nil if it is not.
func (t *tally) lead(ctx context.Context, l Leadership, work Work, lost func() error) error {
	t.change(changeAcquired)
	t.proof.Store(l.Proof)
	log := t.log.With(slog.String("epoch", l.Epoch.String()))
	log.Info("leadership acquired", slog.String("identity", t.identity))
	watching, stop := context.WithCancel(ctx)
	watched := make(chan struct{})
	lifecycle.Go("proof "+t.market, func() {
		defer close(watched)
		t.watch(watching, l.Proof, log)
	})
	err := work(ctx, l)
	ended, cause := ctx.Err() != nil, lost()
	stop()
	<-watched
	t.proof.Store(nil)
	switch {
	case err != nil:
	case !ended:
		err = ErrEnded
	case cause != nil:
		t.change(changeLost)
		log.Warn("leadership lost, work has ended", slog.Any("cause", cause))
		return nil
	}
	t.change(changeReleased)
	log.Info("leadership given up, work has ended")
	return err
}

// watch tells of each time the proof ends or is there again, until ctx ends.
func (t *tally) watch(ctx context.Context, proof *lease.Proof, log *slog.Logger) {
	for before := true; ; {
		changed := proof.Changed()
		switch now := proof.Proven(); {
		case now == before || ctx.Err() != nil:
		case now:
			log.Info("leadership proven again")
			before = now
		default:
			t.change(changeDegraded)
			log.Warn("leadership degraded: the lease cannot be proven, so another may lead as well",
				slog.String("advice", "see to what keeps this process from the lease, which an earlier record tells; until then it keeps the upstream it has and makes no new connection"))
			before = now
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// judge counts what came of a request, and logs when that is another problem
// than before, or none any more.
func (t *tally) judge(reason Reason, err error) {
	if reason != ReasonNone {
		t.errors[reason].Add(1)
	}
	if reason == t.problem || reason == ReasonConflict {
		return
	}
	t.problem = reason
	if reason == ReasonNone {
		t.log.Info("lease usable again")
		return
	}
	t.log.Error("lease not usable", slog.String("reason", reason.String()),
		slog.String("advice", t.advice[reason]), slog.Any("error", err))
}

// tallies are those of all markets.
type tallies []*tally

// Observe registers the metrics of all markets.
func (all tallies) Observe(meter metric.Meter) error {
	leader, err1 := meter.Int64ObservableGauge("relay_fanout_leader",
		metric.WithDescription("1 while this process leads the market."))
	degraded, err4 := meter.Int64ObservableGauge("relay_fanout_leader_degraded",
		metric.WithDescription("1 while this process leads the market and cannot prove that it does: the lease is out of reach."))
	changes, err2 := meter.Int64ObservableCounter("relay_fanout_leader_changes_total",
		metric.WithDescription("Leaderships that this process acquired, could not prove any more, lost, or released, by change."))
	failures, err3 := meter.Int64ObservableCounter("relay_fanout_lease_errors_total",
		metric.WithDescription("Requests about the lease that failed, by reason."))
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return fmt.Errorf("leader: metrics: %w", err)
	}
	_, err := meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		for _, t := range all {
			market := attribute.String("market", t.market)
			proof := t.proof.Load()
			o.ObserveInt64(leader, one(proof != nil), metric.WithAttributes(market))
			o.ObserveInt64(degraded, one(proof != nil && !proof.Proven()), metric.WithAttributes(market))
			for to, label := range changeLabels {
				o.ObserveInt64(changes, int64(t.changes[to].Load()),
					metric.WithAttributes(market, attribute.String("change", label)))
			}
			for reason := ReasonNone + 1; reason < reasonEnd; reason++ {
				o.ObserveInt64(failures, int64(t.errors[reason].Load()),
					metric.WithAttributes(market, attribute.String("reason", reason.String())))
			}
		}
		return nil
	}, leader, degraded, changes, failures)
	if err != nil {
		return fmt.Errorf("leader: metrics: %w", err)
	}
	return nil
}

func one(is bool) int64 {
	if is {
		return 1
	}
	return 0
}
