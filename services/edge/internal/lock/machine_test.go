package lock

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/cutemarkets/relay/services/edge/internal/dialect"
)

var testTiming = timing{ttl: 15 * time.Second, margin: time.Second, timeout: time.Second}

// script drives a machine through operations that take no time.
type step struct {
	at   time.Duration
	do   string // "release", "tick", or the operation expected from next
	got  outcome
	want event
	end  state
}

func TestMachine(t *testing.T) {
	ops := map[string]op{"acquire": opAcquire, "refresh": opRefresh, "reacquire": opReacquire, "delete": opRelease}
	granted, released := event{granted: true}, event{released: true}
	duplicate, unavailable := event{denied: dialect.DuplicateConnection}, event{denied: dialect.LockUnavailable}
	taken, silent := event{lost: dialect.LockLost}, event{lost: dialect.LockUnavailable}
	s := time.Second
	for name, steps := range map[string][]step{
		"hold and release": {{0, "acquire", mine, granted, held}, {4 * s, "refresh", mine, event{}, held},
			{17 * s, "tick", 0, event{}, held}, {17 * s, "release", 0, event{}, releasing}, {17 * s, "delete", mine, released, gone}},
		"held by another":                 {{0, "acquire", other, duplicate, gone}},
		"Redis away":                      {{0, "acquire", refused, event{}, acquiring}, {0, "acquire", refused, unavailable, gone}},
		"outcome unknown, then ours":      {{0, "acquire", unknown, event{}, acquiring}, {s, "acquire", mine, granted, held}},
		"outcome unknown, then another's": {{0, "acquire", unknown, event{}, acquiring}, {s, "acquire", other, duplicate, releasing}},
		"outcome unknown, then away":      {{0, "acquire", unknown, event{}, acquiring}, {s, "acquire", refused, unavailable, releasing}},
		"away, then there":                {{0, "acquire", refused, event{}, acquiring}, {s, "acquire", mine, granted, held}},
		"given up between two tries":      {{0, "acquire", refused, event{}, acquiring}, {s, "release", 0, event{}, releasing}, {s, "delete", absent, released, gone}},
		"outcome unknown, the command ran": {{0, "acquire", unknown, event{}, acquiring}, {0, "acquire", unknown, unavailable, releasing},
			{s, "delete", mine, released, releasing}, {2 * s, "delete", absent, event{}, releasing}, {15 * s, "delete", absent, event{}, gone}},
		"outcome unknown, the command comes late": {{0, "acquire", unknown, event{}, acquiring}, {0, "acquire", unknown, unavailable, releasing},
			{s, "delete", absent, released, releasing}, {2 * s, "delete", mine, event{}, releasing}},
		"outcome unknown, the command never comes": {{0, "acquire", unknown, event{}, acquiring}, {0, "acquire", unknown, unavailable, releasing},
			{s, "delete", absent, released, releasing}, {16 * s, "delete", absent, event{}, gone}},
		"outcome unknown, another has it": {{0, "acquire", unknown, event{}, acquiring}, {0, "acquire", unknown, unavailable, releasing},
			{s, "delete", other, released, releasing}, {2 * s, "delete", mine, event{}, releasing}},
		"refresh fails until the deadline": {{0, "acquire", mine, granted, held}, {4 * s, "refresh", unknown, event{}, held},
			{14*s - 1, "tick", 0, event{}, held}, {14 * s, "tick", 0, silent, releasing}, {14 * s, "delete", mine, released, gone}},
		"taken by another": {{0, "acquire", mine, granted, held}, {4 * s, "refresh", other, taken, gone}},
		"missing, set anew": {{0, "acquire", mine, granted, held}, {4 * s, "refresh", absent, event{}, missing},
			{4 * s, "reacquire", mine, event{}, held}, {17 * s, "tick", 0, event{}, held}, {18 * s, "tick", 0, silent, releasing}},
		"missing, taken by another": {{0, "acquire", mine, granted, held}, {4 * s, "refresh", absent, event{}, missing},
			{4 * s, "reacquire", other, taken, gone}},
		"missing, Redis away again": {{0, "acquire", mine, granted, held}, {4 * s, "refresh", absent, event{}, missing},
			{4 * s, "reacquire", refused, event{}, held}, {14 * s, "tick", 0, silent, releasing}},
		"missing, then released": {{0, "acquire", mine, granted, held}, {4 * s, "refresh", absent, event{}, missing},
			{4 * s, "release", 0, event{}, releasing}, {4 * s, "delete", absent, released, gone}},
		"set anew with an unknown outcome, then released": {{0, "acquire", mine, granted, held}, {4 * s, "refresh", absent, event{}, missing},
			{4 * s, "reacquire", unknown, event{}, held}, {4 * s, "release", 0, event{}, releasing},
			{4 * s, "delete", absent, released, releasing}, {5 * s, "delete", mine, event{}, releasing}},
		"release retried": {{0, "acquire", mine, granted, held}, {s, "release", 0, event{}, releasing},
			{s, "delete", unknown, event{}, releasing}, {2 * s, "delete", refused, event{}, releasing},
			{3 * s, "release", 0, event{}, releasing}, {3 * s, "delete", absent, released, gone}},
		"release given up when Redis has dropped the key": {{0, "acquire", mine, granted, held}, {s, "release", 0, event{}, releasing},
			{s, "delete", unknown, event{}, releasing}, {16 * s, "delete", unknown, released, gone}},
	} {
		t.Run(name, func(t *testing.T) {
			var m machine
			for n, st := range steps {
				now := st.at
				var got event
				switch st.do {
				case "release":
					m.release(now)
				case "tick":
					got = m.tick(now)
				default:
					if o := m.next(now, true); o != ops[st.do] {
						t.Fatalf("step %d: next = %d, want %s", n, o, st.do)
					}
					m.send(now, ops[st.do])
					if o := m.next(now, true); o != opNone {
						t.Fatalf("step %d: a second operation in flight: %d", n, o)
					}
					got = m.reply(testTiming, now, ops[st.do], st.got)
				}
				if got != st.want || m.state != st.end {
					t.Fatalf("step %d: %s gave %+v, state %d; want %+v, state %d", n, st.do, got, m.state, st.want, st.end)
				}
			}
		})
	}
}

func TestMachineReleasedInFlight(t *testing.T) {
	const now = time.Second
	for got, want := range map[outcome]state{mine: releasing, unknown: releasing, other: gone, refused: gone} {
		var m machine
		m.send(now, opAcquire)
		m.release(now)
		if ev := m.reply(testTiming, now, opAcquire, got); ev.granted || m.state != want {
			t.Errorf("acquire %d: %+v, state %d", got, ev, m.state)
		}
	}
	var m machine
	m.send(now, opAcquire)
	m.reply(testTiming, now, opAcquire, mine)
	m.send(now, opRefresh)
	m.release(now)
	if o := m.next(now, true); o != opNone {
		t.Fatalf("the delete overtakes the refresh: %d", o)
	}
	m.reply(testTiming, now, opRefresh, mine)
	if o := m.next(now, true); o != opRelease {
		t.Fatalf("next = %d, want the delete", o)
	}
}

// world is a discrete-event model: one user, some edges, a Redis that loses no
// data, and a network that delays and loses requests and replies.
type world struct {
	t      *rapid.T
	random *rand.Rand
	now    time.Duration
	queue  events
	order  int

	token   string // in Redis
	expires time.Duration
	down    time.Duration // Redis is not reached until then
	calm    bool          // no more faults, no more sockets

	sockets []*socket // whose machines have not ended
	number  int
	grants  int
}

type socket struct {
	machine
	token  string
	live   bool
	paused time.Duration // its edge stands still until then
	dueAt  time.Duration
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

// exec carries out an operation in Redis.
func (w *world) exec(o op, token string) outcome {
	if w.token != "" && w.now >= w.expires {
		w.token = ""
	}
	switch {
	case w.token == "" && (o == opAcquire || o == opReacquire):
		w.token, w.expires = token, w.now+testTiming.ttl
		return mine
	case w.token == "":
		return absent
	case w.token != token:
		return other
	case o == opRefresh:
		w.expires = w.now + testTiming.ttl
	case o == opRelease:
		w.token = ""
	}
	return mine
}

// call sends an operation and delivers exactly one reply to the socket.
func (w *world) call(s *socket, o op) {
	s.send(w.now, o)
	answered := false
	answer := func(got outcome) {
		if answered {
			return
		}
		answered = true
		w.awake(s, func() {
			w.observe(s, s.reply(testTiming, w.now, o, got))
			if o == opRefresh && (got == refused || got == unknown) {
				s.dueAt = w.now + 800*time.Millisecond
			}
		})
	}
	if w.now < w.down {
		w.in(time.Millisecond, func() { answer(refused) })
		return
	}
	w.in(testTiming.timeout, func() { answer(unknown) })
	if w.chance(5) {
		return // the request is lost
	}
	way := time.Millisecond + w.upTo(200*time.Millisecond)
	if w.chance(5) {
		way += w.upTo(4 * time.Second) // Redis stands still meanwhile
	}
	lost := w.chance(5)
	w.in(way, func() {
		got := w.exec(o, s.token)
		if !lost {
			w.in(time.Millisecond+w.upTo(200*time.Millisecond), func() { answer(got) })
		}
	})
}

// awake runs do once the socket's edge runs; the first code to run after a
// pause asks for the deadline, as writers do with Lease.Valid.
func (w *world) awake(s *socket, do func()) {
	if w.now < s.paused {
		w.in(s.paused-w.now, func() { w.awake(s, do) })
		return
	}
	w.observe(s, s.tick(w.now))
	do()
}

func (w *world) observe(s *socket, ev event) {
	switch {
	case ev.granted:
		s.live = true
		w.grants++
	case ev.lost != dialect.OK:
		s.live = false
	case ev.released && s.live:
		w.t.Fatalf("%v: %s released while live", w.now, s.token)
	}
	w.check()
}

func (w *world) check() {
	live := 0
	for _, s := range w.sockets {
		if s.live && w.now >= s.paused && w.now < s.at {
			live++
		}
		if s.live && w.now >= s.paused && w.now > s.at+50*time.Millisecond {
			w.t.Fatalf("%v: %s is live after its deadline", w.now, s.token)
		}
	}
	if live > 1 {
		w.t.Fatalf("%v: %d live sockets of one user", w.now, live)
	}
}

// wheel turns for a socket until its machine is gone.
func (w *world) wheel(s *socket) {
	w.awake(s, func() {
		due := w.now >= s.dueAt
		if o := s.next(w.now, due); o != opNone {
			if o == opRefresh {
				s.dueAt = w.now + 3200*time.Millisecond + w.upTo(1600*time.Millisecond)
			}
			w.call(s, o)
		}
		if s.state != gone {
			w.in(20*time.Millisecond, func() { w.wheel(s) })
			return
		}
		w.sockets = slices.DeleteFunc(w.sockets, func(o *socket) bool { return o == s })
	})
}

// connect makes a socket that stays a while, and the next one after a while.
func (w *world) connect() {
	if w.calm {
		return
	}
	s := &socket{token: fmt.Sprint("token-", w.number)}
	s.dueAt = w.now + w.upTo(4*time.Second)
	w.number++
	w.sockets = append(w.sockets, s)
	w.wheel(s)
	w.in(100*time.Millisecond+w.upTo(30*time.Second), func() {
		w.awake(s, func() {
			s.live = false
			s.release(w.now)
		})
	})
	w.in(w.upTo(3*time.Second), w.connect)
}

func (w *world) faults() {
	if w.calm {
		return
	}
	if w.chance(30) {
		w.down = w.now + w.upTo(40*time.Second)
	}
	for _, s := range w.sockets {
		if s.state != gone && w.chance(10) {
			s.paused = max(s.paused, w.now+w.upTo(40*time.Second))
		}
	}
	w.in(w.upTo(20*time.Second), w.faults)
}

// Without loss of data in Redis there are never two live sockets of one user,
// whatever is delayed, lost or paused (L1); no socket outlives its deadline;
// and in the end nothing is left in Redis (L9) and every machine has ended.
func TestMachineModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		seed := rapid.Uint64().Draw(t, "seed")
		w := &world{t: t, random: rand.New(rand.NewPCG(seed, 1))}
		w.connect()
		w.in(w.upTo(20*time.Second), w.faults)
		w.in(2*time.Minute, func() { w.calm = true })
		for w.queue.Len() > 0 {
			e := heap.Pop(&w.queue).(modelEvent)
			w.now = e.at
			e.do()
			w.check()
		}
		if w.exec(opRefresh, "nobody") != absent {
			t.Fatalf("%s is left in Redis", w.token)
		}
		for _, s := range w.sockets {
			t.Fatalf("%s never ended: state %d", s.token, s.state)
		}
		if w.grants == 0 {
			t.Fatal("the model granted nothing")
		}
	})
}
