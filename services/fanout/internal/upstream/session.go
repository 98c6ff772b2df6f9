package upstream

import (
	"strings"
	"time"

	feedv1 "github.com/cutemarkets/relay/proto/feed/v1"
	"github.com/cutemarkets/relay/services/fanout/internal/calendar"
)

// The times of a session. Those of the vendor's protocol have no documented
// values; a wait too long only delays a retry.
const (
	greetingWait = 10 * time.Second       // from dialed to connected
	authWait     = 10 * time.Second       // from auth to auth_success
	settleWait   = 500 * time.Millisecond // from subscribe, or the last ack, to forwarding
	ackWait      = 3 * time.Second        // from subscribe to its ack
	ackRetries   = 2                      // subscribes after the first
	lingerWait   = time.Second            // from the loss of interest to unsubscribe

	backoffFirst  = 500 * time.Millisecond // greatest first wait before a dial
	backoffMost   = 30 * time.Second       // greatest wait
	absentMost    = 5 * time.Second        // greatest wait for a vendor that is not reached
	backoffReset  = 60 * time.Second       // of data, after which waits start anew
	refusedWait   = 60 * time.Second       // after auth_failed
	lossAllowance = 500 * time.Millisecond // events of this long may be missing before a close
	faultEvery    = time.Second            // between two gaps that malformed frames made
)

// Host is what a session asks of its runner. Calls come from inside the
// session's methods; none blocks or calls back.
type Host interface {
	// Dial makes a connection; answered by Dialed or DialFailed.
	Dial()
	// Auth sends the key.
	Auth()
	// Send sends one text message behind what was sent before.
	Send(message []byte)
	// Close sends a close frame and waits for the end; answered by Closed.
	Close()
	// Hold keeps back all events from now on, and forgets what was held before.
	// They are kept back at the start.
	Hold()
	// Gap tells of a gap: events since from may be missing until to. The
	// upstream is live from then on.
	Gap(from, to time.Time)
	// Release forwards what was held, and from now on all events at once.
	Release()
	// State tells of a change of state. downSince is when events may have begun
	// to be missing, zero if live or never live.
	State(state State, downSince time.Time)
	// Stalled tells that the connection is about to be closed for a silence, and
	// which silence counts as a stall on the next one.
	Stalled(silence, next time.Duration)
	// Lost counts the end of a connection or of the attempt to make one.
	Lost(cause Cause)
	// Problem tells what is wrong with topics; TOPIC_PROBLEM_UNSPECIFIED:
	// nothing any more.
	Problem(topics []string, problem feedv1.TopicProblem)
}

type phase uint8

const (
	phaseNew phase = iota
	phaseWaiting
	phaseDialing
	phaseGreeting // dialed, waits for connected
	phaseSigning  // auth sent, waits for auth_success
	phaseOpen     // subscribing or subscribed
	phaseClosing
	phaseStopped
)

// Session is the conversation with the vendor during one epoch of a market: it
// connects, authenticates, subscribes what is wanted, and does it all again
// after a loss, of which it tells one gap each. It does no I/O and has no clock:
// time and inputs are arguments, and what it wants is asked of its Host. It also
// ends a connection that has fallen silent (see watch). Not safe for concurrent
// use.
//
// Leadership may be held without proof: then a connection that is authenticated
// goes on, but nothing is dialed and no key is sent, for with it the vendor may cut
// off another leader.
//
// A gap begins before the last sign of life, or before the loss if the connection
// was intact until its end: by half a second and by as much as the last event
// was late, for what was behind it is as old. It ends, and events
// held since are forwarded, when all subscriptions are acknowledged again, or
// when half a second has passed without an acknowledgement, three seconds after
// they were sent at the latest; that of a stall not before an event has come, or
// trading has ended. One that comes later makes a gap of its own, and
// so does a malformed frame, once a second at most. Before the session has been
// live there is nothing to miss: edges tell of the gap between two epochs.
type Session struct {
	// Static after construction.
	host   Host
	random func() float64

	// Owned by the caller; not thread-safe.
	phase     phase
	state     State
	stopping  bool
	proven    bool      // that we lead
	until     time.Time // end of phaseWaiting, phaseGreeting or phaseSigning
	settle    time.Time // phaseOpen, not live: when to go live unless an ack comes
	settleEnd time.Time // phaseOpen, not live: when to go live at the latest
	live      bool
	wasLive   bool // once, at least
	liveSince time.Time
	lastAlive time.Time     // last frame or pong of the connection
	beforeIt  time.Time     // last frame or pong before lastAlive
	lastData  time.Time     // last event of the connection
	lag       time.Duration // of that event, from the vendor's clock to ours
	downSince time.Time     // begin of the gap to tell; zero: none
	toldDown  time.Time     // what the host knows of downSince
	cause     Cause         // phaseClosing: why; phaseWaiting: after what
	attempts  uint          // since the last reset, but for those that reached nobody
	misses    uint          // attempts in a row that reached nobody
	lateSince time.Time     // when the connection went live without all acks; zero: with all
	lateAcked bool          // such an ack has come, and its gap has not been told
	faultFrom time.Time     // begin of the gap that malformed frames made, not told yet; zero: none
	faultTold time.Time     // when one was told last
	look      time.Time     // phaseOpen: when to look for a stall next
	place     place
	watch     watch
	topics    topics
}

// NewSession makes the session of an epoch, which begins with proof. random gives
// numbers in [0,1).
// Canaries are topics that are never silent in regular trading: the session
// subscribes them for itself.
func NewSession(host Host, random func() float64, hours calendar.Hours, canaries []string, limit Limit) *Session {
	s := &Session{
		host: host, random: random, proven: true,
		place: place{limit: limit}, topics: newTopics(), watch: watch{hours: hours},
	}
	for _, name := range canaries {
		t := s.topics.topic(name)
		t.canary = true
		s.topics.canaries = append(s.topics.canaries, t)
	}
	return s
}

// Start is the first input: the whole interest.
func (s *Session) Start(now time.Time, interest []string) {
	s.watch.enter(now)
	s.Add(now, interest)
	s.dial()
}

// Stop ends the session; it is over when Stopped reports true.
func (s *Session) Stop(now time.Time) {
	if s.stopping {
		return
	}
	s.stopping = true
	switch s.phase {
	case phaseDialing, phaseClosing, phaseStopped:
	case phaseNew, phaseWaiting:
		s.phase = phaseStopped
	default:
		s.close(now, CauseStopped)
	}
}

// Stopped reports whether the session is over and has no connection.
func (s *Session) Stopped() bool { return s.phase == phaseStopped }

// Proof tells whether it is proven that we lead. It comes before any other input
// that finds it changed.
func (s *Session) Proof(now time.Time, proven bool) {
	if proven == s.proven {
		return
	}
	s.proven = proven
	switch s.phase {
	case phaseWaiting:
		if proven && (!s.cause.binding() || !now.Before(s.until)) {
			s.dial()
		}
	case phaseGreeting, phaseSigning:
		if !proven {
			s.close(now, CauseUnproven)
		}
	}
}

// Dialed answers Host.Dial.
func (s *Session) Dialed(now time.Time) {
	s.must(phaseDialing)
	s.misses = 0
	s.lastAlive, s.lastData = now, time.Time{}
	switch {
	case s.stopping:
		s.close(now, CauseStopped)
	case !s.proven:
		s.close(now, CauseUnproven)
	default:
		s.phase = phaseGreeting
		s.until = now.Add(greetingWait)
	}
}

// DialFailed answers Host.Dial.
func (s *Session) DialFailed(now time.Time, cause Cause) {
	s.must(phaseDialing)
	s.ended(now, cause)
}

// Closed tells that the connection has ended on both sides: an answer to
// Host.Close, or the vendor's doing.
func (s *Session) Closed(now time.Time, cause Cause) {
	switch s.phase {
	case phaseClosing:
		cause = s.cause
	case phaseGreeting, phaseSigning, phaseOpen:
		cause = s.lose(now, cause)
	default:
		panic("upstream: a connection ended that was not there")
	}
	s.ended(now, cause)
}

// Frame tells of a frame of the vendor, before its content; data says that it
// has events, and lag how long the last of them has been on its way.
func (s *Session) Frame(now time.Time, data bool, lag time.Duration) {
	s.beforeIt, s.lastAlive = s.lastAlive, now
	if data {
		if s.mute() {
			s.watch.resume(now)
		}
		s.lastData, s.lag = now, lag
		s.watch.event(now)
		if !s.live { // it may be what the end of a gap waits for
			s.goLive(now, !now.Before(s.settle))
		}
	}
}

// Events tells that events are about to be forwarded: gaps before them come first.
func (s *Session) Events(now time.Time) {
	if s.live && s.lateAcked {
		s.lateAcked = false
		s.host.Gap(s.lateSince, now)
	}
}

// Malformed tells that events of the present frame could not be read.
func (s *Session) Malformed(now time.Time) {
	if !s.live {
		return // they are part of a gap already
	}
	if s.faultFrom.IsZero() {
		s.faultFrom = s.complete(s.beforeIt)
	}
	s.tellFault(now)
}

// tellFault tells of the gap that malformed frames made, if it is time.
func (s *Session) tellFault(now time.Time) {
	if s.live && !s.faultFrom.IsZero() && !now.Before(s.faultDue()) {
		s.host.Gap(s.faultFrom, now)
		s.faultFrom, s.faultTold = time.Time{}, now
	}
}

func (s *Session) faultDue() time.Time { return s.faultTold.Add(faultEvery) }

// Unacknowledged is how many subscriptions wait for the vendor's word.
func (s *Session) Unacknowledged() int { return s.topics.unacked }

// Alive tells of a pong.
func (s *Session) Alive(now time.Time) { s.beforeIt, s.lastAlive = s.lastAlive, now }

// Status takes a status object of the vendor.
func (s *Session) Status(now time.Time, status, message string) {
	switch s.phase {
	case phaseGreeting, phaseSigning, phaseOpen:
	default:
		return
	}
	switch status {
	case "connected":
		if s.phase == phaseGreeting {
			s.phase = phaseSigning
			s.until = now.Add(authWait)
			s.host.Auth()
		}
	case "auth_success":
		if s.phase == phaseSigning {
			s.open(now)
		}
	case "auth_failed":
		s.close(now, CauseRejected)
	case "auth_timeout":
		s.close(now, CauseTimeout)
	case "max_connections":
		s.close(now, CauseKicked)
	case "success":
		if list, ok := strings.CutPrefix(message, "subscribed to:"); ok && s.phase == phaseOpen {
			for name := range strings.SplitSeq(list, ",") {
				s.acked(now, strings.TrimSpace(name))
			}
			s.flush()
			s.settle = earlier(now.Add(settleWait), s.settleEnd)
			s.goLive(now, false)
		}
	case "error":
		if strings.Contains(strings.ToLower(message), "not authorized") {
			s.topics.notAuthorized = now
		}
	}
}

// HoldFull tells that no more events can be held.
func (s *Session) HoldFull(now time.Time) { s.goLive(now, true) }

// Add takes topics that are wanted from now on. In alphabetical order a wildcard
// comes first and spares its exact topics.
func (s *Session) Add(now time.Time, topics []string) {
	for _, name := range topics {
		s.add(now, name)
	}
	s.flush()
}

// Remove takes topics that are not wanted any more. They are unsubscribed after
// lingerWait, so that a client that comes and goes costs the vendor nothing.
func (s *Session) Remove(now time.Time, topics []string) {
	for _, name := range topics {
		s.remove(now, name)
	}
}

// Deadline is when Tick wants to be called; zero: never.
func (s *Session) Deadline() time.Time {
	deadline := s.topics.deadline()
	sooner := func(t time.Time) {
		if deadline.IsZero() || t.Before(deadline) {
			deadline = t
		}
	}
	switch s.phase {
	case phaseWaiting:
		if s.state != StateUnproven {
			sooner(s.until)
		}
	case phaseGreeting, phaseSigning:
		sooner(s.until)
	case phaseOpen:
		if !s.live && !s.mute() {
			sooner(s.liveBy())
		}
		if s.live && !s.faultFrom.IsZero() {
			sooner(s.faultDue())
		}
		if at := s.silenceDue(); !at.IsZero() {
			sooner(at)
		}
	case phaseStopped:
		return time.Time{}
	}
	return deadline
}

// Tick tells the time.
func (s *Session) Tick(now time.Time) {
	if s.phase == phaseStopped {
		return
	}
	switch s.phase {
	case phaseWaiting:
		if !now.Before(s.until) {
			s.dial()
		}
	case phaseGreeting, phaseSigning:
		if !now.Before(s.until) {
			s.close(now, CauseTimeout)
		}
	}
	s.watch.turn(now)
	s.unlinger(now)
	if s.phase == phaseOpen {
		s.overdue(now)
		s.flush()
		s.goLive(now, !now.Before(s.settle))
		s.tellFault(now)
		s.lookForStall(now)
	}
}

func (s *Session) must(p phase) {
	if s.phase != p {
		panic("upstream: session input in the wrong phase")
	}
}

// dial connects if we are known to lead; else Proof does it.
func (s *Session) dial() {
	if !s.proven {
		s.phase = phaseWaiting
		s.setState(StateUnproven)
		return
	}
	s.phase = phaseDialing
	s.setState(StateConnecting)
	s.host.Dial()
}

// open begins to subscribe everything that is wanted.
func (s *Session) open(now time.Time) {
	s.phase = phaseOpen
	s.place.openedAt, s.place.admitBy = now, now.Add(admitWait)
	s.settle, s.settleEnd = now.Add(settleWait), now.Add(ackWait)
	s.look = now.Add(lookEvery)
	s.watch.turn(now)
	s.watch.resume(now)
	s.subscribeAll(now)
	s.flush()
	s.goLive(now, false)
}

// goLive ends the gap once all subscriptions are acknowledged, or at once.
func (s *Session) goLive(now time.Time, atOnce bool) {
	if s.phase != phaseOpen || s.live || s.awaitsAdmission(now) || s.mute() || s.topics.unacked > 0 && !atOnce {
		return
	}
	s.live, s.wasLive, s.liveSince = true, true, now
	s.watch.resume(now)
	s.lateSince = time.Time{}
	if s.topics.unacked > 0 {
		s.lateSince = now
		s.topics.markLate()
	}
	if !s.downSince.IsZero() {
		s.host.Gap(s.downSince, now)
		s.downSince = time.Time{}
	}
	s.host.Release()
	s.setState(StateLive)
	for _, t := range s.topics.canaries {
		s.ensure(now, t)
	}
	s.flush()
}

// close ends the connection from our side.
func (s *Session) close(now time.Time, cause Cause) {
	s.cause = s.lose(now, cause)
	s.phase = phaseClosing
	s.host.Close()
}

// lose notes that no event comes any more: the gap begins unless one lasts. It
// returns the cause, judged closer.
func (s *Session) lose(now time.Time, cause Cause) Cause {
	if s.phase == phaseOpen && s.wasLive && s.downSince.IsZero() {
		switch {
		case cause == CauseStalled:
			s.downSince = s.complete(s.silentSince())
		case cause.intact():
			s.downSince = s.complete(now)
		default:
			s.downSince = s.complete(s.lastAlive)
		}
		if s.lateMissing() {
			s.downSince = earlier(s.downSince, s.lateSince)
		}
	}
	if s.phase == phaseOpen { // what was held is part of the gap: it may be old when the next connection is live
		s.host.Hold()
	}
	s.lived(now)
	if cause == CauseKicked {
		cause = s.overLimit(now)
	}
	s.live, s.lateAcked, s.faultFrom = false, false, time.Time{}
	s.topics.forget()
	s.setState(s.stateAfter(cause))
	return cause
}

// lateMissing reports whether topics were not acknowledged when the connection
// went live, and still are not, or have been without their gap being told.
func (s *Session) lateMissing() bool {
	if !s.live || s.lateAcked {
		return s.live
	}
	for _, t := range s.topics.byName {
		if t.late && t.phase == topicPending {
			return true
		}
	}
	return false
}

// stateAfter is the state until the next dial.
func (s *Session) stateAfter(cause Cause) State {
	switch {
	case cause == CauseRejected:
		return StateRefused
	case cause == CauseStolen:
		return StateStolen
	case cause == CauseOccupied:
		return StateWaiting
	case s.proven || s.stopping:
		return StateConnecting
	}
	return StateUnproven
}

// complete is until when all events have come if nothing was lost up to t.
func (s *Session) complete(t time.Time) time.Time { return t.Add(-lossAllowance - s.lag) }

// ended waits before the next dial; there is no connection.
func (s *Session) ended(now time.Time, cause Cause) {
	s.host.Lost(cause)
	if s.stopping {
		s.phase = phaseStopped
		return
	}
	s.phase, s.cause = phaseWaiting, cause
	switch {
	case cause == CauseRejected:
		s.until = now.Add(refusedWait)
	case cause == CauseStolen, cause == CauseOccupied:
		s.until = now.Add(s.place.wait)
	case cause == CauseStalled: // it is the next stall that is waited for longer
		s.until = now
	case cause == CauseKicked, cause == CauseUnproven, !s.proven: // it is proof that is waited for
		s.until = now
	case cause == CauseDial: // costs nobody anything, and each second costs all clients
		s.until = now.Add(s.backoff(&s.misses, absentMost))
	default:
		s.until = now.Add(s.backoff(&s.attempts, backoffMost))
	}
	s.setState(s.stateAfter(cause))
}

// backoff is exponential with full jitter.
func (s *Session) backoff(attempts *uint, most time.Duration) time.Duration {
	most = min(backoffFirst<<min(*attempts, 10), most)
	*attempts++
	return time.Duration(s.random() * float64(most))
}

// setState tells the host of a change of state or of the gap's begin.
func (s *Session) setState(state State) {
	if state == s.state && s.downSince.Equal(s.toldDown) {
		return
	}
	s.state, s.toldDown = state, s.downSince
	s.host.State(state, s.downSince)
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
