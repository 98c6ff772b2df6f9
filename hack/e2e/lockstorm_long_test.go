//go:build long && linux

package e2e

import (
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/cutemarkets/relay/hack/cluster"
	"github.com/cutemarkets/relay/hack/loadtest/fleet"
)

// TestLongStorm is TestStorm with 20,000 connects.
func TestLongStorm(t *testing.T) { runStorm(t, 300, 20_000) }

// TestLockAway takes Redis away for good: the sockets end with their leases, which
// the jitter of their refreshes has spread, and newcomers are refused.
func TestLockAway(t *testing.T) {
	const sockets, newcomers = 1_000, 60
	store := singleStore(t, keepsNone)
	marketed := []string{"--markets=stocks"}
	c := startCluster(t, cluster.Options{
		Edges: 2, Redis: store.address, Users: sockets + newcomers, Rate: 1, LogLevel: "warn",
		Args: map[string][]string{"edge": marketed, "fanout": marketed},
	})
	clients := newCrew(t, c.Info().Edges, c.Info().Users, func(int) string { return "T.AAPL" })
	for tag := range sockets {
		clients.open(tag, time.Now().Add(time.Duration(tag)*2*time.Millisecond))
	}
	clients.await("all clients are ready", time.Minute, func() bool { return clients.ready == sockets })
	time.Sleep(2 * longestGap) // each lock was refreshed at its own time
	store.servers[0].kill()
	away := time.Now()
	for n := range newcomers {
		clients.open(sockets+n, away.Add(time.Duration(n)*lockTTL/newcomers))
	}
	clients.await("all have ended", 2*lockTTL, func() bool { return len(clients.ends) == sockets+newcomers })

	perSecond, perQuarter := map[int]int{}, map[int]int{}
	first, last, refused := 2*lockTTL, time.Duration(0), 0
	for _, e := range clients.ends {
		at := e.at.Sub(away)
		switch {
		case e.Code != 1011:
			t.Errorf("ended with %+v, want 1011", e.End)
		case e.Stage == fleet.StageLive:
			first, last = min(first, at), max(last, at)
			perSecond[int(at/time.Second)]++
			perQuarter[int(at/(250*time.Millisecond))]++
		default:
			refused++
		}
	}
	most := slices.Max(slices.Collect(maps.Values(perSecond)))
	t.Logf("%d sockets ended from %.1f s to %.1f s after Redis had gone, most in a second %d, in a quarter of one %d, by second %v; %d newcomers refused with 1011",
		sockets, first.Seconds(), last.Seconds(), most, slices.Max(slices.Collect(maps.Values(perQuarter))), perSecond, refused)
	if refused != newcomers {
		t.Errorf("%d of %d newcomers were refused with 1011", refused, newcomers)
	}
	if most > sockets*2/5 {
		t.Errorf("%d of %d sockets ended within a second", most, sockets)
	}
	if first < lockLease-longestGap || last > lockLease+holdAndRelease {
		t.Errorf("sockets ended %s to %s after Redis had gone, want %s to %s", first, last, lockLease-longestGap, lockLease+holdAndRelease)
	}
}

// holdAndRelease is how long a socket that has lost its lock stays open, and silent:
// the client is told, and the edge waits for Redis.
const holdAndRelease = 2500 * time.Millisecond
