package lock

import (
	"flag"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

const lostByFailover = 1500 * time.Millisecond

var seeds = flag.Int("seeds", 150, "how many runs the model makes of each class of faults")

// class is the faults that a run may have.
type class struct {
	name     string
	pause    bool // an edge stands still, up to 61 s
	kill     bool // an edge is killed and started anew
	cut      bool // an edge does not reach Redis, up to 91 s
	outage   bool // Redis stands still or is away, up to 91 s, and keeps its data
	restart  bool // Redis restarts without its data
	failover bool // a replica that lacks the last 1.5 s takes over
	replies  bool // 2 % of the replies are lost
	jump     bool // the clock of Redis jumps: all locks expire
	noInfo   bool // INFO is not permitted

	overlap time.Duration // the longest allowed
	perLoss time.Duration // the same, for each loss
	passing bool          // commands may come late
}

const (
	// A lock that Redis lost, and that only the refresh misses.
	untilMissed = longestGap + time.Second + 100*time.Millisecond
	lease       = 14 * time.Second
	// A lock that is set anew only at the second try, when the guard has ended.
	lateAssert = 2 * time.Second
)

var classes = []class{
	{name: "pause", pause: true},
	{name: "kill", kill: true},
	{name: "cut", cut: true, passing: true},
	{name: "outage", outage: true},
	{name: "restart", restart: true},
	{name: "restart, no INFO", restart: true, noInfo: true, perLoss: untilMissed},
	{name: "restart, replies", restart: true, replies: true, perLoss: lateAssert},
	{name: "failover", failover: true},
	{name: "replies", replies: true},
	{name: "clock", jump: true, perLoss: untilMissed},
	{name: "all", pause: true, kill: true, cut: true, outage: true, restart: true, failover: true, replies: true, jump: true,
		overlap: lease, passing: true},
}

// loses reports whether Redis may lose data.
func (c class) loses() bool { return c.restart || c.failover || c.jump }

// delays reports whether commands may come late.
func (c class) delays() bool { return c.pause || c.cut || c.outage || c.replies }

// faults are one to four at random times.
func (w *world) faults() {
	c := w.class
	var kinds []func()
	add := func(has bool, do func()) {
		if has {
			kinds = append(kinds, do)
		}
	}
	anEdge := func() *edge { return w.edges[w.random.IntN(worldEdges)] }
	add(c.pause, func() { w.pause(anEdge(), w.upTo(61*time.Second)) })
	add(c.kill, func() { w.kill(anEdge()) })
	add(c.cut, func() { e := anEdge(); e.cut = max(e.cut, w.now+w.upTo(91*time.Second)) })
	add(c.outage, func() {
		if d := w.upTo(91 * time.Second); w.chance(50) {
			w.stall(d)
		} else {
			w.crash(d, func() {})
		}
	})
	add(c.restart, func() { w.crash(w.upTo(5*time.Second), w.loseAll) })
	add(c.failover, func() {
		since := w.now - w.upTo(lostByFailover)
		w.crash(time.Second+w.upTo(4*time.Second), func() { w.rollBack(since) })
	})
	add(c.jump, w.loseAll)
	if len(kinds) == 0 {
		return
	}
	for range 1 + w.random.IntN(4) {
		w.in(5*time.Second+w.upTo(115*time.Second), kinds[w.random.IntN(len(kinds))])
	}
}

func (w *world) loseAll() {
	w.losses++
	w.server.keys = [worldUsers]key{}
}

func (w *world) pause(e *edge, d time.Duration) {
	e.paused = max(e.paused, w.now+d)
	w.account()
	w.in(e.paused-w.now, w.account)
}

// kill ends a process; another takes its place a little later.
func (w *world) kill(e *edge) {
	if e.dead {
		return
	}
	e.dead = true
	for _, s := range w.sockets {
		if s.edge != e {
			continue
		}
		if s.live {
			s.killed = true
			w.killed[s.user] = w.now
			w.end(s)
		}
		w.again(s.user)
	}
	w.sockets = slices.DeleteFunc(w.sockets, func(s *socket) bool { return s.edge == e })
	w.in(time.Second+w.upTo(4*time.Second), func() {
		anew := &edge{place: e.place, cut: e.cut}
		w.edges[e.place] = anew
		w.beat(anew)
	})
}

// simulate runs a world until all is calm.
func simulate(c class, m mutant, seed uint64) *world {
	w := &world{class: c, mutant: m, random: rand.New(rand.NewPCG(seed, 1))}
	w.server.run = 1
	for n := range w.edges {
		w.edges[n] = &edge{place: n, run: 1}
	}
	for user := range worldUsers {
		for range worldClients {
			w.in(1+w.upTo(time.Second), func() { w.connect(user) })
		}
	}
	w.faults()
	w.in(2*time.Minute, func() { w.calm = true })
	for len(w.queue.events) > 0 {
		e := w.queue.take()
		w.now = e.at
		e.do()
	}
	for user := range worldUsers {
		if k := w.server.key(w.now, user); k.owner != nil && !k.owner.edge.dead && !k.revived && !k.late {
			w.breaks("L9", "a key is left")
		}
	}
	for _, s := range w.sockets {
		w.breaks("L9", "a socket never ended: %+v", s.machine)
	}
	if most := c.overlap + time.Duration(w.losses)*c.perLoss; w.overlap > most {
		w.breaks("L1 to L3", "a user had two live sockets for %v, at most %v is allowed", w.overlap, most)
	}
	if w.falsely > 0 {
		w.breaks("L7", "refused %d times without cause", w.falsely)
	}
	if w.lockOut > 2*testTiming.ttl {
		w.breaks("L7", "refused by a socket that had ended %v before", w.lockOut)
	}
	if w.passing > 0 && !c.passing {
		w.breaks("L7", "refused %d times by a command that came late", w.passing)
	}
	return w
}

// Whatever fails, the invariants L1 to L7 and L9 hold as far as the model can
// tell: the edges' machines and guards are real, what is around them is not.
func TestModel(t *testing.T) {
	for _, c := range classes {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var all report
			doubled := 0
			for seed := range uint64(*seeds) {
				w := simulate(c, noMutant, seed)
				for _, b := range w.broken {
					t.Errorf("seed %d: %s", seed, b)
				}
				if w.doubles > 0 {
					doubled++
				}
				all.add(w.report)
			}
			t.Logf("%d runs, %d sockets, %d refused (%d without cause, %d by a late command), %d closed; guard %d times; two live sockets in %d runs, %v at most; an ended socket refuses others for %v at most; back %v after a kill at most",
				*seeds, all.grants, all.refusals, all.falsely, all.passing, all.closes, all.guards, doubled,
				all.overlap.Round(time.Millisecond), all.lockOut.Round(time.Millisecond), all.reentry.Round(time.Millisecond))
		})
	}
}

func (r *report) add(o report) {
	r.grants += o.grants
	r.refusals += o.refusals
	r.closes += o.closes
	r.falsely += o.falsely
	r.passing += o.passing
	r.guards += o.guards
	r.overlap = max(r.overlap, o.overlap)
	r.lockOut = max(r.lockOut, o.lockOut)
	r.reentry = max(r.reentry, o.reentry)
}

// The model notices when a part of the lock is switched off.
func TestModelMutants(t *testing.T) {
	for name, mutated := range map[string]struct {
		mutant mutant
		by     []string // classes
	}{
		"no self-fence":    {noFence, []string{"cut", "all"}},
		"no guard":         {noGuard, []string{"restart", "failover"}},
		"one-step refresh": {oneStepRefresh, []string{"cut"}},
	} {
		for _, c := range classes {
			if !slices.Contains(mutated.by, c.name) {
				continue
			}
			t.Run(name+", "+c.name, func(t *testing.T) {
				t.Parallel()
				for seed := range uint64(*seeds) {
					if w := simulate(c, mutated.mutant, seed); len(w.broken) > 0 {
						t.Logf("noticed by seed %d: %s", seed, w.broken[0])
						return
					}
				}
				t.Errorf("not noticed in %d runs", *seeds)
			})
		}
	}
}
