package feedsim

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/cutemarkets/relay/hack/feedsim/market"
)

func ack(topics ...string) string { return statuses("subscribed to: ", topics) }

func unack(topics ...string) string { return statuses("unsubscribed to: ", topics) }

func statuses(verb string, topics []string) string {
	for i, topic := range topics {
		topics[i] = `{"ev":"status","status":"success","message":"` + verb + topic + `"}`
	}
	return "[" + strings.Join(topics, ",") + "]"
}

func TestConversation(t *testing.T) {
	t.Parallel()
	r := serve(t, func(o *Options) { o.Unauthorized = []string{"NOI"} })
	c := r.dial("/stocks?some=query")
	c.say("auth", goodKey)
	c.expect(authSuccess)
	c.say("subscribe", "T.NOSUCH, LULD.BRK.Z,ZZ.AAPL, NOI.*,T.NOSUCH")
	c.expect(`[{"ev":"status","status":"error","message":"not authorized"},` + ack("T.NOSUCH", "LULD.BRK.Z", "T.NOSUCH")[1:])
	c.write("{oops")
	c.expect(`[{"ev":"status","status":"error","message":"Invalid JSON"}]`)
	c.say("unsubscribe", "T.NOSUCH")
	c.expect(unack("T.NOSUCH"))
	c.say("subscribe", "T.*")
	c.expect(ack("T.*"))
	for _, e := range c.events(100) {
		if e.Ev != "T" || e.Sym == "" {
			t.Fatalf("an event nobody subscribed to: %s", e.raw)
		}
	}
	c.say("unsubscribe", "T.*")
	c.expectStatus(unack("T.*"))
	c.say("subscribe", "T.NOSUCH") // and nothing between the two
	c.expect(ack("T.NOSUCH"))
}

func TestOptions(t *testing.T) {
	t.Parallel()
	r := serve(t, nil)
	c := r.login("/options")
	c.say("subscribe", "Q.*,FMV.*,LULD.*,Q.O:SPY260515C00500000,T.*")
	c.expect(ack("Q.O:SPY260515C00500000", "T.*"))
	kinds := map[string]int{}
	for _, e := range c.events(300) {
		kinds[e.Ev]++
		if !strings.HasPrefix(e.Sym, "O:") || (e.Ev == "Q" && e.Sym != "O:SPY260515C00500000") {
			t.Fatalf("an event nobody subscribed to: %s", e.raw)
		}
	}
	if kinds["Q"] == 0 || kinds["T"] == 0 || len(kinds) != 2 {
		t.Errorf("events %v", kinds)
	}
}

// TestOnce: an event comes once, whatever names it; frames mix types and
// symbols; bars come by themselves.
func TestOnce(t *testing.T) {
	t.Parallel()
	r := serve(t, func(o *Options) { o.Minute = time.Second })
	c := r.login("/stocks")
	c.say("subscribe", "T.*,T.SPY,Q.SPY,Q.SPY,A.*,AM.*,LULD.*,FMV.*,NOI.*")
	c.expect(ack("T.*", "T.SPY", "Q.SPY", "Q.SPY", "A.*", "AM.*", "LULD.*", "FMV.*", "NOI.*"))
	kinds, seen := map[string]int{}, map[string]bool{}
	for len(kinds) < 7 {
		for _, e := range c.events(1) {
			kinds[e.Ev]++
			if seen[e.raw] {
				t.Fatalf("twice: %s", e.raw)
			}
			seen[e.raw] = e.Ev != "FMV" && e.Ev != "NOI" // these have no sequence number
			if e.Ev == "Q" && e.Sym != "SPY" {
				t.Fatalf("an event nobody subscribed to: %s", e.raw)
			}
		}
	}
}

// TestSameEvents compares what two runs send, byte for byte.
func TestSameEvents(t *testing.T) {
	t.Parallel()
	const count = 3000
	read := func(seed uint64) (raws []string) {
		r := quiesced(t, func(o *Options) { o.Start, o.Seed = time.Date(2026, 5, 15, 13, 30, 0, 0, time.UTC), seed })
		c := r.subscribe("/stocks", "T.*,Q.*,A.*,AM.*,FMV.*,NOI.*,LULD.*")
		wait := r.emitting("stocks", count)
		defer wait()
		for _, e := range c.events(count) {
			raws = append(raws, e.raw)
		}
		return raws
	}
	first := read(1)
	if !equal(first, read(1)) {
		t.Error("the same seed has other events")
	}
	if equal(first, read(2)) {
		t.Error("another seed has the same events")
	}
}

func TestBadKey(t *testing.T) {
	t.Parallel()
	r := serve(t, nil)
	c := r.dial("/stocks")
	c.say("auth", "wrong")
	c.expect(authFailed)
	c.expectCut()
	r.until("counted", func(s Stats) bool { return s.Stocks.Closed["bad_key"] == 1 && s.Stocks.Connections == 0 })
}

func TestAuthTimeout(t *testing.T) {
	t.Parallel()
	r := serve(t, func(o *Options) { o.AuthTimeout = 50 * time.Millisecond })
	c := r.dial("/stocks")
	c.expect(authTimeout)
	c.expectCut()
	r.until("counted", func(s Stats) bool { return s.Stocks.Closed["no_key"] == 1 })
}

func TestKickOldest(t *testing.T) {
	t.Parallel()
	r := serve(t, func(o *Options) { o.MaxConnections = 2 })
	first, second := r.login("/stocks"), r.login("/stocks")
	r.login("/options") // the other market has its own limit
	third := r.login("/stocks")
	first.expect(maxConnections)
	first.expectClose(websocket.StatusPolicyViolation)
	for _, c := range []*client{second, third} {
		c.say("subscribe", "T.NOSUCH")
		c.expect(ack("T.NOSUCH"))
	}
	r.until("counted", func(s Stats) bool {
		return s.Stocks.Closed["kicked"] == 1 && s.Stocks.Connections == 2 && s.Stocks.ConnectionsMax == 3 &&
			s.Stocks.Authenticated == 2 && s.Stocks.AuthenticatedMax == 2 && s.Stocks.Dials == 3
	})
}

func TestRejectNewest(t *testing.T) {
	t.Parallel()
	r := serve(t, func(o *Options) { o.OnLimit.Stocks = market.RejectNewest })
	first := r.login("/stocks")

	// The refusal comes after the acknowledgement …
	second := r.login("/stocks")
	second.say("subscribe", "T.*")
	second.expect(ack("T.*"))
	second.expect(maxConnections)
	second.expectClose(websocket.StatusPolicyViolation)
	// … or after a while, if there is nothing to acknowledge.
	third := r.login("/stocks")
	third.expect(maxConnections)
	third.expectClose(websocket.StatusPolicyViolation)

	first.say("subscribe", "T.NOSUCH")
	first.expect(ack("T.NOSUCH"))
	_ = first.Close(websocket.StatusNormalClosure, "")
	r.until("counted", func(s Stats) bool {
		return s.Stocks.Closed["rejected"] == 2 && s.Stocks.Closed["gone"] == 1 && s.Stocks.Connections == 0
	})
	next := r.login("/stocks")
	next.say("subscribe", "T.*")
	next.expect(ack("T.*"))
	next.events(1)
}

func TestSlowClient(t *testing.T) {
	t.Parallel()
	r := serve(t, func(o *Options) { o.Buffer, o.Rate = 1<<20, Rates{100_000, 100_000} })
	c := r.login("/stocks")
	c.say("subscribe", "T.*,Q.*")
	r.until("cut off", func(s Stats) bool { return s.Stocks.Closed["slow"] == 1 && s.Stocks.Authenticated == 0 })
	c.expectClose(websocket.StatusPolicyViolation)
}

func TestPing(t *testing.T) {
	t.Parallel()
	r := serve(t, nil)
	c := r.login("/stocks")
	c.say("subscribe", "Q.*")
	go func() {
		for {
			if _, _, err := c.Read(c.ctx); err != nil {
				return
			}
		}
	}()
	for range 3 {
		if err := c.Ping(c.ctx); err != nil {
			t.Fatal(err)
		}
	}
	_ = c.CloseNow()
}

func TestBadFrames(t *testing.T) {
	t.Parallel()
	r := serve(t, nil)
	c := r.login("/stocks")
	c.write(strings.Repeat("x", 1<<20+1))
	c.expectClose(websocket.StatusMessageTooBig)
	c = r.login("/stocks")
	c.write("\xff")
	c.expectClose(websocket.StatusInvalidFramePayloadData)
	r.until("counted", func(s Stats) bool { return s.Stocks.Closed["bad_frame"] == 2 })
}

func TestOtherRequests(t *testing.T) {
	t.Parallel()
	r := serve(t, func(o *Options) { o.ControlListen = "127.0.0.1:0" })
	for path, code := range map[string]string{
		"/stocks/": "404", "/": "404", "/crypto": "404", "/v1/ws/stocks": "404",
		"/stats": "404", "/healthz": "404", // the control API is elsewhere
	} {
		if _, err := r.tryDial(path); err == nil || err.Error() != code {
			t.Errorf("dial %s: %v, want %s", path, err, code)
		}
	}
	for request, code := range map[string]int{
		"GET /healthz":                      http.StatusOK,
		"GET /stats":                        http.StatusOK,
		"GET /outage?for=1s":                http.StatusMethodNotAllowed,
		"POST /outage":                      http.StatusBadRequest,
		"POST /outage?for=-1s":              http.StatusBadRequest,
		"POST /outage?for=1s&market=crypto": http.StatusBadRequest,
		"POST /pause?for=soon":              http.StatusBadRequest,
		"POST /drop?market=stocks":          http.StatusNoContent,
		"GET /stocks":                       http.StatusNotFound,
	} {
		method, path, _ := strings.Cut(request, " ")
		if got := r.request(method, path); got != code {
			t.Errorf("%s: %d, want %d", request, got, code)
		}
	}
}

func TestOutage(t *testing.T) {
	t.Parallel()
	r := serve(t, nil)
	c, other := r.login("/stocks"), r.login("/options")
	r.post("/outage?market=stocks&for=10m")
	c.expectCut()
	if _, err := r.tryDial("/stocks"); err == nil || err.Error() != "503" {
		t.Errorf("dial in an outage: %v", err)
	}
	other.say("subscribe", "T.NOSUCH")
	other.expect(ack("T.NOSUCH"))
	r.post("/resume?market=stocks")
	r.login("/stocks")
	r.post("/outage?for=1ms")
	other.expectCut()
	for {
		c, err := r.tryDial("/stocks")
		if err == nil {
			c.expect(connected)
			break
		}
		if err.Error() != "503" {
			t.Fatal(err)
		}
	}
}

func TestDrop(t *testing.T) {
	t.Parallel()
	r := serve(t, func(o *Options) { o.OnLimit.Stocks = market.RejectNewest })
	for range 3 {
		c := r.login("/stocks")
		c.say("subscribe", "T.*")
		c.expect(ack("T.*"))
		r.post("/drop?market=stocks")
		c.expectCut()
	}
	if s := r.Stats().Stocks; s.Closed["dropped"] != 3 || s.Closed["rejected"] != 0 {
		t.Errorf("%+v", s)
	}
}

func TestPause(t *testing.T) {
	t.Parallel()
	r := serve(t, nil)
	c := r.login("/stocks")
	c.say("subscribe", "Q.*")
	c.expect(ack("Q.*"))
	c.events(10)
	r.post("/pause?market=stocks")
	before := r.Stats().Stocks
	r.until("the tape runs on", func(s Stats) bool { return s.Stocks.Generated > before.Generated+500 })
	if after := r.Stats().Stocks; after.Sent != before.Sent || after.Connections != 1 {
		t.Errorf("before the pause %+v, in it %+v", before, after)
	}
	c.say("subscribe", "T.NOSUCH") // messages are still answered
	c.expectStatus(ack("T.NOSUCH"))
	r.post("/resume")
	c.events(10)
}

// TestStop ends the sockets and leaves nothing behind; TestMain looks for that.
func TestStop(t *testing.T) {
	t.Parallel()
	r := serve(t, nil)
	c := r.login("/stocks")
	c.say("subscribe", "Q.*")
	c.expect(ack("Q.*"))
	c.events(10)
	r.stop()
	c.expectCut()
	if s := r.Stats(); s.Stocks.Connections != 0 || s.Stocks.Closed["stopped"] != 1 {
		t.Errorf("%+v", s)
	}
	if _, err := r.tryDial("/stocks"); err == nil {
		t.Error("still accepts")
	}
}
