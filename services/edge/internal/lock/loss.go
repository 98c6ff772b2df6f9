package lock

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

const (
	beatEvery   = 250 * time.Millisecond
	beatTimeout = 500 * time.Millisecond
)

// losses is what the manager knows of data that Redis has lost.
type losses struct {
	mu sync.Mutex
	// Guarded by mu.
	guard   guard
	changes uint64 // of generation that guard was told of
}

// refuses reports whether newcomers are refused now, and tells the guard of a
// new generation first.
func (m *Manager) refuses(now time.Duration) bool {
	changes := m.redis.Generation()
	g := m.watch(func(l *losses) trigger {
		if changes == l.changes {
			return noTrigger
		}
		l.changes = changes
		return l.guard.begin(now, generation)
	})
	return g.refuses(now)
}

// vanished tells the guard of a lock that is missing while its lease is valid.
func (m *Manager) vanished(now, confirmed time.Duration) {
	m.watch(func(l *losses) trigger { return l.guard.missing(now, confirmed) })
}

// watch gives an input to the guard and returns it as it is then. When it has
// begun, all locks are due within its sweep.
func (m *Manager) watch(input func(*losses) trigger) guard {
	m.losses.mu.Lock()
	t := input(&m.losses)
	g := m.losses.guard
	m.losses.mu.Unlock()
	if t == noTrigger {
		return g
	}
	for n := range m.buckets {
		b := &m.buckets[n]
		b.mu.Lock()
		b.refreshAt = min(b.refreshAt, g.assertAt(n))
		b.mu.Unlock()
	}
	m.metrics.guarded(t)
	m.log.Warn("Redis may have lost locks: newcomers are refused while all locks are asserted anew; see that Redis keeps its data",
		slog.String("trigger", triggerNames[t]), slog.Int64("locks", m.held.Load()), slog.Duration("for", guardTime))
	return g
}

// beat keeps up the connections to Redis, so that an edge to which nobody comes
// notices a new generation.
func (m *Manager) beat(ctx context.Context) {
	beats := time.NewTicker(beatEvery)
	defer beats.Stop()
	for ctx.Err() == nil {
		select {
		case <-beats.C:
			timed, cancel := context.WithTimeout(ctx, beatTimeout)
			_ = m.redis.Reach(timed) // operations tell of a Redis that is away
			cancel()
		case <-ctx.Done():
		}
	}
}
