package lock

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/cutemarkets/relay/services/edge/internal/dialect"
	"github.com/cutemarkets/relay/services/internal/lifecycle"
)

// bucket is the locks that share a Redis Cluster slot.
type bucket struct {
	mu sync.Mutex
	// Guarded by mu.
	leases    map[*Lease]struct{}
	refreshAt time.Time // when all held locks are refreshed next
	wakeAt    time.Time // when a release is tried again; zero: none waits
	fenceAt   time.Time // no lease is valid for less long; zero: none is held
	working   bool      // its goroutine runs

	// Owned by its goroutine; not thread-safe.
	refreshing []*Lease // still to be refreshed in this round
}

// sooner returns the earlier time, taking zero for none.
func sooner(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}

func spread(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (0.8 + 0.4*rand.Float64()))
}

func (b *bucket) addLocked(l *Lease, now time.Time, refresh time.Duration) {
	if len(b.leases) == 0 && !b.working {
		// Anywhere within the first period, so that the buckets lie apart.
		b.refreshAt = now.Add(time.Duration((0.2 + 0.8*rand.Float64()) * float64(refresh)))
	}
	b.leases[l] = struct{}{}
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
	m.closing.Store(true)
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
	leases := make([]*Lease, 0, len(b.leases))
	for l := range b.leases {
		leases = append(leases, l)
	}
	b.mu.Unlock()
	for _, l := range leases {
		m.release(l)
	}
	m.wake(b)
}

// turn looks after the buckets whose time has come.
func (m *Manager) turn() {
	now := time.Now()
	for n := range m.buckets {
		b := &m.buckets[n]
		b.mu.Lock()
		fence := !b.fenceAt.IsZero() && !now.Before(b.fenceAt)
		due := len(b.leases) > 0 && !b.working &&
			(!now.Before(b.refreshAt) || !b.wakeAt.IsZero() && !now.Before(b.wakeAt))
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
func (m *Manager) fence(b *bucket, now time.Time) {
	var lost []*Lease
	b.mu.Lock()
	b.fenceAt = time.Time{}
	for l := range b.leases {
		before := l.machine
		if ev := l.machine.tick(now); ev.lost != dialect.OK {
			lost = append(lost, l)
		}
		m.settleLocked(l, &before)
	}
	b.mu.Unlock()
	for _, l := range lost {
		l.lost(dialect.LockUnavailable)
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
		now := time.Now()
		for n, l := range leases {
			m.step(l, func(x *machine) event { return x.reply(now, o, got[n]) })
		}
		if o == opRefresh && (got[0] == refused || got[0] == unknown) {
			b.mu.Lock()
			b.refreshAt = now.Add(spread(lastRetry * 8 / 10)) // within 1 s
			b.mu.Unlock()
		}
	}
}

// take chooses the next operation and up to 100 locks for it: releases first,
// then what Redis has lost, then the refresh.
func (m *Manager) take(b *bucket) (op, []*Lease) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	if !now.Before(b.refreshAt) {
		b.refreshAt = now.Add(spread(m.config.Refresh))
		b.refreshing = b.refreshing[:0]
		for l := range b.leases {
			b.refreshing = append(b.refreshing, l)
		}
	}
	b.wakeAt = time.Time{}
	picked := make(map[op][]*Lease)
	for l := range b.leases {
		o := l.machine.next(now, false)
		if o == opRelease || o == opReacquire {
			picked[o] = append(picked[o], l)
		}
		if l.machine.state == releasing && o == opNone && !l.machine.busy {
			b.wakeAt = sooner(b.wakeAt, l.machine.retryAt)
		}
	}
	for n := len(b.refreshing); n > 0 && len(picked[opRefresh]) < scriptKeys; n-- {
		l := b.refreshing[n-1]
		b.refreshing[n-1] = nil
		b.refreshing = b.refreshing[:n-1]
		if l.machine.next(now, true) == opRefresh {
			picked[opRefresh] = append(picked[opRefresh], l)
		}
	}
	return m.sendLocked(b, now, picked)
}

// sendLocked marks what is sent; nothing left to send ends the bucket's goroutine.
func (m *Manager) sendLocked(b *bucket, now time.Time, picked map[op][]*Lease) (op, []*Lease) {
	for _, o := range []op{opRelease, opReacquire, opRefresh} {
		leases := picked[o]
		if len(leases) == 0 {
			continue
		}
		if o != opRefresh { // those picked for the refresh wait for the next round
			b.refreshing = append(b.refreshing, picked[opRefresh]...)
		}
		leases = leases[:min(len(leases), scriptKeys)]
		for _, l := range leases {
			l.machine.send(now, o)
		}
		return o, leases
	}
	b.working = false
	return opNone, nil
}
