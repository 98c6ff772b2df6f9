package lease

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/cutemarkets/relay/services/internal/lifecycle"
)

// run is the course of Lease.Run: the I/O of the machine.
type run struct {
	// Static after construction.
	*Lease
	work    Work
	perform func(context.Context, request) (answer, error)
	answers chan answer // one operation is in flight at most
	ended   chan error  // what work returned

	// Owned by the caller of Run; not thread-safe.
	machine machine
	cancel  context.CancelCauseFunc // of the work that runs
	proof   *Proof                  // of that work
	err     error                   // of work
	holder  string                  // as last seen
}

func (l *Lease) newRun(work Work, perform func(context.Context, request) (answer, error)) *run {
	return &run{
		Lease: l,
		machine: machine{
			timing: timing{l.config.TTL, l.config.Margin, l.config.Refresh, l.config.Retry, opTimeout, stopTimeout},
			random: rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())),
		},
		work:    work,
		perform: perform,
		answers: make(chan answer, 1),
		ended:   make(chan error, 1),
	}
}

// loop gives the machine its inputs until it is gone.
func (r *run) loop(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	stop := ctx.Done()
	for {
		now := r.pass(ctx)
		if r.machine.state == gone {
			return r.err
		}
		if o := r.machine.next(now); o != opNone {
			r.send(ctx, o)
		}
		timer.Reset(r.machine.wake() - now)
		select {
		case <-timer.C:
		case <-stop:
			stop = nil
		case a := <-r.answers:
			r.replied(ctx, r.pass(ctx), a)
		case err := <-r.ended:
			r.returned(r.pass(ctx), err)
		}
	}
}

// pass tells the machine what time it is. That comes before any other input:
// after a pause of the process, an answer may be older than the proof.
func (r *run) pass(ctx context.Context) time.Duration {
	now := r.now()
	if ctx.Err() != nil {
		r.machine.stop(now)
	}
	r.act(ctx, r.machine.tick(now))
	return now
}

// send starts an operation. It does not end with ctx: what it does is to be known.
func (r *run) send(ctx context.Context, o op) {
	q := request{op: o, epoch: r.machine.epoch, known: r.machine.known, wall: time.Now()}
	now := r.now()
	q.ended = r.machine.sawEnd(now)
	r.machine.send(now)
	lifecycle.Go("lease "+r.config.Name, func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), opTimeout)
		defer cancel()
		a, err := r.perform(ctx, q)
		r.config.Done(err)
		r.answers <- a
	})
}

// replied gives the machine an answer.
func (r *run) replied(ctx context.Context, now time.Duration, a answer) {
	if a.op == opAcquire && a.outcome <= other && a.holder != r.holder {
		r.holder = a.holder
		r.sawHolder()
	}
	r.act(ctx, r.machine.reply(now, a))
	if r.machine.state == held {
		r.proof.Prove(r.born.Add(r.machine.endAt))
	}
	if a.op == opRelease && a.outcome == mine {
		r.log.Info("lease released")
	}
}

func (r *run) sawHolder() {
	switch r.holder {
	case "":
	case guarded:
		r.log.Warn("nobody but its holder can have the lease for now, because Redis was away, is new or may have lost data",
			slog.Duration("ttl", r.config.TTL))
	default:
		r.log.Info("lease is held by another", slog.String("holder", r.holder))
	}
}

// returned takes the end of work.
func (r *run) returned(now time.Duration, err error) {
	r.err = err
	if err != nil || r.machine.state != lost {
		r.machine.stop(now)
	}
	r.cancel(nil)
	r.proof.Set(false)
	r.machine.returned(now)
}

// act carries out what an input meant.
func (r *run) act(ctx context.Context, ev event) {
	switch {
	case ev.granted:
		working, cancel := context.WithCancelCause(ctx)
		r.cancel = cancel
		epoch, proof := r.machine.epoch, NewProof()
		proof.Prove(r.born.Add(r.machine.endAt))
		r.proof = proof
		lifecycle.Go("lease work "+r.config.Name, func() { r.ended <- r.work(working, epoch, proof) })
	case ev.doubt:
		r.proof.Set(false)
	case ev.lost != nil:
		r.cancel(ev.lost)
		r.proof.Set(false)
		r.log.Warn("lease lost, work is told to end", slog.Any("cause", ev.lost))
	case ev.overdue:
		r.log.Error("lease lost for longer than its TTL and work has not ended: another may do the same; find out what work waits for, or restart this process",
			slog.Duration("ttl", r.config.TTL))
	case ev.abandoned:
		r.log.Warn("lease not released, the others wait for its end", slog.Duration("ttl", r.config.TTL))
	}
}
