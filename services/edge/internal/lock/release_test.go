package lock

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cutemarkets/relay/services/edge/internal/dialect"
	"github.com/cutemarkets/relay/services/internal/redisx"
	"github.com/cutemarkets/relay/services/internal/redisx/redistest"
)

// releases counts what Config.Released is told of one owner.
type releases struct {
	lost, released atomic.Int32
}

func (r *releases) config(c Config) Config {
	c.Lost = func(uint64, dialect.Reason) { r.lost.Add(1) }
	c.Released = func(uint64) { r.released.Add(1) }
	return c
}

// once expects Released to be told once, and no more while the bucket goes on.
func (r *releases) once(t *testing.T, m *Manager, l *Lease) {
	t.Helper()
	eventually(t, "the release is told", func() bool { return r.released.Load() > 0 })
	eventually(t, "the lease has gone", func() bool { return m.leases.Load() == 0 })
	giveBack(t, mustAcquire(t, m, l.user)) // same bucket, an operation later
	eventually(t, "the next release is told", func() bool { return r.released.Load() > 1 })
	if n := r.released.Load(); n != 2 {
		t.Fatalf("%d releases were told of two leases", n)
	}
}

func TestReleasedAfterLost(t *testing.T) {
	address := startRedis(t)
	look := plain(t, address)
	var r releases
	m := newManager(t, r.config(short), redisx.Options{Address: []string{address}})
	l := mustAcquire(t, m, "user-1")
	look.Set(t.Context(), l.key(), "another", time.Minute)
	eventually(t, "the loss is told", func() bool { return r.lost.Load() == 1 })
	if n := r.released.Load(); n != 0 {
		t.Fatalf("%d releases were told before Release", n)
	}
	l.Release()
	if n := r.released.Load(); n != 1 {
		t.Fatalf("%d releases were told by Release, where there was nothing to release", n)
	}
	look.Del(t.Context(), l.key())
	r.once(t, m, l)
}

func TestReleasedBehindARefresh(t *testing.T) {
	p := redistest.NewProxy(t, startRedis(t))
	var r releases
	m := newManager(t, r.config(short), redisx.Options{Address: []string{p.Address}})
	l := mustAcquire(t, m, "user-1")
	p.Hold()
	eventually(t, "a refresh is in flight", func() bool {
		b := &m.buckets[l.bucket]
		b.mu.Lock()
		defer b.mu.Unlock()
		return l.machine.busy
	})
	l.Release()
	if n := r.released.Load(); n != 0 {
		t.Fatalf("%d releases were told with a refresh in flight", n)
	}
	p.Resume()
	r.once(t, m, l)
}

func TestReleasedAfterRun(t *testing.T) {
	address := startRedis(t)
	var r releases
	m := newIdleManager(t, r.config(Config{EdgeID: "a"}), redisx.Options{Address: []string{address}})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- m.Run(ctx) }()
	l := mustAcquire(t, m, "user-1")
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if n := r.released.Load(); n != 0 {
		t.Fatalf("%d releases were told before Release", n)
	}
	l.Release()
	if n := r.released.Load(); n != 1 {
		t.Fatalf("%d releases were told of a lease that Run had given back", n)
	}
}
