package lock

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.opentelemetry.io/otel/metric/noop"

	"github.com/cutemarkets/relay/services/edge/internal/dialect"
	"github.com/cutemarkets/relay/services/internal/redisx"
	"github.com/cutemarkets/relay/services/internal/redisx/redistest"
)

// startRedis starts a real redis-server and returns its address.
func startRedis(t testing.TB, args ...string) string {
	t.Helper()
	return redistest.Start(t, args...).Address
}

func plain(t testing.TB, address string) *redis.Client { return redistest.Client(t, address) }

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	redistest.Eventually(t, what, ok)
}

// newManager makes a manager of an edge on a Redis and runs it.
func newManager(t testing.TB, c Config, o redisx.Options) *Manager {
	t.Helper()
	m := newIdleManager(t, c, o)
	run(t, m)
	return m
}

// run runs a manager until the test ends.
func run(t testing.TB, m *Manager) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- m.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

// newIdleManager makes a manager whose losses are errors unless c says who is
// told of them.
func newIdleManager(t testing.TB, c Config, o redisx.Options) *Manager {
	t.Helper()
	if c.Lost == nil {
		c.Lost = func(owner uint64, r dialect.Reason) { t.Errorf("lease of %d lost: %v", owner, r) }
	}
	if c.Released == nil {
		c.Released = func(uint64) {}
	}
	if c.Probe == nil {
		c.Probe = func(_ uint64, answer func(alive bool)) { answer(true) }
	}
	client, err := NewClient(o, "relay-edge-"+c.EdgeID)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	m, err := New(c, client, noop.Meter{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func mustAcquire(t testing.TB, m *Manager, user string) *Lease {
	t.Helper()
	l, r := m.Acquire(t.Context(), user, 0)
	if r != dialect.OK {
		t.Fatalf("Acquire(%q) = %v", user, r)
	}
	return l
}

// giveBack releases a lease and waits until Redis holds nothing of it.
func giveBack(t testing.TB, l *Lease) {
	t.Helper()
	l.Release()
	eventually(t, "the lease is released", func() bool {
		b := &l.manager.buckets[l.bucket]
		b.mu.Lock()
		defer b.mu.Unlock()
		return l.endedLocked()
	})
}

// loss is a call of Config.Lost.
type loss struct {
	owner  uint64
	reason dialect.Reason
}

// watched is a fast clock for tests that wait for a loss.
func watched() (Config, chan loss) {
	lost := make(chan loss, 10)
	c := short
	c.Lost = func(owner uint64, r dialect.Reason) { lost <- loss{owner, r} }
	return c, lost
}

// short is a fast clock for tests that wait for refreshes.
var short = Config{EdgeID: "edge-1", TTL: 2 * time.Second, Refresh: 200 * time.Millisecond, Margin: 500 * time.Millisecond}

func TestAcquireHoldRelease(t *testing.T) {
	address := startRedis(t)
	look := plain(t, address)
	released := make(chan uint64, 10)
	a := newManager(t, Config{EdgeID: "a", Released: func(owner uint64) { released <- owner }}, redisx.Options{Address: []string{address}})
	b := newManager(t, Config{EdgeID: "b"}, redisx.Options{Address: []string{address}})

	l, _ := a.Acquire(t.Context(), "user-1", 7)
	value, err := look.Get(t.Context(), l.key()).Result()
	if err != nil || value != l.token() || !strings.HasPrefix(value, "a/") {
		t.Fatalf("%s = %q, %v; want the token %q", l.key(), value, err, l.token())
	}
	if ttl := look.PTTL(t.Context(), l.key()).Val(); ttl <= 0 || ttl > 15*time.Second {
		t.Fatalf("TTL = %v", ttl)
	}
	for _, m := range []*Manager{a, b} {
		if _, r := m.Acquire(t.Context(), "user-1", 0); r != dialect.DuplicateConnection {
			t.Fatalf("second Acquire = %v", r)
		}
	}
	l.Release()
	if owner := <-released; owner != 7 {
		t.Fatalf("%d was told of its release, want 7", owner)
	}
	if n := look.Exists(t.Context(), l.key()).Val(); n != 0 {
		t.Fatal("the key must be gone when Released is called")
	}
	mustAcquire(t, b, "user-1")
	if n := len(released); n != 0 {
		t.Fatalf("%d more releases told", n)
	}
	if a.held.Load() != 0 || b.held.Load() != 1 || a.leases.Load() != 0 {
		t.Fatalf("held: a %d, b %d; leases of a %d", a.held.Load(), b.held.Load(), a.leases.Load())
	}
}

func (l *Lease) key() string {
	key, _ := l.names()
	return key
}

func (l *Lease) token() string {
	_, token := l.names()
	return token
}

// deadline is until when a lease is valid; a refresh moves it.
func deadline(l *Lease) time.Duration {
	b := &l.manager.buckets[l.bucket]
	b.mu.Lock()
	defer b.mu.Unlock()
	return l.machine.at
}

func TestRefreshKeepsLocks(t *testing.T) {
	address := startRedis(t)
	look := plain(t, address)
	m := newManager(t, short, redisx.Options{Address: []string{address}})
	var leases []*Lease
	for n := range 300 {
		leases = append(leases, mustAcquire(t, m, fmt.Sprint("user-", n)))
	}
	first := deadline(leases[0])
	eventually(t, "five refreshes", func() bool { return deadline(leases[0])-first > 4*short.Refresh })
	for _, l := range leases {
		if look.Get(t.Context(), l.key()).Val() != l.token() {
			t.Fatalf("%s is not held", l.key())
		}
	}
}

func TestRunReleasesAll(t *testing.T) {
	address := startRedis(t)
	look := plain(t, address)
	m := newIdleManager(t, Config{EdgeID: "a"}, redisx.Options{Address: []string{address}})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- m.Run(ctx) }()
	for n := range 1000 {
		mustAcquire(t, m, fmt.Sprint("user-", n))
	}
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if n := look.DBSize(t.Context()).Val(); n != 0 {
		t.Fatalf("%d keys left after Run", n)
	}
	if _, r := m.Acquire(t.Context(), "late", 0); r != dialect.LockUnavailable {
		t.Fatalf("Acquire after Run = %v", r)
	}
}

func TestLostToAnother(t *testing.T) {
	address := startRedis(t)
	look := plain(t, address)
	c, lost := watched()
	m := newManager(t, c, redisx.Options{Address: []string{address}})
	l, _ := m.Acquire(t.Context(), "user-1", 42)
	look.Set(t.Context(), l.key(), "edge-2/1/00", time.Minute)
	if got := <-lost; got != (loss{42, dialect.LockLost}) {
		t.Fatalf("lost: %+v", got)
	}
	giveBack(t, l)
	if v := look.Get(t.Context(), l.key()).Val(); v != "edge-2/1/00" {
		t.Fatalf("the other's lock became %q", v)
	}
	if ttl := look.PTTL(t.Context(), l.key()).Val(); ttl < 30*time.Second {
		t.Fatalf("the other's lock was given a TTL of %v", ttl)
	}
}

func TestMissingIsSetAnew(t *testing.T) {
	address := startRedis(t)
	look := plain(t, address)
	m := newManager(t, short, redisx.Options{Address: []string{address}})
	var leases []*Lease
	for n := range 50 {
		leases = append(leases, mustAcquire(t, m, fmt.Sprint("user-", n)))
	}
	look.FlushAll(t.Context())
	for _, l := range leases {
		eventually(t, "lock set anew", func() bool { return look.Get(t.Context(), l.key()).Val() == l.token() })
	}
	giveBack(t, leases[0])
	if n := look.Exists(t.Context(), leases[0].key()).Val(); n != 0 {
		t.Fatal("a released lock is back")
	}
}

func TestRedisGone(t *testing.T) {
	address := startRedis(t)
	p := redistest.NewProxy(t, address)
	c, lost := watched()
	m := newManager(t, c, redisx.Options{Address: []string{p.Address}})
	l, _ := m.Acquire(t.Context(), "user-1", 42)
	acquired := time.Now()
	p.Close()
	if _, r := m.Acquire(t.Context(), "user-2", 0); r != dialect.LockUnavailable {
		t.Fatalf("Acquire = %v", r)
	}
	if got := <-lost; got != (loss{42, dialect.LockUnavailable}) {
		t.Fatalf("lost: %+v", got)
	}
	if after := time.Since(acquired); after > short.TTL {
		t.Fatalf("told after %v, when Redis had dropped the key", after)
	}
	if _, err := m.Ping(t.Context()); err == nil {
		t.Fatal("Ping must fail")
	}
	giveBack(t, l) // the retries end with the TTL
	if n := len(lost); n > 0 || m.leases.Load() > 0 {
		t.Fatalf("%d more losses, %d leases left", n, m.leases.Load())
	}
}

// A reply that is lost after the command ran must cost neither the user a false
// refusal for the rest of the TTL nor the socket its lock.
func TestReplyLost(t *testing.T) {
	address := startRedis(t)
	look := plain(t, address)
	p := redistest.NewProxy(t, address)
	m := newManager(t, short, redisx.Options{Address: []string{p.Address}})
	b := newManager(t, Config{EdgeID: "b"}, redisx.Options{Address: []string{address}})
	giveBack(t, mustAcquire(t, m, "warm"))

	t.Run("acquire", func(t *testing.T) {
		p.CutAfter("\r\nNX\r\n", 1)
		l := mustAcquire(t, m, "user-0")
		if p.Cuts.Load() != 1 || look.Get(t.Context(), l.key()).Val() != l.token() {
			t.Fatalf("%d cuts; %s is not held", p.Cuts.Load(), l.key())
		}
		giveBack(t, l)
	})
	t.Run("acquire, twice", func(t *testing.T) {
		p.CutAfter("\r\nNX\r\n", 2)
		if _, r := m.Acquire(t.Context(), "user-1", 0); r != dialect.LockUnavailable {
			t.Fatalf("Acquire = %v", r)
		}
		if n := p.Cuts.Load(); n != 3 {
			t.Fatalf("the proxy cut %d times", n)
		}
		began := time.Now()
		eventually(t, "the half-made lock is deleted", func() bool {
			l, r := b.Acquire(t.Context(), "user-1", 0)
			if r == dialect.OK {
				giveBack(t, l)
			}
			return r == dialect.OK
		})
		if took := time.Since(began); took > short.TTL/2 {
			t.Fatalf("the user was locked out for %v", took)
		}
	})
	t.Run("refresh", func(t *testing.T) {
		l := mustAcquire(t, m, "user-2")
		cuts := p.Cuts.Load()
		p.CutAfter("'PEXPIRE'", 1)
		eventually(t, "a refresh is cut", func() bool { return p.Cuts.Load() > cuts })
		before := deadline(l)
		eventually(t, "the next refresh works", func() bool { return deadline(l) > before })
	})
	t.Run("release", func(t *testing.T) {
		l := mustAcquire(t, m, "user-3")
		p.CutAfter("'DEL'", 1) // the script of a release, as text
		giveBack(t, l)
		if n := look.Exists(t.Context(), l.key()).Val(); n != 0 {
			t.Fatal("released with the key still there")
		}
	})
}

func TestCancelledAcquireLeavesNothing(t *testing.T) {
	address := startRedis(t)
	m := newManager(t, short, redisx.Options{Address: []string{address}})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, r := m.Acquire(ctx, "user-1", 0); r != dialect.LockUnavailable {
		t.Fatalf("Acquire = %v", r)
	}
	eventually(t, "the user can come back", func() bool {
		l, r := m.Acquire(t.Context(), "user-1", 0)
		if r == dialect.OK {
			giveBack(t, l)
		}
		return r == dialect.OK
	})
}

// A user of Redis that may do nothing but what the lock needs.
func TestWithoutInfoAndConfig(t *testing.T) {
	address := startRedis(t)
	admin := plain(t, address)
	err := admin.ACLSetUser(t.Context(), "relay", "on", ">s3cret", "~relay:lock:*", "-@all",
		"+get", "+mget", "+set", "+pexpire", "+pttl", "+del", "+eval", "+ping", "+hello", "+client|setname").Err()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte("s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	m := newManager(t, short, redisx.Options{Address: []string{address}, Username: "relay", PasswordFile: file})
	l := mustAcquire(t, m, "user-1")
	before := deadline(l)
	eventually(t, "a refresh", func() bool { return deadline(l) > before })
	if _, err := m.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	admin.Del(t.Context(), l.key())
	eventually(t, "set anew", func() bool { return admin.Get(t.Context(), l.key()).Val() == l.token() })
	giveBack(t, l)
	if n := admin.Exists(t.Context(), l.key()).Val(); n != 0 {
		t.Fatal("not released")
	}
}

// Many users on two edges: never two holders, and nothing left at the end.
func TestExclusiveUnderLoad(t *testing.T) {
	address := startRedis(t)
	look := plain(t, address)
	edges := []*Manager{
		newManager(t, Config{EdgeID: "a"}, redisx.Options{Address: []string{address}}),
		newManager(t, Config{EdgeID: "b"}, redisx.Options{Address: []string{address}}),
	}
	var holders [5]atomic.Int32
	var granted atomic.Int64
	var wg sync.WaitGroup
	for worker := range 16 {
		wg.Go(func() {
			for n := range 100 {
				user := (worker + n) % len(holders)
				l, r := edges[worker%2].Acquire(t.Context(), fmt.Sprint("user-", user), 0)
				switch r {
				case dialect.OK:
					if holders[user].Add(1) != 1 {
						t.Error("two holders of one lock")
					}
					granted.Add(1)
					holders[user].Add(-1)
					giveBack(t, l)
				case dialect.DuplicateConnection:
				default:
					t.Errorf("Acquire = %v", r)
				}
			}
		})
	}
	wg.Wait()
	if granted.Load() == 0 || look.DBSize(t.Context()).Val() != 0 {
		t.Fatalf("granted %d, keys left %d", granted.Load(), look.DBSize(t.Context()).Val())
	}
}

func TestPingIsCached(t *testing.T) {
	address := startRedis(t)
	m := newIdleManager(t, Config{EdgeID: "a"}, redisx.Options{Address: []string{address}})
	first, err := m.Ping(t.Context())
	if err != nil || first <= 0 {
		t.Fatalf("Ping = %v, %v", first, err)
	}
	for range 100 {
		if again, _ := m.Ping(t.Context()); again != first {
			t.Fatal("a second PING within 1 s")
		}
	}
}

func TestNameOf(t *testing.T) {
	for _, user := range []string{"user-1", "a.b@c_d", "0193-ab"} {
		if name := nameOf(user); name != user || bucketOf(user) >= buckets {
			t.Errorf("nameOf(%q) = %q, bucket %d", user, name, bucketOf(user))
		}
	}
	for _, user := range []string{"", "{b1}", "a:b", "a b", "\x00", "ü", "~x", strings.Repeat("a", 200)} {
		if name := nameOf(user); len(name) != 65 || name[0] != '~' {
			t.Errorf("nameOf(%q) = %q", user, name)
		}
	}
}

func TestConfig(t *testing.T) {
	nobody := func(uint64, dialect.Reason) {}
	if _, err := New(Config{EdgeID: "a"}, nil, noop.Meter{}, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a manager that tells nobody of a loss is accepted")
	}
	if _, err := New(Config{EdgeID: "a", Lost: nobody, TTL: 5 * time.Second}, nil, noop.Meter{}, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a TTL too short for the refresh is accepted")
	}
}
