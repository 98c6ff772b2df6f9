package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/cutemarkets/relay/hack/cluster"
)

// TestFeedCut cuts the streams between fanout and the edges while events flow,
// by closing their connections and by swallowing what they carry, for less than
// the ring goes back: nobody misses an event, gets one twice, or is told of a gap.
func TestFeedCut(t *testing.T) {
	t.Parallel()
	const rate = 2000 // events per second
	ls := newLinks(t)
	s := startStage(t, cluster.Options{Rate: rate, Way: func(from, to, address string) string {
		if to == "fanout-0" {
			return ls.way(from, to, address)
		}
		return address
	}})
	ws := newWitnesses(s)
	for n, edge := range s.Info().Edges {
		ws.add(edge, "stocks", n, "T.*,Q.*,"+markTopic)
	}
	ws.begin("stocks")
	s.order("resume?market=stocks")
	for _, w := range ws.all { // who has just subscribed would be told of a gap, rightly
		w.await("events of 1 s", func() bool { return w.events >= rate })
	}
	for _, row := range []struct {
		state linkState
		away  time.Duration
	}{{shut, time.Second}, {cut, 3500 * time.Millisecond}} {
		before := s.metric("fanout-0", "relay_fanout_resumes_total", `result="resumed"`, stocks)
		ls.turn("", "fanout-0", row.state)
		<-time.After(row.away)
		ls.turn("", "fanout-0", whole)
		ws.mark("stocks", 1)
		if after := s.metric("fanout-0", "relay_fanout_resumes_total", `result="resumed"`, stocks); after < before+2 {
			t.Errorf("%v streams resumed, want that of each edge", after-before)
		}
	}
	s.order("quiesce?market=stocks")
	ws.mark("stocks", 1)
	ws.leave()
	expectPerfect(t, s.Cluster, ws.ck, s.truth)
	for _, w := range ws.all {
		if len(w.gaps) > 0 {
			t.Errorf("%s was told of %q", w.name, strings.Join(raws(w.gaps), " "))
		}
	}
}
