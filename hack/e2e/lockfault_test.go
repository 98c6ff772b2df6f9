package e2e

import (
	"testing"
	"time"
)

// lockRow is a fault and what it may lead to.
type lockRow struct {
	name     string
	store    func(t *testing.T) *lockStore
	fault    func(w *lockWorld) // returns when it has ended
	overlap  time.Duration      // the longest that two sockets of a user may have events, beside what cannot be told
	recovery time.Duration      // the longest from its end until all are live
	away     time.Duration      // the longest that a user may have no events
	check    func(t *testing.T, w *lockWorld, f *lockFigures)
}

// run puts a crowd through the fault, and watches it for a while after.
func (r lockRow) run(t *testing.T, size crowdSize, steady time.Duration) *lockFigures {
	t.Helper()
	w := newLockWorld(t, size, r.store(t))
	time.Sleep(calm)
	f := w.suffer(r.name, steady, func() { r.fault(w) })
	t.Logf("%s\n%s\n4409 because %v; refused %v; closed %v", lockHeader, f, f.because, f.refused, f.closed)
	if most := r.overlap + lockResolution; f.overlap > most {
		t.Errorf("two sockets of a user had events for %s, want at most %s", f.overlap, most)
	}
	if n := f.closed[held]; n > 0 && r.overlap == 0 {
		t.Errorf("%d sockets were closed with 4409: another had taken their place while their leases were valid", n)
	}
	if f.wrong > 0 {
		t.Errorf("%d answers of 4409 that no socket and no lock explain", f.wrong)
	}
	if f.recovery > r.recovery {
		t.Errorf("all were live after %s, want at most %s; the last of them (s since the end of the fault):\n%s", f.recovery, r.recovery, f.slowest)
	}
	if f.away > r.away {
		t.Errorf("a user had no events for %s, want at most %s", f.away, r.away)
	}
	if r.check != nil {
		r.check(t, w, f)
	}
	return f
}

const (
	// calm is how long the crowd is there before the fault.
	calm = 2 * time.Second
	// longestGap between two refreshes of a lock.
	longestGap = 4800 * time.Millisecond
	// lockLease is how long a socket lives without Redis after its last refresh.
	lockLease = lockTTL - time.Second
	// guardTime is for how long newcomers are refused after a loss.
	guardTime = 2500 * time.Millisecond
	// comeBack is a refusal with its hold and the client's pause, at each edge in
	// turn.
	comeBack = 6 * time.Second
)

// restart kills Redis and starts it again.
func restart(w *lockWorld) {
	w.store.servers[0].kill()
	w.store.servers[0].start()
}

// TestLockLoss has Redis restart empty while a crowd is connected: nobody's place
// is taken, and newcomers are served again when the guard ends. TestLockFaults has
// more faults and more users.
func TestLockLoss(t *testing.T) {
	row := lockRow{
		name: "redis-server: kill -9, restarts empty", fault: restart,
		store:    func(t *testing.T) *lockStore { return singleStore(t, keepsNone) },
		recovery: guardTime + comeBack, away: guardTime + comeBack,
	}
	row.run(t, crowdSize{users: 60, rivals: 20, leavers: 10}, 3*time.Second)
}
