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

// op is a Redis operation. Of those a bucket has to do, the later one here goes
// first.
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
	missing  bool // Redis has lost the lock while its lease is valid
}

// timing of a lock; all durations.
type timing struct {
	ttl     time.Duration // of the key
	margin  time.Duration // by which the holder gives up before Redis does
	timeout time.Duration // of one operation
	grace   time.Duration // for which the holder goes on after the end of the lease
}

const (
	firstRetry = 100 * time.Millisecond
	lastRetry  = time.Second
	maxTries   = 4 // with which lastRetry is reached
)

// machine is one lock without I/O or clock. Times are monotonic, since any
// moment before the first of them. The caller carries out what next asks for,
// one operation at a time, and tells when it was sent and what came of it.
//
// The lease is valid until the send time of the last confirmed refresh + TTL -
// margin; the holder gives up then, or a grace later, if there is one. A refresh never creates the key. A command that does and whose outcome
// is unknown may still be on its way, for a TTL at most: until then a delete is
// repeated.
type machine struct {
	sent  time.Duration // the last command that creates or extends the key
	at    time.Duration // until when the lease is valid; releasing: when the release is tried next, or was sent
	stray time.Duration // until when a command that creates the key may be on its way
	state state
	busy  bool  // an operation is in flight
	told  bool  // released was told
	tries uint8 // acquires, or releases, that have failed
}

// next is the operation to be sent now. due: it is time to refresh.
func (m *machine) next(now time.Duration, due bool) op {
	switch {
	case m.busy:
		return opNone
	case m.state == acquiring:
		return opAcquire
	case m.state == held && due:
		return opRefresh
	case m.state == missing:
		return opReacquire
	case m.state == releasing && now >= m.at:
		return opRelease
	}
	return opNone
}

// live reports whether the holder counts on the lock.
func (m *machine) live() bool { return m.state == held || m.state == missing }

// send tells that the operation is being sent.
func (m *machine) send(now time.Duration, o op) {
	m.busy = true
	if o == opRelease {
		m.at = now
	} else {
		m.sent = now
	}
}

// reply tells what came of the operation in flight.
func (m *machine) reply(t timing, now time.Duration, o op, got outcome) event {
	m.busy = false
	switch o {
	case opAcquire:
		return m.acquired(t, now, got)
	case opRefresh:
		return m.refreshed(t, now, got)
	case opReacquire:
		return m.reacquired(t, now, got)
	default:
		return m.deleted(t, now, got)
	}
}

func (m *machine) acquired(t timing, now time.Duration, got outcome) event {
	asked := m.state == acquiring // else the holder has gone meanwhile
	// Once more, with the same token: should the first try have worked, it is ours.
	if asked && m.tries == 0 && (got == refused || got == unknown) {
		m.tries++
		if got == unknown {
			m.stray = m.sent + t.ttl
		}
		return event{}
	}
	switch got {
	case mine:
		m.tries = 0
		m.extend(t)
		if asked && now+t.margin <= m.at {
			m.state = held
			return event{granted: true}
		}
		m.state, m.at = releasing, now
	case unknown:
		m.state, m.stray = releasing, m.sent+t.ttl
		m.backOff(now) // the command first
	default:
		m.state = gone
		if m.uncertain(m.sent) {
			m.state = releasing
			m.backOff(now)
		}
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

func (m *machine) refreshed(t timing, now time.Duration, got outcome) event {
	switch got {
	case mine:
		m.extend(t)
	case other:
		return m.taken(now)
	case absent:
		if m.state == held {
			m.state = missing
			return event{missing: now < m.at}
		}
		if !m.uncertain(m.sent) {
			m.state = gone
			return m.tell()
		}
	}
	return event{}
}

func (m *machine) reacquired(t timing, now time.Duration, got outcome) event {
	switch got {
	case mine:
		m.extend(t)
	case other:
		return m.taken(now)
	case unknown:
		m.stray = m.sent + t.ttl
	}
	if m.state == missing { // the next refresh finds out what became of it
		m.state = held
	}
	return event{}
}

func (m *machine) deleted(t timing, now time.Duration, got outcome) event {
	expired := now >= max(m.sent, m.stray)+t.ttl+t.timeout // Redis has dropped the key by itself
	switch {
	case expired, !m.uncertain(m.at) && (got == mine || got == other || got == absent):
		m.state = gone
		return m.tell()
	case got == mine || got == other || got == absent: // another try may still be on its way
		m.backOff(now)
		return m.tell()
	}
	m.backOff(now)
	return event{}
}

// release tells that the holder no longer wants the lock; idempotent.
func (m *machine) release(now time.Duration) {
	if m.state < releasing {
		m.state, m.at = releasing, now
	}
}

// tick tells that time has passed.
func (m *machine) tick(t timing, now time.Duration) event {
	if m.live() && now >= m.at+t.grace {
		m.state, m.at = releasing, now
		return event{lost: dialect.LockUnavailable}
	}
	return event{}
}

// taken: the key holds another token.
func (m *machine) taken(now time.Duration) event {
	was := m.live()
	m.state = gone
	if m.uncertain(m.sent) {
		m.state = releasing
		m.backOff(now)
	}
	if was {
		m.told = true
		return event{lost: dialect.LockLost}
	}
	return m.tell()
}

// uncertain reports whether a command that creates the key may reach Redis after
// one that was sent at that time.
func (m *machine) uncertain(sent time.Duration) bool { return sent < m.stray }

func (m *machine) extend(t timing) {
	if m.state < releasing {
		m.at = m.sent + t.ttl - t.margin
	}
}

// confirmed is when the last confirmed command was sent.
func (m *machine) confirmed(t timing) time.Duration { return m.at - t.ttl + t.margin }

func (m *machine) backOff(now time.Duration) {
	m.at = now + min(firstRetry<<m.tries, lastRetry)
	m.tries = min(m.tries+1, maxTries)
}

func (m *machine) tell() event {
	if m.told {
		return event{}
	}
	m.told = true
	return event{released: true}
}
