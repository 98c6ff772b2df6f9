package lock

import (
	"testing"
	"time"

	"github.com/cutemarkets/relay/services/edge/internal/dialect"
	"github.com/cutemarkets/relay/services/internal/redisx"
)

// Nothing but Fence looks at the leases here, as after a pause of the process.
func TestFence(t *testing.T) {
	const grace = 200 * time.Millisecond
	for name, c := range map[string]Config{"lease": short, "grace": {EdgeID: "a", TTL: short.TTL, Refresh: short.Refresh, Margin: short.Margin, Grace: grace}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			told := map[uint64]int{}
			c.Lost = func(owner uint64, r dialect.Reason) {
				if told[owner]++; r != dialect.LockUnavailable {
					t.Errorf("lost: %v", r)
				}
			}
			m := newIdleManager(t, c, redisx.Options{Address: []string{startRedis(t)}})
			ends := map[uint64]time.Duration{}
			for owner, user := range []string{"one", "two", "three"} {
				began := m.now()
				l, r := m.Acquire(t.Context(), user, uint64(owner))
				if r != dialect.OK {
					t.Fatal(r)
				}
				if ends[uint64(owner)] = deadline(l) + c.Grace; ends[uint64(owner)] < began+c.TTL-c.Margin+c.Grace {
					t.Fatalf("asked for at %v, valid until %v", began, ends[uint64(owner)])
				}
				time.Sleep(100 * time.Millisecond) // so that they end apart
			}
			for len(told) < len(ends) {
				before := m.now()
				m.Fence()
				after := m.now()
				for owner, end := range ends {
					if n := told[owner]; before >= end && n != 1 || after < end && n != 0 {
						t.Fatalf("%d, valid until %v: told %d times at %v", owner, end, n, after)
					}
				}
			}
			if n := m.held.Load(); n != 0 {
				t.Fatalf("%d held", n)
			}
		})
	}
}

func BenchmarkFence(b *testing.B) {
	var m Manager
	m.fences.next.Store(int64(never))
	for b.Loop() {
		m.Fence()
	}
}
