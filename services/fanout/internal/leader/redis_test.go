package leader

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cutemarkets/relay/services/internal/lease"
	"github.com/cutemarkets/relay/services/internal/redisx"
	"github.com/cutemarkets/relay/services/internal/redisx/redistest"
)

const leaseKey = "relay:lease:{relay-fanout-stocks}"

// newRedisArena starts a Redis in which there have been leaders before.
func newRedisArena(t *testing.T) (*arena, *redistest.Server) {
	t.Helper()
	t.Parallel()
	s := redistest.Start(t)
	if err := redistest.Client(t, s.Address).MSet(t.Context(), leaseKey+":epoch", 1, leaseKey+":server", s.RunID()).Err(); err != nil {
		t.Fatal(err)
	}
	return newBareArena(t), s
}

// byRedis makes an elector of a process.
func (a *arena) byRedis(name string, o redisx.Options) *Redis {
	a.Helper()
	r, err := NewRedis(o, "relay-fanout", 2*time.Second, []string{"stocks"}, a.logger(name))
	if err != nil {
		a.Fatal(err)
	}
	return r
}

func at(s *redistest.Server) redisx.Options { return redisx.Options{Address: []string{s.Address}} }

func (a *arena) epoch(n int) Epoch {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.epochs[n]
}

func TestRedisHandOver(t *testing.T) {
	a, s := newRedisArena(t)
	begun := time.Now()
	ex, ey := a.byRedis("x", at(s)), a.byRedis("y", at(s))
	x := a.start("x", time.Second, ex)
	a.await("x leads")
	y := a.start("y", 0, ey)
	redistest.Eventually(t, "y has found x", func() bool { return a.log.count("lease is held by another") == 1 })
	if ex.seats["stocks"].proof.Load() == nil || ey.seats["stocks"].proof.Load() != nil {
		t.Error("the gauges are wrong")
	}
	go x.end()
	took := a.await("y leads")
	if got := a.told(); got != "x leads, x ended, y leads" {
		t.Errorf("happened %q", got)
	}
	if took < x.closing || took > x.closing+2*redisRetry+500*time.Millisecond {
		t.Errorf("the hand-over took %v", took)
	}
	y.end()
	for n := range 2 {
		if e := a.epoch(n); e.Generation < uint64(begun.UnixNano()/1000*1000) || e.Generation > uint64(time.Now().UnixNano()) || e.Term != 1 {
			t.Errorf("epoch %v, want one made by the clock", e)
		}
	}
	if n := redistest.Client(t, s.Address).Exists(t.Context(), leaseKey).Val(); n != 0 {
		t.Error("the lease is left in Redis")
	}
	if a.log.count("level=WARN")+a.log.count("level=ERROR") > 0 || a.log.count("lease released") != 2 {
		t.Errorf("log:\n%s", a.log)
	}
}

// A Redis that is away for 3 s costs nothing.
func TestRedisAwayForAMoment(t *testing.T) {
	a, s := newRedisArena(t)
	x, y := a.start("x", 0, a.byRedis("x", at(s))), a.start("y", 0, a.byRedis("y", at(s)))
	redistest.Eventually(t, "one leads and the other knows", func() bool { return a.log.count("lease is held by another") == 1 })
	s.Signal(syscall.SIGSTOP)
	<-time.After(3 * time.Second)
	s.Signal(syscall.SIGCONT)
	redistest.Eventually(t, "both get answers again", func() bool { return a.log.count("lease usable again") == 2 })
	if got := a.told(); strings.Contains(got, ",") {
		t.Errorf("happened %q", got)
	}
	if a.log.count(`msg="lease not usable"`) != 2 || a.log.count("reason=unreachable") != 2 {
		t.Errorf("log:\n%s", a.log)
	}
	y.end()
	x.end()
}

// Without Redis the leader goes on, without proof, and with the same epoch when
// Redis is back, with its data or without.
func TestRedisAway(t *testing.T) {
	a, s := newRedisArena(t)
	e := a.byRedis("x", at(s))
	x := a.start("x", 0, e)
	a.await("x leads")
	y := a.start("y", 0, a.byRedis("y", at(s)))
	redistest.Eventually(t, "y has found x", func() bool { return a.log.count("lease is held by another") == 1 })
	s.Kill()
	if took := a.await("x degraded"); took < redisTTL-2*time.Second-2*redisRefresh || took > redisTTL-2*time.Second+500*time.Millisecond {
		t.Errorf("proven for %v more", took)
	}
	<-time.After(redisTTL - 2*time.Second) // the lease ends
	s.Restart()
	if took := a.await("x proven"); took < redisTTL-2*time.Second-50*time.Millisecond || took > redisTTL {
		t.Errorf("proven again after %v, without the data", took)
	}
	s.Signal(syscall.SIGSTOP)
	a.await("x degraded")
	<-time.After(redisTTL - 2*time.Second)
	s.Signal(syscall.SIGCONT)
	if took := a.await("x proven"); took > 2*time.Second {
		t.Errorf("proven again after %v", took)
	}
	y.end()
	x.end()
	if got := a.told(); got != "x leads, x degraded, x proven, x degraded, x proven, x ended" {
		t.Errorf("happened %q", got)
	}
	if a.log.count("advice=\"see to Redis, the way to it and --redis-address") != 4 || a.log.count("lease usable again") != 4 ||
		a.log.count("leadership degraded") != 2 || a.log.count("leadership proven again") != 2 {
		t.Errorf("log:\n%s", a.log)
	}
	tell := &e.seats["stocks"].tally
	if tell.changes[changeAcquired].Load() != 1 || tell.changes[changeDegraded].Load() != 2 || tell.changes[changeLost].Load() != 0 ||
		tell.changes[changeReleased].Load() != 1 || tell.errors[ReasonUnreachable].Load() == 0 {
		t.Error("changes or errors are miscounted")
	}
}

// A leader that alone does not reach Redis ends when it hears that another leads.
func TestRedisCutOff(t *testing.T) {
	a, s := newRedisArena(t)
	p := redistest.NewProxy(t, s.Address)
	x := a.start("x", 0, a.byRedis("x", redisx.Options{Address: []string{p.Address}}))
	a.await("x leads")
	y := a.start("y", 0, a.byRedis("y", at(s)))
	redistest.Eventually(t, "y has found x", func() bool { return a.log.count("lease is held by another") == 1 })
	p.Hold()
	if took := a.await("y leads"); took > redisTTL+2*time.Second {
		t.Errorf("y leads after %v", took)
	}
	p.Resume()
	a.await("x ended")
	if got := a.told(); got != "x leads, x degraded, y leads, x ended" {
		t.Errorf("happened %q", got)
	}
	x.end()
	y.end()
}

// A process that stops without Redis ends in time.
func TestRedisStopsDegraded(t *testing.T) {
	a, s := newRedisArena(t)
	x := a.start("x", 0, a.byRedis("x", at(s)))
	a.await("x leads")
	s.Kill()
	a.await("x degraded")
	begun := time.Now()
	x.end()
	if took := time.Since(begun); took > 3*time.Second || a.log.count("lease not released") != 1 {
		t.Errorf("ended after %v; log:\n%s", took, a.log)
	}
}

// A lease that is another's ends the leadership at once.
func TestRedisTaken(t *testing.T) {
	a, s := newRedisArena(t)
	x := a.start("x", 0, a.byRedis("x", at(s)))
	a.await("x leads")
	redistest.Client(t, s.Address).Set(t.Context(), leaseKey, "somebody 7", time.Minute)
	if took := a.await("x ended"); took > 2*redisRefresh+500*time.Millisecond {
		t.Errorf("led for %v more", took)
	}
	x.end()
	if !strings.Contains(a.log.String(), fmt.Sprintf("cause=%q", lease.ErrTaken)) {
		t.Errorf("log:\n%s", a.log)
	}
}

func TestRedisForbidden(t *testing.T) {
	for name, forbid := range map[string]func(ctx context.Context, admin *redis.Client){
		"without a password":   func(ctx context.Context, admin *redis.Client) { admin.ConfigSet(ctx, "requirepass", "s3cret") },
		"a command":            func(ctx context.Context, admin *redis.Client) { admin.ACLSetUser(ctx, "default", "-evalsha", "-eval") },
		"a command of scripts": func(ctx context.Context, admin *redis.Client) { admin.ACLSetUser(ctx, "default", "-get") },
	} {
		t.Run(name, func(t *testing.T) {
			a, s := newRedisArena(t)
			forbid(t.Context(), redistest.Client(t, s.Address))
			x := a.start("x", 0, a.byRedis("x", at(s)))
			redistest.Eventually(t, "it is logged what to do", func() bool { return a.log.count("reason=forbidden advice=\"give the user") == 1 })
			x.end()
			if got := a.told(); got != "" {
				t.Errorf("happened %q", got)
			}
		})
	}
}

func TestRedisWorkEnds(t *testing.T) {
	a, s := newRedisArena(t)
	broken := errors.New("broken")
	for _, tt := range []struct{ returned, want error }{{nil, ErrEnded}, {broken, broken}} {
		x := a.start("x", 0, a.byRedis("x", at(s)))
		a.await("x leads")
		x.fail <- tt.returned
		if err := <-x.ended; !errors.Is(err, tt.want) || !strings.Contains(err.Error(), "stocks") {
			t.Errorf("Run: %v", err)
		}
		if n := redistest.Client(t, s.Address).Exists(t.Context(), leaseKey).Val(); n != 0 {
			t.Error("not released")
		}
		x.stop()
	}
}

func TestNewRedis(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	if _, err := NewRedis(redisx.Options{}, "relay-fanout", time.Second, []string{"stocks"}, log); err == nil {
		t.Error("no address: no error")
	}
	r, err := NewRedis(redisx.Options{Address: []string{"localhost:1"}}, "relay-fanout", time.Second, nil, log)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Run(t.Context(), "stocks", nil); !errors.Is(err, ErrMarket) {
		t.Errorf("Run: %v", err)
	}
}
