package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cutemarkets/relay/hack/checker"
	"github.com/cutemarkets/relay/hack/cluster"
	"github.com/cutemarkets/relay/hack/feedsim/market"
	"github.com/cutemarkets/relay/hack/feedsim/tape"
)

// TestFaults lets the vendor misbehave in every way that feedsim knows, and
// expects what fanout makes of it and what clients see. Each group has a relay
// of its own.
func TestFaults(t *testing.T) {
	t.Parallel()
	for _, group := range []struct {
		name string
		run  func(f *faults)
	}{
		{"the connection is lost", (*faults).losses},
		{"the connection is refused", (*faults).refusals},
		{"the content is odd", (*faults).oddities},
	} {
		t.Run(group.name, func(t *testing.T) {
			t.Parallel()
			group.run(startFaults(t))
		})
	}
}

type faults struct{ *stage }

func startFaults(t *testing.T) *faults {
	t.Helper()
	return &faults{startStage(t, cluster.Options{Rate: 2000}, "--auth-timeout=2s", "--minute=1s")}
}

// run runs a test on the same relay.
func (f *faults) run(name string, test func(f *faults)) {
	f.t.Run(name, func(t *testing.T) {
		s := *f.stage
		s.t = t
		test(&faults{&s})
	})
}

// fresh restarts fanout, so that its metrics and back-off begin anew.
func (f *faults) fresh() {
	f.t.Helper()
	f.order("resume")
	f.order("fault/limit?rule=kick-oldest")
	if err := f.StopPart(f.t.Context(), "fanout-0"); err != nil {
		f.t.Fatal(err)
	}
	f.restart()
	for _, edge := range f.Info().Edges {
		eventually(f.t, "the relay is well", func() bool { return status(f.t, edge).Status == "ok" })
	}
}

func (f *faults) restart() {
	f.t.Helper()
	if err := f.RestartPart(f.t.Context(), "fanout-0"); err != nil {
		f.t.Fatal(err)
	}
}

// join adds witnesses on both edges and waits until the vendor serves all their
// topics. One has more exact topics than go into one message to the vendor.
func (f *faults) join(name string) *witnesses {
	f.t.Helper()
	f.awaitTopics(name, 0) // of witnesses before
	ws, edges := newWitnesses(f.stage), f.Info().Edges
	ws.add(edges[0], name, 0, "T.*,AM.*,A.*,T."+tape.Tickers(tape.Market(name), 1)[0])
	exact := []string{"T.*"}
	for _, ticker := range tape.Tickers(tape.Market(name), 600) {
		exact = append(exact, "Q."+ticker)
	}
	ws.add(edges[1], name, 1, strings.Join(exact, ","))
	f.awaitTopics(name, len(exact)+2) // T.* covers the first one's T
	ws.begin(name)
	return ws
}

func (f *faults) awaitTopics(name string, want int) {
	f.t.Helper()
	eventually(f.t, fmt.Sprintf("the vendor has %d topics of %s", want, name), func() bool { return f.of(name).Topics == want })
}

func (f *faults) of(name string) market.Stats {
	f.t.Helper()
	if stats := f.stats(); name == "stocks" {
		return stats.Stocks
	}
	return f.stats().Options
}

// States of relay_fanout_upstream_state.
const (
	live    = 2
	refused = 3
	stolen  = 4
	waiting = 5
)

func (f *faults) awaitState(name string, want float64) {
	f.t.Helper()
	eventually(f.t, fmt.Sprintf("the state of %s is %v", name, want), func() bool {
		return f.metric("fanout-0", "relay_fanout_upstream_state", `market="`+name+`"`) == want
	})
}

func (f *faults) lost(name, cause string) float64 {
	f.t.Helper()
	return f.metric("fanout-0", "relay_fanout_upstream_disconnects_total", `market="`+name+`"`, `cause="`+cause+`"`)
}

// expectCauses expects that connections of a market were lost for these causes
// and no other.
func (f *faults) expectCauses(name string, causes ...string) {
	f.t.Helper()
	want := map[string]float64{}
	for _, cause := range causes {
		want[cause]++
	}
	for cause, n := range want {
		if got := f.lost(name, cause); got != n {
			f.t.Errorf("%v connections were lost for the cause %s, want %v", got, cause, n)
		}
	}
	if all := f.metric("fanout-0", "relay_fanout_upstream_disconnects_total", `market="`+name+`"`); all != float64(len(causes)) {
		f.t.Errorf("%v connections were lost, want %d", all, len(causes))
	}
}

// loss is a way to lose the connection, after which all is well again.
type loss struct {
	name   string
	orders []string
	causes []string // one for each connection that is lost
}

func (f *faults) losses() {
	for _, row := range []loss{
		{"TCP abort", []string{"drop"}, []string{"error"}},
		{"close 1008 without a reason", []string{"fault/close?code=1008"}, []string{"slow"}},
		{"killed as a slow consumer", []string{"fault/slow"}, []string{"slow"}},
		{"close 1000", []string{"fault/close?code=1000"}, []string{"closed"}},
		{"close 1001", []string{"fault/close?code=1001"}, []string{"closed"}},
		{"close 1011", []string{"fault/close?code=1011"}, []string{"closed"}},
		{"close 1012", []string{"fault/close?code=1012"}, []string{"closed"}},
		{"the key gets no answer", []string{"fault/auth-silent?next=1", "drop"}, []string{"error", "timeout"}},
		{"a ghost that is kicked", []string{"fault/ghost?hold=1m&next=1", "drop"}, []string{"error"}},
		{"acks one by one", []string{"fault/acks?mode=split", "drop"}, []string{"error"}},
		{"acks joined", []string{"fault/acks?mode=joined&hold=100ms", "drop"}, []string{"error"}},
	} {
		f.run(row.name, func(f *faults) { f.lose(row) })
	}
	f.run("acks missing", (*faults).missingAcks)
	f.run("back-off", (*faults).backOff)
}

// steady lets events flow for longer than the allowance by which gaps begin early.
func (f *faults) steady(ws *witnesses) {
	f.t.Helper()
	for end := time.Now().Add(700 * time.Millisecond); time.Now().Before(end); {
		ws.mark(ws.all[0].market, 100)
	}
}

// lose expects one dial for each lost connection, and one gap for all of them.
func (f *faults) lose(row loss) {
	f.fresh()
	ws := f.join("stocks")
	dials := f.of("stocks").Dials
	f.steady(ws)
	for _, order := range row.orders {
		f.order("%s", withMarket(order, "stocks"))
	}
	ws.awaitGaps("stocks", 1)
	f.order("resume")
	ws.mark("stocks", 300)
	f.awaitState("stocks", live)
	f.expectCauses("stocks", row.causes...)
	if made := f.of("stocks").Dials - dials; made != uint64(len(row.causes)) {
		f.t.Errorf("%d dials, want %d", made, len(row.causes))
	}
	f.expectPromise(ws)
}

func withMarket(order, name string) string {
	if strings.Contains(order, "?") {
		return order + "&market=" + name
	}
	return order + "?market=" + name
}

// expectPromise expects all that is promised, and no word to clients but gaps.
func (f *faults) expectPromise(ws *witnesses) {
	f.t.Helper()
	ws.leave()
	if err := f.check(ws.ck).Err(); err != nil {
		f.t.Error("a client did not get what is promised")
	}
	f.expectSilence(ws)
}

func (f *faults) expectSilence(ws *witnesses) {
	f.t.Helper()
	for _, w := range ws.all {
		if len(w.statuses) > 0 {
			f.t.Errorf("%s was told %q", w.name, raws(w.statuses))
		}
	}
}

// expectAll expects that no event is missing, announced or not, and a number of
// gaps, whether or not there were outages.
func (f *faults) expectAll(ws *witnesses, gaps int) {
	f.t.Helper()
	ws.leave()
	for _, c := range f.check(ws.ck).Clients {
		f.expectClean(c)
		if c.Missing+c.MissingInGaps > 0 || c.Gaps != gaps {
			f.t.Errorf("%s misses %d events and was told of %d gaps, want none and %d", c.Name, c.Missing+c.MissingInGaps, c.Gaps, gaps)
		}
	}
	f.expectSilence(ws)
}

// expectClean expects that what came was sent, once and in this order.
func (s *stage) expectClean(c checker.ClientReport) {
	s.t.Helper()
	if n := c.Altered + c.Unasked + c.Duplicates + c.Disordered; n > 0 || c.Received == 0 {
		s.t.Errorf("%s: %d of %d events are not as sent: %q", c.Name, n, c.Received, c.Examples)
	}
}

// missingAcks lets the vendor keep its word back after a reconnect: events do not
// wait for it, and if it comes late there is a second gap, until it came.
func (f *faults) missingAcks() {
	f.fresh()
	ws := newWitnesses(f.stage)
	ws.add(f.Info().Edges[0], "stocks", 0, "T.*,AM.*,A.*") // acknowledged in one frame
	ws.begin("stocks")
	f.steady(ws)
	f.order("fault/no-ack?market=stocks")
	f.order("drop?market=stocks")
	ws.awaitGaps("stocks", 1)
	f.emit("stocks", 300)
	f.order("resume")
	ws.begin("stocks")
	ws.mark("stocks", 300)
	f.expectCauses("stocks", "error")
	ws.leave()
	for _, c := range f.check(ws.ck).Clients {
		f.expectClean(c)
		if c.Missing > 0 || c.MissingInGaps == 0 || c.Gaps != 2 {
			f.t.Errorf("%s: %d events missing, %d in %d gaps; want none, some in 2", c.Name, c.Missing, c.MissingInGaps, c.Gaps)
		}
	}
	f.expectSilence(ws)
}

// backOff counts the dials while the vendor is away, and while it ends each
// connection as soon as it has accepted the key.
func (f *faults) backOff() {
	const long = 6 * time.Second
	const least, most = 2, 10 // more has a chance of one in 100,000
	f.fresh()
	away, flapping := f.join("stocks"), f.join("options")
	f.steady(away)
	before := f.stats()
	f.order("outage?market=stocks&for=%s", long)
	f.order("drop?market=options")
	for end := time.Now().Add(long); time.Now().Before(end); {
		if f.of("options").Authenticated > 0 {
			f.order("drop?market=options")
		}
	}
	after := f.stats()
	for name, dials := range map[string]uint64{"stocks": after.Stocks.Dials - before.Stocks.Dials, "options": after.Options.Dials - before.Options.Dials} {
		f.t.Logf("%s: %d dials in %s", name, dials, long)
		if dials < least || dials > most {
			f.t.Errorf("%s: %d dials in %s, want %d to %d", name, dials, long, least, most)
		}
		f.awaitLong("the market is back", func() bool {
			return f.metric("fanout-0", "relay_fanout_upstream_state", `market="`+name+`"`) == live
		})
	}
	away.awaitGaps("stocks", 1)
	away.mark("stocks", 300)
	f.expectPromise(away)
	flapping.mark("options", 300)
	flapping.leave()
	for _, c := range f.check(flapping.ck).Clients {
		f.expectClean(c)
		if c.Missing > 0 || c.Gaps == 0 || c.Gaps > c.Outages {
			f.t.Errorf("%s: %d events missing, %d gaps for %d outages", c.Name, c.Missing, c.Gaps, c.Outages)
		}
	}
}

// awaitLong waits as long as a back-off may be.
func (f *faults) awaitLong(what string, ok func() bool) {
	f.t.Helper()
	for end := time.Now().Add(forbearance); !ok(); {
		if time.Now().After(end) {
			f.t.Fatalf("not within %s: %s", forbearance, what)
		}
		<-time.After(50 * time.Millisecond)
	}
}

// cooling is how long tests watch waits of 30 s and more.
const cooling = 10 * time.Second

func (f *faults) refusals() {
	f.run("the oldest is kicked", (*faults).kickOldest)
	f.run("the newest is rejected", (*faults).rejectNewest)
	f.run("a ghost holds the place", (*faults).ghost)
	f.run("the key is refused", (*faults).keyRefused)
}

// expectRest expects no dial while fanout cools down, and that a newcomer is told
// of a gap that lasts.
func (f *faults) expectRest(name string, state float64, dials uint64) {
	f.t.Helper()
	f.awaitState(name, state)
	if status := status(f.t, f.Info().Edges[0]).Services["stream_"+name].Status; status != "degraded" {
		f.t.Errorf("the status page says %s is %s", name, status)
	}
	late := join(f.t, f.Info().Edges[0], name, f.key(name, 2))
	late.await("an open gap", func(e event) bool { return e.Status == "gap" && e.Market == name && e.To == nil })
	late.leave()
	if made := f.of(name).Dials; made != dials {
		f.t.Errorf("%s: %d dials so far, want %d", name, made, dials)
	}
}

// kickOldest lets another program take the vendor's one connection: fanout does
// not take it back soon. Meanwhile the other market's vendor refuses a topic,
// behind its acknowledgements of others.
func (f *faults) kickOldest() {
	f.fresh()
	f.order("fault/unauthorized?market=options&prefix=AM&order=after")
	ws := f.join("stocks")
	other := newWitnesses(f.stage)
	w := other.add(f.Info().Edges[0], "options", 0, "T.*,AM.O:SPY260515C00500000")
	dials := f.of("stocks").Dials
	rival := f.rival("stocks")
	f.expectRest("stocks", stolen, dials+1) // the rival's
	rested := time.NewTimer(cooling)

	expectRefusedTopic(w, "AM.O:SPY260515C00500000", "not authorized at the data source")
	other.begin("options")
	f.expectTopicPromise(other)
	<-rested.C
	f.expectRest("stocks", stolen, dials+1)
	f.expectCauses("stocks", "stolen")
	rival.subscribe("T.AAPL")
	rival.expect(acknowledged("T.AAPL"))
	ws.leave()
	f.expectSilence(ws)
	for _, w := range ws.all {
		if len(w.gaps) > 0 {
			f.t.Errorf("%s was told of a gap that lasts, at its end: %q", w.name, raws(w.gaps))
		}
	}
}

// rejectNewest lets fanout find the place taken by another program: where it takes
// the vendor to be one who kicks the oldest it does not come back soon; where it
// knows better, it tries again after 1, 2, 5, 5 … s.
func (f *faults) rejectNewest() {
	f.fresh()
	f.order("fault/limit?rule=reject-newest")
	if err := f.StopPart(f.t.Context(), "fanout-0"); err != nil {
		f.t.Fatal(err)
	}
	stocks, options := f.rival("stocks"), f.rival("options")
	before := f.stats()
	f.restart()
	f.awaitState("options", waiting)
	f.expectRest("stocks", stolen, before.Stocks.Dials+1)
	<-time.After(cooling)
	f.expectRest("stocks", stolen, before.Stocks.Dials+1)
	f.expectCauses("stocks", "stolen")
	if made := f.of("options").Dials - before.Options.Dials; made < 3 || made > 5 {
		f.t.Errorf("options: %d dials in %s and a little, want 3 to 5", made, cooling)
	}
	stocks.subscribe("T.AAPL")
	stocks.expect(acknowledged("T.AAPL"))
	options.leave()
	f.awaitState("options", live)
}

// ghost lets the vendor count a connection of fanout's own that has ended: fanout
// is back some seconds after the vendor has noticed, and clients are told of one gap.
func (f *faults) ghost() {
	const hold = 5 * time.Second
	const longest = 6 * time.Second // wait of fanout, after 1 s and 2 s
	f.fresh()
	f.order("fault/limit?rule=reject-newest")
	ws := f.join("options")
	f.steady(ws)
	f.order("fault/ghost?market=options&hold=%s&next=1", hold)
	f.order("drop?market=options")
	begun := time.Now()
	f.awaitState("options", waiting)
	f.awaitLong("the market is back", func() bool {
		return f.metric("fanout-0", "relay_fanout_upstream_state", `market="options"`) == live
	})
	if took := time.Since(begun); took < hold || took > hold+longest {
		f.t.Errorf("back after %v, want %v to %v", took, hold, hold+longest)
	}
	f.expectCauses("options", "error", "occupied", "occupied", "occupied")
	ws.awaitGaps("options", 1)
	ws.mark("options", 300)
	f.expectPromise(ws)
}

func (f *faults) keyRefused() {
	f.fresh()
	ws := f.join("stocks")
	dials := f.of("stocks").Dials + 1
	f.order("fault/auth-failed?market=stocks")
	f.order("drop?market=stocks")
	f.expectRest("stocks", refused, dials)
	<-time.After(cooling / 2)
	f.expectRest("stocks", refused, dials)
	f.expectCauses("stocks", "error", "rejected")
	ws.leave()
	f.expectSilence(ws)
}

// oddity is a fault of the content, for which the connection goes on.
type oddity struct {
	name      string
	order     string
	malformed map[string]float64 // reasons counted; none: all can be read
}

func (f *faults) oddities() {
	stalled := f.startStall("options", 32*time.Second) // a ping and its wait
	f.run("topics that the vendor does not serve", (*faults).topics)
	for _, row := range []oddity{
		{"a frame cut off", "fault/malformed?kind=truncated", map[string]float64{"syntax": 1}},
		{"garbage in a frame", "fault/malformed?kind=garbage", map[string]float64{"syntax": 1}},
		{"elements that are no events", "fault/malformed?kind=elements", map[string]float64{"not_object": 4, "no_ev": 3}},
		{"an object in no array", "fault/malformed?kind=object", map[string]float64{"syntax": 1}},
		{"an event that is not UTF-8", "fault/malformed?kind=utf8", map[string]float64{"encoding": 1}},
		{"numbers in other forms", "fault/numbers", nil},
		{"unknown keys", "fault/keys", nil},
		{"unknown event types", "fault/types?every=2", nil},
		{"q repeated", "fault/sequence?mode=repeated", nil},
		{"q falling", "fault/sequence?mode=falling", nil},
	} {
		f.run(row.name, func(f *faults) { f.odd(row) })
	}
	f.run("frames that mix event types", (*faults).mixed)
	f.run("silent stall", func(f *faults) { f.endStall(stalled) })
}

// odd expects that all events come through, and one gap if some of a frame could
// not be read.
func (f *faults) odd(row oddity) {
	ws := f.join("stocks")
	before := f.of("stocks")
	counted := map[string]float64{}
	for reason := range row.malformed {
		counted[reason] = f.malformed(reason)
	}
	ws.mark("stocks", 300)
	f.order("%s", withMarket(row.order, "stocks"))
	ws.mark("stocks", 300)
	gaps := min(1, len(row.malformed))
	ws.awaitGaps("stocks", gaps)
	f.order("resume?market=stocks")
	ws.mark("stocks", 300)

	after := f.of("stocks")
	name, _, _ := strings.Cut(strings.TrimPrefix(row.order, "fault/"), "?")
	if after.Dials != before.Dials || after.Faults[name] == before.Faults[name] {
		f.t.Errorf("%d dials and %d times %s, want none and some", after.Dials-before.Dials, after.Faults[name]-before.Faults[name], name)
	}
	f.awaitState("stocks", live)
	for reason, n := range row.malformed {
		if got := f.malformed(reason) - counted[reason]; got != n {
			f.t.Errorf("%v counted as malformed for %s, want %v", got, reason, n)
		}
	}
	if gaps == 0 {
		f.expectPromise(ws)
	} else {
		f.expectAll(ws, gaps)
	}
}

func (f *faults) malformed(reason string) float64 {
	f.t.Helper()
	return f.metric("fanout-0", "relay_fanout_malformed_total", `market="stocks"`, `reason="`+reason+`"`)
}

func (f *faults) mixed() {
	ws := newWitnesses(f.stage)
	w := ws.add(f.Info().Edges[0], "stocks", 0, "T.*,Q.*,A.*,AM.*,LULD.*,NOI.*")
	ws.begin("stocks")
	ws.mark("stocks", 5000)
	f.expectPromise(ws)
	if len(w.kinds) < 4 {
		f.t.Errorf("only events of the types %v came", w.kinds)
	}
}

// topics wants what the vendor refuses, passes over or never acknowledges: the
// client is told which, and has the others.
func (f *faults) topics() {
	const unknown, unacknowledged = "LV.O:SPY260515C00500000", "Q.O:IBM260515C00200000"
	f.order("fault/unauthorized?market=stocks&prefix=NOI&order=before")
	f.order("fault/no-ack?market=options&topics=%s", unacknowledged)
	stocks, options := newWitnesses(f.stage), newWitnesses(f.stage)
	refused := stocks.add(f.Info().Edges[0], "stocks", 0, "T.*,NOI.AAPL,A.*")
	passed := options.add(f.Info().Edges[1], "options", 2, "AM.*,"+unknown+","+unacknowledged)
	stocks.begin("stocks")
	expectRefusedTopic(refused, "NOI.AAPL", "not authorized at the data source")
	expectRefusedTopic(passed, unknown, "not acknowledged by the data source")
	expectRefusedTopic(passed, unacknowledged, "not acknowledged by the data source")
	stocks.mark("stocks", 300)
	f.expectTopicPromise(stocks)
	options.leave()
	f.order("resume?market=stocks")
}

func expectRefusedTopic(w *witness, topic, problem string) {
	w.t.Helper()
	want := "cannot subscribe to: " + topic + ": " + problem
	w.await(want, func() bool {
		for _, s := range w.statuses {
			if s.Status == "error" && s.Message == want {
				return true
			}
		}
		return false
	})
}

// expectTopicPromise is expectPromise for witnesses that were told of one topic.
func (f *faults) expectTopicPromise(ws *witnesses) {
	f.t.Helper()
	ws.leave()
	if err := f.check(ws.ck).Err(); err != nil {
		f.t.Error("a client did not get what is promised")
	}
	for _, w := range ws.all {
		if len(w.statuses) != 1 {
			f.t.Errorf("%s was told %q, want one word about one topic", w.name, raws(w.statuses))
		}
	}
}

// stall is one that goes on.
type stall struct {
	*witnesses
	market string
	dials  uint64
	over   *time.Timer
}

const withheld = 300

// startStall lets the vendor be silent, but for answers.
func (f *faults) startStall(name string, long time.Duration) *stall {
	f.t.Helper()
	s := &stall{witnesses: f.join(name), market: name, dials: f.of(name).Dials, over: time.NewTimer(long)}
	s.mark(name, 300)
	f.order("fault/stall?market=%s", name)
	f.emit(name, withheld)
	return s
}

// endStall expects that the connection lasted, as silence may be the market's,
// and that nothing but what was withheld is missing.
func (f *faults) endStall(s *stall) {
	<-s.over.C
	if made := f.of(s.market).Dials - s.dials; made > 0 {
		f.t.Errorf("%d dials during the stall", made)
	}
	f.awaitState(s.market, live)
	f.order("resume?market=%s", s.market)
	s.mark(s.market, 300)
	s.leave()
	for _, c := range f.check(s.ck).Clients {
		f.expectClean(c)
		if c.Missing > withheld || c.MissingInGaps > 0 || c.Gaps > 0 {
			f.t.Errorf("%s: %d events missing and %d gaps, want at most %d and none", c.Name, c.Missing, c.Gaps, withheld)
		}
	}
	f.expectSilence(s.witnesses)
}
