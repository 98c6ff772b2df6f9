package router

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// chunkCost is what an ordinary chunk takes.
const chunkCost = chunkBytes + chunkRecords*recordCost

// TestRing compares the ring with a list of all that was put into it.
func TestRing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		bounds := RingBounds{Age: time.Second, Bytes: rapid.IntRange(2, 5).Draw(t, "chunks") * chunkCost}
		g := &ring{bounds: bounds}
		g.reset(1)
		type entry struct {
			text string
			at   int64
		}
		now := t0.UnixNano()
		var all []entry
		t.Repeat(map[string]func(*rapid.T){
			"events": func(t *rapid.T) {
				size := rapid.SampledFrom([]int{0, 40, 300, 5000, maxEvent}).Draw(t, "size")
				for range rapid.IntRange(1, min(500, 400<<10/(size+100)+1)).Draw(t, "events") {
					e := event(rapid.SampledFrom([]string{"T", "LULD"}).Draw(t, "kind"), "S"+strings.Repeat("x", size), len(all))
					e.Symbol = e.Symbol[:min(len(e.Symbol), 9)]
					g.event(&e, now)
					all = append(all, entry{fmt.Sprintf("%s %s %s", e.Raw, e.Kind, e.Symbol), now})
				}
			},
			"gap": func(*rapid.T) {
				g.gap(time.Unix(0, now), time.Unix(1, now), now)
				all = append(all, entry{fmt.Sprint("gap ", now), now})
			},
			"pass": func(t *rapid.T) {
				now += int64(rapid.IntRange(1, 1500).Draw(t, "ms")) * int64(time.Millisecond)
			},
			"trim":  func(*rapid.T) { g.trim(now) },
			"reset": func(*rapid.T) { g.reset(1); all = nil },
			"": func(t *rapid.T) {
				if g.next != uint64(len(all))+1 || g.first() > g.next {
					t.Fatalf("holds %d to %d of %d", g.first(), g.next, len(all))
				}
				used := 0
				for _, c := range g.chunks {
					used += c.cost()
				}
				if used != g.bytes || used > bounds.Bytes && len(g.chunks) > 1 || len(g.spare) > maxSpare {
					t.Fatalf("%d bytes counted for %d, in %d chunks", g.bytes, used, len(g.chunks))
				}
				g.trim(now)
				if n := g.first() - 1; n > 0 && now-all[n-1].at <= int64(bounds.Age) && used < bounds.Bytes/2 {
					t.Fatalf("%d of %d has been dropped too early", n, len(all))
				}
				if g.first() == g.next {
					return
				}
				if now-all[g.first()-1].at > int64(bounds.Age*5/4) {
					t.Fatalf("%d of %d is held for too long", g.first(), len(all))
				}
				begin := rapid.Uint64Range(g.first(), g.next-1).Draw(t, "from")
				at := g.from(begin)
				for sequence := begin; sequence < min(g.next, begin+100); sequence++ {
					e, from, to := at.read()
					got := fmt.Sprintf("%s %s %s", e.Raw, e.Kind, e.Symbol)
					if len(e.Kind) == 0 {
						got = fmt.Sprint("gap ", from.UnixNano())
						if to.Sub(from) != time.Second {
							t.Fatalf("gap to %v", to)
						}
					}
					if got != all[sequence-1].text {
						t.Fatalf("%d is %.80s, want %.80s", sequence, got, all[sequence-1].text)
					}
				}
			},
		})
	})
}

// TestRingDoesNotAllocate: chunks are used again.
func TestRingDoesNotAllocate(t *testing.T) {
	g := &ring{bounds: RingBounds{Age: 10 * time.Second, Bytes: 4 * chunkCost}}
	g.reset(1)
	events, _ := Split(tradeFrame(1000), nil)
	add := func() {
		for i := range events {
			g.event(&events[i], 0)
		}
	}
	for range 20 {
		add()
	}
	if n := testing.AllocsPerRun(20, add); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
