package upstream

import (
	"container/heap"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

var seeds = flag.Int("seeds", 25, "runs of the hand-over model per class")

// class is a kind of world.
type class struct {
	rule    LimitRule
	fanouts int
	thief   bool // a stranger uses the key for a while

	keys     int           // that ours may send in a minute
	progress time.Duration // until one leads and edges have events, when the last fault is over
}

// A back-off is 30 s at most, and a lease runs out in less than 6 s; a ghost lasts
// for a minute, and is asked for again within 36 s.
const (
	soon       = backoffMost + 10*time.Second
	afterTheft = stolenMost + stolenMost/jitterShare + soon
	afterGhost = time.Minute + stolenFirst + stolenFirst/jitterShare + soon
)

const wellFor = 5 // s in a row

var classes = []class{
	{KickOldest, 2, false, 8, soon},
	{KickOldest, 3, true, 8, afterTheft},
	{RejectNewest, 2, false, 18, afterGhost},
	{RejectNewest, 3, true, 18, afterGhost},
}

func (c class) String() string {
	thief := ""
	if c.thief {
		thief = ", a thief"
	}
	return fmt.Sprintf("%s, %d fanouts%s", c.rule, c.fanouts, thief)
}

// mutant is a world with something wrong, which the model must notice.
type mutant uint8

const (
	noMutant      mutant = iota
	noProof              // sessions are not told when the proof is lost
	noBackoff            // a stolen place is taken back at once
	noFence              // edges take events of older epochs
	earlyAdoption        // edges adopt an epoch by any heartbeat
	ackAdmits            // an acknowledgement is taken for the vendor's word that the place is ours
)

// fault is a way to harm a fanout, the leader most often. It tells how long it lasts.
type fault struct {
	name string
	do   func(w *world, f *fanout) time.Duration
}

var modelFaults = []fault{
	{"stop", func(_ *world, f *fanout) time.Duration { f.stop(); return 0 }},
	{"kill", func(_ *world, f *fanout) time.Duration { f.kill(false); return 0 }},
	{"host lost", func(_ *world, f *fanout) time.Duration { f.kill(true); return 0 }},
	{"paused", func(w *world, f *fanout) time.Duration {
		long := w.between(time.Second, 25*time.Second)
		f.paused = w.now + long
		w.murky = append(w.murky, span{w.now - worldDelay, f.paused})
		return long
	}},
	{"cut off from the store", func(w *world, f *fanout) time.Duration {
		long := w.between(time.Second, time.Minute)
		f.storeCut = w.now + long
		return long
	}},
	{"store down", func(w *world, _ *fanout) time.Duration {
		long := w.between(time.Second, time.Minute)
		w.lease.down = w.now + long
		return long
	}},
	{"cut off from the vendor", func(w *world, f *fanout) time.Duration {
		long := w.between(time.Second, 40*time.Second)
		f.vendorCut = w.now + long
		w.murky = append(w.murky, span{w.now - worldDelay, f.vendorCut})
		return long
	}},
	{"cut off from the edges", func(w *world, f *fanout) time.Duration {
		long := w.between(time.Second, 20*time.Second)
		f.edgeCut = w.now + long
		return long
	}},
	{"dropped by the vendor", func(_ *world, f *fanout) time.Duration {
		if f.wire != nil {
			f.wire.hangUp()
		}
		return 0
	}},
}

// harm does a fault to the leader, if there is one, or to any fanout.
func (w *world) harm(kind fault) {
	f := w.fanouts[w.random.IntN(len(w.fanouts))]
	if w.random.IntN(4) > 0 {
		for _, other := range w.fanouts {
			if other.token != 0 && !other.dead && other.epoch == w.lease.epoch {
				f = other
			}
		}
	}
	if w.ahead--; !f.dead {
		w.faults = append(w.faults, kind.name)
		w.until = max(w.until, w.now+kind.do(w, f))
	}
}

// theft lets the thief come for a while.
func (w *world) theft() {
	w.ahead--
	w.faults = append(w.faults, "theft")
	w.vendor.theft = w.now + w.between(time.Second, 2*time.Minute)
	w.until = max(w.until, w.vendor.theft)
	w.in(w.vendor.theft-w.now, w.giveUp)
	w.steal()
}

func simulate(c class, m mutant, seed uint64) *world {
	w := &world{class: c, mutant: m, random: rand.New(rand.NewPCG(seed, 7)), misled: make(map[uint64]bool)}
	w.lease.strict = w.random.IntN(2) == 0
	w.vendor.ghosts = w.between(10*time.Second, time.Minute)
	w.fanouts = make([]*fanout, c.fanouts)
	for n := range w.edges {
		w.edges[n] = &edge{w: w, live: make(map[*fanout]uint64), missed: make(map[int]bool), down: true}
	}
	for n := range w.fanouts {
		w.startFanout(n)
	}
	w.in(0, w.trade)
	w.ahead = 1 + w.random.IntN(3)
	for range w.ahead {
		kind := modelFaults[w.random.IntN(len(modelFaults))]
		w.in(w.between(15*time.Second, 100*time.Second), func() { w.harm(kind) })
	}
	if c.thief {
		w.ahead++
		w.in(w.between(15*time.Second, 100*time.Second), w.theft)
	}
	w.run()
	w.judge()
	return w
}

// run lets the world go on until all has been well for a while.
func (w *world) run() {
	for well := 0; well < wellFor && w.problem == ""; {
		until := w.now + time.Second
		for w.queue[0].at <= until {
			e := heap.Pop(&w.queue).(modelEvent)
			w.now = e.at
			e.do()
		}
		w.now = until
		if well++; !w.calm() || !w.well() {
			well = 0
		}
		if w.calm() && w.now > w.until+w.progress {
			w.fail("not well %v after the last fault", w.progress)
		}
	}
	w.again = max(0, w.now-wellFor*time.Second-w.until)
}

// well reports whether one fanout leads and all edges have its events.
func (w *world) well() bool {
	var leader *fanout
	for _, f := range w.fanouts {
		if !f.dead && f.session != nil && f.live {
			if leader != nil {
				return false
			}
			leader = f
		}
	}
	for _, e := range w.edges {
		n := len(e.got)
		if leader == nil || n == 0 || e.got[n-1].epoch != leader.epoch || w.now-e.got[n-1].at > 2*time.Second {
			return false
		}
	}
	return true
}

// judge looks at what the edges have had, and at how often the vendor was asked.
func (w *world) judge() {
	for n, at := range w.keys {
		if n >= w.class.keys && at-w.keys[n-w.class.keys] < time.Minute {
			w.fail("more than %d keys in a minute, at %v", w.class.keys, at)
		}
	}
	for _, e := range w.edges {
		for n, d := range e.got[min(1, len(e.got)):] {
			before := e.got[n]
			if d.epoch < before.epoch {
				w.fail("at %v an edge had epoch %d behind %d", d.at, d.epoch, before.epoch)
			}
			if d.event <= before.event {
				w.fail("at %v an edge had event %d behind %d", d.at, d.event, before.event)
			}
			for missing := before.event + 1; missing < d.event; missing++ {
				w.expectGap(e, missing, d.epoch != before.epoch)
			}
		}
	}
}

// expectGap expects that an event which did not reach an edge lies in a gap that
// the edge has told. One that stood still in a socket before it was lost, with its
// leader or, it or its gap, on the way to the edge, is older than what else is lost
// there: gaps that edges tell by themselves do not reach back as far. Nor does a
// fanout know how long the vendor's end of a connection has been on its way.
func (w *world) expectGap(e *edge, event int, changed bool) {
	at := w.vendor.events[event]
	has := func(s span) bool { return s.has(at) }
	switch {
	case slices.ContainsFunc(e.gaps, has):
	case (changed || e.missed[event]) && slices.ContainsFunc(w.murky, has), slices.ContainsFunc(w.unheard, has):
		w.hidden++
	default:
		w.fail("the event of %v is missing at an edge outside of its gaps %v", at, e.gaps)
	}
}

// outage is the longest time without events at an edge, once it had some.
func (w *world) outage() time.Duration {
	longest := time.Duration(0)
	for _, e := range w.edges {
		for n := range max(0, len(e.got)-1) {
			longest = max(longest, e.got[n+1].at-e.got[n].at)
		}
	}
	return longest
}

// busiest is the greatest number of keys in a minute.
func (w *world) busiest() int {
	most, first := 0, 0
	for n, at := range w.keys {
		for w.keys[first] <= at-time.Minute {
			first++
		}
		most = max(most, n-first+1)
	}
	return most
}

// TestModel: whatever fails, edges never have two epochs interleaved and no event
// twice, and know of what they miss; the vendor sees no key without proof, and not
// too many; and when nothing fails any more, one leads.
func TestModel(t *testing.T) {
	for _, c := range classes {
		t.Run(c.String(), func(t *testing.T) {
			t.Parallel()
			outages := make(map[string]time.Duration) // by fault, where there was only one
			var keys, hidden int
			var again, longest time.Duration
			for seed := range uint64(*seeds) {
				w := simulate(c, noMutant, seed)
				if w.problem != "" {
					t.Errorf("seed %d: faults %q: %s", seed, w.faults, w.problem)
				}
				again, keys, hidden = max(again, w.again), max(keys, w.busiest()), hidden+w.hidden
				longest = max(longest, w.outage())
				if len(w.faults) == 1 {
					outages[w.faults[0]] = max(outages[w.faults[0]], w.outage())
				}
			}
			var table strings.Builder
			for _, name := range slices.Sorted(maps.Keys(outages)) {
				fmt.Fprintf(&table, "; %s %.1f s", name, outages[name].Seconds())
			}
			t.Logf("%d runs: well at most %.1f s after the last fault, %d keys in a minute, %d events lost in what stood still, and before their gaps; without events for %.1f s, after one fault alone%s",
				*seeds, again.Seconds(), keys, hidden, longest.Seconds(), table.String())
		})
	}
}

// TestModelNotices: a world with something wrong does not pass.
func TestModelNotices(t *testing.T) {
	for name, m := range map[string]mutant{
		"no proof": noProof, "no back-off": noBackoff, "no fence": noFence,
		"early adoption": earlyAdoption, "an acknowledgement admits": ackAdmits,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for seed := range uint64(500) {
				for _, c := range classes {
					if w := simulate(c, m, seed); w.problem != "" {
						t.Logf("%s, seed %d: %s", c, seed, w.problem)
						return
					}
				}
			}
			t.Error("not noticed")
		})
	}
}
