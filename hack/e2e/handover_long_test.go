//go:build long

package e2e

import (
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/cutemarkets/relay/hack/feedsim/market"
)

const (
	// leaderStopped is how long a leader stands still, longer than its lease.
	leaderStopped = 20 * time.Second
	// wayCut is how long a way is cut.
	wayCut = 15 * time.Second
	// vendorBack is that, and the longest back-off after it.
	vendorBack = wayCut + 7*time.Second
	// leasesAway is how long the store of the leases is down.
	leasesAway = time.Minute
	// ghostHold is how long the vendor counts a socket that has ended.
	ghostHold = 5 * time.Second
	// redial is how long a fanout that was refused may take to dial again.
	redial = 6 * time.Second
	// restream is the longest until an edge has its stream again.
	restream = 3 * time.Second
	// crashGap is the longest until a standby has the feed of a leader that is gone.
	crashGap = 6500 * time.Millisecond
)

// TestHandoverFaults tries each fault under both rules of the vendor, and prints
// what it has cost.
func TestHandoverFaults(t *testing.T) {
	rows := slices.Concat(handoverRows, handoverFaults)
	table := &handoverTable{}
	for _, rule := range []market.LimitRule{market.KickOldest, market.RejectNewest} {
		h := startHandover(t, rule, handoverLeases)
		h.table = table
		for _, row := range rows {
			h.run(row)
		}
		if err := h.Stop(t.Context()); err != nil {
			t.Error(err)
		}
		forced := startHandover(t, rule, handoverForced)
		forced.table = table
		forced.run(twoLeaders)
		if err := forced.Stop(t.Context()); err != nil {
			t.Error(err)
		}
	}
	both := startHandover(t, market.KickOldest, handoverForced, "--max-connections=2")
	both.table = table
	both.run(twoFeeds)
	table.print(t)
}

var handoverFaults = []handoverRow{
	{
		name: "kill -9 of the leader, and the vendor keeps its socket for 5 s", fault: (*handover).ghost,
		kick:  handoverOutcome{changes: 1, gap: crashGap, kicks: 1, dials: true},
		other: handoverOutcome{changes: 1, gap: crashGap + redial, kicks: 9, dials: true},
	},
	{
		name: "kill -9 of the leader, which starts again at once", fault: (*handover).crash,
		kick:  handoverOutcome{changes: 1, gap: crashGap, dials: true},
		other: handoverOutcome{changes: 1, gap: crashGap, dials: true},
	},
	{
		name: "SIGSTOP of the leader for 20 s", fault: (*handover).freeze,
		kick:  handoverOutcome{changes: 1, gap: crashGap, kicks: 1, dials: true},
		other: handoverOutcome{changes: 1, gap: leaderStopped + redial, kicks: 9, dials: true, loose: true}, // what waited for the stopped leader may come in the end
	},
	{
		name: "leader cut off from the lease store for 15 s", fault: (*handover).cutLease,
		kick:  handoverOutcome{changes: 1, gap: crashGap, kicks: 1, dials: true},
		other: handoverOutcome{changes: 1, gap: redial, kicks: 9, dials: true},
	},
	{
		name: "leader cut off from the vendor for 15 s", fault: (*handover).cutVendor,
		kick:  handoverOutcome{gap: vendorBack, dials: true},
		other: handoverOutcome{gap: vendorBack, dials: true},
	},
	{
		name: "leader cut off from the edges for 15 s", fault: (*handover).cutEdges,
		kick:  handoverOutcome{gap: wayCut + restream, loose: true},
		other: handoverOutcome{gap: wayCut + restream, loose: true},
	},
	{
		name: "lease store down for 60 s", fault: (*handover).stopLeases,
		kick:  handoverOutcome{},
		other: handoverOutcome{},
	},
	{
		name: "another program takes the vendor's socket for 5 s", fault: (*handover).steal,
		kick:  handoverOutcome{gap: handoverMost, kicks: 1, dials: true},
		other: handoverOutcome{kicks: 1, dials: true},
	},
}

func (h *handover) ghost() {
	h.order("fault/ghost?market=stocks&hold=%s&next=1", ghostHold)
	h.kill(h.leading)
}

func (h *handover) crash() {
	h.kill(h.leading)
	h.restart(h.leading)
}

func (h *handover) freeze() {
	h.t.Helper()
	h.signal(h.leading, syscall.SIGSTOP)
	h.frozen = time.Now()
	<-time.After(leaderStopped)
	h.signal(h.leading, syscall.SIGCONT)
}

func (h *handover) signal(part string, signal syscall.Signal) {
	h.t.Helper()
	if err := h.Signal(part, signal); err != nil {
		h.t.Fatal(err)
	}
}

func (h *handover) cutLease() {
	h.t.Helper()
	h.links.turn(h.leading, "redis", cut)
	<-time.After(wayCut)
	h.links.turn(h.leading, "redis", whole)
	h.within(redial, "it hears that another leads", func() bool {
		return h.metric(h.leading, "relay_fanout_leader", stocks) == 0
	})
}

func (h *handover) cutVendor() {
	h.links.turn(h.leading, "feedsim", shut)
	<-time.After(wayCut)
	h.links.turn(h.leading, "feedsim", whole)
}

func (h *handover) cutEdges() {
	h.links.turn("", h.leading, cut)
	<-time.After(wayCut)
	h.links.turn("", h.leading, whole)
}

func (h *handover) stopLeases() {
	h.leases.kill()
	<-time.After(leasesAway)
	h.leases.start()
}

// steal takes the vendor's socket for a while. It is not taken back meanwhile.
func (h *handover) steal() {
	h.t.Helper()
	thief := h.rival("stocks")
	dials := h.stats().Stocks.Dials
	<-time.After(ghostHold)
	if n := h.stats().Stocks.Dials - dials; n > 0 {
		h.t.Errorf("the vendor was dialed %d times while another program had its socket", n)
	}
	_ = thief.conn.Close()
}

// handoverForced has two fanouts that both lead.
var handoverForced = handoverSetup{args: map[string][]string{"fanout-1": {"--leader=static"}}}

// twoLeaders start one after the other; no edge has a stream to the second yet.
var twoLeaders = handoverRow{
	name: "a second leader is forced", first: (*handover).alone, fault: (*handover).force,
	kick:  handoverOutcome{changes: 1, gap: restream, kicks: 1, dials: true, loose: true},
	other: handoverOutcome{kicks: 9, dials: true},
}

// twoFeeds is for a vendor that lets both in: both publish every event.
var twoFeeds = handoverRow{
	name: "a second leader is forced, and the vendor lets both in", first: (*handover).alone, fault: (*handover).force,
	kick: handoverOutcome{changes: 1, gap: restream, sockets: 2, dials: true, loose: true},
}

// alone leaves one leader, with the greatest epoch so far.
func (h *handover) alone() {
	h.absent = "fanout-1"
	for _, name := range h.fanouts {
		h.stop(name)
	}
}

// force starts the second leader, whose epoch is greater, and watches both.
func (h *handover) force() {
	h.restart(h.absent)
	<-time.After(wayCut)
}
