package session

import (
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/cutemarkets/relay/services/edge/internal/dialect"
	"github.com/cutemarkets/relay/services/edge/internal/dialect/cutemarkets"
	"github.com/cutemarkets/relay/services/edge/internal/principal"
)

func newDialect(o cutemarkets.Options) *cutemarkets.Dialect {
	o.Markets = []string{"stocks", "options"}
	return cutemarkets.New(o)
}

func TestTopicLimit(t *testing.T) {
	h := &recorder{maxTopics: 2}
	s := newSession(h, newDialect(cutemarkets.Options{}), withKey)
	for _, step := range alive() {
		step.do(&s, start)
	}
	h.calls = nil
	s.Message(start, []byte(`{"action":"subscribe","params":"T.A,T.B,T.C,T.A"}`))
	want := calls("subscribe T.A", "subscribe T.B", "full T.C", "subscribe T.A",
		"send subscribed to: T.A | subscribed to: T.B | error cannot subscribe to: T.C: the connection has as many topics as it may have | subscribed to: T.A")
	if !slices.Equal(h.calls, want) {
		t.Errorf("got %q\nwant %q", h.calls, want)
	}
}

func TestWaitingMessagesAreBounded(t *testing.T) {
	small := `{"action":"subscribe","params":"T.A"}`
	for _, c := range []struct {
		name, message string
		fit           int
	}{
		{"by number", small, 64},
		{"by bytes", small + strings.Repeat(" ", 16<<10-len(small)), 4},
		{"one of the greatest size", small + strings.Repeat(" ", 64<<10-len(small)), 1},
	} {
		for _, opening := range []dialect.Opening{withKey, withoutKey} {
			t.Run(c.name, func(t *testing.T) {
				h := &recorder{}
				s := newSession(h, newDialect(cutemarkets.Options{InBandAuth: true}), opening)
				s.Start(start)
				for range c.fit {
					s.Message(start, []byte(c.message))
				}
				if s.ending() {
					t.Fatalf("ended by %s", s.reason)
				}
				s.Message(start, []byte(c.message))
				if !s.ending() || s.reason != dialect.CommandRate || len(s.aside.queue) > 0 {
					t.Errorf("state %d, reason %s, %d messages kept", s.state, s.reason, len(s.aside.queue))
				}
			})
		}
	}
}

// shared is a dialect that does not limit connections.
type shared struct{ *cutemarkets.Dialect }

func (d shared) Policy() dialect.Policy {
	p := d.Dialect.Policy()
	p.Exclusive = false
	return p
}

func TestSharedDialectTakesNoLock(t *testing.T) {
	h := &recorder{}
	s := newSession(h, shared{newDialect(cutemarkets.Options{})}, withKey)
	s.Start(start)
	s.Authenticated(start, principal.Principal{UserID: "u"}, dialect.OK)
	s.ClientClosed(start, 1000)
	want := calls("send connected", "authenticate stocks cm_a", "send auth_success", "live stocks", "stop", "close 1000 \"\" client_closed")
	if !slices.Equal(h.calls, want) {
		t.Errorf("got %q\nwant %q", h.calls, want)
	}
}

func TestImpossibleInputsPanic(t *testing.T) {
	living := func(s *Session) {
		for _, step := range alive() {
			step.do(s, start)
		}
	}
	begun := func(s *Session) { s.Start(start) }
	fresh := func(*Session) {}
	for name, c := range map[string]struct {
		before func(*Session)
		do     input
	}{
		"message before the start":       {fresh, message(`{}`)},
		"end before the start":           {fresh, end(dialect.Draining)},
		"gone before the start":          {fresh, gone()},
		"answer before the start":        {fresh, user("u")},
		"second start":                   {begun, begin()},
		"lock that was not asked for":    {begun, acquired(dialect.OK)},
		"release that was not asked for": {begun, released()},
		"answer twice":                   {living, user("u")},
		"lock twice":                     {living, acquired(dialect.OK)},
		"release on a live socket":       {living, released()},
		"reason without a farewell":      {living, end(dialect.PodDraining)},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSession(&recorder{}, newDialect(cutemarkets.Options{InBandAuth: true}), withKey)
			c.before(&s)
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			c.do(&s, start)
		})
	}
}

func TestCredentialIsNotKept(t *testing.T) {
	s := newSession(&recorder{}, newDialect(cutemarkets.Options{}), withKey)
	s.Start(start)
	if s.aside != nil {
		t.Error("the credential is still there after it was asked for")
	}
}

// TestSize holds a session to its share of what a connection may cost.
func TestSize(t *testing.T) {
	if size := unsafe.Sizeof(Session{}); size > 64 {
		t.Errorf("a session has %d bytes, want at most 96", size)
	}
}

// TestAsideIsFreed lists when a session keeps more than itself.
func TestAsideIsFreed(t *testing.T) {
	h := &recorder{}
	s := newSession(h, newDialect(cutemarkets.Options{InBandAuth: true}), withKey)
	for i, step := range []struct {
		at   time.Duration
		do   input
		kept bool
	}{
		{0, begin(), false},
		{0, subscribe("T.A"), true}, // waits
		{0, user("u"), true},
		{0, acquired(dialect.OK), false},
		{0, message(`{`), true}, // counted for a minute
		{time.Second, subscribe("T.B"), true},
		{time.Minute, subscribe("T.B"), false},
		{time.Minute, auth("cm_b"), false},
		{time.Minute, subscribe("T.B"), true}, // waits
		{time.Minute, user("u"), false},
		{time.Minute, end(dialect.Draining), true}, // the close to come
		{time.Minute, released(), false},
	} {
		step.do(&s, start.Add(step.at))
		if kept := s.aside != nil; kept != step.kept {
			t.Fatalf("step %d: kept %t, want %t", i, kept, step.kept)
		}
	}
}
