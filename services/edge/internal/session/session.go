// Package session is the life of one client socket as a state machine without
// I/O, goroutine or clock: greeting, credential, lock, commands, refusal with a
// hold, close. The engine feeds it inputs with the time and carries out what it
// asks of its Host. It is owned by the shard that owns the socket. Messages that
// have to wait are kept up to a bound; beyond it the socket ends with
// CommandRate.
//
// A live session is one value of at most 96 bytes, to be embedded; what only the
// beginning, a wait and the end need is allocated for that time.
package session

import (
	"hash/maphash"
	"time"

	"github.com/cutemarkets/relay/services/edge/internal/dialect"
	"github.com/cutemarkets/relay/services/edge/internal/principal"
	"github.com/cutemarkets/relay/services/internal/secret"
)

const (
	maxWaiting      = 64       // messages that wait
	maxWaitingBytes = 64 << 10 // their bytes; one message of Policy.MaxMessage always fits
	releaseWait     = time.Second
	badCommands     = 5 // malformed messages within badWindow that end a socket
	badWindow       = time.Minute
	// drainHold bounds what is left of a hold when the edge drains.
	drainHold = time.Second
)

// Host is what a session asks of the engine. Calls come from inside the
// session's methods, on the shard's goroutine; none blocks. A Host may give an
// answer, End or Gone from inside a call.
type Host interface {
	// Dialect and Market are those of the socket; they never change.
	Dialect() dialect.Dialect
	Market() string
	// Send queues one text message behind what was sent before. The message is
	// immutable and may be kept.
	Send(message []byte)
	// Authenticate asks whose the credential is; answered by
	// Session.Authenticated. There is never more than one without an answer.
	Authenticate(market string, credential secret.Secret)
	// Refused tells that a later credential was not accepted; the socket goes on.
	Refused(r dialect.Reason)
	// Acquire asks for the user's lock; answered by Session.Acquired.
	Acquire(p principal.Principal)
	// Release gives the lock back: after it no lock of this socket remains, be
	// it held, already lost, or still asked for by an Acquire without an answer
	// (which then needs none). Answered by Session.Released; the close frame
	// waits for that, at most 1 s.
	Release()
	// Hold notes that the user is refused a second connection and returns how
	// long the refusal is to be held: least, or longer. It gives no input.
	Hold(user string, least time.Duration) time.Duration
	// Live begins the delivery of events and notices of the market.
	Live(market string)
	// Subscribe adds a topic; idempotent. It returns the problem why it cannot,
	// as dialect.TopicLimit; empty: there is none.
	Subscribe(topic string) (problem string)
	// Unsubscribe removes a topic; idempotent.
	Unsubscribe(topic string)
	// Stop ends the delivery of events and drops all topics. Messages sent
	// before it, and those after it, still go out.
	Stop()
	// Close sends a close frame behind what was sent before and ends the socket.
	// Code 0 means no close frame (the socket is broken), 1005 a close frame
	// without a code, the echo of such a frame (RFC 6455 section 7.1.5). It is
	// the last call; inputs after it change nothing.
	Close(code uint16, text string, r dialect.Reason)
}

// state is where a socket is in its life; they follow in this order.
type state uint8

const (
	starting       state = iota
	waiting              // for an in-band credential
	authenticating       // the first credential
	acquiring            // the lock
	live
	holding   // told why it ends, until the hold is over
	releasing // until the lock is released
	closed
)

// Session is one client socket. Not safe for concurrent use; not to be copied
// after Start.
type Session struct {
	// Static after construction.
	host Host

	// Owned by the shard.
	user       string        // never changes once set
	accepted   uint64        // fingerprint of the first credential
	deadline   time.Duration // of the state, since origin; 0: none
	aside      *aside        // nil: none of it is needed
	state      state
	delivering bool           // between Host.Live and Host.Stop
	locked     bool           // the lock was asked for and not refused
	checking   bool           // a later credential is being authenticated
	reason     dialect.Reason // why it ends
}

// aside is what a session needs for some time only.
type aside struct {
	// Until Start.
	credential secret.Secret
	refuse     dialect.Reason

	// While something waits, or was malformed of late.
	queue  [][]byte        // messages that wait for an answer, oldest first
	queued int             // their bytes
	bad    []time.Duration // malformed messages within badWindow, since origin

	// From the reason to end until the close.
	code uint16 // of the close frame to come
	text string
}

var (
	// origin is what deadlines count from.
	origin = time.Now()
	// seed makes the fingerprints of this process its own.
	seed = maphash.MakeSeed()
)

// New makes the session of a socket whose upgrade has been answered.
func New(host Host, o dialect.Opening) Session {
	return Session{host: host, aside: &aside{credential: o.Credential, refuse: o.Refuse}}
}

// Start is the first input.
func (s *Session) Start(now time.Time) {
	if s.state != starting {
		panic("session: started twice")
	}
	opening := s.aside
	s.aside = nil
	s.state = waiting
	s.host.Send(s.host.Dialect().Greeting())
	switch {
	case s.state != waiting:
	case opening.refuse != dialect.OK:
		s.End(now, opening.refuse)
	case opening.credential.Empty():
		s.expect(now, s.host.Dialect().Policy().CredentialWait)
	default:
		s.authenticate(opening.credential)
	}
}

// Message takes one whole text message; it is not retained.
func (s *Session) Message(now time.Time, message []byte) {
	switch s.state {
	case starting:
		panic("session: message before the start")
	case waiting:
		s.first(now, message)
	case authenticating, acquiring:
		s.enqueue(now, message)
	case live:
		if s.checking {
			s.enqueue(now, message)
		} else {
			s.carryOut(now, message)
		}
	}
}

// Authenticated answers Host.Authenticate: OK and the principal, or a refusal.
func (s *Session) Authenticated(now time.Time, p principal.Principal, r dialect.Reason) {
	switch {
	case s.state == authenticating && r != dialect.OK:
		s.End(now, r)
	case s.state == authenticating:
		s.accept(now, p)
	case s.state == live && s.checking:
		s.checking = false
		if r == dialect.OK && p.UserID != s.user {
			r = dialect.CredentialConflict
		}
		s.answerSignin(r)
		s.carryOutQueue(now)
	case s.state < holding:
		panic("session: an authentication that was not asked for")
	}
}

// Acquired answers Host.Acquire.
func (s *Session) Acquired(now time.Time, r dialect.Reason) {
	switch {
	case s.state == acquiring && r == dialect.OK:
		s.welcome(now)
	case s.state == acquiring:
		s.locked = false
		s.refuse(now, r)
	case s.state == holding && s.locked:
		s.locked = r == dialect.OK
	case s.state < holding:
		panic("session: a lock that was not asked for")
	}
}

// Released answers Host.Release.
func (s *Session) Released(time.Time) {
	switch s.state {
	case releasing:
		s.close()
	case closed:
	default:
		panic("session: a release that was not asked for")
	}
}

// End asks the session to end for a reason (drain, slow consumer, a broken
// frame, a lost lock, a missing pong). Further calls change nothing, but a drain
// leaves at most 1 s of a hold.
func (s *Session) End(now time.Time, r dialect.Reason) {
	if s.ending() {
		if r == dialect.Draining && s.state == holding {
			s.deadline = min(s.deadline, now.Sub(origin)+drainHold)
		}
		return
	}
	s.finish(now, r, s.host.Dialect().Bye(r))
}

// ClientClosed tells of a close frame of the client with its code (1005: none),
// which is echoed. On a socket that is already ending it cuts the hold short,
// and the reason stays the first one.
func (s *Session) ClientClosed(now time.Time, code uint16) {
	s.cutShort(now, dialect.ClientClosed, code)
}

// Gone tells that the socket broke. Like ClientClosed, without a close frame.
func (s *Session) Gone(now time.Time) {
	s.cutShort(now, dialect.ClientGone, 0)
}

// Deadline is when Tick wants to be called next; zero: never.
func (s *Session) Deadline() time.Time {
	switch {
	case s.deadline == 0:
		return time.Time{}
	case s.state == acquiring, s.state == live: // a key ends by the calendar
		return origin.Round(0).Add(s.deadline)
	default:
		return origin.Add(s.deadline)
	}
}

// Tick tells that the deadline has passed. Called before it, it does nothing.
func (s *Session) Tick(now time.Time) {
	if s.deadline == 0 || now.Before(s.Deadline()) {
		return
	}
	switch s.state {
	case waiting:
		s.End(now, dialect.CredentialTimeout)
	case acquiring, live:
		s.End(now, dialect.CredentialExpired)
	case holding:
		s.release(now)
	case releasing:
		s.close()
	default:
		panic("session: a deadline nobody set")
	}
}

// authenticate asks for the answer that decides about the socket.
func (s *Session) authenticate(credential secret.Secret) {
	s.state = authenticating
	s.deadline = 0
	s.accepted = fingerprint(credential)
	s.host.Authenticate(s.host.Market(), credential)
}

// accept goes on with a good first credential.
func (s *Session) accept(now time.Time, p principal.Principal) {
	if !p.Expires.IsZero() && !now.Before(p.Expires) {
		s.End(now, dialect.CredentialExpired)
		return
	}
	s.user = p.UserID
	if !p.Expires.IsZero() {
		s.deadline = p.Expires.Sub(origin)
	}
	if !s.host.Dialect().Policy().Exclusive {
		s.welcome(now)
		return
	}
	s.state = acquiring
	s.locked = true
	s.host.Acquire(p)
}

// refuse ends a socket that did not get the lock of its user. Whoever comes
// again and again while the lock is another socket's is held ever longer.
func (s *Session) refuse(now time.Time, r dialect.Reason) {
	bye := s.host.Dialect().Bye(r)
	if r == dialect.DuplicateConnection {
		bye.Hold = s.host.Hold(s.user, bye.Hold)
	}
	s.finish(now, r, bye)
}

// welcome makes the socket live: the answer to its first credential comes
// before all data.
func (s *Session) welcome(now time.Time) {
	s.state = live
	s.host.Send(s.host.Dialect().Welcome())
	if s.state != live {
		return
	}
	s.delivering = true
	s.host.Live(s.host.Market())
	s.carryOutQueue(now)
}

// ending reports whether the reason to end is settled.
func (s *Session) ending() bool { return s.state >= holding }

// finish settles why the socket ends: stop the delivery, say why, hold, release
// the lock, close.
func (s *Session) finish(now time.Time, r dialect.Reason, bye dialect.Bye) {
	if s.state == starting {
		panic("session: ended before the start")
	}
	s.state = holding
	s.reason = r
	s.aside = &aside{code: bye.Code, text: bye.Text}
	s.expect(now, bye.Hold)
	if s.delivering {
		s.delivering = false
		s.host.Stop()
	}
	for _, frame := range bye.Frames {
		if s.state != holding {
			return
		}
		s.host.Send(frame)
	}
	if s.state == holding && bye.Hold == 0 {
		s.release(now)
	}
}

// cutShort ends the socket without words: the client's side of it has ended.
func (s *Session) cutShort(now time.Time, r dialect.Reason, code uint16) {
	if !s.ending() {
		s.finish(now, r, dialect.Bye{Code: code})
		return
	}
	if s.state == closed {
		return
	}
	s.aside.code, s.aside.text = code, ""
	if s.state == holding {
		s.release(now)
	}
}

// release comes before the close frame: a client that sees the close dials at
// once, and must not meet its own lock.
func (s *Session) release(now time.Time) {
	if !s.locked {
		s.close()
		return
	}
	s.state = releasing
	s.expect(now, releaseWait)
	s.host.Release()
}

func (s *Session) close() {
	s.state = closed
	s.deadline = 0
	end := s.aside
	s.aside = nil
	s.host.Close(end.code, end.text, s.reason)
}

// expect sets the deadline of the state.
func (s *Session) expect(now time.Time, wait time.Duration) {
	s.deadline = now.Sub(origin) + wait
}

// keep returns the session's aside, to put something there.
func (s *Session) keep() *aside {
	if s.aside == nil {
		s.aside = new(aside)
	}
	return s.aside
}

// fingerprint tells a credential from others without keeping it. To mistake one
// for another would only spare the client the check of a key it needs no more.
func fingerprint(credential secret.Secret) uint64 {
	return maphash.String(seed, credential.Reveal())
}
