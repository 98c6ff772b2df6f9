package leader

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	coordination "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/cutemarkets/relay/services/internal/lease"
)

// Why a leadership was lost.
var (
	errOther = errors.New("leader: the Lease has another holder, or has had one")
	errGone  = errors.New("leader: the Lease is gone")
)

var (
	errNoCreate = errors.New("leader: a Lease is never created here")
	errGrace    = errors.New("leader: the API server was away, and the holder may live")
)

// lock is the Lease of a market during one campaign (resourcelock.Interface).
// What it adds to that of client-go: the epoch; the proof; the end of a leadership
// as soon as it proves over, where client-go would go on trying, and lead on if it
// gets the Lease a second time; and that a standby takes no Lease that has ended
// unless the API server has answered for a while in which it was not renewed, for
// its holder may live and have been unable to.
type lock struct {
	// Static after construction.
	candidate *candidate
	lose      context.CancelCauseFunc // ends the election
	proof     *lease.Proof            // of the leadership

	// Written before the leadership starts.
	epoch       Epoch
	uid         types.UID // of the Lease that gave it
	transitions int

	// Owned by the goroutine of the election, or by the caller of Run while
	// there is none; not thread-safe.
	lease  *coordination.Lease // as the API server last gave it
	led    bool                // this campaign got the Lease
	raw    []byte              // what a standby last saw
	looked time.Time           // when that was; zero: the last look failed
	silent time.Duration       // for how long it has seen that, from look to look
}

func newLock(c *candidate, lose context.CancelCauseFunc) *lock {
	return &lock{candidate: c, lose: lose, proof: lease.NewProof()}
}

// Get implements resourcelock.Interface.
func (l *lock) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	lease, err := l.get(ctx)
	if err != nil {
		l.looked = time.Time{}
		if l.led && apierrors.IsNotFound(err) {
			l.lose(errGone)
		}
		return nil, nil, err
	}
	record := resourcelock.LeaseSpecToLeaderElectionRecord(&lease.Spec)
	if l.led && (!l.candidate.held || lease.UID != l.uid || record.LeaderTransitions != l.transitions) {
		l.lose(errOther)
		return nil, nil, fmt.Errorf("%w: %q", errOther, l.candidate.holder)
	}
	// A record has its times in whole seconds, in which two renewals may fall.
	raw, err := json.Marshal(lease.Spec)
	l.watch(raw)
	return record, raw, err
}

// watch measures for how long the holder of a Lease could have renewed it and has
// not.
func (l *lock) watch(raw []byte) {
	now := time.Now()
	switch {
	case !bytes.Equal(raw, l.raw):
		l.raw, l.silent = raw, 0
	case !l.looked.IsZero():
		l.silent += now.Sub(l.looked)
	}
	l.looked = now
}

// Create implements resourcelock.Interface; client-go calls it when there is no
// Lease.
func (l *lock) Create(context.Context, resourcelock.LeaderElectionRecord) error { return errNoCreate }

// Update implements resourcelock.Interface.
func (l *lock) Update(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	begun := time.Now()
	if !l.led && l.candidate.holder != "" && l.silent < l.candidate.config.grace() {
		return errGrace
	}
	// client-go adds one if there was another holder. Here one is added also if we
	// were the last to lead, and if somebody has emptied the Lease.
	record.LeaderTransitions = l.candidate.transitions
	if !l.led {
		record.LeaderTransitions++
	}
	if err := l.update(ctx, record); err != nil {
		if !apierrors.IsConflict(err) {
			l.silent /= 2 // the holder could not renew it either
		}
		return err
	}
	l.proof.Prove(begun.Add(l.candidate.config.proof()))
	if !l.led {
		l.led = true
		l.epoch = l.candidate.nextEpoch(l.lease)
		l.uid, l.transitions = l.lease.UID, record.LeaderTransitions
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
	if err != nil {
		l.candidate.judge(ctx, err)
		return nil, err
	}
	l.see(lease)
	if !l.candidate.readOnly {
		l.candidate.judge(ctx, nil)
	}
	return lease, nil
}

func (l *lock) update(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	lease := l.lease.DeepCopy()
	lease.Spec = resourcelock.LeaderElectionRecordToLeaseSpec(&record)
	l.candidate.held = true // even if the answer is lost
	lease, err := l.candidate.leases.Update(ctx, lease, metav1.UpdateOptions{})
	l.candidate.judge(ctx, err)
	l.candidate.readOnly = err != nil && !apierrors.IsConflict(err)
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
	if l.lease == nil || l.lease.ResourceVersion != lease.ResourceVersion {
		c.readOnly = false
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
