package lock

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/cutemarkets/relay/services/internal/lifecycle"
)

// bucket is the locks that share a Redis Cluster slot.
type bucket struct {
	mu sync.Mutex
	// Guarded by mu. Times are since the manager was made; 0: none.
	leases    []*Lease
	refreshAt time.Duration // when all held locks are refreshed next
	wakeAt    time.Duration // when a release is tried again
	fenceAt   time.Duration // before it no lock has to be given up
	working   bool          // a goroutine has it
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

func (m *Manager) addLocked(b *bucket, l *Lease, now time.Duration) {
	if len(b.leases) == 0 && !b.working {
		// Anywhere within the first period, so that the buckets lie apart.
		b.refreshAt = m.onGrid(now + time.Duration((0.2+0.8*rand.Float64())*float64(m.config.Refresh)))
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
	m.workers.Add(1)
	lifecycle.Go("lock beat", func() {
		defer m.workers.Add(-1)
		m.beat(ctx)
	})
	m.workers.Add(1)
	lifecycle.Go("lock listener", func() {
		defer m.workers.Add(-1)
		m.listen(ctx)
	})
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
}

// turn looks after the buckets whose time has come.
func (m *Manager) turn() {
	m.Fence()
	now := m.now()
	m.refuses(now)
	var due []*bucket
	for n := range m.buckets {
		b := &m.buckets[n]
		if b.begin(now) {
			due = append(due, b)
		}
	}
	for group := range slices.Chunk(due, pipelineScripts) {
		m.workers.Add(1)
		lifecycle.Go("lock buckets", func() {
			defer m.workers.Add(-1)
			m.work(group)
		})
	}
}

// begin reports whether the bucket has something to do that nobody does; the
// caller is to do it.
func (b *bucket) begin(now time.Duration) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.leases) == 0 || b.working || now < b.refreshAt && (b.wakeAt == 0 || now < b.wakeAt) {
		return false
	}
	b.working = true
	return true
}

// task is an operation on locks of one bucket.
type task struct {
	bucket *bucket
	op     op
	leases []*Lease
}

// work carries out the operations of some buckets, one of each bucket at a time,
// together, until there are none.
func (m *Manager) work(group []*bucket) {
	tasks := make([]task, 0, len(group))
	for {
		tasks = tasks[:0]
		for _, b := range group {
			if t := m.take(b); t.op != opNone {
				tasks = append(tasks, t)
			}
		}
		if len(tasks) == 0 {
			return
		}
		group = group[:0]
		got := m.run(tasks)
		for n, t := range tasks {
			m.done(t, got[n])
			group = append(group, t.bucket)
		}
	}
}

// done takes what came of a task.
func (m *Manager) done(t task, got []outcome) {
	now, b := m.now(), t.bucket
	var all []news
	b.mu.Lock()
	for n, l := range t.leases {
		before := l.machine
		ev := l.machine.reply(m.timing, now, t.op, got[n])
		m.settleLocked(b, l, &before)
		if ev != (event{}) {
			all = append(all, news{l, ev, l.unheld, l.machine.confirmed(m.timing)})
		}
	}
	if (t.op == opRefresh || t.op == opReacquire) && (got[0] == refused || got[0] == unknown) {
		soon := max(now+firstRetry, m.onGrid(now+spread(lastRetry*8/10))) // within 1 s
		b.refreshAt = min(b.refreshAt, soon)
	}
	b.mu.Unlock()
	for _, n := range all {
		m.tell(n)
	}
}

// onGrid is the last moment before t at which buckets are refreshed: those that
// are due together share a round trip.
func (m *Manager) onGrid(t time.Duration) time.Duration { return t - t%(m.config.Refresh/gridLines) }

// take chooses a bucket's next operation and up to 100 locks for it: releases
// first (those that the line has not done), then what Redis has lost, then the
// refresh. opNone: there is nothing to do, and the bucket is nobody's.
func (m *Manager) take(b *bucket) task {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := m.now()
	if now >= b.refreshAt {
		b.refreshAt = m.onGrid(now + spread(m.config.Refresh))
		for _, l := range b.leases {
			l.due = l.machine.state == held
		}
	}
	b.wakeAt = 0
	chosen := opNone
	leases := make([]*Lease, 0, min(len(b.leases), scriptKeys))
	for _, l := range b.leases {
		o := l.nextLocked(now)
		if o > chosen {
			chosen, leases = o, leases[:0]
		}
		if o != opNone && o == chosen && len(leases) < scriptKeys {
			leases = append(leases, l)
		}
		if x := &l.machine; x.state == releasing && !x.busy && now < x.at {
			b.wakeAt = sooner(b.wakeAt, x.at)
		}
	}
	if chosen == opNone {
		b.working = false
		return task{}
	}
	for _, l := range leases {
		l.machine.send(now, chosen)
		l.due = l.due && chosen != opRefresh
	}
	return task{b, chosen, leases}
}

// nextLocked is what the bucket has to do for a lease.
func (l *Lease) nextLocked(now time.Duration) op {
	if l.inLine || l.machine.state == acquiring { // the line's
		return opNone
	}
	return l.machine.next(now, l.due)
}
