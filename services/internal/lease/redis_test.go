package lease

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// redisServer is a real redis-server.
type redisServer struct {
	testing.TB
	address string
	args    []string
	command *exec.Cmd
}

// startRedis starts a redis-server on a free port.
func startRedis(t testing.TB, args ...string) *redisServer {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &redisServer{TB: t, address: listener.Addr().String()}
	_ = listener.Close()
	_, port, _ := net.SplitHostPort(s.address)
	s.args = append([]string{"--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", t.TempDir()}, args...)
	s.start()
	t.Cleanup(s.kill)
	return s
}

// start starts the server, with nothing in it, and waits until it serves.
func (s *redisServer) start() {
	s.Helper()
	binary, err := exec.LookPath("redis-server")
	if err != nil {
		s.Fatal("redis-server (7.0 or later) must be installed to test the lease")
	}
	s.command = exec.Command(binary, s.args...)
	out, err := s.command.StdoutPipe()
	if err != nil {
		s.Fatal(err)
	}
	if err := s.command.Start(); err != nil {
		s.Fatal(err)
	}
	ready := make(chan error, 1)
	go func() {
		var log strings.Builder
		for lines := bufio.NewScanner(out); lines.Scan(); {
			log.WriteString(lines.Text() + "\n")
			if strings.Contains(lines.Text(), "Ready to accept connections") {
				ready <- nil
				_, _ = bufio.NewReader(out).WriteTo(discard{})
				return
			}
		}
		ready <- fmt.Errorf("redis-server did not start:\n%s", log.String())
	}()
	if err := <-ready; err != nil {
		s.Fatal(err)
	}
}

func (s *redisServer) kill() {
	_ = s.command.Process.Kill()
	_ = s.command.Wait()
}

func (s *redisServer) signal(sig syscall.Signal) {
	if err := s.command.Process.Signal(sig); err != nil {
		s.Error(err)
	}
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

// options are those that the package asks for.
func options(address string) *redis.UniversalOptions {
	return &redis.UniversalOptions{
		Addrs: []string{address}, MaxRetries: -1, ContextTimeoutEnabled: true, DialerRetries: 1,
		DialTimeout: opTimeout, ReadTimeout: opTimeout, WriteTimeout: opTimeout, PoolTimeout: opTimeout / 2,
	}
}

func connect(t testing.TB, o *redis.UniversalOptions) redis.UniversalClient {
	c := redis.NewUniversalClient(o)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// client is a process's way to a server that has been used before.
func (s *redisServer) client() redis.UniversalClient {
	c := connect(s, options(s.address))
	if err := c.SetNX(context.Background(), counterKey, 1, 0).Err(); err != nil {
		s.Fatal(err)
	}
	return c
}

const (
	leaseKey   = "relay:lease:{stocks}"
	counterKey = "relay:lease:{stocks}:epoch"
)

// eventually waits until ok holds, looking every 5 ms.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never happened: %s", what)
		}
	}
}

// quick is a fast clock.
var quick = Config{TTL: 1200 * time.Millisecond, Refresh: 100 * time.Millisecond, Margin: 400 * time.Millisecond, Retry: 50 * time.Millisecond}

func TestReleaseLetsTheNextIn(t *testing.T) {
	t.Parallel()
	a, s := newArena(t), startRedis(t)
	players := map[string]*player{}
	for _, name := range []string{"x", "y", "z"} {
		players[name] = a.join(name, Config{}, s.client())
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
		players[name] = a.join(name, Config{}, s.client())
		a.read--
	}
	t.Logf("released lease: the next one has it after %v, %v at most", total/turns, worst)
	if worst > time.Second {
		t.Error("that is too long")
	}
	for _, p := range players {
		p.end()
	}
	if n := s.client().Exists(t.Context(), leaseKey).Val(); n != 0 {
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
	a, s := newArena(t), startRedis(t)
	p := newProxy(t, s.address)
	s.client()
	x := a.join("x", Config{}, connect(t, options(p.address)))
	a.await("x leads")
	y := a.join("y", Config{}, s.client())
	look := s.client()
	eventually(t, "0.3 s after a refresh", func() bool { return look.PTTL(t.Context(), leaseKey).Val() <= 4700*time.Millisecond })
	p.close()
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

func TestRedisStandsStill(t *testing.T) {
	t.Parallel()
	a, s := newArena(t), startRedis(t)
	players := []*player{a.join("x", quick, s.client())}
	a.await("x leads")
	players = append(players, a.join("y", quick, s.client()))
	s.signal(syscall.SIGSTOP)
	a.await("x told: " + ErrExpired.Error())
	a.await("x ended")
	s.signal(syscall.SIGCONT)
	a.leader()
	for _, p := range players {
		p.end()
	}
}

// A short outage costs nobody anything.
func TestRedisStandsStillForAMoment(t *testing.T) {
	t.Parallel()
	a, s := newArena(t), startRedis(t)
	x := a.join("x", Config{}, s.client())
	line := a.await("x leads")
	y := a.join("y", Config{}, s.client())
	s.signal(syscall.SIGSTOP)
	time.Sleep(1500 * time.Millisecond)
	s.signal(syscall.SIGCONT)
	look := s.client()
	eventually(t, "a refresh", func() bool { return look.PTTL(t.Context(), leaseKey).Val() > 4500*time.Millisecond })
	a.mu.Lock()
	if len(a.story) != 1 {
		t.Errorf("after %q: %q", line, a.story)
	}
	a.mu.Unlock()
	x.end()
	y.end()
}

func TestFlushAll(t *testing.T) {
	t.Parallel()
	a, s := newArena(t), startRedis(t)
	look := s.client()
	x := a.join("x", quick, s.client())
	a.await("x leads")
	y := a.join("y", quick, s.client())
	value := look.Get(t.Context(), leaseKey).Val()
	for range 10 {
		look.FlushAll(t.Context())
		eventually(t, "the lease is set anew", func() bool { return look.Get(t.Context(), leaseKey).Val() == value })
		if _, epoch, _ := strings.Cut(value, " "); look.Get(t.Context(), counterKey).Val() != epoch {
			t.Errorf("the counter is %q", look.Get(t.Context(), counterKey).Val())
		}
	}
	a.mu.Lock()
	if len(a.story) != 1 {
		t.Errorf("happened %q", a.story)
	}
	a.mu.Unlock()
	x.end()
	a.await("y leads")
	y.end()
}

// A Redis that is new, or has lost all, gives the lease after one TTL; the epoch
// is greater than those it has forgotten.
func TestRestartWithLoss(t *testing.T) {
	t.Parallel()
	a, s := newArena(t), startRedis(t)
	begun := time.Now()
	x := a.join("x", quick, connect(t, options(s.address)))
	a.await("x leads")
	if took := time.Since(begun); took < quick.TTL || took > quick.TTL+time.Second {
		t.Errorf("the first lease was given after %v", took)
	}
	s.kill()
	s.start() // the holder sets the lease anew
	look := connect(t, options(s.address))
	eventually(t, "the lease is set anew", func() bool { return strings.HasPrefix(look.Get(t.Context(), leaseKey).Val(), "x/") })
	s.kill()
	a.await("x told: " + ErrExpired.Error())
	x.end()
	s.start()
	begun = time.Now()
	y := a.join("y", quick, connect(t, options(s.address)))
	a.await("y leads")
	if took := time.Since(begun); took < quick.TTL-50*time.Millisecond {
		t.Errorf("the lease was given after %v by a Redis that has lost all", took)
	}
	if a.log.count("Redis knows no epoch") != 2 {
		t.Error("the loss is not logged")
	}
	y.end()
}

func TestTakenByHand(t *testing.T) {
	t.Parallel()
	a, s := newArena(t), startRedis(t)
	x := a.join("x", quick, s.client())
	a.await("x leads")
	look := s.client()
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
	a, s := newArena(t), startRedis(t)
	p := newProxy(t, s.address)
	look := s.client()
	// Redis knows the scripts, so that each is sent once, by its hash.
	for _, script := range []*redis.Script{acquireScript, refreshScript, releaseScript} {
		if err := script.Load(t.Context(), look).Err(); err != nil {
			t.Fatal(err)
		}
	}
	cut := func(script *redis.Script) {
		cuts := p.cuts.Load()
		p.cutAfter(strings.ToUpper(script.Hash()))
		eventually(t, "a reply is lost", func() bool { return p.cuts.Load() > cuts })
	}
	p.cutAfter(strings.ToUpper(acquireScript.Hash()))
	begun := time.Now()
	x := a.join("x", Config{}, connect(t, options(p.address)))
	a.await("x leads")
	if took := time.Since(begun); took > 2*time.Second || p.cuts.Load() != 1 {
		t.Errorf("the lease was given after %v, %d cuts", took, p.cuts.Load())
	}
	cut(refreshScript)
	eventually(t, "a refresh", func() bool { return look.PTTL(t.Context(), leaseKey).Val() > 4900*time.Millisecond })
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
	a, s := newArena(t), startRedis(t)
	admin := s.client()
	err := admin.ACLSetUser(t.Context(), "relay", "on", ">s3cret", "~relay:lease:*", "-@all",
		"+get", "+set", "+pexpire", "+pttl", "+del", "+eval", "+evalsha", "+hello").Err()
	if err != nil {
		t.Fatal(err)
	}
	o := options(s.address)
	o.Username, o.Password = "relay", "s3cret"
	x := a.join("x", quick, connect(t, o))
	a.await("x leads")
	admin.Del(t.Context(), leaseKey)
	eventually(t, "set anew", func() bool { return strings.HasPrefix(admin.Get(t.Context(), leaseKey).Val(), "x/") })
	x.end()
	if admin.Exists(t.Context(), leaseKey).Val() != 0 {
		t.Error("not released")
	}
}

// Both keys lie in one slot, and a Cluster client finds it.
func TestCluster(t *testing.T) {
	t.Parallel()
	a, s := newArena(t), startRedis(t, "--cluster-enabled", "yes")
	node := connect(t, options(s.address))
	if err := node.ClusterAddSlotsRange(t.Context(), 0, 16383).Err(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the cluster serves", func() bool {
		return strings.Contains(node.ClusterInfo(t.Context()).Val(), "cluster_state:ok")
	})
	o := options(s.address)
	o.IsClusterMode = true
	x := a.join("x", quick, connect(t, o))
	a.await("x leads")
	y := a.join("y", quick, connect(t, o))
	x.end()
	a.await("y leads")
	y.end()
}

// What Redis cannot do is known as not done.
func TestFailure(t *testing.T) {
	t.Parallel()
	s := startRedis(t)
	client := s.client()
	l, err := newServer(client, Config{Name: "stocks", TTL: time.Second}, "x/1").perform(t.Context(), request{op: opAcquire, wall: time.Now()})
	if err != nil || l.outcome != mine {
		t.Fatal(l, err)
	}
	client.Del(t.Context(), leaseKey)
	client.HSet(t.Context(), leaseKey, "a", "b")
	perform := newServer(client, Config{Name: "stocks", TTL: time.Second}, "x/1").perform
	for o := opAcquire; o < opEnd; o++ {
		if a, err := perform(t.Context(), request{op: o, epoch: 1, wall: time.Now()}); err == nil || a.outcome != refused {
			t.Errorf("%s of a hash: %v, %v", opNames[o], a, err)
		}
	}
	s.kill()
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
	s := startRedis(t)
	client := s.client()
	w := &world{redis: store{counter: 1}}
	random := rand.New(rand.NewPCG(3, 4))
	c := Config{Name: "stocks", TTL: time.Hour}
	var servers []server
	for _, token := range []string{"x/1", "y/1", "z/1"} {
		servers = append(servers, newServer(client, c, token))
	}
	epochs := make(map[string]uint64)
	for n := range 5000 {
		one := servers[random.IntN(len(servers))]
		r := request{op: op(random.IntN(int(opEnd)-1)) + opAcquire, wall: time.UnixMilli(int64(n / 10)), epoch: epochs[one.token]}
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
		case 3:
			client.FlushAll(t.Context())
			w.redis = store{counter: -1}
		case 4: // the counter is spoilt
			client.Set(t.Context(), counterKey, []any{"", "x", "-1", "nan", "1e999", "9007199254740992"}[random.IntN(6)], 0)
			w.redis.counter = -1
		}
	}
}
