package upstream

import (
	"fmt"
	"testing"
	"time"

	"github.com/cutemarkets/relay/services/fanout/internal/calendar"
)

const ghostTimeout = 20 * time.Second // in tests

// limited is a script with a rule, whose waits have no jitter.
func limited(t *testing.T, rule LimitRule) *script {
	s := newScript(t)
	s.session.place.limit.Rule = rule
	s.random = 0
	return s
}

// connect opens a session and brings it to live by an event.
func (s *script) connect() {
	s.Helper()
	s.open("T.A")
	s.ack("T.A")
	s.session.Frame(s.now, true, 0)
	s.expect("subscribe T.A", "release", "state live")
}

// since is a state, as the recorder writes it.
func (s *script) since(state string) string {
	return fmt.Sprintf("state %s since %v", state, s.session.downSince.Sub(t0))
}

// redialed expects a dial after a wait, and not before.
func (s *script) redialed(wait time.Duration) {
	s.Helper()
	s.pass(wait - 1)
	s.expect()
	s.pass(1)
	if s.session.downSince.IsZero() {
		s.expect("state connecting", "dial")
	} else {
		s.expect(s.since("connecting"), "dial")
	}
}

// overLimit is told max_connections, and the connection ends.
func (s *script) overLimit(state, cause string) {
	s.Helper()
	s.status("max_connections", "")
	if s.session.downSince.IsZero() {
		s.expect("hold", "state "+state, "close")
	} else {
		s.expect("hold", s.since(state), "close")
	}
	s.lose(CauseSlow)
	s.expect("lost " + cause)
}

// TestStolenGrows: who is kicked by a stranger kicks back ever more rarely, until
// events have come for long. It is one outage.
func TestStolenGrows(t *testing.T) {
	for _, rule := range []LimitRule{KickOldest, RejectNewest} {
		s := limited(t, rule)
		s.connect()
		s.flow(time.Second, youngFor)
		from := s.now.Add(-lossAllowance)
		for _, seconds := range []int{30, 60, 120, 240, 300, 300} {
			s.overLimit("stolen", "stolen")
			s.redialed(time.Duration(seconds) * time.Second)
			s.login()
			s.ack("T.A")
			s.session.Frame(s.now, true, 0)
			s.expect("subscribe T.A", fmt.Sprintf("gap %v %v", from.Sub(t0), s.now.Sub(t0)), "release", "state live")
			s.flow(time.Second, backoffReset-time.Second)
			from = s.now.Add(-lossAllowance)
		}
		s.flow(time.Second, 2*time.Second)
		s.overLimit("stolen", "stolen")
		s.redialed(stolenFirst)
	}
}

// TestStolenBeforeLive: a vendor that ends the connection before it is live, as it
// may with each rule, is not dialed more often for that.
func TestStolenBeforeLive(t *testing.T) {
	s := limited(t, KickOldest)
	s.session.Start(s.now, []string{"T.A"})
	s.expect("state connecting", "dial")
	for _, seconds := range []int{30, 60, 120} {
		s.login()
		s.expect("subscribe T.A")
		s.overLimit("stolen", "stolen")
		s.redialed(time.Duration(seconds) * time.Second)
	}
}

// TestGhost: a place that is taken is tried for at short intervals, as long as a
// ghost can have it, and at long ones afterwards. It is one outage.
func TestGhost(t *testing.T) {
	s := limited(t, RejectNewest)
	s.connect()
	s.flow(time.Second, youngFor)
	s.lose(CauseClosed)
	from := s.session.downSince
	s.expect("hold", s.since("connecting"), "lost closed")
	s.pass(time.Nanosecond)
	s.expect("dial")
	for _, seconds := range []int{1, 2, 5, 5, 5, 5} { // ghostTimeout after the first refusal
		s.login()
		s.ack("T.A") // shows nothing
		s.expect("subscribe T.A")
		s.overLimit("waiting", "occupied")
		s.redialed(time.Duration(seconds) * time.Second)
	}
	for range 3 {
		s.login()
		s.expect("subscribe T.A")
		s.overLimit("stolen", "stolen")
		s.redialed(stolenFirst)
	}
	s.login()
	s.ack("T.A")
	s.expect("subscribe T.A")
	s.pass(admitWait - 1)
	s.expect()
	s.pass(1)
	s.expect(fmt.Sprintf("gap %v %v", from.Sub(t0), s.now.Sub(t0)), "release", "state live")

	// Refused after all; the wait for the ghost goes on.
	s.pass(time.Second)
	s.overLimit("stolen", "stolen")
	s.redialed(stolenFirst)
	s.login()
	s.ack("T.A")
	s.pass(youngFor)
	s.host.said = nil
	s.lose(CauseClosed)
	s.expect("hold", s.since("connecting"), "lost closed")
	s.pass(time.Nanosecond)
	s.expect("dial")
	s.login()
	s.expect("subscribe T.A")
	s.overLimit("waiting", "occupied")
}

// TestAdmissionAfterStandstill: after having stood still, a refusal may have come
// that has yet to be read.
func TestAdmissionAfterStandstill(t *testing.T) {
	s := limited(t, RejectNewest)
	s.open("T.A")
	s.expect("subscribe T.A")
	s.now = s.now.Add(10 * time.Second)
	s.ack("T.A")
	s.session.Tick(s.now)
	s.pass(admitWait - 1)
	s.expect()
	s.pass(1)
	s.expect("release", "state live")
}

// TestDoubtLeavesWhatIs: a connection that is authenticated goes on, whatever is
// subscribed; what would end it is not done.
func TestDoubtLeavesWhatIs(t *testing.T) {
	s := limited(t, KickOldest)
	s.connect()
	s.session.Proof(s.now, false)
	s.session.Add(s.now, []string{"T.B"})
	s.expect("subscribe T.B")
	s.ack("T.B")
	s.pass(time.Hour)
	s.session.Proof(s.now, true)
	s.expect()
}

// TestDoubt: without proof nothing is dialed and no key is sent; with it, at once.
func TestDoubt(t *testing.T) {
	for _, tt := range []struct {
		name  string
		reach func(s *script) // without proof: no connection
		wait  time.Duration   // that proof does not shorten
		state string          // without proof
	}{
		{"at the start", func(s *script) {
			s.session.Proof(s.now, false)
			s.session.Start(s.now, nil)
		}, 0, "unproven"},
		{"while dialing", func(s *script) {
			s.session.Start(s.now, nil)
			s.session.Proof(s.now, false)
			s.session.Dialed(s.now)
			s.lose(CauseNone)
		}, 0, "unproven"},
		{"dial failed", func(s *script) {
			s.session.Start(s.now, nil)
			s.session.Proof(s.now, false)
			s.session.DialFailed(s.now, CauseDial)
		}, 0, "unproven"},
		{"before the greeting", func(s *script) {
			s.session.Start(s.now, nil)
			s.session.Dialed(s.now)
			s.session.Proof(s.now, false)
			s.status("connected", "")
			s.lose(CauseNone)
		}, 0, "unproven"},
		{"before auth_success", func(s *script) {
			s.session.Start(s.now, nil)
			s.session.Dialed(s.now)
			s.status("connected", "")
			s.session.Proof(s.now, false)
			s.status("auth_success", "")
			s.lose(CauseNone)
		}, 0, "unproven"},
		{"lost", func(s *script) {
			s.open()
			s.session.Proof(s.now, false)
			s.lose(CauseClosed)
		}, 0, "unproven"},
		{"another has taken over", func(s *script) {
			s.open()
			s.session.Proof(s.now, false)
			s.status("max_connections", "")
			s.lose(CauseSlow)
		}, 0, "unproven"},
		{"waiting after a failure", func(s *script) {
			s.session.Start(s.now, nil)
			s.session.DialFailed(s.now, CauseDial)
			s.session.Proof(s.now, false)
		}, 0, "unproven"},
		{"refused", func(s *script) {
			s.session.Start(s.now, nil)
			s.session.Dialed(s.now)
			s.status("auth_failed", "")
			s.session.Proof(s.now, false)
			s.lose(CauseClosed)
		}, refusedWait, "refused"},
		{"stolen", func(s *script) {
			s.open()
			s.status("max_connections", "")
			s.lose(CauseClosed)
			s.session.Proof(s.now, false)
		}, stolenFirst, "stolen"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, long := range []time.Duration{time.Millisecond, time.Hour} {
				s := limited(t, KickOldest)
				tt.reach(s)
				s.host.said = nil
				s.pass(long)
				if state := s.session.state.String(); long > tt.wait && state != "unproven" || long <= tt.wait && state != tt.state {
					t.Errorf("state %s after %v", state, long)
				}
				for _, said := range s.host.said {
					if said == "dial" || said == "auth" {
						t.Errorf("%s without proof", said)
					}
				}
				s.host.said = nil
				s.session.Proof(s.now, true)
				if tt.wait > long {
					s.expect()
					s.redialed(tt.wait - long)
					continue
				}
				if got := len(s.host.said); got != 2 || s.host.said[1] != "dial" {
					t.Errorf("%q after proof, want a state and a dial", s.host.said)
				}
				s.session.DialFailed(s.now, CauseDial)
				s.session.Stop(s.now)
				if !s.session.Stopped() {
					t.Error("not stopped")
				}
			}
		})
	}
}

// TestTakenBackOnce: what was taken while there was no proof is taken back at once
// when there is, and what was taken again only after a wait, proof or not.
func TestTakenBackOnce(t *testing.T) {
	s := limited(t, KickOldest)
	s.connect()
	s.session.Proof(s.now, false)
	s.overLimit("unproven", "kicked")
	s.pass(time.Minute)
	s.expect()
	s.session.Proof(s.now, true)
	s.expect(s.since("connecting"), "dial")
	s.login()
	s.expect("subscribe T.A")
	s.session.Proof(s.now, false)
	s.overLimit("stolen", "stolen")
	s.session.Proof(s.now, true)
	s.redialed(stolenFirst)
	s.login()
	s.expect("subscribe T.A")
	s.overLimit("stolen", "stolen")
	s.redialed(2 * stolenFirst)
}

// TestNoStallInDoubt: a silent connection is not left while none can be had
// instead.
func TestNoStallInDoubt(t *testing.T) {
	s := watching(t, calendar.Always, nil, "T.A")
	s.flow(time.Second, time.Minute)
	s.session.Proof(s.now, false)
	s.pass(time.Hour)
	s.expect()
	if got := s.session.SilenceLimit(); got != 0 {
		t.Errorf("%v of silence count", got)
	}
	s.session.Proof(s.now, true)
	s.pass(lookEvery)
	if len(s.host.said) == 0 || s.host.said[len(s.host.said)-1] != "close" {
		t.Errorf("%q after proof", s.host.said)
	}
}
