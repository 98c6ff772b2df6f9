package router

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	feedv1 "github.com/cutemarkets/relay/proto/feed/v1"
	"github.com/cutemarkets/relay/services/fanout/internal/leader"
)

var testRing = RingBounds{Age: 10 * time.Second, Bytes: 4 * chunkCost}

// resumeOf attaches an edge that resumes, with topics of ids 1, 2, ...
func resumeOf(t testing.TB, r *Router, id string, sequence uint64, topics ...string) *Edge {
	t.Helper()
	e := r.Attach(id)
	for i, name := range topics {
		if err := e.Change(nil, topic1(uint32(i+1), name)); err != nil {
			t.Fatal(err)
		}
	}
	e.Resume(&feedv1.Epoch{Generation: epoch1.Generation, Term: epoch1.Term}, sequence, t0)
	return e
}

func TestResume(t *testing.T) {
	a := func(n int) Event { return event("T", "A", n) }
	begin := func(bounds RingBounds) (*Router, *Edge) {
		r := New("stocks", testQueue, bounds)
		r.Lead(epoch1, t0)
		r.FrameSeen(t0)
		r.Upstream(true, time.Time{}, t0)
		e := attach(t, r, "e", "T.A")
		r.Route([]Event{a(1), event("T", "B", 2)})
		expect(t, e, "batch 1-2 #1=1(1,0)")
		return r, e
	}
	const beat = "heartbeat ROLE_LEADER %d UPSTREAM_STATE_LIVE"
	for name, c := range map[string]struct {
		bounds RingBounds
		during func(r *Router, e *Edge)
		from   uint64
		topics []string
		want   []string
	}{
		"events and a gap": {testRing, func(r *Router, e *Edge) {
			e.Detach()
			r.Route([]Event{a(3), event("T", "B", 4)})
			r.Gap(t0, t0.Add(time.Second))
			r.Route([]Event{a(6)})
		}, 2, []string{"T.A"}, []string{fmt.Sprintf(beat, 2), "batch 3-4 #3=3(1,0)", "gap 5 1s", "batch 6-6 #6=6(1,0)", fmt.Sprintf(beat, 6)}},
		"the interest of now": {testRing, func(r *Router, e *Edge) {
			e.Detach()
			r.Route([]Event{a(3), event("T", "B", 4), event("Q", "B", 5)})
		}, 2, []string{"T.*", "T.B"}, []string{fmt.Sprintf(beat, 2), "batch 3-5 #3=3(0,1) #4=4(2,1)", fmt.Sprintf(beat, 5)}},
		"what was sent and not received": {testRing, func(_ *Router, e *Edge) { e.Detach() }, 1, []string{"T.*"},
			[]string{fmt.Sprintf(beat, 1), "batch 2-2 #2=2(0,1)", fmt.Sprintf(beat, 2)}},
		"nothing missed": {testRing, func(_ *Router, e *Edge) { e.Detach() }, 2, []string{"T.A"},
			[]string{fmt.Sprintf(beat, 2), fmt.Sprintf(beat, 2)}},
		"the broken stream has not been noticed": {testRing, func(r *Router, _ *Edge) { r.Route([]Event{a(3)}) }, 2, []string{"T.A"},
			[]string{fmt.Sprintf(beat, 2), "batch 3-3 #3=3(1,0)", fmt.Sprintf(beat, 3)}},
		"streams that broke before they began": {testRing, func(r *Router, e *Edge) {
			e.Detach()
			r.Attach("e").Detach()
			defer r.Attach("e").Detach()
			r.Route([]Event{a(3)})
		}, 2, []string{"T.A"}, []string{fmt.Sprintf(beat, 2), "batch 3-3 #3=3(1,0)", fmt.Sprintf(beat, 3)}},
		"no interest but in kinds nobody wants": {testRing, func(r *Router, e *Edge) {
			e.Detach()
			r.Route([]Event{event("ZZ", "A", 3)})
		}, 2, []string{"T.A"}, []string{fmt.Sprintf(beat, 2), fmt.Sprintf(beat, 3)}},
		"too old": {testRing, func(r *Router, e *Edge) {
			r.Route([]Event{a(3)})
			r.FrameSeen(t0.Add(13 * time.Second))
			r.Route([]Event{a(4)})
			e.Detach()
		}, 2, []string{"T.A"}, []string{fmt.Sprintf(beat, 5)}},
		"too much": {testRing, func(r *Router, e *Edge) {
			e.Detach()
			events, _ := Split(tradeFrame(20_000), nil)
			r.Route(events)
		}, 2, []string{"T.A"}, []string{fmt.Sprintf(beat, 20_003)}},
		"no ring": {RingBounds{}, func(r *Router, e *Edge) {
			e.Detach()
			r.Route([]Event{a(3)})
		}, 2, []string{"T.A"}, []string{fmt.Sprintf(beat, 4)}},
		"no ring, nothing routed": {RingBounds{}, func(_ *Router, e *Edge) { e.Detach() }, 2, []string{"T.A"},
			[]string{fmt.Sprintf(beat, 3)}}, // a hole: the topic was not wanted for a while
		"from the future": {testRing, func(_ *Router, e *Edge) { e.Detach() }, 9, []string{"T.A"}, []string{fmt.Sprintf(beat, 3)}},
		"from before its first stream": {testRing, func(r *Router, e *Edge) {
			e.Detach()
			e = attach(t, r, "e", "T.A")
			e.Detach()
		}, 1, []string{"T.A"}, []string{fmt.Sprintf(beat, 3)}},
		"another epoch": {testRing, func(r *Router, e *Edge) {
			e.Detach()
			r.Follow(t0)
			r.Lead(leader.Epoch{Generation: 7, Term: 2}, t0)
		}, 2, []string{"T.A"}, []string{"heartbeat ROLE_LEADER 1 UPSTREAM_STATE_DOWN"}},
		"no leader any more": {testRing, func(r *Router, e *Edge) {
			e.Detach()
			r.Follow(t0)
		}, 2, []string{"T.A"}, []string{"heartbeat ROLE_STANDBY 0 UPSTREAM_STATE_UNSPECIFIED"}},
	} {
		t.Run(name, func(t *testing.T) {
			r, e := begin(c.bounds)
			c.during(r, e)
			e = resumeOf(t, r, "e", c.from, c.topics...)
			expect(t, e, c.want...)
			if s := r.Stats(); s.QueueBytes != 0 || s.Edges > 2 {
				t.Errorf("stats %+v", s)
			}
		})
	}
}

// TestResumeAndEpochs: a leader that stands down ends the reading of its ring.
func TestResumeAndEpochs(t *testing.T) {
	r := New("stocks", testQueue, testRing)
	r.Lead(epoch1, t0)
	r.FrameSeen(t0)
	attach(t, r, "e", "T.A").Detach()
	r.Route([]Event{event("T", "A", 1)})
	e := resumeOf(t, r, "e", 0, "T.A")
	r.Follow(t0)
	r.Lead(leader.Epoch{Generation: 7, Term: 2}, t0)
	r.Route([]Event{event("T", "A", 2)})
	expect(t, e, "heartbeat ROLE_LEADER 0 UPSTREAM_STATE_DOWN", "heartbeat ROLE_STANDBY 0 UPSTREAM_STATE_UNSPECIFIED",
		"heartbeat ROLE_LEADER 0 UPSTREAM_STATE_DOWN", "batch 1-1 #1=2(1,0)")
}

// TestOvertaken: an edge that reads more slowly than the ring forgets is cut.
func TestOvertaken(t *testing.T) {
	r := New("stocks", testQueue, testRing)
	r.Lead(epoch1, t0)
	r.FrameSeen(t0)
	attach(t, r, "e", "T.A").Detach()
	r.Route([]Event{event("T", "A", 1)})
	e := resumeOf(t, r, "e", 0, "T.A")
	events, _ := Split(tradeFrame(20_000), nil)
	r.Route(events)
	expect(t, e, "heartbeat ROLE_LEADER 0 UPSTREAM_STATE_DOWN")
	if e.Ended() != EndedOverflow {
		t.Errorf("ended %d", e.Ended())
	}
	e.Detach()
}

// TestAway: the interest of an edge whose stream broke stays for the age of the
// ring, and is not asked for anew.
func TestAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New("stocks", testQueue, testRing)
		r.Lead(epoch1, time.Now())
		first := attach(t, r, "e", "T.A", "Q.A")
		r.Changes()
		first.Detach()
		time.Sleep(testRing.Age - time.Second)
		second := resumeOf(t, r, "e", 0, "T.A", "T.B")
		if a, d := r.Changes(); fmt.Sprint(a, d) != "[T.B] [Q.A]" {
			t.Errorf("changes %v %v", a, d)
		}
		second.Detach()
		third := r.Attach("e")
		time.Sleep(2 * testRing.Age)
		third.Detach() // never began: the second is away from now on
		time.Sleep(testRing.Age - time.Second)
		if a, d := r.Changes(); len(a)+len(d) > 0 {
			t.Errorf("changes %v %v", a, d)
		}
		time.Sleep(2 * time.Second)
		if a, d := r.Changes(); fmt.Sprint(a, d) != "[] [T.A T.B]" {
			t.Errorf("changes %v %v", a, d)
		}
		if s := r.Stats(); s.Topics != 0 || s.Edges != 0 || len(r.byID) != 0 {
			t.Errorf("stats %+v", s)
		}
	})
}

// TestResumeModel: for random cuts, positions and interests, an edge that the
// ring can serve gets what a filter over all that was ever routed yields, each
// once, in order and without a hole; another one sees a hole.
func TestResumeModel(t *testing.T) {
	kinds, tickers := []string{"T", "Q", "ZZ"}, []string{"A", "B", "*"}
	rapid.Check(t, func(t *rapid.T) {
		r := New("stocks", 1<<30, testRing)
		r.Lead(epoch1, t0)
		now := t0
		r.FrameSeen(now)
		var all []Event // by sequence - 1; no kind: a gap
		var m *model
		var got []delivery
		take := func(messages int) {
			for ; messages > 0; messages-- {
				next := m.edge.Next(now)
				if next == nil {
					return
				}
				got = append(got, m.check(t, next)...)
			}
		}
		verify := func() {
			take(1 << 30)
			n := 0
			for i, e := range all[:m.covered] {
				want := delivery{1, uint64(i + 1), "gap", 0, 0}
				if len(e.Kind) > 0 {
					exact, wildcard := m.topics[string(e.Kind)+"."+string(e.Symbol)], m.topics[string(e.Kind)+".*"]
					want = delivery{1, uint64(i + 1), string(e.Raw), exact, wildcard}
					if exact+wildcard == 0 {
						continue
					}
				}
				if uint64(i) < m.begun {
					continue
				}
				if n == len(got) || got[n] != want {
					t.Fatalf("event %d: got %v, want %v", i+1, got[min(n, len(got)-1):], want)
				}
				n++
			}
			if n != len(got) {
				t.Fatalf("%d deliveries, want %d", len(got), n)
			}
		}
		connect := func(t *rapid.T) {
			m = &model{topics: map[string]uint32{}}
			m.edge = r.Attach("e")
			for _, kind := range kinds {
				for _, ticker := range tickers {
					if rapid.Bool().Draw(t, "wanted") {
						m.nextID++
						m.topics[kind+"."+ticker] = m.nextID
						if err := m.edge.Change(nil, topic1(m.nextID, kind+"."+ticker)); err != nil {
							t.Fatal(err)
						}
					}
				}
			}
			got = nil
		}
		connect(t)
		m.edge.Start(now)
		since := uint64(0)
		t.Repeat(map[string]func(*rapid.T){
			"route": func(t *rapid.T) {
				var events []Event
				for range rapid.SampledFrom([]int{1, 10, 600}).Draw(t, "events") {
					e := event(rapid.SampledFrom(kinds).Draw(t, "kind"), rapid.SampledFrom(tickers[:2]).Draw(t, "ticker"), len(all))
					events, all = append(events, e), append(all, e)
				}
				r.Route(events)
			},
			"gap": func(*rapid.T) {
				all = append(all, Event{})
				r.Gap(now, now)
			},
			"heartbeat": func(*rapid.T) { m.edge.Heartbeat(now) },
			"take":      func(t *rapid.T) { take(rapid.IntRange(1, 3).Draw(t, "messages")) },
			"pass": func(t *rapid.T) {
				now = now.Add(time.Duration(rapid.IntRange(1, 4000).Draw(t, "ms")) * time.Millisecond)
				r.FrameSeen(now)
			},
			"cut": func(t *rapid.T) {
				verify()
				before := m.covered
				if rapid.Bool().Draw(t, "noticed") {
					m.edge.Detach()
				}
				for range rapid.IntRange(0, 600).Draw(t, "missed") {
					e := event("T", "A", len(all))
					all = append(all, e)
					r.Route([]Event{e})
				}
				resume := rapid.Uint64Range(min(since, before), before).Draw(t, "resume")
				connect(t)
				m.edge.Resume(&feedv1.Epoch{Generation: 7, Term: 1}, resume, now)
				h := m.edge.Next(now).GetHeartbeat()
				switch {
				case h.GetSequence() == resume && resume >= since:
				case h.GetSequence() == uint64(len(all))+1 && resume+1 < r.ring.first():
					all = append(all, nothing)
					since = h.GetSequence()
				default:
					t.Fatalf("resumed at %d of %d behind %d, ring from %d", h.GetSequence(), len(all), resume, r.ring.first())
				}
				m.begun, m.covered = h.GetSequence(), h.GetSequence()
			},
		})
		verify()
	})
}

// BenchmarkRouteWhileReplaying measures how long routing waits for an edge that
// reads the ring all the time; "none": it only takes as much of a processor.
func BenchmarkRouteWhileReplaying(b *testing.B) {
	for _, topic := range []string{"none", "Q.S1", "T.*"} {
		b.Run(topic, func(b *testing.B) {
			r := New("stocks", 1<<30, RingBounds{Age: time.Minute, Bytes: 64 << 20})
			r.Lead(epoch1, t0)
			r.FrameSeen(t0)
			events, _ := Split(tradeFrame(10), nil)
			attach(b, r, "e").Detach()
			for range 30_000 {
				r.Route(events)
			}
			var stop atomic.Bool
			var replays sync.WaitGroup
			replays.Add(1)
			go func() {
				defer replays.Done()
				for !stop.Load() {
					if topic == "none" {
						continue
					}
					e := resumeOf(b, r, "e", 0, topic)
					for m := e.Next(t0); m != nil; m = e.Next(t0) {
						if _, err := proto.Marshal(m); err != nil {
							b.Error(err)
						}
					}
					e.Detach()
				}
			}()
			var waits []time.Duration
			for b.Loop() {
				began := time.Now()
				r.Route(events)
				waits = append(waits, time.Since(began))
				time.Sleep(60 * time.Microsecond)
			}
			stop.Store(true)
			replays.Wait()
			slices.Sort(waits)
			b.ReportMetric(float64(waits[len(waits)/2].Microseconds()), "median-µs")
			b.ReportMetric(float64(waits[len(waits)*99/100].Microseconds()), "p99-µs")
		})
	}
}
