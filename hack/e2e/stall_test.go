//go:build long

package e2e

import (
	"testing"
	"time"

	"github.com/cutemarkets/relay/hack/cluster"
)

// TestSilentStall: a vendor that answers and sends no events is left within 10 s,
// and clients are told of one gap, which spans the stall.
func TestSilentStall(t *testing.T) {
	t.Parallel()
	address, _, _ := startRedis(t)
	c := startCluster(t, cluster.Options{Redis: address, Args: map[string][]string{"fanout": {"--trading-hours=always"}}})
	for _, market := range []string{"stocks", "options"} { // with a canary, and without
		t.Run(market, func(t *testing.T) {
			t.Parallel()
			silentStall(t, &stage{Cluster: c, t: t}, market)
		})
	}
}

func silentStall(t *testing.T, s *stage, market string) {
	label := `market="` + market + `"`
	ws := join(t, s.Info().Edges[0], market, expert(t, s.Cluster, market))
	ws.subscribe("T.*")
	limit := func() float64 {
		return s.metric("fanout-0", "relay_fanout_upstream_silence_limit_seconds", label)
	}
	for known := time.Now().Add(80 * time.Second); limit() == 0; {
		if notices, events := gaps(t, ws, time.Second); len(notices) != 0 || events == 0 || time.Now().After(known) {
			t.Fatalf("silence means nothing yet; %d gap notices and %d events, want none and some", len(notices), events)
		}
	}
	if l := limit(); l < 3 || l > 10 {
		t.Fatalf("%v s of silence count as a stall, want 3 to 10", l)
	}

	began := time.Now()
	s.order("fault/stall?market=%s", market)
	lost := func(labels ...string) float64 {
		return s.metric("fanout-0", "relay_fanout_upstream_disconnects_total", append(labels, label)...)
	}
	eventually(t, "the stall is noticed", func() bool { return lost(`cause="stalled"`) == 1 })
	if took := time.Since(began); took > 11*time.Second { // the fanout and its metrics need their time too
		t.Errorf("noticed after %v, want 10 s at most", took)
	} else {
		t.Logf("noticed after %v", took)
	}
	eventually(t, "the status page shows the stall", func() bool {
		return status(t, s.Info().Edges[0]).Services["stream_"+market].Status == "degraded"
	})
	eventually(t, "the next silence is waited for as the first of a row", func() bool { return limit() == 10 })
	resumed := time.Now()
	s.order("resume?market=%s", market)

	notice := ws.await("a gap", func(e event) bool { return e.Status == "gap" })
	if notice.To == nil || notice.Market != market {
		t.Fatalf("gap notice %s", notice.raw)
	}
	from, err1 := time.Parse(time.RFC3339Nano, notice.From)
	to, err2 := time.Parse(time.RFC3339Nano, *notice.To)
	if err1 != nil || err2 != nil || from.After(began.Add(200*time.Millisecond)) || from.Before(began.Add(-2*time.Second)) ||
		to.Before(resumed) || to.After(resumed.Add(2*time.Second)) {
		t.Errorf("the gap %s does not span the stall from %v to %v", notice.raw, began.UTC(), resumed.UTC())
	}
	if notices, events := gaps(t, ws, 3*time.Second); len(notices) != 0 || events == 0 {
		t.Errorf("after the gap %d more notices and %d events, want none and some", len(notices), events)
	}
	if n := lost(); n != 1 {
		t.Errorf("%v connections were lost, want 1", n)
	}
}
