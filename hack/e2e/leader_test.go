//go:build long

package e2e

import (
	"encoding/json"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/cutemarkets/relay/hack/cluster"
	"github.com/cutemarkets/relay/hack/feedsim"
	"github.com/cutemarkets/relay/hack/feedsim/market"
)

// TestRedisLeader: of two fanouts that elect by Redis one leads a market, and the
// other when that one dies or stops; a Redis that is away for a while costs
// nothing. The vendor never sees two sockets of a market at a time.
func TestRedisLeader(t *testing.T) {
	t.Parallel()
	address, stopRedis, startRedis := startRedis(t)
	s := &stage{t: t, Cluster: startCluster(t, cluster.Options{
		Redis: address, Fanouts: 2,
		Args: map[string][]string{"fanout": {"--leader=redis", "--redis-address=" + address}},
	})}
	client := join(t, s.Info().Edges[0], "stocks", expert(t, s.Cluster, "stocks"))
	client.subscribe("T.*")
	client.await("an event", func(e event) bool { return e.Ev == "T" })
	first := s.leader("fanout-0", "fanout-1")
	other := map[string]string{"fanout-0": "fanout-1", "fanout-1": "fanout-0"}[first]

	took := s.handOver(client, other, func() error { return s.Kill(first, syscall.SIGKILL) })
	t.Logf("the leader is killed: another has the feed after %v", took)
	if took > 7*time.Second {
		t.Errorf("another leads %v after the end of the one before", took)
	}
	if err := s.RestartPart(t.Context(), first); err != nil {
		t.Fatal(err)
	}

	eventually(t, "edges know the fanout that is back", func() bool { return s.metric(first, "relay_fanout_edges", `market="stocks"`) == 2 })
	sockets := len(s.history().Stocks)
	stopRedis()
	away := time.AfterFunc(2500*time.Millisecond, startRedis)
	defer away.Stop()
	if notices, events := gaps(t, client, 6*time.Second); len(notices) > 0 || events == 0 {
		t.Errorf("Redis was away: %d events, gaps %v", events, notices)
	}
	if got := s.leader("fanout-0", "fanout-1"); got != other || len(s.history().Stocks) != sockets {
		t.Errorf("Redis was away: %s leads after %s, sockets %v", got, other, s.history().Stocks)
	}

	took = s.handOver(client, first, func() error { return s.StopPart(t.Context(), other) })
	t.Logf("the leader stops: another has the feed after %v", took)
	if took > 3*time.Second {
		t.Errorf("another leads %v after the stop of the one before", took)
	}
	if err := s.RestartPart(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	h := s.history()
	for _, changes := range [][]market.Change{h.Stocks, h.Options} {
		if slices.ContainsFunc(changes, func(c market.Change) bool { return c.Authenticated > 1 }) {
			t.Errorf("the vendor had two sockets of a market at a time: %v", changes)
		}
	}
}

// handOver ends a leader of stocks and waits until the next one's events reach a
// client, behind the gap.
func (s *stage) handOver(client *client, next string, end func() error) (took time.Duration) {
	s.t.Helper()
	begun := time.Now()
	if err := end(); err != nil {
		s.t.Fatal(err)
	}
	notice := client.await("the gap", func(e event) bool { return e.Status == "gap" })
	if notice.To == nil {
		s.t.Errorf("a gap without an end: %s", notice.raw)
	}
	took = time.Since(begun)
	client.await("an event", func(e event) bool { return e.Ev == "T" })
	s.leader(next)
	return took
}

// leader waits until one of the fanouts leads stocks, and returns its name.
func (s *stage) leader(among ...string) (name string) {
	s.t.Helper()
	eventually(s.t, "one fanout leads", func() bool {
		leads := slices.IndexFunc(among, func(part string) bool {
			return s.metric(part, "relay_fanout_leader", `market="stocks"`) == 1
		})
		if leads >= 0 {
			name = among[leads]
		}
		return leads >= 0
	})
	return name
}

func (s *stage) history() (h feedsim.History) {
	s.t.Helper()
	if err := json.Unmarshal([]byte(get(s.t, s.Info().Feedsim+"/sockets")), &h); err != nil {
		s.t.Fatal(err)
	}
	return h
}
