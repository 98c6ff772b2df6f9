package lock

import (
	"context"

	"github.com/cutemarkets/relay/services/edge/internal/dialect"
	"github.com/cutemarkets/relay/services/internal/lifecycle"
)

// request is an acquire or a release that waits for a turn or for Redis.
type request struct {
	lease  *Lease
	op     op
	answer chan dialect.Reason // of an acquire; gets one, which nobody has to take
}

// Acquire takes the user's lock: OK and the lease, or DuplicateConnection when
// another socket holds it, or LockUnavailable when Redis cannot tell or has just
// lost data (also when ctx ends first: what may have been taken is then given
// back). It waits for a turn for as long as ctx lasts; once it was sent, Redis has
// twice 1 s to answer. A caller that finds a turn free sends itself, and returns
// with the answer, at most 2 s later than ctx. owner is what Config.Lost is told.
func (m *Manager) Acquire(ctx context.Context, user string, owner uint64) (*Lease, dialect.Reason) {
	if ctx.Err() != nil {
		return nil, dialect.LockUnavailable
	}
	l := &Lease{manager: m, user: user, owner: owner, number: m.stamp(), bucket: bucketOf(user)}
	answer := make(chan dialect.Reason, 1)
	select {
	case m.line <- request{lease: l, op: opAcquire, answer: answer}:
	case <-ctx.Done():
		return nil, dialect.LockUnavailable
	case <-m.closing:
		return nil, dialect.LockUnavailable
	}
	if m.takeTurn() {
		m.useTurn()
	}
	select {
	case r := <-answer:
		if r != dialect.OK {
			return nil, r
		}
		return l, dialect.OK
	case <-ctx.Done():
	case <-m.closing:
	}
	m.release(l)
	return nil, dialect.LockUnavailable
}

// Release gives the lock back, without waiting for that: Config.Released is told.
// It is called once.
func (l *Lease) Release() {
	m := l.manager
	b := &m.buckets[l.bucket]
	b.mu.Lock()
	before := l.machine
	l.unheld = true
	l.inLine = before.live()
	l.machine.release(m.now())
	m.settleLocked(b, l, &before)
	ended, inLine := l.endedLocked(), l.inLine
	b.mu.Unlock()
	switch {
	case ended:
		m.config.Released(l.owner)
	case inLine:
		m.joinLine(l)
	}
}

// joinLine queues a release; one that finds no room is its bucket's.
func (m *Manager) joinLine(l *Lease) {
	select {
	case m.line <- request{lease: l, op: opRelease}:
		if m.takeTurn() {
			lifecycle.Go("lock sender", m.useTurn)
		}
	default:
		b := &m.buckets[l.bucket]
		b.mu.Lock()
		l.inLine = false
		b.wakeAt = sooner(b.wakeAt, m.now())
		b.mu.Unlock()
	}
}

// takeTurn reports whether the caller may, and must, use a turn.
func (m *Manager) takeTurn() bool {
	select {
	case m.turns <- struct{}{}:
		m.workers.Add(1)
		return true
	default:
		return false
	}
}

// useTurn sends what waits, as much of it as goes together, and passes the turn
// on if then there is more. Who comes while all turns are taken leaves its
// request to those who have them: each looks once more after it gave its turn up.
func (m *Manager) useTurn() {
	defer m.workers.Add(-1)
	m.exchange(m.waiting())
	<-m.turns
	if len(m.line) > 0 && m.takeTurn() {
		lifecycle.Go("lock sender", m.useTurn)
	}
}

func (m *Manager) waiting() []request {
	batch := make([]request, 0, min(len(m.line), batchKeys))
	for len(batch) < cap(batch) {
		select {
		case r := <-m.line:
			batch = append(batch, r)
		default:
			return batch
		}
	}
	return batch
}

// exchange carries out requests.
func (m *Manager) exchange(batch []request) {
	ctx := m.redis.OfGeneration(context.Background())
	sent := batch[:0]
	for _, r := range batch {
		if r.op == opAcquire && m.refuses(m.now()) {
			m.drop(r.lease)
			r.answer <- dialect.LockUnavailable
		} else if m.begin(r) {
			sent = append(sent, r)
		}
	}
	if len(sent) == 0 {
		return
	}
	got := m.send(ctx, sent)
	now := m.now()
	refuses := m.refuses(now) // those on their way when the guard began, too
	var again []request
	for n, r := range sent {
		retry := false
		ev := m.step(r.lease, func(x *machine) event {
			if refuses && r.op == opAcquire {
				x.release(now)
			}
			ev := x.reply(m.timing, m.now(), r.op, got[n])
			retry = x.state == acquiring
			r.lease.inLine = retry
			return ev
		})
		switch {
		case r.op != opAcquire:
		case ev.granted:
			r.answer <- dialect.OK
		case ev.denied != dialect.OK:
			r.answer <- ev.denied
		case retry:
			again = append(again, r)
		default: // given up meanwhile, or refused by the guard
			r.answer <- dialect.LockUnavailable
		}
	}
	m.exchange(again)
}

// drop gives up an acquire that is not in flight.
func (m *Manager) drop(l *Lease) {
	m.step(l, func(x *machine) event {
		l.inLine = false
		x.release(m.now())
		return event{}
	})
}

// begin tells a lease that its request is being sent. It reports false when
// there is nothing to send: the caller of an acquire has given up, or Run has and
// is giving back all that Redis may hold, which is left to the bucket; or the lease
// of a release has an operation in flight, after which its bucket goes on.
func (m *Manager) begin(r request) bool {
	l := r.lease
	b := &m.buckets[l.bucket]
	b.mu.Lock()
	defer b.mu.Unlock()
	now := m.now()
	l.inLine = false
	if r.op == opAcquire {
		if m.closed() || l.machine.state != acquiring {
			b.wakeAt = sooner(b.wakeAt, now)
			return false
		}
		if l.machine.tries == 0 {
			m.addLocked(b, l, now)
			m.leases.Add(1)
		}
	} else if l.machine.next(now, false) != opRelease {
		return false
	}
	l.machine.send(now, r.op)
	return true
}

func (m *Manager) closed() bool {
	select {
	case <-m.closing:
		return true
	default:
		return false
	}
}
