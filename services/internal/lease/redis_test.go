package lease

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cutemarkets/relay/services/internal/redisx"
	"github.com/cutemarkets/relay/services/internal/redisx/redistest"
)

// startUsed starts a Redis that has been used before.
func startUsed(t testing.TB, args ...string) *redistest.Server {
	t.Helper()
	s := redistest.Start(t, args...)
	if err := redistest.Client(t, s.Address).MSet(t.Context(), counterKey, 1, serverKey, s.RunID()).Err(); err != nil {
		t.Fatal(err)
	}
	return s
}

const (
	leaseKey   = "relay:lease:{stocks}"
	counterKey = "relay:lease:{stocks}:epoch"
	serverKey  = "relay:lease:{stocks}:server"
)

// quick is a fast clock.
var quick = Config{TTL: 1200 * time.Millisecond, Refresh: 100 * time.Millisecond, Margin: 400 * time.Millisecond, Retry: 50 * time.Millisecond}

func TestReleaseLetsTheNextIn(t *testing.T) {
	t.Parallel()
	a, s := newArena(t), startUsed(t)
	players := map[string]*player{}
	for _, name := range []string{"x", "y", "z"} {
		players[name] = a.join(name, usual, s.Address)
	}
	var total, worst time.Duration
	const turns = 10
	for range turns {
		name, _, _ := strings.Cut(a.leader(), " ")
		begun := time.Now()
		players[name].end()
		a.await(name + " ended")
		a.leader()
		took := time.Since(begun)
		total, worst = total+took, max(worst, took)
		players[name] = a.join(name, usual, s.Address)
		a.read--
	}
	t.Logf("released lease: the next one has it after %v, %v at most", total/turns, worst)
	if worst > time.Second {
		t.Error("that is too long")
	}
	for _, p := range players {
		p.end()
	}
	if n := redistest.Client(t, s.Address).Exists(t.Context(), leaseKey).Val(); n != 0 {
		t.Error("the lease is left in Redis")
	}
}

// leader waits for the next line that tells of a new leader.
func (a *arena) leader() string {
	a.Helper()
	for {
		if line := a.await(""); strings.Contains(line, " leads ") {
			return line
		}
	}
}

func TestCrash(t *testing.T) {
	t.Parallel()
	a, s := newArena(t), startUsed(t)
	p := redistest.NewProxy(t, s.Address)
	redistest.Client(t, s.Address)
	x := a.join("x", usual, p.Address)
	a.await("x leads")
	y := a.join("y", usual, s.Address)
	look := redistest.Client(t, s.Address)
	redistest.Eventually(t, "0.3 s after a refresh", func() bool { return look.PTTL(t.Context(), leaseKey).Val() <= 4700*time.Millisecond })
	p.Close()
	begun := time.Now()
	a.await("y leads")
	took := time.Since(begun)
	t.Logf("crash with a TTL of 5 s: the next one has the lease after %v", took)
	if took > 4900*time.Millisecond {
		t.Error("that is too long")
	}
	y.end()
	x.end()
}

// Redis stands still for longer than the TTL: what the others had sent waits in its
// sockets, and is carried out when it goes on and the lease has ended.
func TestRedisStandsStill(t *testing.T) {
	t.Parallel()
	a, s := newArena(t), startUsed(t)
	x := a.join("x", quick, s.Address)
	a.await("x leads")
	players := []*player{x, a.join("y", quick, s.Address), a.join("z", quick, s.Address)}
	for range 5 {
		s.Signal(syscall.SIGSTOP)
		a.await("x proven false")
		<-time.After(quick.TTL)
		s.Signal(syscall.SIGCONT)
		a.await("x proven true")
	}
	for _, p := range players[1:] {
		p.end()
	}
	x.end()
}

// A Redis that was killed comes back without its data.
func TestRedisAway(t *testing.T) {
	t.Parallel()
	a, s := newArena(t), startUsed(t)
	x := a.join("x", quick, s.Address)
	line := a.await("x leads")
	y := a.join("y", quick, s.Address)
	s.Kill()
	a.await("x proven false")
	s.Restart()
	begun := time.Now()
	a.await("x proven true")
	if took := time.Since(begun); took < quick.TTL-quick.Margin-50*time.Millisecond {
		t.Errorf("proven after %v by a Redis that has lost all", took)
	}
	look := redistest.Client(t, s.Address)
	value := look.Get(t.Context(), leaseKey).Val()
	if _, epoch, _ := strings.Cut(value, " "); line != "x leads "+epoch {
		t.Errorf("%q, and Redis has %q", line, value)
	}
	y.end()
	x.end()
}

// A holder that alone does not reach Redis ends when it does again and another has
// the lease, or has had it.
func TestHolderCutOff(t *testing.T) {
	t.Parallel()
	for _, released := range []bool{false, true} {
		a, s := newArena(t), startUsed(t)
		p := redistest.NewProxy(t, s.Address)
		x := a.join("x", quick, p.Address)
		a.await("x leads")
		y := a.join("y", quick, s.Address)
		p.Hold()
		a.await("x proven false")
		a.await("y leads")
		if released {
			y.end()
			a.await("y ended")
		}
		p.Resume()
		begun := time.Now()
		a.await("x told: " + ErrTaken.Error())
		if took := time.Since(begun); took > opTimeout+time.Second {
			t.Errorf("told after %v", took)
		}
		if !released {
			y.end()
		}
		x.end()
	}
}

// A short outage costs nobody anything.
func TestRedisStandsStillForAMoment(t *testing.T) {
	t.Parallel()
	a, s := newArena(t), startUsed(t)
	x := a.join("x", usual, s.Address)
	a.await("x leads")
	y := a.join("y", usual, s.Address)
	s.Signal(syscall.SIGSTOP)
	time.Sleep(1500 * time.Millisecond)
	s.Signal(syscall.SIGCONT)
	look := redistest.Client(t, s.Address)
	redistest.Eventually(t, "a refresh", func() bool { return look.PTTL(t.Context(), leaseKey).Val() > 4500*time.Millisecond })
	a.onlyOne()
	x.end()
	y.end()
}

func TestFlushAll(t *testing.T) {
	t.Parallel()
	a, s := newArena(t), startUsed(t)
	look := redistest.Client(t, s.Address)
	x := a.join("x", quick, s.Address)
	a.await("x leads")
	y := a.join("y", quick, s.Address)
	value := look.Get(t.Context(), leaseKey).Val()
	for range 10 {
		look.FlushAll(t.Context())
		redistest.Eventually(t, "the lease is set anew", func() bool { return look.Get(t.Context(), leaseKey).Val() == value })
		if _, epoch, _ := strings.Cut(value, " "); look.Get(t.Context(), counterKey).Val() != epoch {
			t.Errorf("the counter is %q", look.Get(t.Context(), counterKey).Val())
		}
	}
	a.onlyOne()
	x.end()
	a.await("y leads")
	y.end()
}

// A Redis that is new, or has lost all, gives the lease after one TTL; the epoch
// is greater than those it has forgotten.
func TestRestartWithLoss(t *testing.T) {
	t.Parallel()
	a, s := newArena(t), redistest.Start(t)
	begun := time.Now()
	x := a.join("x", quick, s.Address)
	a.await("x leads")
	if took := time.Since(begun); took < quick.TTL || took > quick.TTL+time.Second {
		t.Errorf("the first lease was given after %v", took)
	}
	s.Kill()
	s.Restart() // the holder sets the lease anew
	look := redistest.Client(t, s.Address)
	redistest.Eventually(t, "the lease is set anew", func() bool { return strings.HasPrefix(look.Get(t.Context(), leaseKey).Val(), "x/") })
	s.Kill()
	a.await("x proven false")
	x.end()
	s.Restart()
	begun = time.Now()
	y := a.join("y", quick, s.Address)
	a.await("y leads")
	if took := time.Since(begun); took < quick.TTL-50*time.Millisecond {
		t.Errorf("the lease was given after %v by a Redis that has lost all", took)
	}
	if a.logged("Redis was away, is new or may have lost data") != 2 {
		t.Error("the loss is not logged")
	}
	y.end()
}

func TestTakenByHand(t *testing.T) {
	t.Parallel()
	a, s := newArena(t), startUsed(t)
	x := a.join("x", quick, s.Address)
	a.await("x leads")
	look := redistest.Client(t, s.Address)
	look.Set(t.Context(), leaseKey, "somebody", time.Minute)
	a.await("x told: " + ErrTaken.Error())
	a.await("x ended")
	x.end()
	if look.Get(t.Context(), leaseKey).Val() != "somebody" || look.PTTL(t.Context(), leaseKey).Val() < 30*time.Second {
		t.Error("the other's lease was changed")
	}
}

// A reply that is lost after the script ran costs little.
func TestReplyLost(t *testing.T) {
	t.Parallel()
	a, s := newArena(t), startUsed(t)
	p := redistest.NewProxy(t, s.Address)
	look := redistest.Client(t, s.Address)
	// Redis knows the scripts, so that each is sent once, by its hash.
	for _, script := range []*redis.Script{acquireScript, refreshScript, releaseScript} {
		if err := script.Load(t.Context(), look).Err(); err != nil {
			t.Fatal(err)
		}
	}
	cut := func(script *redis.Script) {
		cuts := p.Cuts.Load()
		p.CutAfter(strings.ToUpper(script.Hash()), 1)
		redistest.Eventually(t, "a reply is lost", func() bool { return p.Cuts.Load() > cuts })
	}
	p.CutAfter(strings.ToUpper(acquireScript.Hash()), 1)
	begun := time.Now()
	x := a.join("x", usual, p.Address)
	a.await("x leads")
	if took := time.Since(begun); took > 2*time.Second || p.Cuts.Load() != 1 {
		t.Errorf("the lease was given after %v, %d cuts", took, p.Cuts.Load())
	}
	cut(refreshScript)
	redistest.Eventually(t, "a refresh", func() bool { return look.PTTL(t.Context(), leaseKey).Val() > 4900*time.Millisecond })
	x.stop()
	cut(releaseScript)
	if err := <-x.ended; err != nil {
		t.Error(err)
	}
	if look.Exists(t.Context(), leaseKey).Val() != 0 {
		t.Error("not released")
	}
}

// A user of Redis that may do nothing but what the lease needs.
func TestPermissions(t *testing.T) {
	t.Parallel()
	a, s := newArena(t), startUsed(t)
	admin := redistest.Client(t, s.Address)
	err := admin.ACLSetUser(t.Context(), "relay", "on", ">s3cret", "~relay:lease:*", "-@all",
		"+get", "+set", "+pexpire", "+pttl", "+del", "+eval", "+evalsha", "+hello", "+client|setname").Err()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte("s3cret"), 0o600); err != nil {
		t.Fatal(err)
	}
	x := a.make("x", quick, redisx.Options{Address: []string{s.Address}, Username: "relay", PasswordFile: file})
	x.start(x.lease.Run)
	a.await("x leads")
	admin.Del(t.Context(), leaseKey)
	redistest.Eventually(t, "set anew", func() bool { return strings.HasPrefix(admin.Get(t.Context(), leaseKey).Val(), "x/") })
	x.end()
	if admin.Exists(t.Context(), leaseKey).Val() != 0 {
		t.Error("not released")
	}
}

// Both keys lie in one slot, and a Cluster client finds it.
func TestCluster(t *testing.T) {
	t.Parallel()
	a, s := newArena(t), redistest.Start(t, "--cluster-enabled", "yes")
	s.Cluster()
	join := func(name string) *player {
		p := a.make(name, quick, redisx.Options{Address: []string{s.Address, s.Address}})
		return p.start(p.lease.Run)
	}
	x := join("x")
	a.await("x leads")
	y := join("y")
	x.end()
	a.await("y leads")
	y.end()
}

// Failovers to a Redis that knows nothing of the holder: the lease is guarded, also
// for those who have just come, and the holder keeps it.
func TestFailover(t *testing.T) {
	t.Parallel()
	a, masters := newArena(t), []*redistest.Server{startUsed(t), startUsed(t)}
	p := redistest.NewProxy(t, masters[0].Address)
	x := a.join("x", quick, p.Address)
	a.await("x leads")
	y, z := a.join("y", quick, p.Address), a.join("z", quick, p.Address)
	for n := range 10 {
		next := redistest.Client(t, masters[(n+1)%2].Address)
		next.Del(t.Context(), leaseKey)
		next.MSet(t.Context(), counterKey, 1, serverKey, "another")
		p.MoveTo(next.Options().Addr)
		redistest.Eventually(t, "the lease is set anew", func() bool { return strings.HasPrefix(next.Get(t.Context(), leaseKey).Val(), "x/") })
	}
	a.onlyOne()
	for _, p := range []*player{y, z, x} {
		p.end()
	}
}

// What Redis cannot do is known as not done.
func TestFailure(t *testing.T) {
	t.Parallel()
	s := startUsed(t)
	client := redistest.Client(t, s.Address)
	c := Config{Name: "stocks", TTL: 2 * time.Second, Margin: time.Second}
	perform := newServer(client, c, "x/1").perform
	l, err := perform(t.Context(), request{op: opAcquire, wall: time.Now(), ended: true})
	if err != nil || l.outcome != mine {
		t.Fatal(l, err)
	}
	client.Del(t.Context(), leaseKey)
	client.HSet(t.Context(), leaseKey, "a", "b")
	for o := opAcquire; o < opEnd; o++ {
		if a, err := perform(t.Context(), request{op: o, epoch: 1, wall: time.Now()}); err == nil || a.outcome != refused {
			t.Errorf("%s of a hash: %v, %v", opNames[o], a, err)
		}
	}
	s.Kill()
	if a, err := perform(t.Context(), request{op: opRefresh}); err == nil || a.outcome == mine {
		t.Errorf("%v, %v", a, err)
	}
	if a, err := perform(t.Context(), request{op: opRefresh}); err == nil || a.outcome != refused {
		t.Errorf("%v, %v", a, err)
	}
	if failure(errors.New("connection reset")) != unknown {
		t.Error("a lost connection tells nothing")
	}
}

// The scripts do what the model takes them to do.
func TestScriptsAreAsTheModel(t *testing.T) {
	t.Parallel()
	s := startUsed(t)
	client := redistest.Client(t, s.Address)
	w := &world{redis: store{counter: 1, server: 1}, master: 1}
	random := rand.New(rand.NewPCG(3, 4))
	c := Config{Name: "stocks", TTL: 2 * time.Hour, Margin: time.Hour}
	var servers []server
	for _, token := range []string{"x/1", "y/1", "z/1"} {
		servers = append(servers, newServer(client, c, token))
	}
	epochs := make(map[string]uint64)
	for n := range 5000 {
		one := servers[random.IntN(len(servers))]
		r := request{op: op(random.IntN(int(opEnd)-1)) + opAcquire, wall: time.UnixMicro(int64(n / 10)), epoch: epochs[one.token], ended: random.IntN(2) == 0}
		if random.IntN(3) == 0 {
			r.known = uint64(random.IntN(3 * (n + 1)))
		}
		want := w.exec(r, one.token)
		got, err := one.perform(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		got.holder, got.rest, want.rest = "", 0, 0
		if got != want {
			t.Fatalf("%d: %s of %s: %+v, the model says %+v", n, opNames[r.op], one.token, got, want)
		}
		if r.op == opAcquire && got.outcome == mine {
			epochs[one.token] = got.epoch
		}
		switch random.IntN(40) {
		case 0, 1, 2: // it expires
			client.Del(t.Context(), leaseKey)
			w.redis.token = ""
		case 6, 7: // the last margin of a guard begins
			if w.redis.token == guarded {
				client.PExpire(t.Context(), leaseKey, c.Margin)
				w.redis.expires = testTiming.margin
			}
		case 3:
			client.FlushAll(t.Context())
			w.redis = store{counter: -1}
		case 4: // it is another process
			client.Set(t.Context(), serverKey, "another", 0)
			w.redis.server = 0
		case 5: // the counter is spoilt
			client.Set(t.Context(), counterKey, []any{"", "x", "-1", "nan", "1e999", "9007199254740992"}[random.IntN(6)], 0)
			w.redis.counter = -1
		}
	}
}
