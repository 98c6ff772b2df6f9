package upstream

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	feedv1 "github.com/cutemarkets/relay/proto/feed/v1"
	"github.com/cutemarkets/relay/services/fanout/internal/calendar"
)

// vendor is a Host with a vendor behind it, who answers when told to.
type vendor struct {
	t        *rapid.T
	session  *Session
	hours    calendar.Hours
	now      time.Time
	lastData time.Time

	dialing, connected, closing bool
	answers                     [][2]string // statuses on their way
	subscribed                  map[string]bool
	holding, told, lived        bool // events are held; the outage has its gap; events have flowed
	state                       State
	proven                      bool
	problems                    map[string]bool
}

func (v *vendor) must(ok bool, what string) {
	if !ok {
		v.t.Fatalf("%s", what)
	}
}

func (v *vendor) Dial() {
	v.must(!v.dialing && !v.connected && !v.closing, "dialed beside a connection")
	v.must(v.proven, "dialed without proof")
	v.dialing = true
}

func (v *vendor) Auth() {
	v.must(v.connected && !v.closing, "auth without a connection")
	v.must(v.proven, "sent the key without proof")
	v.answers = append(v.answers, [2]string{"auth_success", "authenticated"})
}

func (v *vendor) Close() {
	v.must(v.connected && !v.closing, "closed what is not open")
	v.closing = true
}

func (v *vendor) Hold() {
	if !v.holding {
		v.holding, v.told = true, false
	}
}

func (v *vendor) Gap(from, to time.Time) {
	v.must(!to.Before(from), "a gap ends before it begins")
	if v.holding {
		v.must(!v.told, "more than one gap for an outage")
		v.told = true
		return
	}
	v.must(!v.session.lateSince.IsZero(), "a gap without an outage")
}

func (v *vendor) Release() {
	v.must(v.holding && (v.told || !v.lived), "released without a gap")
	v.holding, v.lived = false, true
}

func (v *vendor) State(state State, downSince time.Time) {
	v.must(state != StateLive || !v.holding && downSince.IsZero(), "live during an outage")
	v.state = state
}

func (v *vendor) Stalled(silence, next time.Duration) {
	part, _ := v.hours(v.now)
	v.must(part != calendar.Closed, "a stall without trading")
	v.must(v.connected && !v.closing, "a stall without a connection")
	v.must(silence >= silenceLeast && v.now.Sub(v.lastData) >= silenceLeast, "a stall right after an event")
	v.must(silenceMost <= next && next <= stallMost, "waits too little or too much for the next stall")
}

func (v *vendor) Lost(cause Cause) { v.must(cause != CauseNone, "lost without a cause") }

func (v *vendor) Problem(topics []string, problem feedv1.TopicProblem) {
	for _, topic := range topics {
		v.problems[topic] = problem != feedv1.TopicProblem_TOPIC_PROBLEM_UNSPECIFIED
	}
}

func (v *vendor) Send(message []byte) {
	v.must(v.connected && !v.closing, "sent without a connection")
	var command struct{ Action, Params string }
	if err := json.Unmarshal(message, &command); err != nil {
		v.t.Fatal(err)
	}
	for topic := range strings.SplitSeq(command.Params, ",") {
		v.must(topic != "", "an empty topic")
		switch {
		case command.Action == "unsubscribe":
			v.must(v.subscribed[topic] || strings.HasPrefix(topic, "NOI"), "unsubscribed what was not: "+topic)
			delete(v.subscribed, topic)
			v.answers = append(v.answers, [2]string{"success", "unsubscribed to: " + topic})
		case strings.HasPrefix(topic, "NOI"):
			v.answers = append(v.answers, [2]string{"error", "not authorized"})
		default:
			v.subscribed[topic] = true
			v.answers = append(v.answers, [2]string{"success", "subscribed to: " + topic})
		}
	}
}

func (v *vendor) dialed() {
	v.dialing, v.connected = false, true
	v.subscribed = map[string]bool{}
	v.answers = [][2]string{{"connected", "Connected Successfully"}}
	v.session.Dialed(v.now)
}

func (v *vendor) closed(cause Cause) {
	v.connected, v.closing, v.answers = false, false, nil
	v.session.Closed(v.now, cause)
}

func (v *vendor) answer() {
	a := v.answers[0]
	v.answers = v.answers[1:]
	v.session.Frame(v.now, false, 0)
	v.session.Status(v.now, a[0], a[1])
}

// data sends an event.
func (v *vendor) data() {
	v.lastData = v.now
	v.session.Frame(v.now, true, 0)
	if !v.holding {
		v.session.Events(v.now)
	}
}

// settle lets everything go well until nothing is left to do, or for as long as
// anything lasts while there is trading.
func (v *vendor) settle() {
	end := v.now.Add(stolenMost + stolenMost/jitterShare + time.Minute)
	for range 10_000 {
		switch {
		case v.closing:
			v.closed(CauseNone)
		case v.dialing:
			v.dialed()
		case len(v.answers) > 0:
			v.answer()
		default:
			deadline := v.session.Deadline()
			if deadline.IsZero() || deadline.After(end) {
				return
			}
			if deadline.After(v.now) {
				v.now = deadline
			}
			v.session.Tick(v.now)
			if v.connected && !v.closing {
				v.data()
			}
		}
	}
	v.t.Fatal("never settles")
}

// intervals trades for ten minutes and then pauses for ten.
func intervals(t time.Time) (calendar.Part, time.Time) {
	begin := t.Truncate(10 * time.Minute)
	part := calendar.Closed
	if begin.Minute()%20 == 0 {
		part = calendar.Regular
	}
	return part, begin.Add(10 * time.Minute)
}

// TestSession: whatever happens, there is never a second connection, each outage
// has one gap, and when all goes well again the vendor is asked for exactly what
// is wanted, each event once.
func TestSession(t *testing.T) {
	topics := []string{"T.A", "T.B", "T.*", "Q.A", "Q.*", "NOI.A", "NOI.*"}
	causes := []Cause{CauseSlow, CauseClosed, CauseEOF, CauseError, CauseTimeout}
	rapid.Check(t, func(t *rapid.T) {
		hours := rapid.SampledFrom([]calendar.Hours{calendar.Never, calendar.Always, intervals}).Draw(t, "hours")
		limit := rapid.SampledFrom([]Limit{{KickOldest, ghostTimeout}, {RejectNewest, ghostTimeout}}).Draw(t, "limit")
		canaries := rapid.SampledFrom([][]string{nil, {"T.C"}}).Draw(t, "canaries")
		v := &vendor{t: t, hours: hours, now: t0, holding: true, proven: true, problems: map[string]bool{}}
		v.session = NewSession(v, func() float64 { return rapid.Float64Range(0, 0.999).Draw(t, "random") }, hours, canaries, limit)
		wanted := map[string]bool{}
		v.session.Start(v.now, nil)
		topic := rapid.SampledFrom(topics)
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				name := topic.Draw(t, "topic")
				wanted[name] = true
				v.session.Add(v.now, []string{name})
			},
			"remove": func(t *rapid.T) {
				name := topic.Draw(t, "topic")
				delete(wanted, name)
				v.session.Remove(v.now, []string{name})
			},
			"dialed": func(t *rapid.T) {
				if !v.dialing {
					t.Skip()
				}
				v.dialed()
			},
			"dial failed": func(t *rapid.T) {
				if !v.dialing {
					t.Skip()
				}
				v.dialing = false
				v.session.DialFailed(v.now, CauseDial)
			},
			"answer": func(t *rapid.T) {
				if len(v.answers) == 0 || v.closing {
					t.Skip()
				}
				v.answer()
			},
			"lose answer": func(t *rapid.T) {
				if len(v.answers) == 0 {
					t.Skip()
				}
				v.answers = v.answers[1:]
			},
			"closed": func(t *rapid.T) {
				if !v.connected {
					t.Skip()
				}
				v.closed(rapid.SampledFrom(causes).Draw(t, "cause"))
			},
			"refused": func(t *rapid.T) {
				if !v.connected || v.closing {
					t.Skip()
				}
				v.session.Status(v.now, rapid.SampledFrom([]string{"max_connections", "auth_failed", "auth_timeout"}).Draw(t, "status"), "")
			},
			"proof": func(t *rapid.T) {
				v.proven = rapid.Bool().Draw(t, "proven")
				v.session.Proof(v.now, v.proven)
			},
			"hold full": func(t *rapid.T) { v.session.HoldFull(v.now) },
			"data": func(t *rapid.T) {
				if !v.connected {
					t.Skip()
				}
				v.data()
			},
			"flow": func(t *rapid.T) {
				for range rapid.IntRange(1, 100).Draw(t, "seconds") {
					if v.connected && !v.closing {
						v.data()
					}
					v.now = v.now.Add(time.Second)
					v.session.Tick(v.now)
				}
			},
			"pass": func(t *rapid.T) {
				v.now = v.now.Add(time.Duration(rapid.Int64Range(0, int64(5*time.Second)).Draw(t, "time")))
				v.session.Tick(v.now)
			},
			"settle": func(t *rapid.T) {
				v.proven = true
				v.session.Proof(v.now, true)
				v.settle()
				v.must(v.state == StateLive, "not live")
				v.must(!v.holding, "events are held")
				for _, name := range topics {
					wildcard := strings.SplitN(name, ".", 2)[0] + ".*"
					served := !strings.HasPrefix(name, "NOI")
					switch {
					case !served:
						v.must(!wanted[name] || v.problems[name], "no problem told: "+name)
					case name != wildcard && wanted[wildcard]:
						v.must(!v.subscribed[name], "subscribed beside the wildcard: "+name)
					default:
						v.must(v.subscribed[name] == wanted[name], "wanted or subscribed alone: "+name)
					}
				}
				for _, name := range canaries {
					v.must(v.subscribed[name] != wanted["T.*"], "the canary")
				}
			},
		})
		v.session.Stop(v.now)
		v.settle()
		v.must(v.session.Stopped() && !v.connected, "not stopped")
	})
}
