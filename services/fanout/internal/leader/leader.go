// Package leader decides which process leads a market, that is, which one may
// hold the market's upstream socket. A leadership is a context that dies with
// it, and an epoch that is greater than any before it. The package never touches
// an upstream socket.
//
// A leader whose API server or Redis is away cannot prove any more that it leads
// when the others may have been given the lease. It leads on in doubt, without
// proof, until an answer shows that another has led since, which ends the
// leadership at once, or that nobody has, which proves it again, with the same
// epoch. Nobody begins to lead without an answer.
//
// Static and Standby start no goroutine. Kubernetes starts one per market, which
// takes part in the election and ends with Run; requests to the API server are
// made one after the other on it, so nothing queues. Redis has those of package
// lease, for which the same is true. Both have one that logs while they lead. An
// API server or a Redis that is slow or away costs the proof and nothing else:
// work never waits for it.
package leader

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cutemarkets/relay/services/internal/lease"
)

// ErrEnded says that the work of a leader returned while it still led.
var ErrEnded = errors.New("leader: work ended before the leadership")

// Epoch fences one leadership of a market from another. Epochs are compared by
// generation, then by term.
type Epoch struct {
	Generation uint64
	Term       uint64
}

// String is for logs.
func (e Epoch) String() string { return fmt.Sprintf("%d/%d", e.Generation, e.Term) }

// Compare is negative if e is before o, positive if it is after o.
func (e Epoch) Compare(o Epoch) int {
	return cmp.Or(cmp.Compare(e.Generation, o.Generation), cmp.Compare(e.Term, o.Term))
}

// Leadership is one leadership of a market.
type Leadership struct {
	Epoch Epoch
	// Proof is whether this process is known to lead. Without proof another may
	// lead as well: what is there may go on, nothing may be begun.
	Proof *lease.Proof
}

// Work is what the leader of a market does. ctx ends with the leadership. Work
// returns nil only after ctx has ended and when nothing of it is left: the
// leadership is given up, and so offered to others, after Work has returned.
type Work func(ctx context.Context, l Leadership) error

// Elector decides who leads.
type Elector interface {
	// Run takes part in the election of a market until ctx ends, and runs work
	// each time this process leads. No two calls of work for one market overlap.
	// It returns nil after ctx has ended, and an error when it cannot go on.
	Run(ctx context.Context, market string, work Work) error
}

// Static leads every market from start to end: for one process without others.
type Static struct {
	epoch Epoch
}

// NewStatic makes a Static whose epochs are those of a process started at a
// moment: a later start gives a greater epoch as long as the clock does not go
// back between them.
func NewStatic(start time.Time) Static {
	return Static{epoch: Epoch{Generation: uint64(start.UnixNano()), Term: 1}}
}

// Run implements Elector.
func (s Static) Run(ctx context.Context, market string, work Work) error {
	err := work(ctx, Leadership{Epoch: s.epoch, Proof: lease.NewProof()})
	switch {
	case err != nil:
		return fmt.Errorf("leader of %s: %w", market, err)
	case ctx.Err() == nil:
		return fmt.Errorf("leader of %s: %w", market, ErrEnded)
	}
	return nil
}

// Standby never leads.
type Standby struct{}

// Run implements Elector.
func (Standby) Run(ctx context.Context, _ string, _ Work) error {
	<-ctx.Done()
	return nil
}
