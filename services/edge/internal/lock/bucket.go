package lock

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/cutemarkets/relay/services/edge/internal/dialect"
	"github.com/cutemarkets/relay/services/internal/lifecycle"
)

// bucket is the locks that share a Redis Cluster slot.
type bucket struct {
	mu sync.Mutex
	// Guarded by mu. Times are since the manager was made; 0: none.
	leases    []*Lease
	refreshAt time.Duration // when all held locks are refreshed next
	wakeAt    time.Duration // when a release is tried again
	fenceAt   time.Duration // no lease is valid for less long
	working   bool          // its goroutine runs
}

// sooner returns the earlier time, taking zero for none.
func sooner(a, b time.Duration) time.Duration {
	if a == 0 || b < a {
		return b
	}
	return a
}

func spread(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (0.8 + 0.4*rand.Float64()))
}

func (b *bucket) addLocked(l *Lease, now, refresh time.Duration) {
	if len(b.leases) == 0 && !b.working {
		// Anywhere within the first period, so that the buckets lie apart.
		b.refreshAt = now + time.Duration((0.2+0.8*rand.Float64())*float64(refresh))
	}
	l.place = int32(len(b.leases))
	b.leases = append(b.leases, l)
}

// removeLocked also gives back the room of leases that have gone.
func (b *bucket) removeLocked(l *Lease) {
	last := len(b.leases) - 1
	b.leases[l.place] = b.leases[last]
	b.leases[l.place].place = l.place
	b.leases[last] = nil
	b.leases = b.leases[:last]
	if 4*last <= cap(b.leases) {
		b.leases = append(make([]*Lease, 0, 2*last), b.leases...)
	}
}

// Run keeps the locks until ctx is done; then it releases them all, for at most
// 2 s. It runs once.
func (m *Manager) Run(ctx context.Context) error {
	wheel := time.NewTicker(wheelTick)
	defer wheel.Stop()
	for ctx.Err() == nil {
		select {
		case <-wheel.C:
			m.turn()
		case <-ctx.Done():
		}
	}
	close(m.closing)
	for n := range m.buckets {
		m.releaseAll(&m.buckets[n])
	}
	for end := time.Now().Add(stopTimeout); m.leases.Load() > 0 && time.Now().Before(end); <-wheel.C {
		m.turn()
	}
	for m.workers.Load() > 0 { // each ends with its operation
		<-wheel.C
	}
	if n := m.leases.Load(); n > 0 {
		m.log.Warn("locks could not be released; they expire by themselves", slog.Int64("locks", n))
	}
	return nil
}

func (m *Manager) releaseAll(b *bucket) {
	b.mu.Lock()
	leases := slices.Clone(b.leases)
	b.mu.Unlock()
	for _, l := range leases {
		m.release(l)
	}
	m.wake(b)
}

// turn looks after the buckets whose time has come.
func (m *Manager) turn() {
	now := m.now()
	for n := range m.buckets {
		b := &m.buckets[n]
		b.mu.Lock()
		fence := b.fenceAt != 0 && now >= b.fenceAt
		due := len(b.leases) > 0 && !b.working && (now >= b.refreshAt || b.wakeAt != 0 && now >= b.wakeAt)
		b.mu.Unlock()
		if fence {
			m.fence(b, now)
		}
		if due {
			m.wake(b)
		}
	}
}

// fence tells the holders of a bucket whose leases have ended.
func (m *Manager) fence(b *bucket, now time.Duration) {
	var lost []*Lease
	b.mu.Lock()
	b.fenceAt = 0
	for _, l := range b.leases {
		before := l.machine
		if ev := l.machine.tick(now); ev.lost != dialect.OK {
			lost = append(lost, l)
		}
		m.settleLocked(b, l, &before)
	}
	b.mu.Unlock()
	for _, l := range lost {
		m.config.Lost(l.owner, dialect.LockUnavailable)
	}
}

// wake starts a bucket's goroutine unless it runs.
func (m *Manager) wake(b *bucket) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.working || len(b.leases) == 0 {
		return
	}
	b.working = true
	m.workers.Add(1)
	lifecycle.Go("lock bucket", func() {
		defer m.workers.Add(-1)
		m.work(b)
	})
}

// work carries out a bucket's operations one after the other until there are none.
func (m *Manager) work(b *bucket) {
	for {
		o, leases := m.take(b)
		if o == opNone {
			return
		}
		got := m.run(o, leases)
		now := m.now()
		for n, l := range leases {
			m.step(l, func(x *machine) event { return x.reply(m.timing, now, o, got[n]) })
		}
		if o == opRefresh && (got[0] == refused || got[0] == unknown) {
			b.mu.Lock()
			b.refreshAt = now + spread(lastRetry*8/10) // within 1 s
			b.mu.Unlock()
		}
	}
}

// take chooses the next operation and up to 100 locks for it: releases first
// (those that the line has not done), then what Redis has lost, then the refresh. Nothing left to do ends the
// bucket's goroutine.
func (m *Manager) take(b *bucket) (op, []*Lease) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := m.now()
	if now >= b.refreshAt {
		b.refreshAt = now + spread(m.config.Refresh)
		for _, l := range b.leases {
			l.due = l.machine.state == held
		}
	}
	b.wakeAt = 0
	chosen := opNone
	for _, l := range b.leases {
		chosen = max(chosen, l.nextLocked(now))
		if x := &l.machine; x.state == releasing && !x.busy && now < x.at {
			b.wakeAt = sooner(b.wakeAt, x.at)
		}
	}
	if chosen == opNone {
		b.working = false
		return opNone, nil
	}
	leases := make([]*Lease, 0, min(len(b.leases), scriptKeys))
	for _, l := range b.leases {
		if len(leases) < scriptKeys && l.nextLocked(now) == chosen {
			l.machine.send(now, chosen)
			l.due = l.due && chosen != opRefresh
			leases = append(leases, l)
		}
	}
	return chosen, leases
}

// nextLocked is what the bucket has to do for a lease.
func (l *Lease) nextLocked(now time.Duration) op {
	if l.inLine {
		return opNone
	}
	return l.machine.next(now, l.due)
}
