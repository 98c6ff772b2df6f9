package upstream

import (
	"math/rand/v2"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/cutemarkets/relay/services/fanout/internal/calendar"
)

// watching is a script of a session that is live and watches.
func watching(t *testing.T, hours calendar.Hours, canaries []string, interest ...string) *script {
	s := newScript(t)
	s.session = NewSession(s.host, func() float64 { return s.random }, hours, canaries, Limit{KickOldest, ghostTimeout})
	s.open(interest...)
	s.ack(interest...)
	if s.session.state != StateLive {
		t.Fatalf("state %v", s.session.state)
	}
	s.host.said = nil
	return s
}

// event lets one come, and is followed by what passes until the next.
func (s *script) event(then time.Duration) {
	s.session.Frame(s.now, true, 0)
	s.session.Events(s.now)
	s.pass(then)
}

// flow sends events at equal distances.
func (s *script) flow(every, long time.Duration) {
	s.Helper()
	for end := s.now.Add(long); s.now.Before(end); {
		s.event(every)
	}
	s.expect()
}

// TestSilenceLimit: which silence counts, behind which flow.
func TestSilenceLimit(t *testing.T) {
	for _, tt := range []struct {
		name  string
		hours calendar.Hours
		every time.Duration
		long  time.Duration
		want  time.Duration
	}{
		{"dense", calendar.Always, 100 * time.Millisecond, time.Minute, 3 * time.Second},
		{"one a second", calendar.Always, time.Second, time.Minute, 3 * time.Second},
		{"three times the longest silence", calendar.Always, 2 * time.Second, time.Minute, 6 * time.Second},
		{"the sparsest that is judged", calendar.Always, 3 * time.Second, time.Minute, 9 * time.Second},
		{"sparse", calendar.Always, 4 * time.Second, time.Minute, 0},
		{"a minute's bars", calendar.Always, time.Minute, time.Hour, 0},
		{"not known for long", calendar.Always, time.Second, 29 * time.Second, 0},
		{"outside of trading", calendar.Never, 100 * time.Millisecond, time.Minute, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := watching(t, tt.hours, nil, "T.*")
			s.flow(tt.every, tt.long)
			if got := s.session.SilenceLimit(); got != tt.want {
				t.Errorf("limit %v, want %v", got, tt.want)
			}
		})
	}
}

// TestLongSilenceIsForgotten after some minutes of better flow.
func TestLongSilenceIsForgotten(t *testing.T) {
	s := watching(t, calendar.Always, nil, "T.*")
	s.flow(time.Second, time.Minute)
	s.event(2900 * time.Millisecond)
	s.flow(time.Second, 2*time.Minute)
	if got := s.session.SilenceLimit(); got != 8700*time.Millisecond {
		t.Errorf("limit %v after two minutes", got)
	}
	s.flow(time.Second, 5*time.Minute)
	if got := s.session.SilenceLimit(); got != silenceLeast {
		t.Errorf("limit %v after seven minutes", got)
	}
}

// TestFirstTopic: the silence before it was to be expected.
func TestFirstTopic(t *testing.T) {
	s := watching(t, calendar.Always, nil)
	s.pass(time.Hour)
	s.session.Add(s.now, []string{"T.*"})
	s.ack("T.*")
	s.expect("subscribe T.*")
	s.pass(time.Second)
	s.flow(time.Second, 31*time.Second)
	if got := s.session.SilenceLimit(); got != silenceLeast {
		t.Errorf("limit %v, want %v", got, silenceLeast)
	}
}

func TestStall(t *testing.T) {
	s := watching(t, calendar.Always, nil, "T.*")
	s.flow(100*time.Millisecond, time.Minute) // its last event is 100 ms old
	s.pass(2800 * time.Millisecond)
	s.session.Alive(s.now) // pongs are no events
	s.expect()
	s.pass(100 * time.Millisecond)
	s.expect("stalled 3s 10s", "hold", "state connecting since 59.4s", "close")
	s.session.Closed(s.now, CauseNone)
	s.expect("lost stalled")
	s.pass(0)
	s.expect("dial")
	s.login()
	s.expect("subscribe T.*")
	s.ack("T.*")
	s.pass(time.Second)
	s.expect() // the gap lasts until there are events
	s.event(0)
	s.expect("gap 59.4s 1m3.9s", "release", "state live")
}

// expectStall passes the time of the silence that is a stall, and the reconnect.
func (s *script) expectStall(limit, next time.Duration) {
	s.Helper()
	s.pass(limit - 1)
	s.expect()
	s.pass(1)
	if want := "stalled " + limit.String() + " " + next.String(); len(s.host.said) == 0 || s.host.said[0] != want {
		s.Fatalf("got %q, want %q", s.host.said, want)
	}
	s.session.Closed(s.now, CauseNone)
	s.pass(0)
	s.host.said = nil
	s.session.Dialed(s.now)
	s.status("connected", "")
	s.status("auth_success", "")
	s.ack("T.*")
	s.host.said = nil
}

// TestStallUponStall: each waits longer than the one before it, with one gap for
// all, until there have been events for a minute.
func TestStallUponStall(t *testing.T) {
	s := watching(t, calendar.Always, nil, "T.*")
	s.flow(time.Second, time.Minute)
	s.event(0)
	s.expectStall(3*time.Second, 10*time.Second)
	for wait := silenceMost; wait < stallMost; wait *= 2 {
		s.expectStall(wait, min(2*wait, stallMost))
	}
	for range 3 {
		s.expectStall(stallMost, stallMost)
	}
	s.pass(4 * time.Minute) // which were the vendor's, and teach nothing
	s.event(time.Second)
	s.expect("gap 59.5s 25m13s", "release", "state live")
	s.flow(time.Second, 58*time.Second)
	if got := s.session.SilenceLimit(); got != stallMost {
		t.Errorf("limit %v within the first minute of events, want %v", got, stallMost)
	}
	s.flow(time.Second, 3*time.Second)
	if got := s.session.SilenceLimit(); got != silenceLeast {
		t.Errorf("limit %v after a minute of events, want %v", got, silenceLeast)
	}
}

// TestStallEndsWithTrading: nothing is expected any more, so the gap ends.
func TestStallEndsWithTrading(t *testing.T) {
	s := watching(t, intervals, nil, "T.*") // trading is from ten to twenty minutes after t0
	s.pass(10 * time.Minute)
	s.flow(time.Second, 580*time.Second)
	s.event(0)
	s.expectStall(3*time.Second, 10*time.Second)
	s.expectStall(10*time.Second, 20*time.Second)
	s.pass(time.Hour)
	s.expect("gap 19m39.5s 20m0s", "release", "state live")
}

// TestStoodStill: who did not run cannot tell how long the vendor was silent.
func TestStoodStill(t *testing.T) {
	s := watching(t, calendar.Always, nil, "T.*")
	s.flow(time.Second, time.Minute)
	s.now = s.now.Add(20 * time.Second)
	s.session.Tick(s.now)
	s.pass(silenceLeast - 1)
	s.expect()
	s.pass(1)
	if len(s.host.said) == 0 || s.host.said[0] != "stalled 3s 10s" {
		t.Errorf("%q", s.host.said)
	}
}

// TestReconnectIsNoSilence: after an outage the flow is known, and its first
// event may take as long as any stall may.
func TestReconnectIsNoSilence(t *testing.T) {
	s := watching(t, calendar.Always, nil, "T.*")
	s.flow(time.Second, time.Minute)
	s.lose(CauseEOF)
	s.pass(time.Second)
	s.now = s.now.Add(2 * time.Minute)
	s.host.said = nil
	s.login()
	s.ack("T.*")
	s.host.said = nil
	s.pass(time.Second)
	s.expect()
	if got := s.session.SilenceLimit(); got != silenceMost {
		t.Errorf("limit %v before the first event, want %v", got, silenceMost)
	}
	s.event(0)
	if got := s.session.SilenceLimit(); got != silenceLeast {
		t.Errorf("limit %v, want %v", got, silenceLeast)
	}
}

// TestLeaversTakeTheirFlow: silence after a topic has left may be due to that.
func TestLeaversTakeTheirFlow(t *testing.T) {
	for _, tt := range []struct {
		name    string
		topics  []string
		leave   []string
		forgets bool
	}{
		{"the wildcard", []string{"T.*", "Q.A", "Q.B", "Q.C", "Q.D", "Q.E", "Q.F", "Q.G", "Q.H", "Q.I", "Q.J"}, []string{"T.*"}, true},
		{"one of two", []string{"T.A", "T.B"}, []string{"T.A"}, true},
		{"one of eleven", []string{"Q.A", "Q.B", "Q.C", "Q.D", "Q.E", "Q.F", "Q.G", "Q.H", "Q.I", "Q.J", "Q.K"}, []string{"Q.K"}, false},
		{"two of eleven", []string{"Q.A", "Q.B", "Q.C", "Q.D", "Q.E", "Q.F", "Q.G", "Q.H", "Q.I", "Q.J", "Q.K"}, []string{"Q.K", "Q.A"}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := watching(t, calendar.Always, nil, tt.topics...)
			s.flow(time.Second, time.Minute)
			s.session.Remove(s.now, tt.leave)
			s.pass(lingerWait)
			s.host.said = nil
			if got := s.session.SilenceLimit(); (got == 0) != tt.forgets {
				t.Errorf("limit %v", got)
			}
		})
	}
}

// TestNobodyIsInterested: without topics no events are expected, after a stall
// neither.
func TestNobodyIsInterested(t *testing.T) {
	s := watching(t, calendar.Always, nil, "T.*")
	s.flow(time.Second, time.Minute)
	s.event(0)
	s.expectStall(3*time.Second, 10*time.Second)
	s.session.Remove(s.now, []string{"T.*"})
	s.pass(time.Hour)
	s.expect("unsubscribe T.*", "gap 59.5s 1m4s", "release", "state live")
}

// TestCanary: a topic of the session's own gives silence a meaning from the
// opening on, and is subscribed beside nothing.
func TestCanary(t *testing.T) {
	s := newScript(t)
	s.session = NewSession(s.host, func() float64 { return s.random }, intervals, []string{"A.SPY"}, Limit{KickOldest, ghostTimeout})
	s.open("T.A")
	s.expect("subscribe T.A")
	s.ack("T.A")
	s.expect("release", "state live", "subscribe A.SPY")
	s.ack("A.SPY")
	s.expect() // no gap for it
	s.pass(10*time.Minute + silenceMost - 1)
	s.expect() // trading began 10 s ago
	s.pass(1)
	s.expect("stalled 10s 10s", "hold", "state connecting since -500ms", "close")
	s.session.Closed(s.now, CauseNone)
	s.pass(0)
	s.expect("lost stalled", "dial")
	s.login()
	s.expect("subscribe A.SPY,T.A") // it shows the end of the stall
	s.ack("T.A")
	s.pass(time.Second)
	s.event(0)
	s.expect("gap -500ms 10m11s", "release", "state live")
	s.ack("A.SPY")
	s.event(0)
	s.expect() // no gap for it
	s.session.Add(s.now, []string{"A.SPY"})
	s.session.Remove(s.now, []string{"A.SPY"})
	s.pass(lingerWait)
	s.expect()
	s.session.Add(s.now, []string{"A.*"})
	s.ack("A.*")
	s.expect("subscribe A.*", "unsubscribe A.SPY")
	if got := s.session.SilenceLimit(); got != silenceMost {
		t.Errorf("limit %v with the canary's wildcard", got)
	}
	s.session.Remove(s.now, []string{"A.*", "T.A"})
	s.pass(lingerWait)
	s.expect("subscribe A.SPY", "unsubscribe A.*,T.A")
}

// TestOpening: what was silent before it may not be so any more, from then on;
// what flowed before goes on.
func TestOpening(t *testing.T) {
	opening := t0.Add(time.Hour)
	hours := func(at time.Time) (calendar.Part, time.Time) {
		if at.Before(opening) {
			return calendar.PreMarket, opening
		}
		return calendar.Regular, time.Time{}
	}
	for _, tt := range []struct {
		every, want time.Duration
	}{{time.Second, silenceLeast}, {7 * time.Minute, silenceMost}} {
		s := watching(t, hours, []string{"A.SPY"}, "T.A")
		s.ack("A.SPY")
		s.host.said = nil
		s.flow(tt.every, opening.Add(-time.Second).Sub(s.now).Truncate(tt.every))
		s.pass(opening.Sub(s.now))
		if got := s.session.SilenceLimit(); got != tt.want {
			t.Errorf("limit %v after an event each %v, want %v", got, tt.every, tt.want)
		}
		s.pass(tt.want - 1)
		s.expect()
	}
}

// TestCanaryUnserved: a vendor that does not serve the canary costs nothing but
// its use.
func TestCanaryUnserved(t *testing.T) {
	s := watching(t, calendar.Always, []string{"A.SPY"}, "T.A")
	s.pass(time.Hour)
	s.expect("subscribe A.SPY", "subscribe A.SPY", "problem [A.SPY] NOT_ACKNOWLEDGED")
	s.ack("A.SPY")
	s.pass(silenceMost - 1)
	s.expect("problem [A.SPY] UNSPECIFIED")
}

// random sends events at random, as independent as those of a Poisson process.
func (s *script) randomly(r *rand.Rand, mean, long time.Duration) {
	for end := s.now.Add(long); s.now.Before(end); {
		s.event(time.Duration(r.ExpFloat64() * float64(mean)))
	}
}

// TestNoFalseAlarm: a day of events at random, or 100,000 of them, however sparse
// or dense, shows no stall.
func TestNoFalseAlarm(t *testing.T) {
	for _, mean := range []time.Duration{
		50 * time.Millisecond, 300 * time.Millisecond, 500 * time.Millisecond, 700 * time.Millisecond,
		time.Second, 2 * time.Second, 5 * time.Second, 30 * time.Second, 10 * time.Minute,
	} {
		t.Run(mean.String(), func(t *testing.T) {
			for seed := range uint64(4) {
				s := watching(t, calendar.Always, nil, "T.A")
				s.randomly(rand.New(rand.NewPCG(seed, 1)), mean, min(24*time.Hour, 100_000*mean))
				s.expect()
			}
		})
	}
}

// TestDetection: whatever dense flow stops, at whatever moment, is known to have
// within 10 s, and not within 3 s.
func TestDetection(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		mean := time.Duration(rapid.Int64Range(int64(10*time.Millisecond), int64(250*time.Millisecond)).Draw(rt, "mean"))
		long := time.Duration(rapid.Int64Range(int64(40*time.Second), int64(90*time.Second)).Draw(rt, "long"))
		s := watching(t, calendar.Always, nil, "T.A")
		s.randomly(rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 1)), mean, long)
		if len(s.host.said) > 0 {
			rt.Fatalf("%q during the flow", s.host.said)
		}
		last := s.session.lastData
		for s.session.phase == phaseOpen {
			s.pass(10 * time.Millisecond)
		}
		if d := s.now.Sub(last); d < silenceLeast || d > silenceMost+10*time.Millisecond {
			rt.Fatalf("a stall after %v", d)
		}
	})
}
