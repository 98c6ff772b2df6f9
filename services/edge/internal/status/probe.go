package status

import (
	"context"
	"sync"
	"time"

	"github.com/cutemarkets/relay/services/internal/lifecycle"
)

// probe asks one dependency, at most once per freshness and once at a time.
type probe struct {
	// Static after construction.
	name  string
	check func(ctx context.Context) (time.Duration, error)

	mu sync.Mutex
	// Guarded by mu.
	last *inquiry // nil: never asked
}

// inquiry is one question to a dependency.
type inquiry struct {
	done chan struct{}

	// Written before done is closed.
	latency time.Duration
	err     error
	at      time.Time
}

func newProbe(name string, ask func(ctx context.Context) (time.Duration, error)) *probe {
	return &probe{name: name, check: ask}
}

// ask returns the inquiry that is under way or fresh, or begins one, which goes
// on when the request that began it has gone.
func (p *probe) ask(ctx context.Context) *inquiry {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.last == nil || p.last.stale() {
		q := &inquiry{done: make(chan struct{})}
		p.last = q
		lifecycle.Go(p.name, func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
			defer cancel()
			q.latency, q.err = p.check(ctx)
			q.at = time.Now()
			close(q.done)
		})
	}
	return p.last
}

// stale reports whether the inquiry has ended and its answer is too old.
func (q *inquiry) stale() bool {
	select {
	case <-q.done:
		return time.Since(q.at) >= freshness
	default:
		return false
	}
}

// wait returns the answer, or the error of ctx.
func (q *inquiry) wait(ctx context.Context) (time.Duration, error) {
	select {
	case <-q.done:
		return q.latency, q.err
	default:
	}
	select {
	case <-q.done:
		return q.latency, q.err
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}
