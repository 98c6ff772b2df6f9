package session

import (
	"bytes"
	"slices"
	"sync"
	"time"

	"github.com/cutemarkets/relay/services/edge/internal/dialect"
)

// commands lends out decoded messages, so that an idle socket holds none.
var commands = sync.Pool{New: func() any { return new(dialect.Command) }}

// decode reads a message into a lent command.
func (s *Session) decode(message []byte) *dialect.Command {
	c := commands.Get().(*dialect.Command)
	s.host.Dialect().Decode(s.host.Market(), message, c)
	return c
}

func giveBack(c *dialect.Command) {
	clear(c.Params)
	*c = dialect.Command{Params: c.Params[:0]}
	commands.Put(c)
}

// first takes a message of a socket without a credential. A credential goes
// ahead of what was sent before it; all else waits for the answer to it.
func (s *Session) first(now time.Time, message []byte) {
	c := s.decode(message)
	defer giveBack(c)
	switch {
	case c.Op != dialect.OpSignin:
		s.enqueue(now, message)
	case c.Credential.Empty():
		s.End(now, dialect.CredentialInvalid)
	default:
		s.authenticate(c.Credential)
	}
}

// enqueue keeps a message until the answer it waits for is there.
func (s *Session) enqueue(now time.Time, message []byte) {
	a := s.keep()
	limit := max(maxWaitingBytes, s.host.Dialect().Policy().MaxMessage)
	if len(a.queue) == maxWaiting || a.queued+len(message) > limit {
		s.End(now, dialect.CommandRate)
		return
	}
	a.queue = append(a.queue, bytes.Clone(message))
	a.queued += len(message)
}

// carryOutQueue carries out the messages that waited, up to the next one that
// has to be waited for.
func (s *Session) carryOutQueue(now time.Time) {
	for s.state == live && !s.checking && s.aside != nil && len(s.aside.queue) > 0 {
		a := s.aside
		message := a.queue[0]
		a.queue[0] = nil
		a.queue = a.queue[1:]
		a.queued -= len(message)
		s.carryOut(now, message)
	}
	s.tidy(now)
}

// tidy drops what a live session no longer needs.
func (s *Session) tidy(now time.Time) {
	a := s.aside
	if a == nil || s.state != live {
		return
	}
	a.bad = slices.DeleteFunc(a.bad, func(t time.Duration) bool { return now.Sub(origin)-t >= badWindow })
	if len(a.queue) > 0 {
		return
	}
	a.queue = nil
	if len(a.bad) == 0 {
		s.aside = nil
	}
}

// carryOut carries out a message of a live socket.
func (s *Session) carryOut(now time.Time, message []byte) {
	s.tidy(now)
	c := s.decode(message)
	defer giveBack(c)
	switch c.Op {
	case dialect.OpNone:
		if c.Reply != nil {
			s.host.Send(c.Reply)
		}
		if c.Malformed && s.state == live {
			s.malformed(now)
		}
	case dialect.OpSignin:
		s.signin(c)
	case dialect.OpSubscribe, dialect.OpUnsubscribe:
		s.changeTopics(c)
	}
}

// changeTopics carries out a subscribe or unsubscribe and answers it.
func (s *Session) changeTopics(c *dialect.Command) {
	for i := range c.Params {
		switch p := &c.Params[i]; {
		case p.Problem != "":
		case c.Op == dialect.OpUnsubscribe:
			s.host.Unsubscribe(p.Topic)
		default:
			p.Problem = s.host.Subscribe(p.Topic)
		}
		if s.state != live {
			return
		}
	}
	s.host.Send(s.host.Dialect().Reply(c))
}

// signin answers a credential of an accepted socket. The socket's own one needs
// no call; another one is checked, and the messages behind it wait.
func (s *Session) signin(c *dialect.Command) {
	switch {
	case c.Credential.Empty():
		s.answerSignin(dialect.CredentialInvalid)
	case fingerprint(c.Credential) == s.accepted:
		s.answerSignin(dialect.OK)
	default:
		s.checking = true
		s.host.Authenticate(s.host.Market(), c.Credential)
	}
}

// answerSignin tells what became of a later credential.
func (s *Session) answerSignin(r dialect.Reason) {
	if r != dialect.OK {
		s.host.Refused(r)
	}
	s.host.Send(s.host.Dialect().Signin(r))
}

// malformed counts a message that could not be read.
func (s *Session) malformed(now time.Time) {
	a := s.keep()
	a.bad = append(a.bad, now.Sub(origin))
	if len(a.bad) == badCommands {
		s.End(now, dialect.BadCommands)
	}
}
