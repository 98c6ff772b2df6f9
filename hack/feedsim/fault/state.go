package fault

import (
	"slices"
	"time"

	"github.com/cutemarkets/relay/hack/feedsim/tape"
)

// State is what is wrong with a market at a moment. The zero value is a market
// without faults. It is not safe for concurrent use.
type State struct {
	modes [Names]mode
	done  [Names]uint64
}

// mode is a command that lasts.
type mode struct {
	command *Command  // nil: off
	until   time.Time // zero: until Resume
	left    int       // uses; below zero: no limit
	seen    int       // of NoAck: acknowledgements asked about
}

// Start lets a command that lasts begin, in the place of one of the same name.
func (s *State) Start(c Command, now time.Time) {
	m := mode{command: &c, left: c.Next}
	if c.For > 0 {
		m.until = now.Add(c.For)
	}
	if c.Next == 0 {
		m.left = -1
	}
	s.modes[c.Name] = m
}

// Active returns the command if it lasts now, or nil.
func (s *State) Active(n Name, now time.Time) *Command {
	m := &s.modes[n]
	if m.command == nil || m.left == 0 || (!m.until.IsZero() && !now.Before(m.until)) {
		return nil
	}
	return m.command
}

// Use is Active, and counts that the fault takes effect now.
func (s *State) Use(n Name, now time.Time) *Command {
	c := s.Active(n, now)
	if c == nil {
		return nil
	}
	if s.modes[n].left > 0 {
		s.modes[n].left--
	}
	s.done[n]++
	return c
}

// Count notes effects of a fault that were not asked for by Use.
func (s *State) Count(n Name, times int) { s.done[n] += uint64(times) }

// Clear ends all that lasts.
func (s *State) Clear() { s.modes = [Names]mode{} }

// Done is how often each fault took effect, by name.
func (s *State) Done() map[string]uint64 {
	done := make(map[string]uint64, Names)
	for n, times := range s.done {
		if times > 0 {
			done[Name(n).String()] = times
		}
	}
	return done
}

// Auth says how the answer to a key departs from the rules.
func (s *State) Auth(now time.Time) (fail, silent bool) {
	if s.Use(AuthSilent, now) != nil {
		return false, true
	}
	return s.Use(AuthFailed, now) != nil, false
}

// NoAck says whether the acknowledgement of a topic is withheld, and whether
// its events come nevertheless.
func (s *State) NoAck(topic string, now time.Time) (withheld, deliver bool) {
	c := s.Active(NoAck, now)
	if c == nil || (len(c.Topics) > 0 && !slices.Contains(c.Topics, topic)) {
		return false, false
	}
	m := &s.modes[NoAck]
	m.seen++
	if c.Every > 0 && m.seen%c.Every != 0 {
		return false, false
	}
	return s.Use(NoAck, now) != nil, c.Deliver
}

// Unauthorized says whether topics of a kind are refused, and whether that comes
// after the acknowledgements of the others.
func (s *State) Unauthorized(k tape.Kind, now time.Time) (refused, after bool) {
	c := s.Active(Unauthorized, now)
	if c == nil || !slices.Contains(c.Prefixes, k) {
		return false, false
	}
	return s.Use(Unauthorized, now) != nil, c.Mode == After
}
