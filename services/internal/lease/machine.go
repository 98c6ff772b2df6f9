package lease

import (
	"math"
	"math/rand/v2"
	"time"
)

// state of a lease in this process.
//
//	seeking -> held <-> missing -> doubtful -> held
//	held, missing, doubtful -> lost -> seeking
//	and from any of them, when Run ends, -> releasing -> gone
type state uint8

const (
	seeking  state = iota
	held           // and proven
	missing        // Redis lost it; it is set anew while it is proven
	doubtful       // not proven; it may have been given to another
	lost           // work has been told and has not returned
	releasing
	gone
)

// op is a Redis operation.
type op uint8

const (
	opNone op = iota
	opAcquire
	opRefresh
	opRestore // sets anew what Redis has lost
	opReclaim // takes back what has ended, if nobody has had it since
	opRelease
	opEnd
)

// outcome of an operation.
type outcome uint8

const (
	mine    outcome = iota // set, extended or deleted
	other                  // another holds the lease, or held it since
	absent                 // nobody holds it; of a reclaim: nobody can have it for now
	refused                // Redis was not reached or did not run the command
	unknown                // the command may have run
)

// answer is what came of an operation.
type answer struct {
	op      op
	outcome outcome
	epoch   uint64        // mine, of an acquire: the new one; other: the greatest Redis knows
	rest    time.Duration // other: until the lease ends by itself, if it does; else 0
	holder  string        // other: who it is, for the log
}

// event is what an input means to the holder; at most one field is set.
type event struct {
	granted   bool  // work is to be started, in machine.epoch
	doubt     bool  // the lease is not proven any more
	proven    bool  // it is again
	lost      error // work is to be told
	overdue   bool  // work was told long ago and has not returned
	abandoned bool  // the release was given up
}

// timing of a lease.
type timing struct {
	ttl     time.Duration // of the key
	margin  time.Duration // by which the proof ends before the key
	refresh time.Duration // mean time between two refreshes
	retry   time.Duration // mean pause before what failed is tried again, and between two tries to acquire
	timeout time.Duration // of one operation
	stop    time.Duration // how long a release is tried
}

const (
	never  = time.Duration(math.MaxInt64)
	jitter = 0.2 // of the times between operations, either way
)

// machine is a lease without I/O or clock. Times are monotonic, since any moment.
// The caller carries out what next asks for, one operation at a time, and tells
// when it was sent and what came of it.
//
// The lease is proven until the send time of the last confirmed acquire, refresh,
// restore or reclaim + TTL - margin. Then it is in doubt, and a reclaim alone can
// prove it again: what was sent before tells nothing of what has been since. All
// operations carry the token of the run. An acquire that meets it succeeds, so the
// next acquire settles one of unknown outcome. The only delete is the last
// operation, after which the token is not used again: no delete that is late can
// meet a lease that is held. A creating command of unknown outcome may be on its
// way for a TTL; the delete is repeated meanwhile.
//
// One who waits may take a lease that has ended if it has seen it end. Without that,
// as after an outage of Redis, its holder may live and have been unable to say so;
// then the holder has the margin to take it back.
type machine struct {
	// Static after construction.
	timing timing
	random *rand.Rand

	state    state
	busy     bool          // an operation is in flight
	stopping bool          // no more seeking
	ours     bool          // Redis may hold the token
	sent     time.Duration // the operation in flight, or the last one
	wakeAt   time.Duration // when the next operation is due
	endAt    time.Duration // held, missing: of the proof; lost: when work is overdue; releasing: when it is given up
	freeAt   time.Duration // seeking: from when on a lease that has ended is believed to be nobody's; never: not known
	blind    bool          // seeking: Redis did not answer last
	watched  time.Duration // seeking: when it will have answered for the margin without fail
	stray    time.Duration // until when a creating command may be on its way
	epoch    uint64        // of the lease held, or of the last
	known    uint64        // the greatest epoch held or heard of
}

// next is the operation to be sent now.
func (m *machine) next(now time.Duration) op {
	if m.busy || now < m.wakeAt {
		return opNone
	}
	switch m.state {
	case seeking:
		return opAcquire
	case held:
		return opRefresh
	case missing:
		return opRestore
	case doubtful:
		return opReclaim
	case releasing:
		return opRelease
	}
	return opNone
}

// wake is when next or tick is to be asked again, if nothing happens before.
func (m *machine) wake() time.Duration {
	at := never
	if !m.busy && m.state != lost {
		at = m.wakeAt
	}
	if m.state != seeking && (m.state != releasing || !m.busy) {
		at = min(at, m.endAt)
	}
	return at
}

// send tells that the operation is being sent.
func (m *machine) send(now time.Duration) {
	m.busy = true
	m.sent = now
}

// tick tells that time has passed.
func (m *machine) tick(now time.Duration) event {
	switch {
	case m.state == gone || m.state == seeking || now < m.endAt:
	case m.state == lost:
		m.endAt = never
		return event{overdue: true}
	case m.state != releasing:
		m.state, m.wakeAt, m.endAt = doubtful, now, never
		return event{doubt: true}
	case !m.busy:
		m.state = gone
		return event{abandoned: true}
	}
	return event{}
}

// stop tells that the lease is no longer wanted; idempotent. A lease that is held
// is kept until work has returned.
func (m *machine) stop(now time.Duration) {
	m.stopping = true
	if m.state == seeking {
		m.leave(now)
	}
}

// returned tells that work has. It is called in held, missing, doubtful and lost.
func (m *machine) returned(now time.Duration) {
	m.state, m.wakeAt = seeking, now
	if m.stopping {
		m.leave(now)
	}
}

// reply tells what came of the operation in flight. The caller has told the time
// before, by tick.
func (m *machine) reply(now time.Duration, a answer) event {
	m.busy = false
	m.wakeAt = now + m.spread(m.timing.retry)
	switch a.outcome {
	case mine:
		m.ours = a.op != opRelease
	case other:
		m.ours = false
	case unknown:
		if a.op == opAcquire || a.op == opRestore || a.op == opReclaim {
			m.ours = true
			m.stray = m.sent + m.timing.ttl
		}
	}
	m.known = max(m.known, a.epoch)
	switch {
	case m.state == releasing:
		m.released(now, a)
		return event{}
	case a.op == opAcquire:
		return m.acquired(now, a)
	case m.state == held || m.state == missing || m.state == doubtful:
		return m.refreshed(now, a)
	}
	return event{}
}

func (m *machine) acquired(now time.Duration, a answer) event {
	if m.blind {
		m.watched = now + m.timing.margin
	}
	m.freeAt, m.blind = never, a.outcome >= refused
	switch {
	case a.outcome == other && a.rest > 0:
		m.wakeAt = min(m.wakeAt, now+a.rest)
		m.freeAt = max(now+a.rest, m.watched)
	case a.outcome == mine && now <= m.sent+m.timing.timeout:
		m.state, m.epoch = held, a.epoch
		m.confirm()
		return event{granted: true}
	case a.outcome == mine: // by a wall clock of too long ago
		m.wakeAt = now
	}
	return event{}
}

// refreshed takes the answer to a refresh, a restore or a reclaim.
func (m *machine) refreshed(now time.Duration, a answer) event {
	doubt := m.state == doubtful
	switch {
	case a.outcome == other:
		return m.lose(now, ErrTaken)
	case doubt && (a.outcome != mine || a.op != opReclaim || now >= m.proofEnd()):
	case a.outcome == mine:
		m.state = held
		m.confirm()
		return event{proven: doubt}
	case a.outcome == absent:
		m.state, m.wakeAt = missing, now
	default:
		m.state = held // the next refresh finds out what became of a restore
	}
	return event{}
}

// released takes the answer to a release, or to what was in flight when it began.
func (m *machine) released(now time.Duration, a answer) {
	switch {
	case a.op != opRelease:
		m.wakeAt = now
	case a.outcome == absent:
		m.ours = false
	}
	if !m.uncertain(now) {
		m.state = gone
	}
}

// confirm tells that Redis has the key, since the operation was sent at least.
func (m *machine) confirm() {
	m.endAt = m.proofEnd()
	m.wakeAt = m.sent + m.spread(m.timing.refresh)
}

// proofEnd is when the proof by the operation in flight, or the last one, ends.
func (m *machine) proofEnd() time.Duration { return m.sent + m.timing.ttl - m.timing.margin }

// sawEnd reports whether the lease, as Redis has told lately, has ended.
func (m *machine) sawEnd(now time.Duration) bool { return now >= m.freeAt }

func (m *machine) lose(now time.Duration, cause error) event {
	m.state, m.endAt, m.freeAt = lost, now+m.timing.ttl, never
	return event{lost: cause}
}

// leave ends the seeking or the holding.
func (m *machine) leave(now time.Duration) {
	m.state = gone
	if m.busy || m.uncertain(now) {
		m.state, m.wakeAt, m.endAt = releasing, now, now+m.timing.stop
	}
}

// uncertain reports whether Redis may hold our token, or come to.
func (m *machine) uncertain(now time.Duration) bool { return m.ours || now < m.stray }

func (m *machine) spread(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (1 - jitter + 2*jitter*m.random.Float64()))
}
