//go:build long

package e2e

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"
)

// toxic is a fault of the way between the second edge and Redis.
type toxic struct {
	proxy *toxiproxy.Proxy
	t     *testing.T
}

// newToxic runs a proxy in front of Redis until the test ends.
func newToxic(t *testing.T, upstream string) *toxic {
	t.Helper()
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	p := toxiproxy.NewProxy(server, "redis", "127.0.0.1:0", upstream)
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Stop)
	return &toxic{proxy: p, t: t}
}

// during poisons both directions for a while.
func (x *toxic) during(d time.Duration, kind, attributes string) {
	x.t.Helper()
	for _, stream := range []string{"upstream", "downstream"} {
		text := fmt.Sprintf(`{"name":%q,"type":%q,"stream":%q,"attributes":{%s}}`, stream, kind, stream, attributes)
		if _, err := x.proxy.Toxics.AddToxicJson(strings.NewReader(text)); err != nil {
			x.t.Fatal(err)
		}
	}
	time.Sleep(d)
	x.proxy.Toxics.ResetToxics(x.t.Context())
}

// takeOver is how long a replica may need to become the master.
const takeOver = 6 * time.Second

// failOver kills a master; the fault has ended when Redis takes writes again.
func failOver(w *lockWorld) {
	w.store.aMaster().kill()
	w.store.awaitWrites(w.t)
}

func stopRedis(d time.Duration) func(w *lockWorld) {
	return func(w *lockWorld) {
		w.store.servers[0].signal(syscall.SIGSTOP)
		time.Sleep(d)
		w.store.servers[0].signal(syscall.SIGCONT)
	}
}

func stopEdge(d time.Duration) func(w *lockWorld) {
	return func(w *lockWorld) {
		for _, signal := range []syscall.Signal{syscall.SIGSTOP, syscall.SIGCONT} {
			if err := w.Signal("edge-0", signal); err != nil {
				w.t.Fatal(err)
			}
			if signal == syscall.SIGSTOP {
				time.Sleep(d)
			}
		}
	}
}

func killEdge(w *lockWorld) {
	if err := w.Kill("edge-0", syscall.SIGKILL); err != nil {
		w.t.Fatal(err)
	}
}

func single(persistence []string) func(t *testing.T) *lockStore {
	return func(t *testing.T) *lockStore { return singleStore(t, persistence) }
}

// poisoned has the second edge reach Redis through a proxy with a fault.
func poisoned(r lockRow, d time.Duration, kind, attributes string) lockRow {
	var x *toxic
	r.store = func(t *testing.T) *lockStore {
		s := singleStore(t, keepsNone)
		x = newToxic(t, s.address)
		s.redisOf = map[string]string{"edge-1": x.proxy.Listen}
		return s
	}
	r.fault = func(*lockWorld) { x.during(d, kind, attributes) }
	return r
}

var lockRows = []lockRow{
	{
		name: "redis-server: kill -9, restarts with its data (AOF everysec)", store: single(keepsData), fault: restart,
		recovery: guardTime + comeBack, away: guardTime + comeBack,
	},
	{
		name: "redis-server: kill -9, restarts empty", store: single(keepsNone), fault: restart,
		recovery: guardTime + comeBack, away: guardTime + comeBack,
	},
	{
		name: "Sentinel: kill -9 of the master, failover", store: sentinelStore, fault: failOver,
		recovery: guardTime + comeBack, away: takeOver + guardTime + comeBack,
	},
	{
		name: "Cluster of 3+3: kill -9 of a master, failover", store: clusterStore, fault: failOver,
		recovery: guardTime + comeBack, away: takeOver + guardTime + comeBack,
	},
	{
		name: "FLUSHALL", store: single(keepsNone), fault: flushAll,
		overlap: unnoticed, recovery: guardTime + comeBack, away: guardTime + comeBack,
	},
	{
		name: "redis-server: SIGSTOP for 4 s", store: single(keepsNone), fault: stopRedis(4 * time.Second),
		recovery: comeBack, away: 4*time.Second + comeBack,
	},
	{
		name: "redis-server: SIGSTOP for 20 s", store: single(keepsNone), fault: stopRedis(20 * time.Second),
		recovery: comeBack, away: 20*time.Second + comeBack, check: allClosed,
	},
	{
		name: "edge: SIGSTOP for 20 s", store: single(keepsNone), fault: stopEdge(20 * time.Second),
		recovery: comeBack, away: lockTTL + comeBack, check: notFed,
	},
	{
		name: "edge: kill -9", store: single(keepsNone), fault: killEdge,
		recovery: lockTTL + comeBack, away: lockTTL + comeBack, check: lockedOut,
	},
	poisoned(lockRow{name: "one edge cut off Redis for 5 s", recovery: comeBack, away: 5*time.Second + comeBack},
		5*time.Second, "timeout", `"timeout":0`),
	poisoned(lockRow{name: "one edge cut off Redis for 20 s", recovery: comeBack, away: lockTTL + comeBack},
		20*time.Second, "timeout", `"timeout":0`),
	poisoned(lockRow{name: "300 ms more between one edge and Redis, for 20 s", recovery: comeBack, away: lockTTL + comeBack},
		20*time.Second, "latency", `"latency":150`),
	poisoned(lockRow{name: "one edge's connections to Redis reset, for 5 s", recovery: comeBack, away: 5*time.Second + comeBack},
		5*time.Second, "reset_peer", `"timeout":0`),
}

// allClosed: without Redis no socket outlives its lease.
func allClosed(t *testing.T, w *lockWorld, f *lockFigures) {
	if n := f.closed[unavailable]; n < len(w.users)*8/10 {
		t.Errorf("%d of %d sockets were closed with 1011", n, len(w.users))
	}
}

// notFed: a process that stood still closes the sockets whose leases have ended
// before it sends them anything of what has come since.
func notFed(t *testing.T, _ *lockWorld, f *lockFigures) {
	s := &f.stale
	t.Logf("after SIGCONT old sockets were closed: %v, the last after %s, and had %d events; %d live on", s.closes, s.closed, s.events, s.kept)
	if s.events > 0 || s.kept > 0 || len(s.closes) == 0 {
		t.Errorf("old sockets had %d events, %d live on, and closed were %v; want none, none and all", s.events, s.kept, s.closes)
	}
}

// lockedOut: who was on an edge that was killed comes in when the lock expires, not
// before and, but for the client's own pauses, not after.
func lockedOut(t *testing.T, w *lockWorld, f *lockFigures) {
	var out []time.Duration
	for _, u := range w.users {
		u.note(func(time.Duration) {
			for n, s := range u.log.sockets {
				if s.end == lost && n+1 < len(u.log.sockets) {
					out = append(out, u.log.sockets[n+1].accepted-s.ended)
				}
			}
		})
	}
	slices.Sort(out)
	if len(out) == 0 {
		t.Fatal("nobody was locked out")
	}
	least, most := out[0], out[len(out)-1]
	t.Logf("%d users were locked out for %.1f s to %.1f s, median %.1f s; the longest from one attempt of a client to its next %.1f s",
		len(out), least.Seconds(), most.Seconds(), out[len(out)/2].Seconds(), f.cycle.Seconds())
	if least < lockTTL-longestGap-lockResolution || most > lockTTL+f.cycle+time.Second {
		t.Errorf("locked out for %s to %s, want %s to %s", least, most, lockTTL-longestGap, lockTTL+f.cycle+time.Second)
	}
}

// TestLockFaults has faults happen to Redis, to the way there and to an edge while
// a crowd is connected, and prints a table of what that leads to.
func TestLockFaults(t *testing.T) {
	size := crowdSize{users: 200, rivals: 50, leavers: 30}
	const steady = lockTTL // what a fault leads to is over by then
	var table strings.Builder
	for _, row := range lockRows {
		t.Run(row.name, func(t *testing.T) {
			fmt.Fprintf(&table, "\n%s", row.run(t, size, steady))
		})
	}
	t.Logf("%s%s", lockHeader, table.String())
}

func flushAll(w *lockWorld) {
	if err := w.store.client.FlushAll(w.t.Context()).Err(); err != nil {
		w.t.Fatal(err)
	}
}

// unnoticed is for how long locks may be missing when Redis is the same process as
// before: until a refresh misses one.
const unnoticed = longestGap + 1100*time.Millisecond
