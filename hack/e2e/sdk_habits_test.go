package e2e

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gobwas/ws"

	"github.com/cutemarkets/relay/hack/cluster"
)

// TestSDKHabits is the life of scripted clients that connect, stop and come back
// as the vendor's Go and Python SDKs do.
func TestSDKHabits(t *testing.T) {
	t.Parallel()
	address, _, _ := startRedis(t)
	c := startCluster(t, cluster.Options{Redis: address, Edges: 4})
	h := habits{c: c, edges: c.Info().Edges}
	for _, row := range []struct {
		name string
		test func(t *testing.T)
	}{
		{"Go: all at once on a path without a slash", h.goStream},
		{"Go: auth_failed is the end, after one dial", h.goRefused},
		{"Go: each max_connections is followed by a longer rest", h.goSecond},
		{"Go: its ping after 25 s is answered", h.goPing},
		{"Go: a restart of the edge costs one dial", h.goRestart},
		{"Python: one frame, key, one frame, topics", h.pythonStream},
		{"Python: key by header and in band", h.pythonHeader},
		{"Python: auth_failed is the end, after one dial", h.pythonRefused},
		{"Python: its five lives last for longer than the lock of an edge that was killed", h.pythonSecond},
		{"Python: the loss of the upstream costs none of its lives", h.pythonOutage},
		{"Python: a restart of the edge costs one of its lives", h.pythonRestart},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			row.test(t)
		})
	}
}

type habits struct {
	c     *cluster.Cluster
	edges []string
}

// acknowledged is the frame that answers a subscribe.
func acknowledged(topics ...string) string {
	for i, topic := range topics {
		topics[i] = `{"ev":"status","status":"success","message":"subscribed to: ` + topic + `"}`
	}
	return "[" + strings.Join(topics, ",") + "]"
}

func (h habits) goStream(t *testing.T) {
	s := newGoSDK(t, h.edges[0], expert(t, h.c, "stocks"), "T.*", "AM.AAPL,AM.BRK.A")
	if err := s.run(func() bool { return s.data > 0 && len(s.statuses) >= 5 }); err != nil {
		t.Fatal(err)
	}
	want := []string{connected, authenticated, acknowledged("T.*"), acknowledged("AM.AAPL", "AM.BRK.A")}
	if got := slices.DeleteFunc(s.frames, func(f string) bool { return !strings.HasPrefix(f, `[{"ev":"status"`) }); !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if len(s.dials) != 1 {
		t.Errorf("%d dials", len(s.dials))
	}
}

// refused is the keys that are refused, by the cause that is named.
func (h habits) refused(t *testing.T) map[string]string {
	t.Helper()
	_, free := newUser(t, h.c, "stocks", "free")
	return map[string]string{"invalid": "cm_nobodyskey", "product": expert(t, h.c, "options"), "plan": free}
}

func (h habits) goRefused(t *testing.T) {
	for cause, key := range h.refused(t) {
		s := newGoSDK(t, h.edges[0], key, "T.*")
		ended := time.Now().Add(time.Second)
		err := s.run(func() bool { return time.Now().After(ended) })
		if !errors.Is(err, errAuthFailed) || len(s.dials) != 1 || s.data != 0 {
			t.Errorf("%s: %v after %d dials and %d events", cause, err, len(s.dials), s.data)
		}
		if last := s.frames[len(s.frames)-1]; !strings.Contains(last, cause) {
			t.Errorf("%s is not named in %s", cause, last)
		}
	}
}

func (h habits) goSecond(t *testing.T) {
	key := expert(t, h.c, "stocks")
	first := join(t, h.edges[0], "stocks", key)
	s := newGoSDK(t, h.edges[1], key, "T.*")
	left, stop := false, first.attend()
	err := s.run(func() bool {
		if !left && len(s.closes) == 3 {
			stop()
			first.leave()
			left = true
		}
		return s.data > 0
	})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(s.closes, []int{4409, 4409, 4409}) || len(s.dials) != 4 {
		t.Fatalf("%d dials, closed with %v; want it to get in at the fourth", len(s.dials), s.closes)
	}
	for n, least := range []time.Duration{time.Second, 2 * time.Second, 4 * time.Second} {
		if rest := s.dials[n+1].Sub(s.dials[n]); rest < least {
			t.Errorf("refusal %d: dialled again after %s, want %s at least", n, rest, least)
		}
	}
}

func (h habits) goPing(t *testing.T) {
	c := open(t, h.edges[0], "/v1/ws/stocks")
	c.raw(append(message("auth", expert(t, h.c, "stocks")), message("subscribe", "NOI.ZZA")...))
	for _, want := range []string{connected, authenticated, acknowledged("NOI.ZZA")} {
		c.expect(want)
	}
	// Nothing comes on this connection but the pings of either side.
	if text, err := c.next(goPing); err == nil {
		t.Fatalf("got %s on a quiet connection", text)
	} else if timeout, ok := errors.AsType[interface {
		error
		Timeout() bool
	}](err); !ok || !timeout.Timeout() {
		t.Fatal(err)
	}
	c.frame(ws.OpPing, []byte("sdk"))
	c.expect("pong:sdk")
}

func (h habits) pythonStream(t *testing.T) {
	s := newPythonSDK(t, h.edges[0], expert(t, h.c, "stocks"), "T.*,AM.*")
	s.ping = 200 * time.Millisecond
	if err := s.run(func() bool { return s.data > 100 }); err != nil {
		t.Fatal(err)
	}
	if want := []string{connected, authenticated, acknowledged("T.*", "AM.*")}; !slices.Equal(s.frames[:3], want) {
		t.Errorf("got  %q\nwant %q", s.frames[:3], want)
	}
}

func (h habits) pythonHeader(t *testing.T) {
	key := expert(t, h.c, "stocks")
	s := newPythonSDK(t, h.edges[0], key, "T.*")
	s.header = append(s.header, bearer(key))
	if err := s.run(func() bool { return s.data > 0 }); err != nil {
		t.Fatal(err)
	}
	if want := []string{connected, authenticated, authenticated, acknowledged("T.*")}; !slices.Equal(s.frames[:4], want) {
		t.Errorf("got  %q\nwant %q", s.frames[:4], want)
	}
}

func (h habits) pythonRefused(t *testing.T) {
	for cause, key := range h.refused(t) {
		s := newPythonSDK(t, h.edges[0], key, "T.*")
		err := s.run(func() bool { return false })
		if !errors.Is(err, errAuthFailed) || len(s.dials) != 1 {
			t.Errorf("%s: %v after %d dials", cause, err, len(s.dials))
		}
	}
}

func (h habits) pythonSecond(t *testing.T) {
	key := expert(t, h.c, "stocks")
	first := join(t, h.edges[0], "stocks", key)
	s := newPythonSDK(t, h.edges[1], key, "T.*")
	stop := first.attend()
	const lockTTL, spent = 15 * time.Second, 4 // of its lives
	if err := s.run(func() bool { return len(s.closes) == spent }); err != nil {
		t.Fatalf("%v after %d dials", err, len(s.dials))
	}
	stop()
	if lasted := s.dials[spent].Sub(s.dials[0]); lasted < lockTTL {
		t.Errorf("%d of %d lives lasted for %s, want %s at least", spent, maxReconnects, lasted, lockTTL)
	}
	if !slices.Equal(s.closes, slices.Repeat([]int{4409}, spent)) || s.data != 0 {
		t.Errorf("closed with %v after %d events", s.closes, s.data)
	}
	first.subscribe("T.*")
	first.await("an event: the first connection is undisturbed", func(e event) bool { return e.Ev == "T" })
}

func (h habits) pythonOutage(t *testing.T) {
	s := newPythonSDK(t, h.edges[0], expert(t, h.c, "options"), "T.*")
	s.target = "/v1/ws/options"
	before := -1
	err := s.run(func() bool {
		switch {
		case before < 0 && s.data > 0:
			before = s.data
			post(t, h.c.Info().Feedsim+"/outage?market=options&for=2s")
		case before >= 0 && !slices.Contains(s.statuses, "gap"):
			before = s.data
		}
		return before >= 0 && s.data > before
	})
	if err != nil || len(s.dials) != 1 {
		t.Errorf("%v after %d dials, want an event after the gap on the first", err, len(s.dials))
	}
}

// restart stops an edge, which only this test uses, under an SDK that is then
// sent to another edge, as a load balancer would.
func (h habits) restart(t *testing.T, part string, sdk interface {
	run(enough func() bool) error
}, s *script) {
	s.moved = h.edges[1]
	stopped := make(chan error, 1)
	stopping, before := false, 0
	err := sdk.run(func() bool {
		if !stopping && s.data > 0 {
			stopping = true
			go func() { stopped <- h.c.StopPart(context.WithoutCancel(t.Context()), part) }()
		}
		if len(s.closes) == 0 {
			before = s.data
		}
		return s.data > before
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	want := []string{"connected", "auth_success", "success", "draining", "connected", "auth_success", "success"}
	if !slices.Equal(s.statuses, want) || !slices.Equal(s.closes, []int{1012}) || len(s.dials) != 2 {
		t.Errorf("statuses %q, closes %v, %d dials; want a notice, 1012 and no wait for the lock", s.statuses, s.closes, len(s.dials))
	}
}

func (h habits) goRestart(t *testing.T) {
	s := newGoSDK(t, h.edges[2], expert(t, h.c, "stocks"), "T.*")
	h.restart(t, "edge-2", s, &s.script)
}

func (h habits) pythonRestart(t *testing.T) {
	s := newPythonSDK(t, h.edges[3], expert(t, h.c, "stocks"), "T.*")
	h.restart(t, "edge-3", s, &s.script)
}
