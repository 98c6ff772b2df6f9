package feedsim

import (
	"bytes"
	"encoding/json"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/cutemarkets/relay/hack/feedsim/market"
)

const notAuthorized = `[{"ev":"status","status":"error","message":"not authorized"}]`

// quiesced makes a simulator without events of its own accord.
func quiesced(t *testing.T, change func(*Options)) *rig {
	t.Helper()
	return serve(t, func(o *Options) {
		o.Quiesced = true
		if change != nil {
			change(o)
		}
	})
}

// subscribe dials, authenticates and subscribes.
func (r *rig) subscribe(path, topics string) *client {
	r.t.Helper()
	c := r.login(path)
	c.say("subscribe", topics)
	c.expect(ack(strings.Split(topics, ",")...))
	return c
}

// frame reads one frame.
func (c *client) frame() string {
	c.t.Helper()
	_, frame, err := c.Read(c.ctx)
	if err != nil {
		c.t.Fatal(err)
	}
	return string(frame)
}

func (r *rig) done(name string, times uint64) {
	r.t.Helper()
	if got := r.Stats().Stocks.Faults[name]; got != times {
		r.t.Errorf("%s took effect %d times, want %d", name, got, times)
	}
}

// TestConnectionFaults commits what ends or refuses a connection.
func TestConnectionFaults(t *testing.T) {
	t.Parallel()
	rejecting := func(o *Options) { o.OnLimit.Stocks = market.RejectNewest }
	for name, c := range map[string]struct {
		change func(*Options)
		do     func(*rig)
		fault  string // that must have taken effect once
	}{
		"drop": {nil, func(r *rig) {
			c := r.login("/stocks")
			r.post("/fault/drop?market=stocks")
			c.expectCut()
			r.login("/stocks")
		}, "drop"},
		"outage": {nil, func(r *rig) {
			c := r.login("/stocks")
			r.post("/fault/outage?for=10m")
			c.expectCut()
			if _, err := r.tryDial("/stocks"); err == nil || err.Error() != "503" {
				r.t.Errorf("dial in an outage: %v", err)
			}
			r.post("/fault/resume")
			r.login("/stocks")
		}, "outage"},
		"close": {nil, func(r *rig) {
			c := r.login("/stocks")
			r.post("/fault/close")
			c.expectClose(websocket.StatusNormalClosure)
		}, "close"},
		"close 1008": {nil, func(r *rig) {
			c := r.login("/stocks")
			r.post("/fault/close?code=1008")
			c.expectClose(websocket.StatusPolicyViolation)
		}, "close"},
		"close 4321": {nil, func(r *rig) {
			c := r.login("/stocks")
			r.post("/fault/close?code=4321")
			c.expectClose(4321)
		}, "close"},
		"slow": {nil, func(r *rig) {
			c := r.login("/stocks")
			r.post("/fault/slow")
			c.expectClose(websocket.StatusPolicyViolation)
			r.until("counted", func(s Stats) bool { return s.Stocks.Closed["slow"] == 1 })
		}, "slow"},
		"limit": {nil, func(r *rig) {
			first := r.login("/stocks")
			r.post("/fault/limit?rule=reject-newest")
			second := r.login("/stocks")
			second.expect(maxConnections)
			second.expectClose(websocket.StatusPolicyViolation)
			first.say("subscribe", "T.A")
			first.expect(ack("T.A"))
		}, "limit"},
		"limit back": {rejecting, func(r *rig) {
			first := r.login("/stocks")
			r.post("/fault/limit?rule=kick-oldest")
			r.login("/stocks")
			first.expect(maxConnections)
			first.expectClose(websocket.StatusPolicyViolation)
		}, "limit"},
		"ghost refuses": {rejecting, func(r *rig) {
			c := r.login("/stocks")
			r.post("/fault/ghost?hold=4s&next=1")
			_ = c.Close(websocket.StatusNormalClosure, "")
			r.until("a ghost", func(s Stats) bool { return s.Stocks.Ghosts == 1 && s.Stocks.Connections == 0 })
			second := r.login("/stocks")
			second.expect(maxConnections)
			second.expectClose(websocket.StatusPolicyViolation)
			r.until("no ghost", func(s Stats) bool { return s.Stocks.Ghosts == 0 })
			r.subscribe("/stocks", "T.A")
		}, "ghost"},
		"ghost is kicked": {nil, func(r *rig) {
			r.login("/stocks")
			r.post("/fault/ghost?hold=10m&next=1")
			r.post("/fault/drop")
			r.until("a ghost", func(s Stats) bool { return s.Stocks.Ghosts == 1 })
			r.subscribe("/stocks", "T.A")
			if s := r.Stats().Stocks; s.Ghosts != 0 || s.Closed["kicked"] != 0 || s.AuthenticatedMax != 1 {
				r.t.Errorf("%+v", s)
			}
		}, "ghost"},
		"auth failed": {nil, func(r *rig) {
			r.post("/fault/auth-failed?next=1")
			c := r.dial("/stocks")
			c.say("auth", goodKey)
			c.expect(authFailed)
			c.expectCut()
			r.login("/stocks")
		}, "auth-failed"},
		"auth not answered": {nil, func(r *rig) {
			r.post("/fault/auth-silent?for=10m&next=1")
			c := r.dial("/stocks")
			c.say("auth", goodKey)
			c.say("subscribe", "T.A")
			c.expect(notAuthorized)
		}, "auth-silent"},
		"auth timeout": {func(o *Options) { o.AuthTimeout = 50 * time.Millisecond }, func(r *rig) {
			r.post("/fault/auth-silent")
			c := r.dial("/stocks")
			c.say("auth", goodKey)
			c.expect(authTimeout)
			c.expectCut()
		}, "auth-silent"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := serve(t, c.change)
			c.do(r)
			r.done(c.fault, 1)
		})
	}
}

// TestAnswerFaults commits what is about the answers to subscriptions.
func TestAnswerFaults(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		order string
		do    func(*rig, *client)
		fault string
		times uint64
	}{
		"no ack": {"no-ack?topics=T.AAPL,Q.*", func(r *rig, c *client) {
			c.say("subscribe", "T.AAPL,A.*,Q.*")
			c.expect(ack("A.*"))
		}, "no-ack", 2},
		"no ack of each second": {"no-ack?every=2", func(r *rig, c *client) {
			c.say("subscribe", "T.A,T.B,T.C,T.D,T.E")
			c.expect(ack("T.A", "T.C", "T.E"))
		}, "no-ack", 2},
		"no ack and no events": {"no-ack?topics=T.*", func(r *rig, c *client) {
			c.say("subscribe", "T.*,Q.*")
			c.expect(ack("Q.*"))
			r.emit("stocks", 100)
			if frame := c.frame(); strings.Contains(frame, `"ev":"T"`) {
				r.t.Errorf("events nobody was told of: %s", frame)
			}
		}, "no-ack", 1},
		"no ack but events": {"no-ack?deliver=true&next=1", func(r *rig, c *client) {
			c.say("subscribe", "T.*")
			r.until("subscribed", func(s Stats) bool { return s.Stocks.Faults["no-ack"] == 1 })
			c.say("unsubscribe", "T.X")
			c.expect(unack("T.X"))
			r.emit("stocks", 200)
			c.events(10)
		}, "no-ack", 1},
		"split": {"acks?mode=split", func(r *rig, c *client) {
			c.say("subscribe", "T.A,T.B")
			c.expect(ack("T.A"))
			c.expect(ack("T.B"))
		}, "acks", 1},
		"joined": {"acks?mode=joined&hold=1s", func(r *rig, c *client) {
			c.say("subscribe", "T.A,T.B")
			c.say("subscribe", "T.C")
			c.say("unsubscribe", "T.A")
			joined := ack("T.A", "T.B", "T.C")
			c.expect(strings.TrimSuffix(joined, "]") + "," + strings.TrimPrefix(unack("T.A"), "["))
		}, "acks", 3},
		"not authorized before": {"unauthorized?prefix=T,NOI", func(r *rig, c *client) {
			c.say("subscribe", "Q.A,T.A")
			c.expect(strings.TrimSuffix(notAuthorized, "]") + "," + strings.TrimPrefix(ack("Q.A"), "["))
		}, "unauthorized", 1},
		"not authorized after": {"unauthorized?prefix=T,NOI&order=after", func(r *rig, c *client) {
			c.say("subscribe", "T.A,Q.A")
			c.expect(strings.TrimSuffix(ack("Q.A"), "]") + "," + strings.TrimPrefix(notAuthorized, "["))
		}, "unauthorized", 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := quiesced(t, nil)
			r.post("/fault/" + c.order + "&market=stocks")
			conn := r.login("/stocks")
			c.do(r, conn)
			r.done(c.fault, c.times)
			r.post("/resume")
			conn.say("subscribe", "NOI.X,T.X")
			conn.expectStatus(ack("NOI.X", "T.X"))
		})
	}
}

// TestMalformed: frames are spoilt, but no true event is lost to a reader that
// keeps what comes before the fault and skips elements that are no events.
func TestMalformed(t *testing.T) {
	t.Parallel()
	trueEvent := regexp.MustCompile(`\{"ev":"[A-Z]+","(sym|T)":"[^"]*","[^{}]*\}`)
	for kind, looks := range map[string]string{
		"truncated": `^\[\{.*,"p":1\.$`,
		"garbage":   `^\[\{.*@#\$%.*\]$`,
		"elements":  `^\[null,12,.*\}\]$`,
		"object":    `^\{"ev":"T","sym":"ZZBAD".*\}$`,
		"utf8":      "^\\[.*ZZBAD\\x{FFFD}\\x{FFFD}.*\\]$",
	} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			file := truthFile(t)
			r := quiesced(t, func(o *Options) { o.Truth = file })
			c := r.subscribe("/stocks", "T.*,Q.*,FMV.*,NOI.*,LULD.*")
			r.post("/fault/malformed?next=3&market=stocks&kind=" + kind)
			r.emit("stocks", 100)
			want := events(t, file, "stocks")
			pattern := regexp.MustCompile(looks)
			var got []string
			spoilt := 0
			for len(got) < len(want) || spoilt < 3 {
				frame := c.frame()
				if pattern.MatchString(strings.ToValidUTF8(frame, "\uFFFD\uFFFD")) {
					spoilt++
				} else if !json.Valid([]byte(frame)) {
					t.Fatalf("spoilt in another way: %q", frame)
				}
				for _, raw := range trueEvent.FindAllString(frame, -1) {
					if !strings.Contains(raw, "ZZBAD") {
						got = append(got, raw)
					}
				}
			}
			if !equal(got, want) || spoilt != 3 {
				t.Errorf("%d frames were spoilt; %d events, in the truth %d", spoilt, len(got), len(want))
			}
			r.done("malformed", 3)
		})
	}
}

// TestEventFaults changes events; what is received is in the truth.
func TestEventFaults(t *testing.T) {
	t.Parallel()
	const all = "T.*,Q.*,A.*,AM.*,FMV.*,NOI.*,LULD.*"
	for name, c := range map[string]struct {
		order string
		check func(t *testing.T, raws []string)
	}{
		"numbers": {"numbers", func(t *testing.T, raws []string) {
			every(t, raws, `"ev":"T"`, `"z":\d+\.0,`)
			every(t, raws, `"ev":"T"`, `"s":\d+e\d+,`)
			every(t, raws, `"ev":"LULD"`, `"z":\d+\.0,`)
		}},
		"keys":  {"keys", func(t *testing.T, raws []string) { every(t, raws, `"ev"`, `"zz":\{"sym":"ZZBAD"`) }},
		"types": {"types?every=3", func(t *testing.T, raws []string) { some(t, raws, `^\{"ev":"ZB","sym":"[A-Z.]+","i":\d+\}$`, 1000) }},
		"repeated": {"sequence?mode=repeated", func(t *testing.T, raws []string) {
			every(t, raws, `"ev":"[TQ]"`, `"q":1000[,}]`)
		}},
		"falling": {"sequence?mode=falling", func(t *testing.T, raws []string) {
			last := int64(1 << 60)
			for _, raw := range raws {
				var e struct {
					Ev string `json:"ev"`
					Q  int64  `json:"q"`
				}
				if err := json.Unmarshal([]byte(raw), &e); err == nil && (e.Ev == "T" || e.Ev == "Q") {
					if e.Q >= last {
						t.Fatalf("q does not fall: %s", raw)
					}
					last = e.Q
				}
			}
		}},
		"huge": {"huge?size=150000", func(t *testing.T, raws []string) { some(t, raws, `^\{"ev":"T","sym":"ZZHUGE","pad":"x+"\}$`, 1) }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			file := truthFile(t)
			r := quiesced(t, func(o *Options) { o.Truth, o.Rate.Stocks = file, 20_000 })
			conn := r.subscribe("/stocks", all)
			r.post("/fault/" + c.order)
			r.emit("stocks", 3_000) // which the kernel takes
			want := events(t, file, "stocks")
			var got []string
			for _, e := range conn.events(len(want)) {
				got = append(got, e.raw)
			}
			if !equal(got, want) {
				t.Errorf("%d events received differ from %d in the truth", len(got), len(want))
			}
			c.check(t, got)
			if len(r.Stats().Stocks.Faults) == 0 {
				t.Error("nothing was counted")
			}
		})
	}
}

// every wants each event that looks like the first pattern to have the second.
func every(t *testing.T, raws []string, of, want string) {
	t.Helper()
	kind, pattern := regexp.MustCompile(of), regexp.MustCompile(want)
	n := 0
	for _, raw := range raws {
		if kind.MatchString(raw) {
			n++
			if !pattern.MatchString(raw) {
				t.Fatalf("%s has no %s", raw, want)
			}
		}
	}
	if n == 0 {
		t.Errorf("no event is like %s", of)
	}
}

func some(t *testing.T, raws []string, want string, least int) {
	t.Helper()
	pattern, n := regexp.MustCompile(want), 0
	for _, raw := range raws {
		if pattern.MatchString(raw) {
			n++
		}
	}
	if n < least {
		t.Errorf("%d events like %s, want %d", n, want, least)
	}
}

// TestMixedFrames: the events of a moment share a frame, whatever their types.
func TestMixedFrames(t *testing.T) {
	t.Parallel()
	r := serve(t, nil)
	c := r.subscribe("/stocks", "T.*,Q.*")
	for {
		frame := []byte(c.frame())
		if bytes.Contains(frame, []byte(`"ev":"T"`)) && bytes.Contains(frame, []byte(`"ev":"Q"`)) {
			return
		}
	}
}

func TestBadOrders(t *testing.T) {
	t.Parallel()
	r := quiesced(t, nil)
	for path, code := range map[string]int{
		"/fault/shrug":                 404,
		"/fault/":                      404,
		"/fault/drop?market=crypto":    400,
		"/fault/malformed?kind=x":      400,
		"/fault/stall?for=1s&next=2":   400,
		"/fault/outage":                400,
		"/emit":                        400,
		"/emit?count=0":                400,
		"/emit?count=1&market=crypto":  400,
		"/fault/drop":                  204,
		"/fault/ghost?hold=1s&for=":    204,
		"/quiesce?market=options":      204,
		"/emit?count=1&market=options": 200,
	} {
		if got := r.request("POST", path); got != code {
			t.Errorf("POST %s: %d, want %d", path, got, code)
		}
	}
}
