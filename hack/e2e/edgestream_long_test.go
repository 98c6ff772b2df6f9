//go:build long

package e2e

import (
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/cutemarkets/relay/hack/feedsim/market"
)

// TestEdgeStream: an edge that loses its stream for less than what fanout keeps
// of the market misses nothing, and its clients are told nothing.
func TestEdgeStream(t *testing.T) {
	h := startHandover(t, market.KickOldest, handoverLeases)
	for _, row := range []struct {
		name string
		away time.Duration
	}{{"the stream of an edge is cut for 1 s", time.Second}, {"the stream of an edge is cut for 4 s", 4 * time.Second}} {
		h.run(handoverRow{
			name: row.name,
			fault: func(h *handover) {
				h.links.turn("edge-0", h.leading, shut)
				<-time.After(row.away)
				h.links.turn("edge-0", h.leading, whole)
			},
		})
	}
	h.table.print(t)
}

const (
	slowRate = 5000 // events per second
	// slowWindow is shorter than the lease of a lock: the stopped edge keeps its clients.
	slowWindow = 8 * time.Second
	slowRounds = 6
	// slowMost is how much greater the p99 latency may be with a stopped edge. The
	// rest is for what a median of six windows is off by on a shared machine.
	slowMost, slowNoise = 1.10, 0.15
)

// TestStoppedEdge: an edge that stands still costs the clients of another one
// nothing, in turns of windows without and with it; its own clients miss what
// they are told of, and nothing else.
func TestStoppedEdge(t *testing.T) {
	h := startHandover(t, market.KickOldest, handoverLeases, fmt.Sprintf("--rate=stocks=%d,options=1", slowRate))
	h.settle()
	h.join()
	var before, during []float64
	for range slowRounds {
		before = append(before, h.window(0))
		h.signal("edge-1", syscall.SIGSTOP)
		during = append(during, h.window(0))
		h.signal("edge-1", syscall.SIGCONT)
		h.awaitFlow()
		h.steady(handoverCalm)
	}
	h.ws.leave()
	for i, c := range h.check(h.ws.ck).Clients {
		h.expectWithin(c, i*slowRounds)
	}
	calm, stopped := middle(before), middle(during)
	t.Logf("p99 latency: %.2f ms, with a stopped edge %.2f ms: %.2f times; windows %.2f and %.2f", calm, stopped, stopped/calm, before, during)
	if stopped > calm*(slowMost+slowNoise) {
		t.Errorf("p99 latency is %.2f times that without a stopped edge, want at most %.2f (and %.2f for noise)", stopped/calm, slowMost, slowNoise)
	}
}

// window returns the p99 latency at a witness, in ms, over a while.
func (h *handover) window(n int) float64 {
	h.t.Helper()
	w := h.ws.all[n]
	w.mu.Lock()
	w.pulse.late = make([]float64, 0, slowRate*int(slowWindow/time.Second)*2)
	w.mu.Unlock()
	<-time.After(slowWindow)
	w.mu.Lock()
	late := w.pulse.late
	w.pulse.late = nil
	w.mu.Unlock()
	slices.Sort(late)
	if len(late) == 0 {
		h.t.Fatal("no events")
	}
	return late[len(late)*99/100]
}

func middle(values []float64) float64 {
	v := slices.Sorted(slices.Values(values))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}
