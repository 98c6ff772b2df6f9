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
		}, 2, []string{"T.A"}, []string{"heartbeat ROLE_LEADER 0 UPSTREAM_STATE_DOWN"}},
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

// TestBreakBeforeTheFirstHeartbeat: a stream that was refused, and of which the
// edge has seen nothing, gives the next one no right to be resumed.
func TestBreakBeforeTheFirstHeartbeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New("stocks", testQueue, testRing)
		r.Lead(epoch1, time.Now())
		r.FrameSeen(time.Now())
		e := attach(t, r, "e", "T.A")
		r.Route([]Event{event("T", "A", 1)})
		e.Detach()
		time.Sleep(testRing.Age + time.Second) // T.A is not served any more
		r.FrameSeen(time.Now())                // the acknowledgement of T.A
		for want := range uint64(3) {
			e = r.Attach("e")
			if err := e.Change(nil, topic1(1, "T.A")); err != nil {
				t.Fatal(err)
			}
			e.Resume(&feedv1.Epoch{Generation: epoch1.Generation, Term: epoch1.Term}, 1, time.Now())
			if got := e.Next(time.Now()).GetHeartbeat().GetSequence(); got != want+2 {
				t.Errorf("stream %d begins at %d, want %d", want, got, want+2)
			}
			e.Detach()
		}
	})
}

// TestLeave: nothing stays of an edge that will not come back, nor of one that
// goes where nothing is kept.
func TestLeave(t *testing.T) {
	for name, end := range map[string]func(*testing.T, *Router, *Edge){
		"at once": func(_ *testing.T, _ *Router, e *Edge) { e.Leave() },
		"before it began": func(_ *testing.T, r *Router, e *Edge) {
			e.Detach()
			r.Attach("e").Leave()
		},
		"a stream that has not been noticed to break": func(_ *testing.T, r *Router, e *Edge) {
			next := r.Attach("e")
			next.Leave()
			e.Detach()
		},
		"before it began, at a leader that stands down": func(_ *testing.T, r *Router, e *Edge) {
			e.Detach()
			next := r.Attach("e")
			r.Follow(t0)
			next.Detach()
		},
		"the same, noticed late": func(_ *testing.T, r *Router, e *Edge) {
			next := r.Attach("e")
			r.Follow(t0)
			next.Detach()
			e.Detach()
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := New("stocks", testQueue, testRing)
			r.Lead(epoch1, t0)
			end(t, r, attach(t, r, "e", "T.A"))
			if s := r.Stats(); s.Topics != 0 || s.Edges != 0 || len(r.byID) != 0 {
				t.Errorf("stats %+v, %d edges kept", s, len(r.byID))
			}
		})
	}
}

// TestRefused: only what a larger ring might have served counts as refused.
func TestRefused(t *testing.T) {
	for name, c := range map[string]struct {
		bounds RingBounds
		epoch  *feedv1.Epoch
		want   uint64
	}{
		"the present epoch": {testRing, &feedv1.Epoch{Generation: 7, Term: 1}, 1},
		"another epoch":     {testRing, &feedv1.Epoch{Generation: 6, Term: 3}, 0},
		"no epoch":          {testRing, nil, 0},
		"no ring":           {RingBounds{}, &feedv1.Epoch{Generation: 7, Term: 1}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			r := New("stocks", testQueue, c.bounds)
			r.Lead(epoch1, t0)
			e := r.Attach("e")
			e.Resume(c.epoch, 0, t0)
			defer e.Leave()
			if s := r.Stats(); s.Refused != c.want || s.Resumed != 0 {
				t.Errorf("stats %+v", s)
			}
		})
	}
}

// TestReplayedTimes: a batch out of the ring says when its first event came.
func TestReplayedTimes(t *testing.T) {
	r := New("stocks", testQueue, testRing)
	r.Lead(epoch1, t0)
	attach(t, r, "e", "T.*").Detach()
	at := []time.Duration{0, 1500 * time.Millisecond, 1700 * time.Millisecond, 4 * time.Second, 3 * time.Second, 8 * time.Second}
	for i, after := range at {
		r.FrameSeen(t0.Add(after))
		r.Route([]Event{event("T", "A", i+1)})
	}
	r.Late(time.Second)
	at[4] = at[3] // the clock was set back
	for i, after := range at {
		e := resumeOf(t, r, "e", uint64(i), "T.*")
		e.Next(t0)
		if b := e.Next(t0).GetBatch(); b.GetBuiltUnixNs() != t0.Add(after-time.Second).UnixNano() {
			t.Errorf("event %d was built %v after the first frame, want %v", i+1, time.Unix(0, b.GetBuiltUnixNs()).Sub(t0), after-time.Second)
		}
		e.Detach()
	}
}

// TestResumeModel: for random cuts, positions and interests, an edge that the
// ring can serve gets what a filter over all that was ever routed yields, each
// once, in order and without a hole; another one sees a hole. So does one whose
// interest was not kept, however many streams break before it hears of one.
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
				before, lost := m.covered, false
				resume := rapid.Uint64Range(min(since, before), before).Draw(t, "resume")
				// The edge hears nothing of its streams but the last one.
				for breaks := true; breaks; {
					if rapid.Bool().Draw(t, "noticed") {
						m.edge.Detach()
					}
					for range rapid.SampledFrom([]int{0, 1, 10, 600}).Draw(t, "missed") {
						e := event("T", "A", len(all))
						all = append(all, e)
						r.Route([]Event{e})
					}
					if away := r.byID["e"]; away != nil && away.resume.expiry != nil && rapid.Bool().Draw(t, "stays away") {
						away.expire()
						lost = true // its topics are not served for a while
					}
					connect(t)
					breaks = rapid.Bool().Draw(t, "breaks at once")
					if breaks && rapid.Bool().Draw(t, "before it began") {
						continue
					}
					refused := r.refused
					m.edge.Resume(&feedv1.Epoch{Generation: 7, Term: 1}, resume, now)
					if r.refused > refused {
						all = append(all, nothing)
						since = uint64(len(all))
					}
				}
				h := m.edge.Next(now).GetHeartbeat()
				switch {
				case h.GetSequence() == resume && resume >= since && !lost:
				case h.GetSequence() == since && since == uint64(len(all)) && since > before && (lost || resume+1 < r.ring.first()):
				default:
					t.Fatalf("resumed at %d of %d behind %d, ring from %d, lost %v", h.GetSequence(), len(all), resume, r.ring.first(), lost)
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
