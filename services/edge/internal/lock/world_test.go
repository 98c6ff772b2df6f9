package lock

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/cutemarkets/relay/services/edge/internal/dialect"
)

const (
	worldEdges   = 3
	worldUsers   = 4
	worldClients = 2                      // of one user; each wants a socket all the time
	longestWay   = 200 * time.Millisecond // of a request or a reply
	resuming     = 5 * time.Millisecond   // a pause ends: until the deadlines are looked at
	longestGap   = 4800 * time.Millisecond
)

// mutant is a part of the lock that is switched off.
type mutant uint8

const (
	noMutant       mutant = iota
	noFence               // a holder does not look at its deadline
	noGuard               // a loss is answered by nothing but setting the lock anew
	oneStepRefresh        // a refresh sets a lock that is missing
)

// world is a discrete-event model: users with two clients each, edges with the
// real machine and the real guard, a Redis, and a network that delays and loses
// requests and replies. What the manager does around machine and guard (wheel,
// retries, beats, connections) is modelled here.
type world struct {
	class  class
	mutant mutant
	random *rand.Rand
	now    time.Duration
	queue  timeline
	calm   bool // no more faults, no more sockets

	server  server
	edges   [worldEdges]*edge
	sockets []*socket                 // whose machines have not ended
	doubled [worldUsers]time.Duration // since when the user has two live sockets
	killed  [worldUsers]time.Duration // when the user's live socket was killed

	report
}

// report is what came of a run.
type report struct {
	grants, refusals int
	closes           int           // sockets that lost their lock
	doubles          int           // times that a user had two live sockets
	overlap          time.Duration // the longest of them
	falsely          int           // refused though no socket of the user had or wanted the lock
	passing          int           // refused by a command that came late, until it is deleted again
	lockOut          time.Duration // the longest that a socket refused others after its end
	reentry          time.Duration // the longest from a kill until the user was back
	guards           int
	losses           int      // of all locks
	broken           []string // invariants
}

// edge is a process; a killed one is followed by another in its place.
type edge struct {
	place   int
	dead    bool
	paused  time.Duration // it stands still until then
	cut     time.Duration // Redis is not reached until then
	guard   guard
	run     int // of Redis, as far as is known; 0: none
	beating bool
}

type socket struct {
	machine
	edge    *edge
	user    int
	live    bool
	ended   time.Duration // when it was live last
	killed  bool          // by kill -9 while live
	dueAt   time.Duration
	planned int // of the plans made the last one counts
}

func (w *world) upTo(limit time.Duration) time.Duration {
	return time.Duration(w.random.Int64N(int64(limit)))
}

func (w *world) chance(percent int) bool { return w.random.IntN(100) < percent }
func (w *world) way() time.Duration {
	if w.chance(90) {
		return time.Millisecond + w.upTo(20*time.Millisecond)
	}
	return time.Millisecond + w.upTo(longestWay-time.Millisecond)
}

func (w *world) spread(d time.Duration) time.Duration { return d*8/10 + w.upTo(d*4/10) }

func (w *world) breaks(invariant, format string, args ...any) {
	if len(w.broken) < 3 {
		w.broken = append(w.broken, fmt.Sprintf("%s at %v: ", invariant, w.now)+fmt.Sprintf(format, args...))
	}
}

func (w *world) in(d time.Duration, do func()) { w.queue.add(w.now+max(d, 0), do) }

// awake runs do once the edge runs; what waits at the end of a pause comes in any
// order.
func (w *world) awake(e *edge, do func()) {
	switch {
	case e.dead:
	case w.now < e.paused:
		w.in(e.paused-w.now+w.upTo(resuming), func() { w.awake(e, do) })
	default:
		do()
	}
}

// call sends an operation and delivers exactly one reply to the socket.
func (w *world) call(s *socket, o op) {
	s.send(w.now, o)
	q := &message{socket: s, op: o, run: s.edge.run, epoch: w.server.epoch, until: w.now + testTiming.ttl}
	w.in(testTiming.timeout, func() { w.answer(q, unknown) })
	w.travel(q)
}

// answer delivers what came of a request; the first answer counts.
func (w *world) answer(q *message, got outcome) {
	if !q.answered {
		q.answered = true
		w.awake(q.socket.edge, func() { w.replied(q.socket, q.op, got) })
	}
}

// replied is Manager.exchange and Manager.done.
func (w *world) replied(s *socket, o op, got outcome) {
	if o == opAcquire && w.mutant != noGuard && s.edge.guard.refuses(w.now) {
		s.release(w.now)
	}
	confirmed := s.confirmed(testTiming)
	ev := s.reply(testTiming, w.now, o, got)
	w.observe(s, ev)
	if got == other && s.live {
		w.breaks("L6", "a socket lives on though another has its lock")
	}
	if ev.missing && w.mutant != noGuard {
		w.begin(s.edge, s.edge.guard.missing(w.now, confirmed))
	}
	if (o == opRefresh || o == opReacquire) && (got == refused || got == unknown) {
		s.dueAt = min(s.dueAt, w.now+w.spread(lastRetry*8/10))
	}
	if o == opAcquire && !s.live && s.state != acquiring {
		w.again(s.user)
	}
	w.turn(s)
}

// begin is Manager.assertAll.
func (w *world) begin(e *edge, t trigger) {
	if t == noTrigger {
		return
	}
	w.guards++
	for _, s := range w.sockets {
		if s.edge == e {
			s.dueAt = min(s.dueAt, e.guard.assertAt(s.user*buckets/worldUsers))
			w.plan(s)
		}
	}
}

// turn does what is to be done for a socket now.
func (w *world) turn(s *socket) {
	if w.mutant != noFence {
		w.observe(s, s.tick(testTiming, w.now))
	}
	due := w.now >= s.dueAt
	if o := s.next(w.now, due); o != opNone {
		if o == opRefresh {
			s.dueAt = w.now + w.spread(4*time.Second)
		}
		w.call(s, o)
	}
	w.plan(s)
}

// plan has the wheel turn when the socket's next time has come.
func (w *world) plan(s *socket) {
	s.planned++
	plan := s.planned
	var at time.Duration
	switch {
	case s.state == gone:
		w.sockets = slices.DeleteFunc(w.sockets, func(o *socket) bool { return o == s })
		return
	case s.live && w.mutant != noFence:
		at = s.at
		if !s.busy {
			at = min(at, s.dueAt)
		}
	case s.busy:
		return
	case s.live:
		at = s.dueAt
	default:
		at = s.at
	}
	w.in(at-w.now+w.upTo(wheelTick), func() {
		w.awake(s.edge, func() {
			if s.planned == plan {
				w.turn(s)
			}
		})
	})
}

// observe is what the engine does with what the lock tells.
func (w *world) observe(s *socket, ev event) {
	switch {
	case ev.granted:
		w.granted(s)
	case ev.denied == dialect.DuplicateConnection:
		w.refusals++
	case ev.lost != dialect.OK:
		w.closes++
		w.end(s)
		w.again(s.user)
	case ev.released:
		if k := w.server.key(w.now, s.user); k.owner == s && s.state == gone && !k.revived && !k.late {
			w.breaks("L4", "released is told and the key is there")
		}
		if s.live {
			w.breaks("L4", "released is told while the socket is live")
		}
	}
}

func (w *world) granted(s *socket) {
	s.live = true
	s.dueAt = w.now + w.upTo(4*time.Second)
	w.grants++
	w.account()
	w.back(s.user)
	stay := 100*time.Millisecond + w.upTo(20*time.Second)
	if w.chance(50) {
		stay += w.upTo(70 * time.Second)
	}
	w.in(stay, func() { w.leave(s) })
}

// back judges how long it took since the user's socket was killed.
func (w *world) back(user int) {
	killed := w.killed[user]
	if killed == 0 {
		return
	}
	w.killed[user] = 0
	after := w.now - killed
	w.reentry = max(w.reentry, after)
	if least := testTiming.ttl - longestGap - wheelTick - 2*longestWay; after < least && !w.class.loses() {
		w.breaks("L5", "back %v after a kill", after)
	}
}

// leave ends a socket by its client; its edge learns of that when it runs.
func (w *world) leave(s *socket) {
	w.awake(s.edge, func() {
		if s.live {
			w.end(s)
			s.release(w.now)
			w.again(s.user)
			w.turn(s)
		}
	})
}

func (w *world) end(s *socket) {
	if s.live {
		s.live, s.ended = false, w.now
		w.account()
	}
}

// again lets a client try once more after a while.
func (w *world) again(user int) {
	if !w.calm {
		w.in(200*time.Millisecond+w.upTo(8*time.Second), func() { w.connect(user) })
	}
}

func (w *world) connect(user int) {
	e := w.edges[w.random.IntN(worldEdges)]
	switch {
	case w.calm:
	case e.dead || w.now < e.paused || w.mutant != noGuard && e.guard.refuses(w.now):
		w.again(user)
	default:
		s := &socket{edge: e, user: user, ended: w.now}
		w.sockets = append(w.sockets, s)
		w.call(s, opAcquire)
	}
}

// account follows how many live sockets each user has on edges that run. Nothing
// is delivered to one whose lease has ended: Manager.Fence comes before.
func (w *world) account() {
	for user := range w.doubled {
		live := 0
		for _, s := range w.sockets {
			fenced := w.now >= s.at && w.mutant != noFence
			if s.user == user && s.live && !fenced && !s.edge.dead && w.now >= s.edge.paused {
				live++
			}
		}
		since := w.doubled[user]
		switch {
		case live > 1 && since == 0:
			w.doubled[user] = w.now
		case live < 2 && since != 0:
			w.doubled[user] = 0
			if w.now > since {
				w.doubles++
				w.overlap = max(w.overlap, w.now-since)
			}
		}
	}
}

// refusedBy judges that an acquire met another's key.
func (w *world) refusedBy(user int, k key) {
	for _, s := range w.sockets {
		if s.user == user && s.live {
			return
		}
	}
	owner := k.owner
	after := w.now - owner.ended
	switch {
	case k.revived: // by a failover
	case owner.killed:
		if limit := testTiming.ttl + longestWay; after > limit && !w.class.delays() {
			w.breaks("L5", "refused %v after a kill", after)
		}
	case owner.edge.dead, owner.state == acquiring:
	case k.late:
		w.passing++
	case owner.state == gone:
		w.falsely++
	case owner.told:
		w.passing++
	default:
		w.lockOut = max(w.lockOut, after)
	}
}

// beat is Manager.beat while the edge has not met the running Redis.
func (w *world) beat(e *edge) {
	if w.class.noInfo || e.beating || e.dead {
		return
	}
	e.beating = true
	grid := beatEvery - w.now%beatEvery
	w.in((grid+time.Duration(e.place)*beatEvery/worldEdges)%beatEvery, func() { w.awake(e, func() { w.beatNow(e) }) })
}

func (w *world) beatNow(e *edge) {
	again := func(d time.Duration) {
		w.in(d, func() { w.awake(e, func() { w.beatNow(e) }) })
	}
	switch {
	case e.dead:
	case e.run == w.server.run && w.now >= w.server.down:
		e.beating = false
	case w.now < e.cut || w.now < w.server.stalled || w.now < w.server.down && w.server.silent:
		again(beatTimeout)
	case w.now < w.server.down:
		again(beatEvery)
	default:
		w.in(w.way()+w.way(), func() { w.awake(e, func() { w.met(e, w.server.run) }) })
		again(beatEvery)
	}
}

// met is what a new connection tells: false when the guard has begun.
func (w *world) met(e *edge, run int) bool {
	before := e.run
	e.run = run
	if before == 0 || before == run || w.class.noInfo {
		return true
	}
	if w.mutant != noGuard {
		w.begin(e, e.guard.begin(w.now, generation))
	}
	return false
}

// timeline is a heap of what happens next.
type timeline struct {
	events []happening
	order  int
}

type happening struct {
	at    time.Duration
	order int
	do    func()
}

func (a happening) before(b happening) bool { return a.at < b.at || a.at == b.at && a.order < b.order }

func (q *timeline) add(at time.Duration, do func()) {
	q.order++
	q.events = append(q.events, happening{at, q.order, do})
	for n := len(q.events) - 1; n > 0; {
		up := (n - 1) / 2
		if !q.events[n].before(q.events[up]) {
			return
		}
		q.events[n], q.events[up] = q.events[up], q.events[n]
		n = up
	}
}

func (q *timeline) take() happening {
	first, last := q.events[0], len(q.events)-1
	q.events[0] = q.events[last]
	q.events[last] = happening{}
	q.events = q.events[:last]
	for n := 0; ; {
		least := n
		for down := 2*n + 1; down <= 2*n+2 && down < last; down++ {
			if q.events[down].before(q.events[least]) {
				least = down
			}
		}
		if least == n {
			return first
		}
		q.events[n], q.events[least] = q.events[least], q.events[n]
		n = least
	}
}
