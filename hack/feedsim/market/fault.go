package market

import (
	"slices"
	"time"

	"github.com/gobwas/ws"

	"github.com/cutemarkets/relay/hack/feedsim/fault"
	"github.com/cutemarkets/relay/hack/feedsim/oddity"
	"github.com/cutemarkets/relay/hack/feedsim/source"
	"github.com/cutemarkets/relay/hack/feedsim/tape"
)

// Order carries out a command, whatever market it names.
func (m *Market) Order(c fault.Command) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	m.settleLocked(now)
	switch c.Name {
	case fault.Drop:
		m.faults.Count(c.Name, m.endAllLocked(ending{reason: Dropped, abort: true}, now))
	case fault.Outage:
		m.faults.Start(c, now)
		m.faults.Count(c.Name, m.endAllLocked(ending{reason: Dropped, abort: true}, now))
	case fault.Close:
		m.faults.Count(c.Name, m.endAllLocked(ending{reason: Closed, code: ws.StatusCode(c.Code)}, now))
	case fault.Slow:
		m.faults.Count(c.Name, m.endAllLocked(slow(), now))
	case fault.Huge:
		m.huge = c.Size
	case fault.Limit:
		m.rule = LimitRule(c.Mode)
		m.faults.Count(c.Name, 1)
	case fault.Resume:
		m.faults.Clear()
	case fault.Stall, fault.Quiesce:
		m.faults.Start(c, now)
		m.faults.Count(c.Name, 1)
	default:
		m.faults.Start(c, now)
	}
	m.settleLocked(now)
}

// endAllLocked ends all sockets and returns how many these were.
func (m *Market) endAllLocked(e ending, now time.Time) int {
	n := 0
	for c := range m.sockets {
		if !c.ended() {
			c.end(e)
			n++
		}
	}
	m.pruneLocked(now)
	return n
}

// quirks is what the sessions of a market do wrong. A session asks while its
// connection holds no lock.
type quirks struct{ *Market }

// Auth implements session.Quirks.
func (q quirks) Auth() (fail, silent bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.faults.Auth(time.Now())
}

// NoAck implements session.Quirks.
func (q quirks) NoAck(topic string) (withheld, deliver bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.faults.NoAck(topic, time.Now())
}

// Unauthorized implements session.Quirks.
func (q quirks) Unauthorized(k tape.Kind) (refused, after bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.faults.Unauthorized(k, time.Now())
}

// distortLocked changes the events as the faults want it.
func (m *Market) distortLocked(events []source.Event, now time.Time) []source.Event {
	set := oddity.Settings{
		Number:  m.cfg.Number,
		Last:    m.sequence,
		Stamp:   m.cfg.Stamp,
		Numbers: m.faults.Active(fault.Numbers, now) != nil,
		Keys:    m.faults.Active(fault.Keys, now) != nil,
		Huge:    m.huge,
	}
	if c := m.faults.Active(fault.Types, now); c != nil {
		set.Types = c.Every
	}
	if c := m.faults.Active(fault.Sequence, now); c != nil {
		set.Sequence = oddity.Falling
		if c.Mode == fault.Repeated {
			set.Sequence = oddity.Repeated
		}
	}
	if m.huge > 0 {
		m.huge = 0
		m.faults.Count(fault.Huge, 1)
	}
	events, counts := m.oddity.Apply(events, now, set)
	m.faults.Count(fault.Numbers, counts.Numbers)
	m.faults.Count(fault.Keys, counts.Keys)
	m.faults.Count(fault.Types, counts.Types)
	m.faults.Count(fault.Sequence, counts.Sequence)
	return events
}

// broken spoils a frame. It takes no event away: those of the ground truth are
// all there for a reader that keeps what comes before a fault, or that skips
// elements that are no events. What it adds has tickers that begin with ZZBAD.
type broken struct {
	head string // behind the first bracket
	tail string // in the place of the last one
	more string // a frame of its own after it
}

const badEvent = `{"ev":"T","sym":"ZZBAD","p":1.5}`

var brokenBy = map[string]*broken{
	fault.Truncated: {tail: `,{"ev":"T","sym":"ZZBAD","p":1.`},
	fault.Garbage:   {tail: ",@#$%\x01," + badEvent + `]`},
	fault.Elements:  {head: `null,12,"T",[` + badEvent + `],{},{"sym":"ZZBAD"},{"ev":7,"sym":"ZZBAD"},`, tail: `]`},
	fault.Object:    {tail: `]`, more: badEvent},
	fault.BadUTF8:   {head: "{\"ev\":\"T\",\"sym\":\"ZZBAD\xff\xfe\"},", tail: `]`},
}

func (m *Market) brokenLocked(now time.Time) *broken {
	if c := m.faults.Active(fault.Malformed, now); c != nil {
		return brokenBy[c.Mode]
	}
	return nil
}

// spoil returns the frames for the array of events.
func (b *broken) spoil(array []byte) [][]byte {
	frame := slices.Concat([]byte{'['}, []byte(b.head), array[1:len(array)-1], []byte(b.tail))
	if b.more == "" {
		return [][]byte{frame}
	}
	return [][]byte{frame, []byte(b.more)}
}
