package lock

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/cutemarkets/relay/services/edge/internal/dialect"
)

// fences is what Fence goes by.
type fences struct {
	next atomic.Int64 // before it no lock has to be given up; ns since the manager was made

	mu sync.Mutex // held by who looks at the leases
}

// Fence tells the holders whose leases have ended, and returns when all of them
// have been told. Whoever delivers to holders calls it before, since the first to
// run in a process that stood still may be a writer. It is a look at the clock
// nearly always.
func (m *Manager) Fence() {
	if m.now() >= time.Duration(m.fences.next.Load()) {
		m.fence()
	}
}

// fence looks at all buckets where a lease may have ended. The margin after it
// needs no look: a lock is granted for no less, and a lease never becomes shorter.
func (m *Manager) fence() {
	m.fences.mu.Lock()
	defer m.fences.mu.Unlock()
	now := m.now()
	if now < time.Duration(m.fences.next.Load()) {
		return
	}
	next := now + m.timing.margin
	for n := range m.buckets {
		next = min(next, m.fenceBucket(&m.buckets[n], now))
	}
	m.fences.next.Store(int64(next))
}

// fenceBucket tells the holders of a bucket whose leases have ended, and returns
// when the next one ends at the earliest.
func (m *Manager) fenceBucket(b *bucket, now time.Duration) time.Duration {
	var lost []*Lease
	b.mu.Lock()
	if now >= b.fenceAt {
		b.fenceAt = never
		for _, l := range b.leases {
			before := l.machine
			if ev := l.machine.tick(m.timing, now); ev.lost != dialect.OK {
				lost = append(lost, l)
			}
			m.settleLocked(b, l, &before)
		}
	}
	next := b.fenceAt
	b.mu.Unlock()
	for _, l := range lost {
		m.config.Lost(l.owner, dialect.LockUnavailable)
	}
	return next
}
