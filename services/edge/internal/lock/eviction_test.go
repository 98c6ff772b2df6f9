package lock

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	sdk "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/cutemarkets/relay/services/internal/redisx"
)

// evictionRig is an Eviction with its log and its metric.
type evictionRig struct {
	*Eviction
	t      *testing.T
	reader *sdk.ManualReader

	mu sync.Mutex
	// Guarded by mu.
	log bytes.Buffer
}

func (g *evictionRig) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.log.Write(p)
}

// logged returns the levels that were logged since the last time.
func (g *evictionRig) logged() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	var levels []string
	for line := range strings.Lines(g.log.String()) {
		level, _, _ := strings.Cut(strings.TrimPrefix(line, "level="), " ")
		levels = append(levels, level)
	}
	g.log.Reset()
	return strings.Join(levels, " ")
}

// state is the one of the metric's states that is 1.
func (g *evictionRig) state() string {
	g.t.Helper()
	var all metricdata.ResourceMetrics
	if err := g.reader.Collect(g.t.Context(), &all); err != nil {
		g.t.Fatal(err)
	}
	points := all.ScopeMetrics[0].Metrics[0].Data.(metricdata.Gauge[int64]).DataPoints
	is, sum := "", int64(0)
	for _, p := range points {
		if name, _ := p.Attributes.Value("state"); p.Value == 1 {
			is = name.AsString()
		}
		sum += p.Value
	}
	if len(points) != 3 || sum != 1 {
		g.t.Fatalf("%d states, %d of them are", len(points), sum)
	}
	return is
}

func newEviction(t *testing.T, o redisx.Options) *evictionRig {
	t.Helper()
	g := &evictionRig{t: t, reader: sdk.NewManualReader()}
	client, err := NewClient(o, "relay-edge-test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	log := slog.New(slog.NewTextHandler(g, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
	if g.Eviction, err = NewEviction(client, sdk.NewMeterProvider(sdk.WithReader(g.reader)).Meter("lock"), log); err != nil {
		t.Fatal(err)
	}
	return g
}

// mustBe asks and compares the answer; what is possible is refused.
func (g *evictionRig) mustBe(state, levels string) error {
	g.t.Helper()
	err := g.Check(g.t.Context())
	if possible := state == "possible"; errors.Is(err, ErrEviction) != possible || possible != (err != nil) {
		g.t.Fatalf("Check = %v, want it %s", err, state)
	}
	if got := g.state(); got != state {
		g.t.Fatalf("the metric says %s, want %s", got, state)
	}
	if got := g.logged(); got != levels {
		g.t.Fatalf("logged %q, want %q", got, levels)
	}
	return err
}

func configure(t *testing.T, server *redis.Client, name, value string) {
	t.Helper()
	if err := server.ConfigSet(t.Context(), name, value).Err(); err != nil {
		t.Fatal(err)
	}
}

func TestEvictionByPolicy(t *testing.T) {
	address := startRedis(t)
	server := plain(t, address)
	g := newEviction(t, redisx.Options{Address: []string{address}})
	if state := g.state(); state != "unknown" {
		t.Fatalf("%s before it asked", state)
	}
	_ = g.mustBe("impossible", "")
	for _, policy := range []string{
		"volatile-lru", "volatile-lfu", "volatile-random", "volatile-ttl", "allkeys-lru", "allkeys-lfu", "allkeys-random",
	} {
		configure(t, server, "maxmemory-policy", policy)
		configure(t, server, "maxmemory", "0")
		_ = g.mustBe("impossible", "")
		configure(t, server, "maxmemory", "100mb")
		err := g.mustBe("possible", "")
		for _, part := range []string{policy, "104857600", "CONFIG SET maxmemory-policy noeviction"} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%q is not in: %v", part, err)
			}
		}
	}
	configure(t, server, "maxmemory-policy", "noeviction")
	_ = g.mustBe("impossible", "")
}

func TestEvictionByWhatIsPermitted(t *testing.T) {
	address := startRedis(t, "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
	server := plain(t, address)
	g := newEviction(t, redisx.Options{Address: []string{address}})
	permit := func(rules ...string) {
		t.Helper()
		if err := server.ACLSetUser(t.Context(), "default", rules...).Err(); err != nil {
			t.Fatal(err)
		}
	}
	permit("-info")
	_ = g.mustBe("unknown", "WARN")
	permit("-@dangerous", "+info")
	_ = g.mustBe("possible", "")
}

// TestEvictionIsWatched: Redis is of no use at first, then may evict locks, then not.
func TestEvictionIsWatched(t *testing.T) {
	address := startRedis(t, "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru", "--requirepass", "another")
	server := redis.NewClient(&redis.Options{Addr: address, Password: "another"})
	t.Cleanup(func() { _ = server.Close() })
	g := newEviction(t, redisx.Options{Address: []string{address}})
	_ = g.mustBe("unknown", "WARN") // it answers nothing but NOAUTH
	g.every = 5 * time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- g.Run(ctx) }()
	configure(t, server, "requirepass", "")
	eventually(t, "it may evict", func() bool { return g.state() == "possible" })
	configure(t, server, "maxmemory-policy", "noeviction")
	eventually(t, "it does not", func() bool { return g.state() == "impossible" })
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if got := g.logged(); got != "ERROR" {
		t.Errorf("logged %q, want the one change that is bad", got)
	}
}

func TestEvictionOfARedisThatIsAway(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() }) // it accepts and says nothing
	for name, addresses := range map[string][]string{
		"refuses": {"127.0.0.1:1"}, "is silent": {listener.Addr().String()}, "Cluster": {"127.0.0.1:1", "127.0.0.1:2"},
	} {
		t.Run(name, func(t *testing.T) {
			began := time.Now()
			_ = newEviction(t, redisx.Options{Address: addresses}).mustBe("unknown", "WARN")
			if took := time.Since(began); took > evictionWait+time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}

// TestEvictionOfACluster: one master that may evict is enough.
func TestEvictionOfACluster(t *testing.T) {
	var addresses []string
	var servers []*redis.Client
	for range 2 {
		bus, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		_, port, _ := net.SplitHostPort(bus.Addr().String())
		_ = bus.Close()
		address := startRedis(t, "--cluster-enabled", "yes", "--cluster-port", port, "--maxmemory", "100mb")
		addresses, servers = append(addresses, address), append(servers, plain(t, address))
		if len(servers) == 2 {
			_, other, _ := net.SplitHostPort(address)
			if err := servers[0].Do(t.Context(), "CLUSTER", "MEET", "127.0.0.1", other, port).Err(); err != nil {
				t.Fatal(err)
			}
		}
	}
	for n, slots := range [][2]int{{0, 8191}, {8192, 16383}} {
		if err := servers[n].ClusterAddSlotsRange(t.Context(), slots[0], slots[1]).Err(); err != nil {
			t.Fatal(err)
		}
	}
	for n, s := range servers {
		eventually(t, fmt.Sprintf("node %d sees both", n), func() bool {
			return strings.Contains(s.ClusterInfo(t.Context()).Val(), "cluster_state:ok")
		})
	}
	g := newEviction(t, redisx.Options{Address: addresses})
	_ = g.mustBe("impossible", "")
	configure(t, servers[1], "maxmemory-policy", "volatile-ttl")
	if err := g.mustBe("possible", ""); !strings.Contains(err.Error(), addresses[1]) || strings.Contains(err.Error(), addresses[0]) {
		t.Errorf("the master is not named: %v", err)
	}
}
