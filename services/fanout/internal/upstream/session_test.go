package upstream

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	feedv1 "github.com/cutemarkets/relay/proto/feed/v1"
	"github.com/cutemarkets/relay/services/fanout/internal/calendar"
)

var t0 = time.Date(2026, 11, 20, 14, 30, 0, 0, time.UTC)

// recorder is a Host that writes down what is asked of it.
type recorder struct {
	said []string
}

func (h *recorder) note(format string, args ...any) {
	h.said = append(h.said, fmt.Sprintf(format, args...))
}

func (h *recorder) Dial()  { h.note("dial") }
func (h *recorder) Auth()  { h.note("auth") }
func (h *recorder) Close() { h.note("close") }
func (h *recorder) Hold()  { h.note("hold") }
func (h *recorder) Gap(from, to time.Time) {
	h.note("gap %v %v", from.Sub(t0), to.Sub(t0))
}
func (h *recorder) Release() { h.note("release") }
func (h *recorder) State(state State, downSince time.Time) {
	if downSince.IsZero() {
		h.note("state %v", state)
		return
	}
	h.note("state %v since %v", state, downSince.Sub(t0))
}
func (h *recorder) Stalled(silence, next time.Duration) { h.note("stalled %v %v", silence, next) }

func (h *recorder) Lost(cause Cause) { h.note("lost %v", cause) }

func (h *recorder) Problem(topics []string, problem feedv1.TopicProblem) {
	h.note("problem %v %s", topics, strings.TrimPrefix(problem.String(), "TOPIC_PROBLEM_"))
}

func (h *recorder) Send(message []byte) {
	var command struct{ Action, Params string }
	if err := json.Unmarshal(message, &command); err != nil {
		panic(err)
	}
	h.note("%s %s", command.Action, command.Params)
}

// script drives a session by hand.
type script struct {
	*testing.T
	host    *recorder
	session *Session
	now     time.Time
	random  float64
}

func newScript(t *testing.T) *script {
	s := &script{T: t, host: &recorder{}, now: t0, random: 0.5}
	s.session = NewSession(s.host, func() float64 { return s.random }, calendar.Never, nil, Limit{KickOldest, ghostTimeout})
	return s
}

// expect compares what was asked of the host since the last call.
func (s *script) expect(want ...string) {
	s.Helper()
	if !slices.Equal(s.host.said, want) {
		s.Fatalf("at %v\n got %q\nwant %q", s.now.Sub(t0), s.host.said, want)
	}
	s.host.said = nil
}

// pass lets time pass, tick by tick.
func (s *script) pass(d time.Duration) {
	end := s.now.Add(d)
	for {
		deadline := s.session.Deadline()
		if deadline.IsZero() || deadline.After(end) {
			break
		}
		if deadline.After(s.now) {
			s.now = deadline
		}
		s.session.Tick(s.now)
	}
	s.now = end
}

func (s *script) status(status, message string) {
	s.session.Frame(s.now, false, 0)
	s.session.Status(s.now, status, message)
}

func (s *script) ack(topics ...string) {
	for _, topic := range topics {
		s.status("success", "subscribed to: "+topic)
	}
}

// open starts a session and brings it to auth_success.
func (s *script) open(interest ...string) {
	s.Helper()
	s.session.Start(s.now, interest)
	s.expect("state connecting", "dial")
	s.login()
}

func (s *script) login() {
	s.Helper()
	s.session.Dialed(s.now)
	s.expect()
	s.status("connected", "Connected Successfully")
	s.expect("auth")
	s.status("auth_success", "authenticated")
}

// lose ends the connection after the vendor's doing and passes the back-off.
func (s *script) lose(cause Cause) {
	s.session.Closed(s.now, cause)
}

func TestFirstConnection(t *testing.T) {
	s := newScript(t)
	s.open("T.A", "Q.B")
	s.expect("subscribe Q.B,T.A")
	s.ack("T.A")
	s.expect()
	s.ack("Q.B")
	s.expect("release", "state live")
	s.pass(time.Hour)
	s.expect()
}

func TestFirstConnectionWithoutInterest(t *testing.T) {
	s := newScript(t)
	s.open()
	s.expect("release", "state live")
}

func TestAckForms(t *testing.T) {
	for _, tt := range []struct {
		name    string
		message string
		live    bool
	}{
		{"as documented", "subscribed to: T.A", true},
		{"joined", "subscribed to: T.X, T.A", true},
		{"no space", "subscribed to:T.A", true},
		{"of an unsubscribe", "unsubscribed to: T.A", false},
		{"of another topic", "subscribed to: T.AA", false},
		{"of nothing", "subscribed to: ", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newScript(t)
			s.open("T.A")
			s.expect("subscribe T.A")
			s.status("success", tt.message)
			if tt.live {
				s.expect("release", "state live")
			} else {
				s.expect()
			}
		})
	}
}

func TestLiveWithoutAcks(t *testing.T) {
	s := newScript(t)
	s.open("T.A")
	s.expect("subscribe T.A")
	s.pass(settleWait - 1)
	s.expect()
	s.pass(1)
	s.expect("release", "state live")
	s.pass(3 * time.Minute)
	s.expect("subscribe T.A", "subscribe T.A", "problem [T.A] NOT_ACKNOWLEDGED")
	s.ack("T.A")
	s.expect("problem [T.A] UNSPECIFIED")
}

func TestNotAuthorized(t *testing.T) {
	for _, before := range []bool{true, false} {
		s := newScript(t)
		s.open("NOI.*", "T.A")
		s.expect("subscribe NOI.*,T.A")
		if before {
			s.status("error", "not authorized")
		}
		s.ack("T.A")
		if !before {
			s.status("error", "not authorized")
		}
		s.pass(time.Minute)
		s.expect("release", "state live", "subscribe NOI.*", "subscribe NOI.*", "problem [NOI.*] NOT_AUTHORIZED")
		// A later topic has a window of its own.
		s.session.Add(s.now, []string{"ZZ.A"})
		s.pass(time.Minute)
		s.expect("subscribe ZZ.A", "subscribe ZZ.A", "subscribe ZZ.A", "problem [ZZ.A] NOT_ACKNOWLEDGED")
	}
}

func TestGap(t *testing.T) {
	for _, tt := range []struct {
		name     string
		interest []string
		cause    Cause
		quiet    time.Duration // between the last frame and the loss
		from     time.Duration // before the loss
	}{
		{"busy", []string{"T.A"}, CauseClosed, 100 * time.Millisecond, lossAllowance},
		{"quiet", []string{"T.A"}, CauseClosed, time.Minute, lossAllowance},
		{"slow consumer", []string{"T.A"}, CauseSlow, 10 * time.Second, 10*time.Second + lossAllowance},
		{"end without close frame", []string{"T.A"}, CauseEOF, time.Minute, lossAllowance},
		{"no pong", []string{"T.A"}, CauseTimeout, 30 * time.Second, 30*time.Second + lossAllowance},
		{"reset", []string{"T.A"}, CauseError, 10 * time.Second, 10*time.Second + lossAllowance},
		{"no interest", nil, CauseClosed, time.Minute, lossAllowance},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newScript(t)
			s.open(tt.interest...)
			s.ack(tt.interest...)
			s.pass(time.Second)
			s.session.Frame(s.now, true, 0)
			s.host.said = nil
			s.pass(tt.quiet)
			from := s.now.Add(-tt.from).Sub(t0)
			s.lose(tt.cause)
			s.expect("hold", fmt.Sprintf("state connecting since %v", from), "lost "+tt.cause.String())
			s.pass(backoffFirst)
			s.expect("dial")
			s.login()
			if tt.interest != nil {
				s.expect("subscribe T.A")
				s.ack("T.A")
			}
			s.expect(fmt.Sprintf("gap %v %v", from, s.now.Sub(t0)), "release", "state live")
		})
	}
}

// TestLateEvents: what is lost behind an event that came late is as old.
func TestLateEvents(t *testing.T) {
	for _, tt := range []struct {
		cause Cause
		from  time.Duration // before the loss
	}{
		{CauseEOF, lossAllowance + 3*time.Second},
		{CauseError, 10*time.Second + lossAllowance + 3*time.Second},
	} {
		s := newScript(t)
		s.open("T.A")
		s.ack("T.A")
		s.session.Frame(s.now, true, 3*time.Second)
		s.session.Frame(s.now, false, 0) // an acknowledgement, which has no time of its own
		s.host.said = nil
		s.pass(10 * time.Second)
		from := s.now.Add(-tt.from).Sub(t0)
		s.lose(tt.cause)
		s.expect("hold", fmt.Sprintf("state connecting since %v", from), "lost "+tt.cause.String())
	}
}

func TestLateness(t *testing.T) {
	now := time.UnixMilli(1_500_000_010_250)
	for raw, want := range map[string]time.Duration{
		`{"ev":"T","sym":"A","t":1500000010000,"q":1}`: 250 * time.Millisecond,
		`{"ev":"T","sym":"A","q":1,"t":1500000010250}`: 0,
		`{"ev":"T","t":1500000010000.0}`:               250 * time.Millisecond,
		`{"ev":"T","t":1500000011000}`:                 0, // their clock is ahead
		`{"ev":"T","t":1499999110000}`:                 0, // a feed that is delayed by 15 minutes
		`{"ev":"T","t":1500000010000000000}`:           0, // ns
		`{"ev":"T","t":"1500000010000"}`:               0,
		`{"ev":"T","t":`:                               0,
		`{"ev":"AM","s":1500000000000,"e":1500000010}`: 0,
	} {
		if got := lateness([]byte(raw), now); got != want {
			t.Errorf("%s is %v late, want %v", raw, got, want)
		}
	}
}

func TestPongIsALifeSign(t *testing.T) {
	s := newScript(t)
	s.open()
	s.pass(20 * time.Second)
	s.session.Alive(s.now)
	s.pass(30 * time.Second)
	s.host.said = nil
	s.lose(CauseTimeout)
	s.expect("hold", "state connecting since 19.5s", "lost timeout")
}

// TestOneGapPerOutage: a loss before the feed is live again extends the gap.
func TestOneGapPerOutage(t *testing.T) {
	s := newScript(t)
	s.open("T.A")
	s.ack("T.A")
	s.host.said = nil
	s.lose(CauseClosed)
	s.expect("hold", "state connecting since -500ms", "lost closed")
	s.pass(backoffMost)
	s.expect("dial")
	s.session.DialFailed(s.now, CauseDial)
	s.expect("lost dial")
	s.pass(backoffMost)
	s.expect("dial")
	s.login()
	s.expect("subscribe T.A")
	s.lose(CauseClosed)
	s.expect("hold", "lost closed")
	s.pass(backoffMost)
	s.expect("dial")
	s.login()
	s.expect("subscribe T.A")
	s.pass(settleWait)
	s.expect("gap -500ms "+s.now.Sub(t0).String(), "release", "state live")
}

// TestLossBeforeLive: no edge has heard of the epoch, so there is nothing to miss.
func TestLossBeforeLive(t *testing.T) {
	s := newScript(t)
	s.open("T.A")
	s.expect("subscribe T.A")
	s.lose(CauseClosed)
	s.expect("hold", "lost closed")
	s.pass(backoffFirst)
	s.expect("dial")
	s.login()
	s.ack("T.A")
	s.expect("subscribe T.A", "release", "state live")
}

// TestLateAck: events flow though a topic is not acknowledged; when it is, what
// it missed is told before the next event, once.
func TestLateAck(t *testing.T) {
	s := newScript(t)
	s.open("T.A", "T.B", "T.C")
	s.expect("subscribe T.A,T.B,T.C")
	s.pass(400 * time.Millisecond)
	s.ack("T.A")
	s.pass(400 * time.Millisecond)
	s.expect() // each ack gives the others another half a second
	s.pass(100 * time.Millisecond)
	s.expect("release", "state live")
	s.session.Events(s.now)
	s.expect()
	s.pass(time.Second)
	s.ack("T.B")
	s.ack("T.C")
	s.expect()
	s.session.Events(s.now)
	s.expect("gap 900ms 1.9s")
	s.session.Events(s.now)
	s.expect()
}

// TestLossWithLateAcks: what topics have missed that the vendor had not acknowledged
// is part of the gap of a loss; but not of those that it never does.
func TestLossWithLateAcks(t *testing.T) {
	for _, tt := range []struct {
		name string
		then func(s *script)
		from time.Duration // before the loss
	}{
		{"not acknowledged yet", func(*script) {}, 2 * time.Second},
		{"acknowledged, not told", func(s *script) { s.ack("T.B") }, 2 * time.Second},
		{"acknowledged and told", func(s *script) {
			s.ack("T.B")
			s.session.Events(s.now)
		}, lossAllowance},
		{"never acknowledged", func(s *script) { s.pass(time.Hour) }, lossAllowance},
	} {
		s := newScript(t)
		s.open("T.A", "T.B")
		s.ack("T.A")
		s.pass(settleWait)
		s.expect("subscribe T.A,T.B", "release", "state live")
		s.pass(2 * time.Second)
		tt.then(s)
		s.host.said = nil
		s.lose(CauseClosed)
		if got := s.now.Sub(s.session.downSince); got != tt.from {
			t.Errorf("%s: the gap begins %v before the loss, want %v", tt.name, got, tt.from)
		}
	}
}

// TestSettleEnds: acks that drip in do not hold events back for ever.
func TestSettleEnds(t *testing.T) {
	s := newScript(t)
	var topics []string
	for n := range 20 {
		topics = append(topics, fmt.Sprintf("T.A%02d", n))
	}
	s.open(topics...)
	s.host.said = nil
	for _, topic := range topics[:8] {
		s.pass(400 * time.Millisecond)
		s.ack(topic)
	}
	if !slices.Contains(s.host.said, "state live") || s.now.Sub(t0) != 3200*time.Millisecond {
		t.Fatalf("%q after %v", s.host.said, s.now.Sub(t0))
	}
}

// TestMalformed: frames that cannot be read make a gap each, once a second at most.
func TestMalformed(t *testing.T) {
	s := newScript(t)
	s.session.Malformed(s.now) // nothing flows yet
	s.open("T.A")
	s.ack("T.A")
	s.host.said = nil
	s.pass(2 * time.Second)
	s.session.Frame(s.now, true, 0)
	s.pass(time.Second)
	s.session.Frame(s.now, true, 0)
	s.session.Malformed(s.now)
	s.expect("gap 1.5s 3s")
	s.pass(300 * time.Millisecond)
	for range 3 {
		s.session.Frame(s.now, true, 0)
		s.session.Malformed(s.now)
	}
	s.expect()
	s.pass(time.Second)
	s.expect("gap 2.5s 4s")
}

func TestHoldFull(t *testing.T) {
	s := newScript(t)
	s.open("T.A")
	s.ack("T.A")
	s.lose(CauseClosed)
	s.pass(time.Second)
	s.host.said = nil
	s.session.HoldFull(s.now) // not connected: nothing
	s.expect()
	s.login()
	s.expect("subscribe T.A")
	s.session.HoldFull(s.now)
	s.expect("gap -500ms 1s", "release", "state live")
}

func TestRefusals(t *testing.T) {
	for _, tt := range []struct {
		status, message string
		state           string
		cause           Cause
		wait            time.Duration
	}{
		{"auth_failed", "authentication failed", "refused", CauseRejected, refusedWait},
		{"auth_failed", "Your plan doesn't include websocket access.", "refused", CauseRejected, refusedWait},
		{"max_connections", "Maximum number of websocket connections exceeded. ", "stolen", CauseStolen, stolenFirst * 11 / 10},
	} {
		s := newScript(t)
		s.session.Start(s.now, []string{"T.A"})
		s.session.Dialed(s.now)
		s.status("connected", "")
		s.host.said = nil
		s.status(tt.status, tt.message)
		s.expect("state "+tt.state, "close")
		s.status("connected", "") // too late
		s.pass(time.Second)
		s.lose(CauseSlow)
		s.expect("lost " + tt.cause.String())
		s.pass(tt.wait - 1)
		s.expect()
		s.pass(1)
		s.expect("state connecting", "dial")
	}
}

func TestTimeouts(t *testing.T) {
	s := newScript(t)
	s.session.Start(s.now, nil)
	s.session.Dialed(s.now)
	s.host.said = nil
	s.pass(greetingWait)
	s.expect("close")
	s.lose(CauseNone)
	s.expect("lost timeout")
	s.pass(backoffMost)
	s.session.Dialed(s.now)
	s.status("connected", "")
	s.host.said = nil
	s.status("auth_timeout", "No authentication request received.")
	s.expect("close")
	s.lose(CauseClosed)
	s.expect("lost timeout")
	s.pass(backoffMost)
	s.session.Dialed(s.now)
	s.status("connected", "")
	s.host.said = nil
	s.pass(authWait)
	s.expect("close")
}

func TestBackoff(t *testing.T) {
	s := newScript(t)
	s.random = 1 - 1e-12
	s.session.Start(s.now, nil)
	fail := map[Cause]func(){
		CauseDial: func() { s.session.DialFailed(s.now, CauseDial) },
		CauseEOF: func() {
			s.session.Dialed(s.now)
			s.session.Closed(s.now, CauseEOF)
		},
	}
	for i, seconds := range []float64{0.5, 1, 2, 4, 5, 5, 0.5, 1, 2, 4, 8, 16, 30, 30} {
		want := time.Duration(seconds * float64(time.Second))
		if i < 6 {
			fail[CauseDial]()
		} else {
			fail[CauseEOF]()
		}
		if got := s.session.Deadline().Sub(s.now).Round(time.Millisecond); got != want {
			t.Fatalf("waits %v, want %v", got, want)
		}
		s.pass(backoffMost)
	}
	// A connection that is live, but without 60 s of data, changes nothing.
	s.host.said = nil
	s.login()
	s.pass(time.Hour)
	s.session.Frame(s.now.Add(-time.Hour+backoffReset-1), true, 0)
	s.lose(CauseClosed)
	if got := s.session.Deadline().Sub(s.now); got < backoffMost-time.Second {
		t.Fatalf("waits %v after a short life", got)
	}
	s.pass(backoffMost)
	s.host.said = nil
	s.login()
	s.pass(backoffReset)
	s.session.Frame(s.now, true, 0)
	s.lose(CauseClosed)
	if got := s.session.Deadline().Sub(s.now); got > backoffFirst {
		t.Fatalf("waits %v after a long life", got)
	}
}

func TestStop(t *testing.T) {
	for _, tt := range []struct {
		name  string
		reach func(s *script)
		after func(s *script)
		want  []string
	}{
		{"dialing, then dialed", func(*script) {}, func(s *script) {
			s.session.Dialed(s.now)
			s.session.Closed(s.now, CauseNone)
		}, []string{"close", "lost stopped"}},
		{"dialing, then failed", func(*script) {}, func(s *script) { s.session.DialFailed(s.now, CauseStopped) }, []string{"lost stopped"}},
		{"waiting", func(s *script) { s.session.DialFailed(s.now, CauseDial) }, func(*script) {}, nil},
		{"live", func(s *script) { s.login() }, func(s *script) { s.session.Closed(s.now, CauseNone) }, []string{"hold", "state connecting since -500ms", "close", "lost stopped"}},
		{"closing", func(s *script) { s.login(); s.status("max_connections", "") }, func(s *script) { s.session.Closed(s.now, CauseNone) }, []string{"lost stolen"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newScript(t)
			s.session.Start(s.now, nil)
			s.host.said = nil
			tt.reach(s)
			s.host.said = nil
			s.session.Stop(s.now)
			s.session.Stop(s.now)
			tt.after(s)
			s.expect(tt.want...)
			if !s.session.Stopped() {
				t.Error("not stopped")
			}
			s.session.Add(s.now, []string{"T.A"})
			s.session.Remove(s.now, []string{"T.A"})
			s.pass(time.Hour)
			s.expect()
		})
	}
}
