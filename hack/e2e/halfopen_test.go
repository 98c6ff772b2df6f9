package e2e

import (
	"encoding/json"
	"io"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/cutemarkets/relay/hack/cluster"
)

// TestHalfOpen lets a client's network path go silent, which neither end is told
// of: its user can come back at once, at the same edge and at the other, with the
// old socket closed first. A client that lives notices nothing but a ping.
func TestHalfOpen(t *testing.T) {
	t.Parallel()
	const (
		soonest = 1900 * time.Millisecond // the old socket had its time
		latest  = 4 * time.Second         // 2 s and what a busy machine takes; by pings alone it is 30
	)
	s := startStage(t, cluster.Options{})
	for n, name := range []string{"the same edge", "the other edge"} {
		t.Run(name, func(t *testing.T) {
			edges := s.Info().Edges
			user, key := newUser(t, s.Cluster, "stocks", "expert")
			path := newDetour(t, host(edges[0]))
			old := join(t, "ws://"+path.address, "stocks", key)
			stop := old.attend()
			expectSecond(t, open(t, edges[n], "/v1/ws/stocks/", bearer(key)))
			if pings, others := stop(); pings != 1 || others != 0 {
				t.Errorf("the client that lives got %d pings and %d other frames", pings, others)
			}

			before := s.metric("edge-0", "relay_edge_closes_total", `reason="pong_timeout"`)
			path.silence(t)
			began := time.Now()
			fresh := join(t, edges[n], "stocks", key)
			took := time.Since(began)
			t.Logf("back after %v", took)
			if took < soonest || took > latest {
				t.Errorf("the user was back after %v", took)
			}
			if n := s.metric("edge-0", "relay_edge_closes_total", `reason="pong_timeout"`) - before; n != 1 {
				t.Errorf("%v sockets ended without a pong, want the old one", n)
			}
			var holders struct{ Locks []struct{ Edge string } }
			if err := json.Unmarshal([]byte(get(t, s.Info().Operations["edge-0"]+"/locks?user="+url.QueryEscape(user))), &holders); err != nil {
				t.Fatal(err)
			}
			if len(holders.Locks) != 1 {
				t.Errorf("holders: %+v", holders)
			}
			fresh.subscribe("T.*")
			fresh.expect(acknowledged("T.*"))
			fresh.leave()
		})
	}
	for part, want := range map[string]map[string]float64{
		"edge-0": {"alive": 1, "gone": 1, "no_answer": 0, "failed": 0},
		"edge-1": {"alive": 1, "gone": 1, "no_answer": 0, "failed": 0},
	} {
		for result, n := range want {
			if got := s.metric(part, "relay_edge_lock_probes_total", `result="`+result+`"`); got != n {
				t.Errorf("%s: %v probes %s, want %v", part, got, result, n)
			}
		}
	}
}

// detour is a way to a server that can go silent: bytes are neither delivered nor
// refused from then on.
type detour struct {
	address string
	gate    sync.RWMutex // held: nothing passes
}

func newDetour(t *testing.T, target string) *detour {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &detour{address: listener.Addr().String()}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		client, err := listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", target)
		if err != nil {
			_ = client.Close()
			return
		}
		defer func() { _, _ = client.Close(), server.Close() }()
		go d.carry(client, server)
		d.carry(server, client)
	}()
	return d
}

// silence lasts until the test ends.
func (d *detour) silence(t *testing.T) {
	d.gate.Lock()
	t.Cleanup(d.gate.Unlock)
}

func (d *detour) carry(from io.Reader, to io.Writer) {
	buf := make([]byte, 4<<10)
	for {
		n, err := from.Read(buf)
		d.gate.RLock()
		_, failure := to.Write(buf[:n])
		d.gate.RUnlock()
		if err != nil || failure != nil {
			return
		}
	}
}
