package leader

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	coordination "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// Why a leadership was lost.
var (
	errNotRenewed = errors.New("leader: the Lease could not be renewed in time")
	errOther      = errors.New("leader: the Lease has another holder")
	errGone       = errors.New("leader: the Lease is gone")
)

var errNoCreate = errors.New("leader: a Lease is never created here")

// lock is the Lease of a market during one campaign (resourcelock.Interface).
// What it adds to that of client-go: the epoch, and the end of a leadership as
// soon as it proves over, where client-go would go on trying, and lead on if it
// gets the Lease a second time.
type lock struct {
	// Static after construction.
	candidate *candidate
	lose      context.CancelCauseFunc // ends the election
	watchdog  *time.Timer             // calls it

	// Written before the leadership starts.
	epoch Epoch

	// Owned by the goroutine of the election, or by the caller of Run while
	// there is none; not thread-safe.
	lease *coordination.Lease // as the API server last gave it
	led   bool                // this campaign got the Lease
}

func newLock(c *candidate, lose context.CancelCauseFunc) *lock {
	l := &lock{candidate: c, lose: lose}
	l.watchdog = time.AfterFunc(time.Hour, func() { lose(errNotRenewed) })
	l.watchdog.Stop()
	return l
}

// Get implements resourcelock.Interface.
func (l *lock) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	lease, err := l.get(ctx)
	switch {
	case err != nil && l.led && apierrors.IsNotFound(err):
		l.lose(errGone)
		return nil, nil, err
	case err != nil:
		return nil, nil, err
	case l.led && !l.candidate.held:
		l.lose(errOther)
		return nil, nil, fmt.Errorf("%w: %q", errOther, l.candidate.holder)
	}
	record := resourcelock.LeaseSpecToLeaderElectionRecord(&lease.Spec)
	raw, err := json.Marshal(record)
	return record, raw, err
}

// Create implements resourcelock.Interface; client-go calls it when there is no
// Lease.
func (l *lock) Create(context.Context, resourcelock.LeaderElectionRecord) error { return errNoCreate }

// Update implements resourcelock.Interface.
func (l *lock) Update(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	begun := time.Now()
	// client-go adds one if there was another holder. Here one is added also if we
	// were the last to lead, and if somebody has emptied the Lease.
	record.LeaderTransitions = l.candidate.transitions
	if !l.led {
		record.LeaderTransitions++
	}
	if err := l.update(ctx, record); err != nil {
		return err
	}
	l.watchdog.Reset(time.Until(begun.Add(l.candidate.config.patience())))
	if !l.led {
		l.led = true
		l.epoch = l.candidate.nextEpoch(l.lease)
	}
	return nil
}

// RecordEvent implements resourcelock.Interface.
func (l *lock) RecordEvent(string) {}

// Identity implements resourcelock.Interface.
func (l *lock) Identity() string { return l.candidate.identity }

// Describe implements resourcelock.Interface.
func (l *lock) Describe() string { return l.candidate.config.Namespace + "/" + l.candidate.name }

// release gives the Lease up, if the API server may hold us for its holder. What
// was on its way when the election ended may arrive in between: that is a
// conflict, and tried again.
func (l *lock) release(ctx context.Context) {
	if !l.candidate.held {
		return
	}
	config := l.candidate.config
	err := wait.PollUntilContextTimeout(ctx, config.RetryPeriod, config.RenewDeadline, true, func(ctx context.Context) (bool, error) {
		err := l.tryRelease(ctx)
		for apierrors.IsConflict(err) {
			err = l.tryRelease(ctx)
		}
		return err == nil || apierrors.IsNotFound(err), nil
	})
	if err != nil {
		l.candidate.log.Warn("lease not released, the others wait for its end",
			slog.Duration("duration", config.Duration), slog.Any("error", err))
	}
}

func (l *lock) tryRelease(ctx context.Context) error {
	lease, err := l.get(ctx)
	if err != nil || !l.candidate.held {
		return err
	}
	now := metav1.Now()
	err = l.update(ctx, resourcelock.LeaderElectionRecord{
		LeaderTransitions:    resourcelock.LeaseSpecToLeaderElectionRecord(&lease.Spec).LeaderTransitions,
		LeaseDurationSeconds: 1,
		AcquireTime:          now,
		RenewTime:            now,
	})
	if err == nil {
		l.candidate.log.Info("lease released")
	}
	return err
}

func (l *lock) get(ctx context.Context) (*coordination.Lease, error) {
	lease, err := l.candidate.leases.Get(ctx, l.candidate.name, metav1.GetOptions{})
	l.candidate.judge(ctx, err)
	if err != nil {
		return nil, err
	}
	l.see(lease)
	return lease, nil
}

func (l *lock) update(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	lease := l.lease.DeepCopy()
	lease.Spec = resourcelock.LeaderElectionRecordToLeaseSpec(&record)
	l.candidate.held = true // even if the answer is lost
	lease, err := l.candidate.leases.Update(ctx, lease, metav1.UpdateOptions{})
	l.candidate.judge(ctx, err)
	if err != nil {
		return err
	}
	l.see(lease)
	return nil
}

// see takes what the API server says of the Lease.
func (l *lock) see(lease *coordination.Lease) {
	c := l.candidate
	transitions := resourcelock.LeaseSpecToLeaderElectionRecord(&lease.Spec).LeaderTransitions
	if lease.UID != c.uid || transitions > c.transitions {
		c.uid, c.transitions = lease.UID, transitions
	}
	l.lease = lease
	holder := ""
	if lease.Spec.HolderIdentity != nil {
		holder = *lease.Spec.HolderIdentity
	}
	c.held = holder == c.identity
	if holder != c.holder {
		c.holder = holder
		c.log.Info("lease holder", slog.String("holder", holder), slog.Bool("self", c.held))
	}
}

// nextEpoch is the epoch of a leadership that a Lease just gave: its creation
// and its transitions. It is never one in which this process has led.
func (c *candidate) nextEpoch(lease *coordination.Lease) Epoch {
	epoch := Epoch{Generation: uint64(lease.CreationTimestamp.UnixNano())}
	if n := lease.Spec.LeaseTransitions; n != nil {
		epoch.Term = uint64(*n)
	}
	if epoch.Compare(c.last) <= 0 {
		epoch = Epoch{Generation: c.last.Generation, Term: c.last.Term + 1}
	}
	c.last = epoch
	return epoch
}

// judge takes what came of a request.
func (c *candidate) judge(ctx context.Context, err error) {
	if err != nil && ctx.Err() != nil {
		return // given up by us; one that hangs ends by the client's timeout before
	}
	c.tally.judge(reasonOf(err), err)
}

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

// demoted is a log that takes everything as debug output: client-go writes an
// error for each failed attempt, of which judge says what there is to say.
type demoted struct{ slog.Handler }

// Enabled implements slog.Handler.
func (d demoted) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= slog.LevelDebug && d.Handler.Enabled(ctx, slog.LevelDebug)
}

// Handle implements slog.Handler. Errors come without a call of Enabled.
func (d demoted) Handle(ctx context.Context, r slog.Record) error {
	r.Level = slog.LevelDebug
	if !d.Enabled(ctx, r.Level) {
		return nil
	}
	return d.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (d demoted) WithAttrs(attrs []slog.Attr) slog.Handler {
	return demoted{d.Handler.WithAttrs(attrs)}
}

// WithGroup implements slog.Handler.
func (d demoted) WithGroup(name string) slog.Handler { return demoted{d.Handler.WithGroup(name)} }
