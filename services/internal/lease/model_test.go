package lease

import (
	"container/heap"
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

var seeds = flag.Int("seeds", 40, "runs of the model per class of faults")

const second = time.Second

// faults is a class of what may happen to a model.
type faults struct {
	network   bool          // requests and replies are delayed and lost, processes cut off
	pauses    bool          // processes stand still
	restarts  bool          // processes end, cleanly or not, and begin anew
	outages   bool          // Redis stands still or is away
	forgets   bool          // Redis loses everything
	failovers bool          // Redis loses the last 1.5 s
	skew      time.Duration // of the wall clocks of the processes, either way

	// What a mutant lacks.
	noGuard, noFence, noRunID, noWait, noEpoch, noYield bool
}

func (f faults) redisAlone() bool { return !f.network && !f.pauses && !f.restarts }

// world is a discrete-event model: processes that want a lease, a Redis that runs
// the scripts, and a network between them.
type world struct {
	faults
	random *rand.Rand
	now    time.Duration
	queue  events
	order  int
	calm   bool // no more faults

	redis     store
	snapshots []store       // what a failover may come back with, each 300 ms
	master    int           // which one it is: each failover makes another
	down      time.Duration // it does not answer until then

	processes []*process
	tokens    int
	last      uint64 // epoch adopted
	grants    int
	doubts    int           // times a lease came into doubt
	reproven  int           // and was proven again
	overlaps  time.Duration // the longest
	since     time.Duration // two hold the lease; 0: they do not
	problem   string
}

// store is the content of Redis.
type store struct {
	token   string
	epoch   uint64
	expires time.Duration
	counter int64 // -1: none
	server  int   // the one that was asked last; 0: not known
}

type process struct {
	machine
	token  string
	skew   time.Duration
	paused time.Duration // it stands still until then
	cut    time.Duration // it does not reach Redis until then
	works  bool
	told   bool // work has been
	passed bool // Redis has given the lease to a later epoch since, and has not lost that
	ousted bool // Redis has had another for the holder since
	dead   bool
	turns  int
}

type modelEvent struct {
	at    time.Duration
	order int
	do    func()
}

type events []modelEvent

func (e events) Len() int { return len(e) }
func (e events) Less(a, b int) bool {
	return e[a].at < e[b].at || e[a].at == e[b].at && e[a].order < e[b].order
}
func (e events) Swap(a, b int) { e[a], e[b] = e[b], e[a] }
func (e *events) Push(x any)   { *e = append(*e, x.(modelEvent)) }
func (e *events) Pop() any {
	last := (*e)[len(*e)-1]
	*e = (*e)[:len(*e)-1]
	return last
}

func (w *world) in(d time.Duration, do func()) {
	w.order++
	heap.Push(&w.queue, modelEvent{at: w.now + d, order: w.order, do: do})
}

func (w *world) upTo(limit time.Duration) time.Duration {
	return time.Duration(w.random.Int64N(int64(limit)))
}

func (w *world) chance(percent int) bool { return !w.calm && w.random.IntN(100) < percent }

func (w *world) fail(format string, args ...any) {
	if w.problem == "" {
		w.problem = fmt.Sprintf("%v: ", w.now) + fmt.Sprintf(format, args...)
	}
}

// exec does what the scripts do.
func (w *world) exec(r request, token string) answer {
	s, a := &w.redis, answer{op: r.op, outcome: absent}
	if s.token != "" && w.now >= s.expires {
		s.token = ""
	}
	free := s.token == "" || s.token == guarded
	own := s.token == token
	switch r.op {
	case opAcquire:
		return w.acquire(r, token)
	case opRefresh:
		if own && s.epoch == r.epoch {
			s.expires, s.counter, a.outcome = w.now+testTiming.ttl, max(s.counter, int64(r.epoch)), mine
		} else if !free {
			a.outcome = other
		}
	case opRestore:
		a.outcome = other
		if own && s.epoch == r.epoch || free && s.counter <= int64(r.epoch) {
			s.token, s.epoch, s.expires = token, r.epoch, w.now+testTiming.ttl
			s.counter, a.outcome = max(s.counter, int64(r.epoch)), mine
		}
	case opReclaim:
		a.outcome = w.reclaim(r, token)
	case opRelease:
		if own {
			s.token, a.outcome = "", mine
			s.counter = max(s.counter, int64(s.epoch)+1)
		} else if s.token != "" {
			a.outcome = other
		}
	}
	return a
}

func (w *world) reclaim(r request, token string) outcome {
	s := &w.redis
	moved := s.server != w.master && !w.noRunID
	if moved {
		s.server = w.master
	}
	if s.token != "" && s.token != guarded && (s.token != token || s.epoch != r.epoch) {
		if moved {
			s.expires = w.now + testTiming.ttl
		}
		return other
	}
	if s.counter > int64(r.epoch) && !w.noEpoch {
		return other
	}
	behind := s.counter < 0 || s.token == "" && s.counter < int64(r.epoch)
	s.counter = int64(r.epoch)
	if (moved || behind) && !w.noWait {
		s.token, s.epoch, s.expires = guarded, 0, w.now+testTiming.ttl
		return absent
	}
	if s.token == guarded && s.expires-w.now > testTiming.margin && !w.noWait {
		return absent
	}
	s.token, s.epoch, s.expires = token, r.epoch, w.now+testTiming.ttl
	return mine
}

func (w *world) acquire(r request, token string) answer {
	s, a := &w.redis, answer{op: opAcquire}
	lost := s.token == "" && s.counter < 0
	if s.server != w.master && !w.noRunID {
		s.server, lost = w.master, true
	}
	switch {
	case s.token != "" && s.token != token:
		if lost {
			s.expires = w.now + testTiming.ttl
		}
		a.outcome, a.epoch, a.rest = other, uint64(max(int64(s.epoch), s.counter, 0)), s.expires-w.now
		return a
	case lost && !w.noGuard:
		if s.token == "" {
			s.epoch = 0
		}
		a.outcome, a.epoch, a.rest = other, max(s.epoch, uint64(max(s.counter, 0))), testTiming.ttl
		s.token, s.epoch, s.counter, s.expires = guarded, 0, max(s.counter, 0), w.now+testTiming.ttl
		return a
	case s.token == "" && !lost && !r.ended && (r.known == 0 || s.counter <= int64(r.known)) && !w.noYield:
		a.outcome, a.epoch, a.rest = other, uint64(s.counter), testTiming.margin
		s.token, s.epoch, s.expires = guarded, 0, w.now+testTiming.margin
		return a
	case s.token == token && s.epoch >= max(uint64(r.wall.UnixMicro()), r.known+1):
	default:
		s.epoch = max(uint64(max(s.counter, 0))+1, uint64(r.wall.UnixMicro()), r.known+1)
		s.counter = int64(s.epoch)
	}
	s.token, s.expires = token, w.now+testTiming.ttl
	a.epoch = s.epoch
	return a
}

// given tells that Redis has given the lease to a process.
func (w *world) given(token string, epoch uint64) {
	for _, p := range w.processes {
		p.passed = p.passed || p.works && p.epoch < epoch
		p.ousted = p.ousted || p.token != token || p.epoch != epoch // it may be a late acquire of its own
	}
}

// forget tells that Redis has lost data.
func (w *world) forget() {
	for _, p := range w.processes {
		p.passed = false
	}
}

// call sends an operation and delivers exactly one answer to the process.
func (w *world) call(p *process, o op) {
	r := request{op: o, epoch: p.epoch, known: p.known, wall: time.UnixMilli(1e12).Add(w.now + p.skew), ended: p.sawEnd(w.now)}
	p.send(w.now)
	answered := false
	reply := func(a answer, passed bool) {
		if answered {
			return
		}
		answered = true
		w.awake(p, func() { w.replied(p, a, passed) })
	}
	if (w.now < w.down || w.now < p.cut) && w.chance(50) {
		w.in(time.Millisecond, func() { reply(answer{op: o, outcome: refused}, false) })
		return
	}
	w.in(opTimeout, func() { reply(answer{op: o, outcome: unknown}, false) })
	there, back := time.Millisecond+w.upTo(20*time.Millisecond), time.Millisecond+w.upTo(20*time.Millisecond)
	lose, lost := false, false
	if w.network {
		lose, lost = w.chance(5), w.chance(5)
		if w.chance(10) {
			there += w.upTo(2 * second)
		}
		if w.chance(10) {
			back += w.upTo(2 * second)
		}
	}
	if lose || w.now < p.cut {
		return
	}
	master := w.master
	w.in(there, func() {
		w.arrive(master, func() {
			passed := p.passed
			a := w.exec(r, p.token)
			if a.outcome == mine && o != opRelease {
				w.given(p.token, w.redis.epoch)
			}
			if !lost && w.now >= p.cut {
				w.in(back, func() { reply(a, passed) })
			}
		})
	})
}

// arrive carries out a request: when Redis goes on, if it stands still, and not at
// all if it is another one by then.
func (w *world) arrive(master int, do func()) {
	switch {
	case master != w.master:
	case w.now < w.down:
		w.in(w.down-w.now, func() { w.arrive(master, do) })
	default:
		do()
	}
}

// awake runs do once the process runs, after it has looked at the clock.
func (w *world) awake(p *process, do func()) {
	switch {
	case p.dead:
	case w.now < p.paused:
		w.in(p.paused-w.now, func() { w.awake(p, do) })
	default:
		w.observe(p, p.tick(w.now))
		do()
		w.turn(p)
	}
}

func (w *world) observe(p *process, ev event) {
	switch {
	case ev.granted:
		if p.works {
			w.fail("%s: two works in one process", p.token)
		}
		if p.epoch <= w.last {
			w.fail("%s adopts epoch %d after %d", p.token, p.epoch, w.last)
		}
		p.works, p.told, p.passed = true, false, false
		p.ousted = w.redis.token != p.token || w.redis.epoch != p.epoch
		w.last = p.epoch
		w.grants++
	case ev.lost != nil:
		if !p.ousted {
			w.fail("%s has lost the lease and nobody has had it since", p.token)
		}
		p.told = true
		w.in(w.upTo(2*second), func() { w.end(p) })
	case ev.doubt:
		w.doubts++
	case ev.proven:
		w.reproven++
	}
}

// replied gives a process an answer. A holder that hears from Redis does not go on
// if Redis knew that another had had the lease since.
func (w *world) replied(p *process, a answer, passed bool) {
	w.observe(p, p.reply(w.now, a))
	if passed && p.works && !p.told && a.op != opAcquire {
		w.fail("%s goes on with epoch %d after another had the lease", p.token, p.epoch)
	}
}

// end lets work return.
func (w *world) end(p *process) {
	w.awake(p, func() {
		if p.works {
			p.works = false
			p.returned(w.now)
		}
	})
}

// turn does what Run does between two inputs.
func (w *world) turn(p *process) {
	if p.state == gone {
		p.dead = true
		return
	}
	if o := p.next(w.now); o != opNone {
		w.call(p, o)
	}
	p.turns++
	turn, at := p.turns, p.wake()
	if at == never {
		return
	}
	w.in(max(at-w.now, time.Millisecond), func() {
		if turn == p.turns {
			w.awake(p, func() {})
		}
	})
}

func (w *world) join() {
	w.tokens++
	skew := time.Duration(0)
	if w.skew > 0 {
		skew = w.upTo(2*w.skew) - w.skew
	}
	p := &process{machine: newTestMachine(w.random.Uint64()), token: fmt.Sprint("token-", w.tokens), skew: skew}
	w.processes = append(w.processes, p)
	w.turn(p)
}

// proven reports whether a process holds the lease and knows it.
func (w *world) proven(p *process) bool {
	return p.works && !p.told && !p.dead && w.now >= p.paused && (w.noFence || p.state != doubtful && w.now < p.endAt)
}

// check measures for how long two hold a lease that is proven.
func (w *world) check() {
	live := 0
	for _, p := range w.processes {
		if w.proven(p) {
			live++
		}
	}
	if live < 2 {
		w.since = 0
		return
	}
	if w.since == 0 {
		w.since = w.now
	}
	w.overlaps = max(w.overlaps, w.now-w.since+time.Millisecond)
}

// strike lets something happen to somebody.
func (w *world) strike() {
	if w.calm {
		return
	}
	p := w.processes[w.random.IntN(len(w.processes))]
	if w.network && w.chance(30) {
		p.cut = w.now + w.upTo(12*second)
	}
	if w.pauses && w.chance(30) {
		p.paused = w.now + w.upTo(12*second)
	}
	if w.restarts && w.chance(30) && !p.dead {
		if w.chance(50) {
			p.dead, p.works = true, false // kill -9
		} else {
			w.awake(p, func() {
				p.stop(w.now)
				if p.works {
					w.in(w.upTo(3*second), func() { w.end(p) })
				}
			})
		}
		w.join()
	}
	if w.outages && w.chance(30) {
		w.down = w.now + w.upTo(12*second)
	}
	if w.forgets && w.chance(30) {
		w.redis = store{counter: -1}
		w.forget()
	}
	if w.failovers && w.chance(30) && w.now >= w.down {
		w.redis = w.snapshots[w.random.IntN(len(w.snapshots))]
		w.down = w.now + second + w.upTo(2*second)
		w.master++
		w.given(w.redis.token, 0) // again
		w.forget()
	}
	w.in(w.upTo(6*second), w.strike)
}

func (w *world) snapshot() {
	w.snapshots = append(w.snapshots, w.redis)
	w.snapshots = w.snapshots[max(0, len(w.snapshots)-5):]
	if !w.calm {
		w.in(300*time.Millisecond, w.snapshot)
	}
}

// play runs a model for two minutes with faults and half a minute without, after
// which one must hold the lease.
func play(f faults, seed uint64) *world {
	w := &world{faults: f, random: rand.New(rand.NewPCG(seed, 1)), redis: store{counter: -1}, master: 1}
	for range 3 {
		w.join()
	}
	w.snapshot()
	begin := w.upTo(10 * second)
	if f.redisAlone() {
		begin += 10 * second // when the first lease has been given
	}
	w.in(begin, w.strike)
	w.in(120*second, func() { w.calm = true })
	for w.now < 160*second && w.queue.Len() > 0 && w.problem == "" {
		e := heap.Pop(&w.queue).(modelEvent)
		w.now = e.at
		e.do()
		w.check()
	}
	holders := 0
	for _, p := range w.processes {
		if p.works && !p.told && !p.dead {
			holders++
			if !w.proven(p) {
				w.fail("%s is in doubt in the end", p.token)
			}
		}
	}
	if holders != 1 {
		w.fail("%d hold the lease in the end", holders)
	}
	return w
}

// Two never hold the lease proven at a time, epochs rise from one work to the next,
// a holder goes on until another has been given the lease and ends when it hears of
// that, and when faults end one holds it, proven: whatever is delayed, lost, paused,
// restarted or forgotten. Faults of Redis alone do not change the holder.
func TestModel(t *testing.T) {
	skew := testTiming.ttl/2 - 300*time.Millisecond
	for name, f := range map[string]faults{
		"network":   {network: true, skew: time.Hour},
		"pauses":    {pauses: true, skew: time.Hour},
		"restarts":  {restarts: true, skew: time.Hour},
		"outages":   {outages: true, skew: time.Hour},
		"no losses": {network: true, pauses: true, restarts: true, outages: true, skew: time.Hour},
		"forgets":   {forgets: true, skew: skew},
		"all but failovers": {network: true, pauses: true, restarts: true, outages: true, forgets: true,
			skew: skew},
		"failovers":             {failovers: true, skew: skew},
		"outages with losses":   {outages: true, forgets: true, skew: skew},
		"outages and failovers": {outages: true, failovers: true, skew: skew},
		"all": {network: true, pauses: true, restarts: true, outages: true, forgets: true, failovers: true,
			skew: skew},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			grants, doubts, reproven := 0, 0, 0
			for seed := range uint64(*seeds) {
				w := play(f, seed)
				if w.problem != "" || w.overlaps > 0 {
					t.Fatalf("seed %d: two held the lease for %v at a time; %s", seed, w.overlaps, w.problem)
				}
				if w.grants != 1 && f.redisAlone() {
					t.Fatalf("seed %d: %d leases, though Redis alone failed", seed, w.grants)
				}
				grants, doubts, reproven = grants+w.grants, doubts+w.doubts, reproven+w.reproven
			}
			n := float64(*seeds)
			t.Logf("%d runs, %.1f leases each, %.1f times in doubt, of which %.1f proven again",
				*seeds, float64(grants)/n, float64(doubts)/n, float64(reproven)/n)
		})
	}
}

// The model must notice when a part is missing.
func TestModelMutants(t *testing.T) {
	for name, f := range map[string]faults{
		"no guard":                    {forgets: true, noGuard: true},
		"no run id":                   {failovers: true, network: true, noRunID: true},
		"proof beyond the deadline":   {network: true, noFence: true},
		"reclaims whatever the epoch": {network: true, restarts: true, pauses: true, outages: true, noEpoch: true},
		"reclaims what is guarded":    {network: true, forgets: true, noWait: true},
		"takes what it saw not end":   {outages: true, noYield: true},
	} {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(*seeds) {
				if w := play(f, seed); w.overlaps > 0 || w.problem != "" || f.noYield && w.grants > 1 {
					t.Logf("seed %d: two held the lease for %v at a time; %s", seed, w.overlaps, w.problem)
					return
				}
			}
			t.Error("the model noticed nothing")
		})
	}
}
