//go:build long && linux

package e2e

import (
	"context"
	"fmt"
	"maps"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cutemarkets/relay/hack/cluster"
)

const (
	drainWindow = 10 * time.Second
	drainGrace  = 5 * time.Second // for the last releases and close handshakes
	stopped     = "edge-0"
)

// TestStop ends an edge with many clients, in three ways: as an orchestrator
// does, by a second signal while it drains, and by the kernel.
func TestStop(t *testing.T) {
	c, client := startForCrew(t, *stopClients, cluster.Options{Edges: 1, Rate: 1, Args: map[string][]string{
		"edge":   {"--markets=stocks", fmt.Sprintf("--drain-window=%s", drainWindow)},
		"fanout": {"--markets=stocks"},
	}})
	for _, way := range []struct {
		name string
		stop func(t *testing.T, c *cluster.Cluster, client *redis.Client, clients *crew)
	}{
		{"SIGTERM", drainEdge},
		{"SIGTERM twice", func(t *testing.T, c *cluster.Cluster, client *redis.Client, clients *crew) {
			killDraining(t, c, client, clients, syscall.SIGTERM)
		}},
		{"SIGKILL", func(t *testing.T, c *cluster.Cluster, client *redis.Client, clients *crew) {
			killDraining(t, c, client, clients, syscall.SIGKILL)
		}},
	} {
		t.Run(way.name, func(t *testing.T) {
			clients := newCrew(t, c.Info().Edges, c.Info().Users, func(int) string { return "T.AAPL" })
			clients.join(time.Duration(len(clients.keys)) * 2 * time.Millisecond)
			if n := locks(t, client); n != len(clients.keys) {
				t.Fatalf("%d locks for %d clients", n, len(clients.keys))
			}
			way.stop(t, c, client, clients)
		})
		if err := c.RestartPart(t.Context(), stopped); err != nil {
			t.Fatal(err)
		}
	}
}

// drainEdge lets the edge end by itself: each client is told, gets 1012, and
// they go one after the other.
func drainEdge(t *testing.T, c *cluster.Cluster, client *redis.Client, clients *crew) {
	began := time.Now()
	if err := c.StopPart(t.Context(), stopped); err != nil {
		t.Errorf("the edge did not end with status 0: %v", err)
	}
	took := time.Since(began)
	if took > drainWindow+drainGrace {
		t.Errorf("the edge took %s, want at most %s", took, drainWindow+drainGrace)
	}
	if n := locks(t, client); n != 0 {
		t.Errorf("%d locks are left", n)
	}
	all := len(clients.keys)
	clients.await("all connections have ended", time.Second, func() bool { return len(clients.ends) == all })
	want := map[string]int{"draining, close code 1012, by server at the stage live, announced: true": all}
	if got := clients.endings(); !maps.Equal(got, want) {
		t.Errorf("ended: %v, want %v", got, want)
	}
	var tenths [10]int
	for _, e := range clients.ends {
		tenths[min(int(e.at.Sub(began)*10/drainWindow), 9)]++
	}
	t.Logf("the edge took %s; closes in each tenth of the window: %v", took.Round(10*time.Millisecond), tenths)
	for i, n := range tenths {
		if n < all/20 || n > all*3/20 {
			t.Errorf("%d of %d connections ended in tenth %d of the window, want about a tenth", n, all, i)
		}
	}
	if len(clients.unexpected) > 0 {
		t.Errorf("unexpected: %v", clients.unexpected)
	}
}

// killDraining ends the edge by a signal half-way through its drain: what is left
// of its locks lives no longer than their TTL.
func killDraining(t *testing.T, c *cluster.Cluster, client *redis.Client, clients *crew, signal syscall.Signal) {
	all := len(clients.keys)
	ended := make(chan error, 1)
	go func() { ended <- c.StopPart(context.WithoutCancel(t.Context()), stopped) }()
	clients.await("a third of the connections have ended", drainWindow, func() bool { return len(clients.ends) >= all/3 })
	if err := c.Kill(stopped, signal); err != nil {
		t.Fatal(err)
	}
	died := time.Now()
	if err := <-ended; err == nil {
		t.Error("the edge ended with status 0, want it to die by the signal")
	}
	left := locks(t, client)
	if left < all/10 || left > all*9/10 {
		t.Errorf("%d of %d locks were left, want some", left, all)
	}
	for deadline := died.Add(lockTTL + time.Second); ; time.Sleep(20 * time.Millisecond) {
		n := locks(t, client)
		if n == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d locks are left %s after the edge has died", n, left, time.Since(died).Round(time.Millisecond))
		}
	}
	t.Logf("%d locks were left, for %s", left, time.Since(died).Round(10*time.Millisecond))
	clients.await("all connections have ended", patience, func() bool { return len(clients.ends) == all })
	t.Logf("ended: %v", clients.endings())
}
