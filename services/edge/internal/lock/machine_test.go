package lock

import (
	"testing"
	"time"

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
	lostData := event{missing: true}
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
		"missing, set anew": {{0, "acquire", mine, granted, held}, {4 * s, "refresh", absent, lostData, missing},
			{4 * s, "reacquire", mine, event{}, held}, {17 * s, "tick", 0, event{}, held}, {18 * s, "tick", 0, silent, releasing}},
		"missing, taken by another": {{0, "acquire", mine, granted, held}, {4 * s, "refresh", absent, lostData, missing},
			{4 * s, "reacquire", other, taken, gone}},
		"missing, after the deadline": {{0, "acquire", mine, granted, held}, {14 * s, "refresh", absent, event{}, missing},
			{14 * s, "tick", 0, silent, releasing}},
		"missing, Redis away again": {{0, "acquire", mine, granted, held}, {4 * s, "refresh", absent, lostData, missing},
			{4 * s, "reacquire", refused, event{}, held}, {14 * s, "tick", 0, silent, releasing}},
		"missing, then released": {{0, "acquire", mine, granted, held}, {4 * s, "refresh", absent, lostData, missing},
			{4 * s, "release", 0, event{}, releasing}, {4 * s, "delete", absent, released, gone}},
		"set anew with an unknown outcome, then released": {{0, "acquire", mine, granted, held}, {4 * s, "refresh", absent, lostData, missing},
			{4 * s, "reacquire", unknown, event{}, held}, {4 * s, "release", 0, event{}, releasing},
			{4 * s, "delete", absent, released, releasing}, {5 * s, "delete", mine, event{}, releasing}},
		"set anew with an unknown outcome, then Redis away": {{0, "acquire", mine, granted, held}, {4 * s, "refresh", absent, lostData, missing},
			{4 * s, "reacquire", unknown, event{}, held}, {4 * s, "release", 0, event{}, releasing},
			{34 * s, "delete", unknown, event{}, releasing}, {35 * s, "delete", unknown, released, gone}},
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
					got = m.tick(testTiming, now)
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

func TestMachineGrace(t *testing.T) {
	graced := testTiming
	graced.grace = 10 * time.Second
	var m machine
	m.send(0, opAcquire)
	m.reply(graced, 0, opAcquire, mine)
	if ev := m.tick(graced, 24*time.Second-1); ev != (event{}) || m.next(24*time.Second-1, true) != opRefresh {
		t.Fatalf("within the grace: %+v, state %d", ev, m.state)
	}
	m.send(23*time.Second, opRefresh)
	if ev := m.reply(graced, 23*time.Second, opRefresh, absent); ev != (event{}) || m.state != missing {
		t.Fatalf("Redis is back and has dropped the key, which is no loss: %+v, state %d", ev, m.state)
	}
	if ev := m.tick(graced, 24*time.Second); ev.lost != dialect.LockUnavailable {
		t.Fatalf("after the grace: %+v", ev)
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

// What counts is when the delete was sent: the acquire may come right behind it.
func TestMachineDeletedBeforeALateCommand(t *testing.T) {
	var m machine
	for range 2 {
		m.send(0, opAcquire)
		m.reply(testTiming, time.Second, opAcquire, unknown)
	}
	for _, way := range []struct {
		sent, replied time.Duration
		want          state
	}{
		{testTiming.ttl - 1, testTiming.ttl + time.Second/2, releasing},
		{testTiming.ttl + 2*time.Second, testTiming.ttl + 3*time.Second, gone},
	} {
		m.send(way.sent, opRelease)
		if m.reply(testTiming, way.replied, opRelease, absent); m.state != way.want {
			t.Fatalf("a delete sent after %v, answered after %v: state %d, want %d", way.sent, way.replied, m.state, way.want)
		}
	}
}
