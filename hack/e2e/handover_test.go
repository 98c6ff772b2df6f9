package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/cutemarkets/relay/hack/checker"
	"github.com/cutemarkets/relay/hack/cluster"
	"github.com/cutemarkets/relay/hack/feedsim"
	"github.com/cutemarkets/relay/hack/feedsim/market"
	"github.com/cutemarkets/relay/hack/truth"
)

const (
	handoverRate = 1000 // events per second: some every 5 ms
	// handoverSymbols are so few that the bars of a second, which come in the place
	// of other events, leave no hole to speak of.
	handoverSymbols = 20
	// handoverCalm is how long events flow before a fault and after it.
	handoverCalm = 2 * time.Second
	// handoverMost is the longest that a relay may take to be whole again.
	handoverMost = 90 * time.Second
)

// TestHandover: when the leader dies or stops, the standby has the feed in time;
// every event comes once, in order, or lies in the one gap that is told, at both
// edges. TestHandoverFaults has more faults, and both rules of the vendor.
func TestHandover(t *testing.T) {
	t.Parallel()
	h := startHandover(t, market.KickOldest, handoverLeases)
	for _, row := range handoverRows[:2] {
		h.run(row)
	}
	h.table.print(t)
}

// handoverRow is a fault, and what may come of it under each rule of the vendor.
type handoverRow struct {
	name  string
	first func(h *handover) // before the relay is made whole; nil: nothing
	fault func(h *handover) // returns when it is over
	kick  handoverOutcome
	other handoverOutcome // with reject-newest
}

// handoverOutcome is what a fault may cost.
type handoverOutcome struct {
	changes float64       // of the epoch at each edge
	kicks   uint64        // sockets that the vendor kicked, or let in and refused, for another was there
	gap     time.Duration // the longest span of events that are missing; zero: none is, and no gap is told
	dials   bool          // the vendor is dialed
	sockets int           // at the vendor at once, at most; zero: one
	loose   bool          // the gap that is told need not be an outage of the vendor's
}

// handoverRows are the faults of a relay whose fanouts elect by Redis.
var handoverRows = []handoverRow{
	{
		name: "SIGTERM of the leader", fault: func(h *handover) { h.stop(h.leading) },
		kick:  handoverOutcome{changes: 1, gap: 1500 * time.Millisecond, dials: true},
		other: handoverOutcome{changes: 1, gap: 1500 * time.Millisecond, dials: true},
	},
	{
		name: "kill -9 of the leader", fault: func(h *handover) { h.kill(h.leading) },
		kick:  handoverOutcome{changes: 1, gap: 6500 * time.Millisecond, dials: true},
		other: handoverOutcome{changes: 1, gap: 6500 * time.Millisecond, dials: true},
	},
}

// handover is a relay of two fanouts and two edges, with a link wherever it can be
// cut. Only stocks are relayed. The fanouts' leases are in a Redis of their own.
type handover struct {
	*stage
	links   *links
	rule    market.LimitRule
	leases  *redisProcess
	fanouts []string
	table   *handoverTable

	// Of the row that runs.
	ws      *witnesses
	absent  string    // the fanout that does not run before the fault; empty: all do
	leading string    // the fanout that led before the fault
	frozen  time.Time // when the leader was stopped, which the vendor does not see; zero: it was not
}

// handoverSetup is how the fanouts of a relay are set up.
type handoverSetup struct {
	leader string
	args   map[string][]string
}

// handoverLeases elects by Redis.
var handoverLeases = handoverSetup{leader: "redis"}

func startHandover(t *testing.T, rule market.LimitRule, setup handoverSetup, feedsimArgs ...string) *handover {
	t.Helper()
	h := &handover{
		links: newLinks(t), rule: rule, leases: newRedisProcess(t, keepsNone...),
		fanouts: []string{"fanout-0", "fanout-1"}, table: &handoverTable{},
	}
	args := map[string][]string{"fanout": {"--markets=stocks", "--upstream-on-limit=" + string(rule), "--upstream-ghost-timeout=15s"}, "edge": {"--markets=stocks"}}
	for part, more := range setup.args {
		args[part] = append(args[part], more...)
	}
	h.stage = startStage(t, cluster.Options{Fanouts: len(h.fanouts), Leader: setup.leader, Rate: handoverRate, Way: h.way, Args: args},
		append([]string{"--on-limit=" + string(rule), fmt.Sprintf("--symbols=%d", handoverSymbols)}, feedsimArgs...)...)
	return h
}

func (h *handover) way(from, to, address string) string {
	switch {
	case strings.HasPrefix(from, "fanout") && to == "redis":
		return h.links.way(from, to, h.leases.address)
	case strings.HasPrefix(to, "fanout"), strings.HasPrefix(from, "fanout"):
		return h.links.way(from, to, address)
	default:
		return address
	}
}

// run runs a row on the same relay. A row that fails does not end the others.
func (h *handover) run(row handoverRow) {
	want := row.kick
	if h.rule == market.RejectNewest {
		want = row.other
	}
	h.t.Run(string(h.rule)+"/"+row.name, func(t *testing.T) {
		s := *h.stage
		s.t = t
		part := *h
		part.stage = &s
		part.row(row, want)
	})
}

// handoverFigures are what a fault has cost.
type handoverFigures struct {
	gap     time.Duration // the longest between the stamps of two events that came
	silence time.Duration // the longest without an event
	gaps    int           // told to each client
	sockets int           // authenticated at once, at most
	kicks   uint64
	dropped float64 // messages that edges did not take: of an older epoch, or covered before
	changes float64
	dials   uint64
}

func (h *handover) row(row handoverRow, want handoverOutcome) {
	h.t.Helper()
	if row.first != nil {
		row.first(h)
	}
	h.settle()
	h.join()
	before, began := h.count(), time.Now()
	h.steady(handoverCalm)
	for _, w := range h.ws.all {
		w.mu.Lock()
		w.pulse.jump, w.pulse.silence = 0, 0
		w.mu.Unlock()
	}
	row.fault(h)
	h.awaitFlow()
	h.steady(handoverCalm)
	got := h.count()
	got.dials -= before.dials
	got.kicks -= before.kicks
	got.dropped -= before.dropped
	got.changes = (got.changes - before.changes) / float64(len(h.Info().Edges))
	got.sockets = h.sockets(began)
	for _, w := range h.ws.all {
		w.mu.Lock()
		got.gap, got.silence = max(got.gap, w.pulse.jump), max(got.silence, w.pulse.silence)
		got.gaps = max(got.gaps, len(w.gaps))
		w.mu.Unlock()
	}
	h.ws.leave()
	h.table.note(row.name, h.rule, got)
	h.expect(want, got)
}

// expect compares what came of a fault with what may come of it.
func (h *handover) expect(want handoverOutcome, got handoverFigures) {
	h.t.Helper()
	for i, w := range h.ws.all {
		if !h.frozen.IsZero() {
			w.notes.Cut(h.frozen, h.nextUp(h.frozen))
		}
		h.t.Logf("witness %d was told %q", i, raws(w.gaps))
		if other := h.ws.all[0]; len(w.gaps) != len(other.gaps) {
			h.t.Errorf("witness %d was told of %d gaps, another one of %d", i, len(w.gaps), len(other.gaps))
		}
		if len(w.statuses) > 0 {
			h.t.Errorf("witness %d was told %q", i, raws(w.statuses))
		}
	}
	report := h.check(h.ws.ck)
	if want.loose {
		for _, c := range report.Clients {
			h.expectWithin(c, 1)
		}
	} else if report.Err() != nil {
		h.t.Error("a client did not get what is promised")
	}
	if most := max(want.sockets, 1); got.sockets > most {
		h.t.Errorf("the vendor had %d sockets at a time, want at most %d", got.sockets, most)
	}
	if got.kicks > want.kicks {
		h.t.Errorf("the vendor kicked or refused %d sockets, want at most %d", got.kicks, want.kicks)
	}
	if got.changes != want.changes {
		h.t.Errorf("each edge adopted %v epochs, want %v", got.changes, want.changes)
	}
	if !want.dials && got.dials > 0 {
		h.t.Errorf("the vendor was dialed %d times", got.dials)
	}
	switch {
	case want.gap == 0 && got.gaps > 0:
		h.t.Errorf("%d gaps were told, want none", got.gaps)
	case want.gap > 0 && got.gap > want.gap:
		h.t.Errorf("events of %v are missing, want at most %v", got.gap, want.gap)
	}
}

// settle makes the relay whole again: all parts run, one fanout leads and has the
// feed, and each edge has a stream to each fanout.
func (h *handover) settle() {
	h.t.Helper()
	h.links.turn("", "", whole)
	h.order("resume")
	for _, name := range h.fanouts {
		if name != h.absent && h.Info().Pids[name] == os.Getpid() { // it does not run
			h.restart(name)
		}
	}
	h.within(handoverMost, "one fanout leads and has the feed", func() bool {
		h.leading = ""
		for _, name := range h.fanouts {
			if name != h.absent && h.metric(name, "relay_fanout_upstream_state", stocks) == live {
				h.leading = name
			}
		}
		return h.leading != ""
	})
	streams := len(h.fanouts)
	if h.absent != "" {
		streams--
	}
	for i, edge := range h.Info().Edges {
		h.within(handoverMost, "an edge has its streams and is well", func() bool {
			return h.streams(i) == streams && status(h.t, edge).Status == "ok"
		})
	}
}

// streams is how many an edge has.
func (h *handover) streams(edge int) int {
	h.t.Helper()
	return int(h.metric(fmt.Sprintf("edge-%d", edge), "relay_edge_feed_streams", stocks))
}

const stocks = `market="stocks"`

// within waits for what may take as long as a cool-down.
func (h *handover) within(most time.Duration, what string, ok func() bool) {
	h.t.Helper()
	for end := time.Now().Add(most); !ok(); {
		if time.Now().After(end) {
			h.t.Fatalf("not within %s: %s", most, what)
		}
		<-time.After(50 * time.Millisecond)
	}
}

// join adds a witness at each edge, and lets events flow.
func (h *handover) join() {
	h.t.Helper()
	h.ws = newWitnesses(h.stage)
	for i, edge := range h.Info().Edges {
		h.ws.add(edge, "stocks", i, "T.*,Q.*,A.*")
	}
	h.ws.begin("stocks")
	for _, w := range h.ws.all {
		w.mu.Lock()
		w.pulse = &pulse{}
		w.mu.Unlock()
	}
	h.order("resume?market=stocks")
}

// steady lets events flow for a while, all of which must come.
func (h *handover) steady(d time.Duration) {
	h.t.Helper()
	<-time.After(d)
	h.ws.mark("stocks", 1)
}

// awaitFlow waits until events made from now on reach all witnesses.
func (h *handover) awaitFlow() {
	h.t.Helper()
	began := time.Now().UnixNano()
	for _, w := range h.ws.all {
		if !w.within(handoverMost, func() bool { return w.pulse.stamp > began }) {
			h.t.Fatalf("%s: no event within %s; gaps %q", w.name, handoverMost, raws(w.gaps))
		}
	}
}

// count reads the counters of the vendor and of the edges.
func (h *handover) count() handoverFigures {
	h.t.Helper()
	vendor := h.stats().Stocks
	f := handoverFigures{dials: vendor.Dials, kicks: vendor.Closed[market.Kicked.String()] + vendor.Closed[market.Rejected.String()]}
	for i := range h.Info().Edges {
		edge := fmt.Sprintf("edge-%d", i)
		f.dropped += h.metric(edge, "relay_edge_feed_dropped_total", stocks) + h.metric(edge, "relay_edge_feed_duplicates_total", stocks)
		f.changes += h.metric(edge, "relay_edge_feed_epoch_changes_total", stocks)
	}
	return f
}

// sockets is how many authenticated sockets of stocks there were at once, at most,
// since a moment.
func (h *handover) sockets(since time.Time) int {
	h.t.Helper()
	var history feedsim.History
	if err := json.Unmarshal([]byte(get(h.t, h.Info().Feedsim+"/sockets")), &history); err != nil {
		h.t.Fatal(err)
	}
	most := 0
	for i, c := range history.Stocks {
		if over := i+1 < len(history.Stocks) && history.Stocks[i+1].At.Before(since); !over {
			most = max(most, c.Authenticated)
		}
	}
	return most
}

// expectWithin expects what is promised whatever the vendor saw: each event once,
// in order, or in a gap, of which so many may be told.
func (h *handover) expectWithin(c checker.ClientReport, gaps int) {
	h.t.Helper()
	h.expectClean(c)
	if c.Missing > 0 || c.Gaps > gaps {
		h.t.Errorf("%s misses %d events outside of the %d gaps that were told, want none, and at most %d gaps", c.Name, c.Missing, c.Gaps, gaps)
	}
}

// nextUp is when the vendor next had a client with topics, after a moment.
func (h *handover) nextUp(after time.Time) time.Time {
	h.t.Helper()
	f, err := os.Open(h.truth)
	if err != nil {
		h.t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	for r := truth.NewReader(f); ; {
		line, err := r.Next()
		if err != nil {
			h.t.Fatalf("the vendor had no client after %v: %v", after, err)
		}
		if line.Kind == truth.Up && line.At.After(after) {
			return line.At
		}
	}
}

func (h *handover) stop(part string) {
	h.t.Helper()
	if err := h.StopPart(h.t.Context(), part); err != nil {
		h.t.Fatal(err)
	}
}

func (h *handover) restart(part string) {
	h.t.Helper()
	if err := h.RestartPart(h.t.Context(), part); err != nil {
		h.t.Fatal(err)
	}
}

func (h *handover) kill(part string) {
	h.t.Helper()
	if err := h.Kill(part, syscall.SIGKILL); err != nil {
		h.t.Fatal(err)
	}
}

// handoverTable is what faults have cost under each rule.
type handoverTable struct {
	names   []string
	figures map[string]map[market.LimitRule]handoverFigures
}

func (h *handoverTable) note(name string, rule market.LimitRule, f handoverFigures) {
	if h.figures == nil {
		h.figures = map[string]map[market.LimitRule]handoverFigures{}
	}
	if h.figures[name] == nil {
		h.names = append(h.names, name)
		h.figures[name] = map[market.LimitRule]handoverFigures{}
	}
	h.figures[name][rule] = f
}

func (h *handoverTable) print(t *testing.T) {
	t.Helper()
	var text strings.Builder
	table := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(table, "fault\tvendor's rule\tdata gap\tsilence\tgaps told\tsockets\tkicked or refused\tdropped by edges\tepochs\tdials")
	for _, name := range h.names {
		for _, rule := range []market.LimitRule{market.KickOldest, market.RejectNewest} {
			f, there := h.figures[name][rule]
			if there {
				_, _ = fmt.Fprintf(table, "%s\t%s\t%.2f s\t%.2f s\t%d\t%d\t%d\t%.0f\t%.0f\t%d\n", name, rule,
					f.gap.Seconds(), f.silence.Seconds(), f.gaps, f.sockets, f.kicks, f.dropped, f.changes, f.dials)
			}
		}
	}
	_ = table.Flush()
	t.Logf("\n%s", &text)
}
