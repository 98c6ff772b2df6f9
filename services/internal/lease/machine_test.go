package lease

import (
	"errors"
	"math/rand/v2"
	"testing"
	"time"
)

var opNames = [opEnd]string{opNone: "nothing", opAcquire: "acquire", opRefresh: "refresh", opRestore: "restore", opReclaim: "reclaim", opRelease: "release"}

var testTiming = timing{
	ttl: 5 * time.Second, margin: time.Second, refresh: 500 * time.Millisecond,
	retry: 200 * time.Millisecond, timeout: opTimeout, stop: stopTimeout,
}

func newTestMachine(seed uint64) machine {
	return machine{timing: testTiming, random: rand.New(rand.NewPCG(seed, 2))}
}

// step is an input, or an operation that takes no time; the machine must want it.
type step struct {
	at   time.Duration
	do   string // "stop", "tick", "returned", or the operation
	got  answer
	want event
	end  state
}

func TestMachine(t *testing.T) {
	ops := map[string]op{"acquire": opAcquire, "refresh": opRefresh, "restore": opRestore, "reclaim": opReclaim, "release": opRelease}
	s := time.Second
	ours, theirs := answer{epoch: 7}, answer{outcome: other, epoch: 9}
	yes, missed := answer{}, answer{outcome: absent}
	away, maybe := answer{outcome: refused}, answer{outcome: unknown}
	granted, none := event{granted: true}, event{}
	doubt, again, taken := event{doubt: true}, event{proven: true}, event{lost: ErrTaken}
	for name, steps := range map[string][]step{
		"hold and release": {{0, "acquire", ours, granted, held}, {s, "refresh", yes, none, held},
			{5*s - 1, "tick", yes, none, held}, {5*s - 1, "stop", yes, none, held}, {5*s - 1, "refresh", yes, none, held},
			{9*s - 2, "tick", yes, none, held}, {9*s - 2, "returned", yes, none, releasing}, {9*s - 2, "release", yes, none, gone}},
		"wait for another":             {{0, "acquire", theirs, none, seeking}, {s, "acquire", ours, granted, held}},
		"stopped while another has it": {{0, "acquire", theirs, none, seeking}, {s, "stop", yes, none, gone}},
		"stopped while Redis is away":  {{0, "acquire", away, none, seeking}, {s, "stop", yes, none, gone}},
		"outcome unknown, found out":   {{0, "acquire", maybe, none, seeking}, {s, "acquire", ours, granted, held}},
		"outcome unknown, stopped": {{0, "acquire", maybe, none, seeking}, {s, "stop", yes, none, releasing},
			{s, "release", yes, none, releasing}, {2 * s, "release", missed, none, releasing}, {3 * s, "tick", yes, event{abandoned: true}, gone}},
		"outcome unknown, stopped much later": {{0, "acquire", maybe, none, seeking}, {s, "acquire", theirs, none, seeking}, {6 * s, "stop", yes, none, gone}},
		"in doubt, and proven again": {{0, "acquire", ours, granted, held}, {s, "refresh", maybe, none, held}, {2 * s, "refresh", away, none, held},
			{4*s - 1, "tick", yes, none, held}, {4 * s, "tick", yes, doubt, doubtful}, {4 * s, "reclaim", maybe, none, doubtful},
			{99 * s, "tick", yes, none, doubtful}, {99 * s, "reclaim", missed, none, doubtful}, {100 * s, "reclaim", yes, again, held},
			{101 * s, "refresh", yes, none, held}, {105*s - 1, "tick", yes, none, held}, {105 * s, "tick", yes, doubt, doubtful}},
		"in doubt, taken": {{0, "acquire", ours, granted, held}, {4 * s, "tick", yes, doubt, doubtful}, {99 * s, "reclaim", theirs, taken, lost},
			{100 * s, "returned", yes, none, seeking}, {100 * s, "acquire", answer{epoch: 10}, granted, held}},
		"taken, work hangs": {{0, "acquire", ours, granted, held}, {4 * s, "refresh", theirs, taken, lost}, {9*s - 1, "tick", yes, none, lost},
			{9 * s, "tick", yes, event{overdue: true}, lost}, {99 * s, "tick", yes, none, lost}, {99 * s, "returned", yes, none, seeking}},
		"in doubt, stopped": {{0, "acquire", ours, granted, held}, {4 * s, "tick", yes, doubt, doubtful}, {5 * s, "stop", yes, none, doubtful},
			{5 * s, "reclaim", away, none, doubtful}, {5 * s, "returned", yes, none, releasing}, {5 * s, "release", theirs, none, gone}},
		"in doubt, stopped without Redis": {{0, "acquire", ours, granted, held}, {4 * s, "tick", yes, doubt, doubtful}, {5 * s, "stop", yes, none, doubtful},
			{5 * s, "returned", yes, none, releasing}, {5 * s, "release", away, none, releasing}, {7 * s, "tick", yes, event{abandoned: true}, gone}},
		"taken": {{0, "acquire", ours, granted, held}, {s, "refresh", theirs, taken, lost}, {s, "returned", yes, none, seeking},
			{2 * s, "acquire", theirs, none, seeking}, {3 * s, "stop", yes, none, gone}},
		"missing, set anew": {{0, "acquire", ours, granted, held}, {s, "refresh", missed, none, missing},
			{s, "restore", yes, none, held}, {5*s - 1, "tick", yes, none, held}, {5 * s, "tick", yes, doubt, doubtful}},
		"missing, taken": {{0, "acquire", ours, granted, held}, {s, "refresh", missed, none, missing},
			{s, "restore", theirs, taken, lost}},
		"missing, Redis away": {{0, "acquire", ours, granted, held}, {s, "refresh", missed, none, missing},
			{s, "restore", away, none, held}, {2 * s, "refresh", missed, none, missing}, {4 * s, "tick", yes, doubt, doubtful}},
		"missing, stopped": {{0, "acquire", ours, granted, held}, {s, "refresh", missed, none, missing}, {s, "stop", yes, none, missing},
			{s, "restore", maybe, none, held}, {s, "returned", yes, none, releasing}, {s, "release", missed, none, releasing},
			{3 * s, "tick", yes, event{abandoned: true}, gone}},
		"release retried": {{0, "acquire", ours, granted, held}, {s, "stop", yes, none, held}, {s, "returned", yes, none, releasing},
			{s, "release", maybe, none, releasing}, {2 * s, "release", away, none, releasing}, {2500 * time.Millisecond, "release", yes, none, gone}},
		"release given up": {{0, "acquire", ours, granted, held}, {s, "stop", yes, none, held}, {s, "returned", yes, none, releasing},
			{s, "release", away, none, releasing}, {3 * s, "tick", yes, event{abandoned: true}, gone}},
	} {
		t.Run(name, func(t *testing.T) {
			m := newTestMachine(1)
			for n, st := range steps {
				var got event
				switch st.do {
				case "stop":
					m.stop(st.at)
				case "returned":
					m.returned(st.at)
				case "tick":
					got = m.tick(st.at)
				default:
					if o := m.next(st.at); o != ops[st.do] {
						t.Fatalf("step %d: next = %q, want %s", n, opNames[o], st.do)
					}
					m.send(st.at)
					if o := m.next(st.at); o != opNone {
						t.Fatalf("step %d: a second operation in flight: %s", n, opNames[o])
					}
					st.got.op = ops[st.do]
					got = m.reply(st.at, st.got)
				}
				if got != st.want || m.state != st.end {
					t.Fatalf("step %d: %s gave %+v, state %d; want %+v, state %d", n, st.do, got, m.state, st.want, st.end)
				}
			}
		})
	}
}

// What was in flight when the lease was given up or lost changes nothing of that.
func TestMachineInFlight(t *testing.T) {
	const s = time.Second
	for _, got := range []outcome{mine, other, absent, refused, unknown} {
		m := newTestMachine(1)
		m.send(0)
		m.stop(s)
		if m.state != releasing || m.next(s) != opNone {
			t.Fatalf("stopped while acquiring: state %d", m.state)
		}
		if ev := m.reply(s, answer{op: opAcquire, outcome: got, epoch: 7}); ev != (event{}) {
			t.Errorf("acquire %d: %+v", got, ev)
		}
		if release := got == mine || got == unknown; (m.state == releasing && m.next(s) == opRelease) != release {
			t.Errorf("acquire %d: state %d", got, m.state)
		}

		m = newTestMachine(1)
		m.send(0)
		m.reply(0, answer{op: opAcquire, epoch: 7})
		m.send(3 * s)
		if ev := m.tick(4 * s); !ev.doubt {
			t.Fatalf("%+v", ev)
		}
		ev, ended := m.reply(4*s, answer{op: opRefresh, outcome: got}), got == other
		if errors.Is(ev.lost, ErrTaken) != ended || ev.proven || (m.state == lost) != ended || (m.state == doubtful) == ended {
			t.Errorf("late refresh %d: %+v, state %d", got, ev, m.state)
		}
	}
}

// An answer that comes when what it proves has ended proves nothing.
func TestMachineLateReclaim(t *testing.T) {
	const s = time.Second
	m := newTestMachine(1)
	m.send(0)
	m.reply(0, answer{op: opAcquire, epoch: 7})
	m.tick(20 * s)
	m.send(20 * s)
	if ev := m.reply(24*s, answer{op: opReclaim}); ev != (event{}) || m.state != doubtful {
		t.Errorf("%+v, state %d", ev, m.state)
	}
	m.send(25 * s)
	if ev := m.reply(29*s-1, answer{op: opReclaim}); !ev.proven || m.endAt != 29*s {
		t.Errorf("%+v, proven until %v", ev, m.endAt)
	}
}

// A lease that has ended is believed to be nobody's if it was seen to end.
func TestMachineSeesTheEnd(t *testing.T) {
	const s = time.Second
	m := newTestMachine(1)
	ask := func(at time.Duration, a answer) {
		m.send(at)
		m.reply(at, a)
	}
	saw := func(at time.Duration, want bool) {
		t.Helper()
		if m.sawEnd(at) != want {
			t.Errorf("at %v: %v", at, !want)
		}
	}
	saw(0, true) // nobody is known to have had it
	ask(0, answer{op: opAcquire, outcome: other, rest: 3 * s})
	saw(3*s-1, false)
	saw(3*s, true)
	ask(2*s, answer{op: opAcquire, outcome: unknown})
	saw(99*s, false)
	ask(10*s, answer{op: opAcquire, outcome: other, rest: s / 10})
	saw(11*s-1, false) // its holder may have been without Redis as well
	saw(11*s, true)
	ask(11*s, answer{op: opAcquire, outcome: other}) // it does not end
	saw(99*s, false)
}

// An acquire whose answer came too late is not worth anything, and the next one
// asks for a greater epoch.
func TestMachineLateAcquire(t *testing.T) {
	m := newTestMachine(1)
	m.send(0)
	if ev := m.reply(4*time.Second, answer{op: opAcquire, epoch: 7}); ev != (event{}) || m.state != seeking {
		t.Fatalf("%+v, state %d", ev, m.state)
	}
	if m.next(4*time.Second) != opAcquire || m.known != 7 {
		t.Fatalf("next %s, known %d", opNames[m.next(4*time.Second)], m.known)
	}
}

func TestMachineWakes(t *testing.T) {
	m := newTestMachine(1)
	m.send(0)
	if m.wake() != never {
		t.Errorf("wakes at %v while acquiring", m.wake())
	}
	m.reply(0, answer{op: opAcquire, outcome: other, rest: 3 * time.Millisecond})
	if m.wake() != 3*time.Millisecond {
		t.Errorf("wakes at %v, when the other's lease ends after 3 ms", m.wake())
	}
	m.send(3 * time.Millisecond)
	m.reply(3*time.Millisecond, answer{op: opAcquire, epoch: 1})
	if at := m.wake(); at < 403*time.Millisecond || at > 603*time.Millisecond {
		t.Errorf("refreshes at %v", at)
	}
	m.send(m.wake())
	if m.wake() != 4003*time.Millisecond {
		t.Errorf("wakes at %v, want the deadline", m.wake())
	}
}
