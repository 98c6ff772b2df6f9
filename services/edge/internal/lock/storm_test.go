package lock

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/cutemarkets/relay/services/edge/internal/dialect"
	"github.com/cutemarkets/relay/services/internal/redisx"
	"github.com/cutemarkets/relay/services/internal/redisx/redistest"
)

// A storm of connects is no reason to refuse anybody.
func TestStorm(t *testing.T) {
	const sockets = 15_000
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2))
	address := startRedis(t)
	var released sync.WaitGroup
	m := newManager(t, Config{EdgeID: "a", Released: func(uint64) { released.Done() }}, redisx.Options{Address: []string{address}})
	var refusals atomic.Int64
	leases := make([]*Lease, sockets)
	began := time.Now()
	var wg sync.WaitGroup
	for n := range sockets {
		wg.Go(func() {
			l, r := m.Acquire(t.Context(), fmt.Sprint("user-", n), uint64(n))
			if r != dialect.OK {
				refusals.Add(1)
			}
			leases[n] = l
		})
	}
	wg.Wait()
	t.Logf("all acquired after %v", time.Since(began))
	if n := refusals.Load(); n > 0 {
		t.Fatalf("%d of %d refused", n, sockets)
	}
	if n := m.held.Load(); n != sockets {
		t.Fatalf("%d held", n)
	}
	began = time.Now()
	released.Add(sockets)
	for _, l := range leases {
		l.Release()
	}
	released.Wait()
	t.Logf("all released after %v", time.Since(began))
	if n := plain(t, address).DBSize(t.Context()).Val(); n != 0 || m.leases.Load() != 0 {
		t.Fatalf("%d keys and %d leases left", n, m.leases.Load())
	}
	for n := range m.buckets {
		if b := &m.buckets[n]; len(b.leases) == 0 && cap(b.leases) > 0 {
			t.Fatalf("an empty bucket keeps room for %d leases", cap(b.leases))
		}
	}
}

// While Redis does not answer, acquires wait in line for as long as their callers
// like, and nothing is left of those whose callers have gone.
func TestWaitingForATurn(t *testing.T) {
	address := startRedis(t)
	look := plain(t, address)
	p := redistest.NewProxy(t, address)
	m := newManager(t, short, redisx.Options{Address: []string{p.Address}})
	giveBack(t, mustAcquire(t, m, "warm"))
	p.Hold()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for n := range 2 * turns * batchKeys {
		wg.Go(func() {
			if _, r := m.Acquire(ctx, fmt.Sprint("gone-", n), 0); r != dialect.LockUnavailable {
				t.Errorf("Acquire = %v", r)
			}
		})
	}
	eventually(t, "the line is full", func() bool { return len(m.line) == cap(m.line) })
	cancel()
	wg.Wait()
	p.Resume()
	eventually(t, "nothing is left", func() bool { return m.leases.Load() == 0 && len(m.line) == 0 })
	eventually(t, "no key is left", func() bool { return look.DBSize(t.Context()).Val() == 0 })
	giveBack(t, mustAcquire(t, m, "user-1"))
}

// TestSize holds a lease to its share of what a connection may cost.
func TestSize(t *testing.T) {
	if size := unsafe.Sizeof(Lease{}); size > 80 {
		t.Errorf("a lease has %d bytes, want at most 80", size)
	}
}
