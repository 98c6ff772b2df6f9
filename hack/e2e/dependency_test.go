package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/cutemarkets/relay/hack/cluster"
)

// expectUnavailable expects a status error and 1011: the key may be good, the
// client shall come again.
func expectUnavailable(t *testing.T, edge, key string) {
	t.Helper()
	s := open(t, edge, "/v1/ws/stocks/", bearer(key))
	s.expect(connected)
	frames, _ := s.expectClose(1011)
	if contains(frames, "auth_failed") || contains(frames, "auth_success") || !contains(frames, `"status":"error"`) {
		t.Errorf("frames before 1011: %q, want a status error and no verdict on the key", frames)
	}
}

func TestAuthAway(t *testing.T) {
	t.Parallel()
	address, _, _ := startRedis(t)
	c := startCluster(t, cluster.Options{Redis: address})
	edge := c.Info().Edges[0]
	known, unknown := expert(t, c, "stocks"), expert(t, c, "stocks")
	s := join(t, edge, "stocks", known)
	if err := c.StopPart(t.Context(), "auth"); err != nil {
		t.Fatal(err)
	}
	expectUnavailable(t, edge, unknown)
	s.subscribe("T.*")
	s.await("an event: live sockets go on", func(e event) bool { return e.Ev == "T" })
	s.frame(8, nil)
	s.expectClose(1005)
	join(t, edge, "stocks", known).leave()
	eventually(t, "the status page is degraded", func() bool {
		page := status(t, edge)
		return page.Status == "degraded" && page.Services["database"].Status == "degraded"
	})

	if err := c.RestartPart(t.Context(), "auth"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "auth is back", func() bool { return status(t, edge).Status == "ok" })
	join(t, edge, "stocks", unknown)
}

func TestRedisAway(t *testing.T) {
	t.Parallel()
	address, stopRedis, startAgain := startRedis(t)
	c := startCluster(t, cluster.Options{Redis: address})
	edge := c.Info().Edges[0]
	key := expert(t, c, "stocks")
	stopRedis()
	expectUnavailable(t, edge, key)
	eventually(t, "the status page is degraded", func() bool { return status(t, edge).Services["cache"].Status == "degraded" })
	startAgain()
	eventually(t, "Redis is back", func() bool { return status(t, edge).Status == "ok" })
	join(t, edge, "stocks", key)
}

func TestUpstreamGrace(t *testing.T) {
	t.Parallel()
	address, _, _ := startRedis(t)
	c := startCluster(t, cluster.Options{Redis: address, Args: map[string][]string{"edge-0": {"--upstream-grace=1s"}}})
	edge := c.Info().Edges[0]
	s := join(t, edge, "stocks", expert(t, c, "stocks"))
	patient := join(t, c.Info().Edges[1], "stocks", expert(t, c, "stocks"))
	post(t, c.Info().Feedsim+"/outage?market=stocks&for=20s")
	if frames, _ := s.expectClose(1011); !contains(frames, `"status":"error"`) {
		t.Errorf("frames before 1011: %q", frames)
	}
	expectUnavailableAfterWelcome(t, edge, expert(t, c, "stocks"))
	patient.subscribe("NOI.ZZA")
	patient.expect(`[{"ev":"status","status":"success","message":"subscribed to: NOI.ZZA"}]`)
}

// expectUnavailableAfterWelcome is the end of a new socket whose key is good but
// whose market is gone for too long.
func expectUnavailableAfterWelcome(t *testing.T, edge, key string) {
	t.Helper()
	s := open(t, edge, "/v1/ws/stocks/", bearer(key))
	s.expect(connected)
	s.expectClose(1011)
}

// TestEdgeStops: a stopping edge tells its clients, gives their locks back
// first and closes with 1012, so that they are welcome elsewhere at once.
func TestEdgeStops(t *testing.T) {
	t.Parallel()
	address, _, _ := startRedis(t)
	c := startCluster(t, cluster.Options{Redis: address})
	edges := c.Info().Edges
	var keys []string
	var sockets []*client
	for range 5 {
		key := expert(t, c, "stocks")
		keys = append(keys, key)
		sockets = append(sockets, join(t, edges[0], "stocks", key))
	}
	stopped := make(chan error, 1)
	go func() { stopped <- c.StopPart(t.Context(), "edge-0") }()
	for i, s := range sockets {
		frames, _ := s.expectClose(1012)
		if len(frames) == 0 || !strings.Contains(frames[len(frames)-1], `"ev":"status"`) {
			t.Errorf("frames before 1012: %q, want a notice", frames)
		}
		join(t, edges[1], "stocks", keys[i])
	}
	select {
	case err := <-stopped:
		if err != nil {
			t.Errorf("the edge did not exit with 0: %v", err)
		}
	case <-time.After(patience):
		t.Error("the edge did not exit")
	}
}
