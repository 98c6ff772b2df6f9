package lock

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	sdk "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/cutemarkets/relay/services/edge/internal/dialect"
	"github.com/cutemarkets/relay/services/internal/redisx"
	"github.com/cutemarkets/relay/services/internal/redisx/redistest"
)

// lossy is two edges that hold locks, and those who want them all the time.
type lossy struct {
	edges  [2]*Manager
	leases []*Lease
	users  []string
	wanted atomic.Int64 // acquires by those who may not have a lock
	gave   atomic.Int64 // to them
}

func newLossy(t *testing.T, locks int, o redisx.Options) *lossy {
	x := &lossy{}
	for n := range x.edges {
		x.edges[n] = newManager(t, Config{EdgeID: fmt.Sprint("edge-", n)}, o)
	}
	for n := range locks {
		user := fmt.Sprint("user-", n)
		x.users = append(x.users, user)
		x.leases = append(x.leases, mustAcquire(t, x.edges[n%2], user))
	}
	return x
}

// covet tries to take the locks of the other edge until the test ends.
func (x *lossy) covet(t *testing.T) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for n, m := range x.edges {
		wg.Go(func() {
			for k := 1 - n; ctx.Err() == nil; k = (k + 2) % len(x.users) {
				x.wanted.Add(1)
				if l, r := m.Acquire(ctx, x.users[k], 0); r == dialect.OK {
					x.gave.Add(1)
					l.Release()
				}
			}
		})
	}
	return func() {
		cancel()
		wg.Wait()
	}
}

// A Redis that is empty is noticed before it is used, and nobody is let in until
// all edges have set their locks there, also those that have only a few.
func TestNewGeneration(t *testing.T) {
	next := startRedis(t)
	p := redistest.NewProxy(t, startRedis(t))
	x := newLossy(t, 50, redisx.Options{Address: []string{p.Address}})
	defer x.covet(t)()
	look := plain(t, next)
	began := time.Now()
	p.MoveTo(next)
	for _, l := range x.leases {
		eventually(t, "a lock is set anew", func() bool { return look.Get(t.Context(), l.key()).Val() == l.token() })
	}
	t.Logf("all set anew after %v", time.Since(began))
	if _, r := x.edges[0].Acquire(t.Context(), "newcomer", 0); r != dialect.LockUnavailable {
		t.Fatalf("Acquire while the guard lasts = %v", r)
	}
	if _, err := x.edges[0].Ping(t.Context()); !errors.Is(err, errGuarded) {
		t.Errorf("Ping while the guard lasts: %v", err)
	}
	eventually(t, "newcomers are let in", func() bool {
		_, r := x.edges[0].Acquire(t.Context(), "newcomer", 0)
		return r == dialect.OK
	})
	if took := time.Since(began); took < guardTime {
		t.Errorf("newcomers are let in after %v", took)
	}
	if n := x.gave.Load(); n > 0 || x.wanted.Load() == 0 {
		t.Errorf("%d of %d got a lock that another holds", n, x.wanted.Load())
	}
}

// Data that goes without a restart is noticed by the first lock that is missing:
// the others are set anew within the guard's sweep, not each by its own refresh.
func TestLocksVanish(t *testing.T) {
	address := startRedis(t)
	look := plain(t, address)
	reader := sdk.NewManualReader()
	m := newIdleManager(t, Config{EdgeID: "a"}, redisx.Options{Address: []string{address}})
	var err error
	if m.metrics, err = newMetrics(sdk.NewMeterProvider(sdk.WithReader(reader)).Meter("lock"), &m.held); err != nil {
		t.Fatal(err)
	}
	run(t, m)
	var leases []*Lease
	for n := range 300 {
		leases = append(leases, mustAcquire(t, m, fmt.Sprint("user-", n)))
	}
	look.FlushAll(t.Context())
	eventually(t, "a lock is set anew", func() bool { return look.DBSize(t.Context()).Val() > 0 })
	first := time.Now()
	eventually(t, "all locks are set anew", func() bool { return look.DBSize(t.Context()).Val() == int64(len(leases)) })
	if took := time.Since(first); took > sweepTime+time.Second {
		t.Errorf("all locks are set anew %v after the first", took)
	}
	if got := guardsOf(t, reader); got["missing"] != 1 || got["generation"] != 0 {
		t.Errorf("guards by trigger: %v", got)
	}
}

func guardsOf(t *testing.T, reader *sdk.ManualReader) map[string]int64 {
	t.Helper()
	var all metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &all); err != nil {
		t.Fatal(err)
	}
	got := map[string]int64{}
	for _, m := range all.ScopeMetrics[0].Metrics {
		if m.Name != "relay_edge_lock_guards" {
			continue
		}
		for _, p := range m.Data.(metricdata.Sum[int64]).DataPoints {
			name, _ := p.Attributes.Value("trigger")
			got[name.AsString()] = p.Value
		}
	}
	return got
}

// The locks work in a Cluster, whose nodes are told apart.
func TestCluster(t *testing.T) {
	server := redistest.Start(t, "--cluster-enabled", "yes")
	server.Cluster()
	m := newManager(t, short, redisx.Options{Address: []string{server.Address, server.Address}})
	l := mustAcquire(t, m, "user-1")
	before := deadline(l)
	eventually(t, "a refresh", func() bool { return deadline(l) > before })
	if n := m.redis.Generation(); n != 0 {
		t.Fatalf("the generation is %d", n)
	}
	giveBack(t, l)
}
