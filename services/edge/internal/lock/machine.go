package lock

import (
	"time"

	"github.com/cutemarkets/relay/services/edge/internal/dialect"
)

// state of one lock.
//
//	acquiring -> held <-> missing (re-acquiring) -> releasing -> gone
type state uint8

const (
	acquiring state = iota
	held
	missing // Redis lost it; it is set anew while the socket lives
	releasing
	gone
)

// op is a Redis operation.
type op uint8

const (
	opNone op = iota
	opAcquire
	opRefresh
	opReacquire
	opRelease
	opEnd
)

// outcome of an operation on one lock.
type outcome uint8

const (
	mine    outcome = iota // set, extended or deleted
	other                  // the key holds another token
	absent                 // there is no key
	refused                // Redis was not reached or did not run the command
	unknown                // the command may have run
	outcomeEnd
)

// event is what an input means to the holder; at most one field is set.
type event struct {
	granted  bool
	denied   dialect.Reason
	lost     dialect.Reason
	released bool // Redis holds nothing of ours, as far as can be told
}

// timing of a lock; all durations.
type timing struct {
	ttl     time.Duration // of the key
	margin  time.Duration // by which the holder gives up before Redis does
	timeout time.Duration // of one operation
}

const (
	firstRetry = 100 * time.Millisecond
	lastRetry  = time.Second
)

// machine is one lock without I/O or clock. Times are monotonic. The caller
// carries out what next asks for, one operation at a time, and tells when it
// was sent and what came of it.
//
// The lease is valid until the send time of the last confirmed refresh + TTL -
// margin. A refresh never creates the key. A command that does and whose outcome
// is unknown may still be on its way, for a TTL at most: until then a delete is
// repeated unless it meets our token.
type machine struct {
	timing timing

	state    state
	busy     bool      // an operation is in flight
	sent     time.Time // when it was sent
	deadline time.Time // until when the lease is valid
	expires  time.Time // by when Redis has dropped the key by itself
	stray    time.Time // until when a command that creates the key may be on its way
	told     bool      // released was told
	retryAt  time.Time
	retry    time.Duration
}

// next is the operation to be sent now. due: it is time to refresh.
func (m *machine) next(now time.Time, due bool) op {
	switch {
	case m.busy:
		return opNone
	case m.state == acquiring:
		return opAcquire
	case m.state == held && due:
		return opRefresh
	case m.state == missing:
		return opReacquire
	case m.state == releasing && !now.Before(m.retryAt):
		return opRelease
	}
	return opNone
}

// live reports whether the holder counts on the lock.
func (m *machine) live() bool { return m.state == held || m.state == missing }

// send tells that the operation is being sent.
func (m *machine) send(now time.Time, o op) {
	m.busy, m.sent = true, now
	if o != opRelease {
		m.expires = now.Add(m.timing.ttl + m.timing.timeout)
	}
}

// reply tells what came of the operation in flight.
func (m *machine) reply(now time.Time, o op, got outcome) event {
	m.busy = false
	switch o {
	case opAcquire:
		return m.acquired(now, got)
	case opRefresh:
		return m.refreshed(now, got)
	case opReacquire:
		return m.reacquired(now, got)
	default:
		return m.deleted(now, got)
	}
}

func (m *machine) acquired(now time.Time, got outcome) event {
	asked := m.state == acquiring // else the holder has gone meanwhile
	switch got {
	case mine:
		m.extend()
		if asked && now.Before(m.deadline) {
			m.state = held
			return event{granted: true}
		}
		m.state, m.retryAt = releasing, now
	case unknown:
		m.state, m.stray = releasing, m.sent.Add(m.timing.ttl)
		m.backOff(now) // the command first
	default:
		m.state = gone
		if !asked {
			return m.tell()
		}
		if got == other {
			return event{denied: dialect.DuplicateConnection}
		}
	}
	if !asked {
		return event{}
	}
	return event{denied: dialect.LockUnavailable}
}

func (m *machine) refreshed(now time.Time, got outcome) event {
	switch got {
	case mine:
		m.extend()
	case other:
		return m.taken(now)
	case absent:
		if m.state == held {
			m.state = missing
		} else if !m.uncertain(now) {
			m.state = gone
			return m.tell()
		}
	}
	return event{}
}

func (m *machine) reacquired(now time.Time, got outcome) event {
	switch got {
	case mine:
		m.extend()
	case other:
		return m.taken(now)
	case unknown:
		m.stray = m.sent.Add(m.timing.ttl)
	}
	if m.state == missing { // the next refresh finds out what became of it
		m.state = held
	}
	return event{}
}

func (m *machine) deleted(now time.Time, got outcome) event {
	switch {
	case got == mine, !m.uncertain(now) && (got == other || got == absent), !now.Before(m.expires):
		m.state = gone
		return m.tell()
	case got == other || got == absent:
		m.backOff(now)
		return m.tell()
	}
	m.backOff(now)
	return event{}
}

// release tells that the holder no longer wants the lock; idempotent.
func (m *machine) release(now time.Time) {
	if m.state < releasing {
		m.state, m.retryAt = releasing, now
	}
}

// tick tells that time has passed.
func (m *machine) tick(now time.Time) event {
	if m.live() && !now.Before(m.deadline) {
		m.state, m.retryAt = releasing, now
		return event{lost: dialect.LockUnavailable}
	}
	return event{}
}

// taken: the key holds another token.
func (m *machine) taken(now time.Time) event {
	was := m.live()
	m.state = gone
	if m.uncertain(now) {
		m.state = releasing
		m.backOff(now)
	}
	if was {
		m.told = true
		return event{lost: dialect.LockLost}
	}
	return m.tell()
}

func (m *machine) uncertain(now time.Time) bool { return now.Before(m.stray) }

func (m *machine) extend() { m.deadline = m.sent.Add(m.timing.ttl - m.timing.margin) }

func (m *machine) backOff(now time.Time) {
	m.retry = min(max(2*m.retry, firstRetry), lastRetry)
	m.retryAt = now.Add(m.retry)
}

func (m *machine) tell() event {
	if m.told {
		return event{}
	}
	m.told = true
	return event{released: true}
}
