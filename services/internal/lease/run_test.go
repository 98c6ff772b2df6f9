package lease

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cutemarkets/relay/services/internal/redisx"
)

// usual is the timing of the model.
var usual = Config{TTL: testTiming.ttl, Refresh: testTiming.refresh, Margin: testTiming.margin, Retry: testTiming.retry}

// memory is the Redis of the model, by the clock of a bubble.
type memory struct {
	mu sync.Mutex
	// Guarded by mu.
	world world
	born  time.Time
	away  bool // no answer
}

func newMemory() *memory {
	return &memory{born: time.Now(), world: world{redis: store{counter: 0, server: 1}, master: 1}}
}

func (m *memory) perform(token string) func(context.Context, request) (answer, error) {
	return func(ctx context.Context, r request) (answer, error) {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.away {
			m.mu.Unlock()
			<-ctx.Done()
			m.mu.Lock()
			return answer{op: r.op, outcome: unknown}, ctx.Err()
		}
		m.world.now = time.Since(m.born)
		return m.world.exec(r, token), nil
	}
}

func (m *memory) change(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
}

// play makes a player compete by a memory.
func (a *arena) play(name string, m *memory) *player {
	a.Helper()
	p := a.make(name, usual, at("localhost:1"))
	return p.start(func(ctx context.Context, work Work) error {
		return errors.Join(p.lease.newRun(work, m.perform(name)).loop(ctx), p.lease.redis.Close())
	})
}

// The lease is kept until work has returned, also if that takes longer than the
// TTL, and then the next one has it.
func TestRunReleases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, m := newArena(t), newMemory()
		x := a.play("x", m)
		x.closing = 20 * time.Second
		a.await("x leads")
		y := a.play("y", m)
		time.Sleep(time.Minute)
		a.onlyOne()
		x.stop()
		a.await("x told: context canceled")
		a.await("x ended")
		ended := time.Now()
		a.await("y leads")
		if took := time.Since(ended); took > 240*time.Millisecond {
			t.Errorf("the next one had the lease after %v", took)
		}
		y.end()
		x.end()
		if m.world.redis.token != "" {
			t.Error("the lease is not released")
		}
		if n := a.logged("level=WARN") + a.logged("level=ERROR"); n > 0 {
			t.Errorf("%d warnings", n)
		}
	})
}

// A Redis that is away ends the proof and nothing else.
func TestRunWithoutRedis(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, m := newArena(t), newMemory()
		x := a.play("x", m)
		a.await("x leads")
		y := a.play("y", m)
		time.Sleep(time.Minute)
		for range 20 {
			m.change(func() { m.away = true })
			away := time.Now()
			a.await("x proven false")
			if took := time.Since(away); took < 3400*time.Millisecond || took > 4*time.Second {
				t.Errorf("without proof after %v", took)
			}
			time.Sleep(10 * time.Minute)
			m.change(func() { m.away = false })
			back := time.Now()
			a.await("x proven true")
			if took := time.Since(back); took > opTimeout+2*usual.Retry {
				t.Errorf("proven again after %v", took)
			}
		}
		y.end()
		x.end()
		if n := strings.Count(strings.Join(a.story, ","), "leads"); n != 1 {
			t.Errorf("happened %q", a.story)
		}
	})
}

// A holder without Redis ends when it hears that another has the lease, or has had
// it.
func TestRunTakenInDoubt(t *testing.T) {
	for name, after := range map[string]store{
		"has it":     {token: "y", epoch: 1e15, counter: 1e15, expires: time.Hour, server: 1},
		"had it":     {counter: 1e15, server: 1},
		"is guarded": {token: guarded, counter: 1e15, expires: time.Hour, server: 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, m := newArena(t), newMemory()
				x := a.play("x", m)
				x.closing = 7 * time.Second
				a.await("x leads")
				m.change(func() { m.away = true })
				a.await("x proven false")
				time.Sleep(time.Minute)
				m.change(func() { m.away, m.world.redis = false, after })
				back := time.Now()
				a.await("x told: " + ErrTaken.Error())
				if took := time.Since(back); took > opTimeout+2*usual.Retry {
					t.Errorf("told after %v", took)
				}
				a.await("x ended")
				if n := a.logged("level=ERROR"); n != 1 {
					t.Errorf("%d errors, work took longer than the TTL", n)
				}
				x.end()
			})
		})
	}
}

// One in doubt who finds that Redis has lost all waits until no other can have
// proof.
func TestRunLossInDoubt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, m := newArena(t), newMemory()
		x := a.play("x", m)
		a.await("x leads")
		y := a.play("y", m)
		time.Sleep(time.Minute)
		m.change(func() { m.away = true })
		a.await("x proven false")
		m.change(func() { m.away, m.world.redis = false, store{counter: -1} })
		back := time.Now()
		a.await("x proven true")
		if took := time.Since(back); took < usual.TTL-usual.Margin || took > usual.TTL {
			t.Errorf("proven again after %v", took)
		}
		y.end()
		x.end()
	})
}

func TestRunTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, m := newArena(t), newMemory()
		x := a.play("x", m)
		a.await("x leads")
		m.change(func() { m.world.redis = store{token: "y", epoch: 1e15, counter: 1e15, expires: time.Hour} })
		a.await("x told: " + ErrTaken.Error())
		a.await("x ended")
		x.end()
		if m.world.redis.token != "y" || a.logged("level=ERROR") > 0 {
			t.Errorf("%+v", m.world.redis)
		}
	})
}

func TestRunWorkEnds(t *testing.T) {
	broken := errors.New("broken")
	for _, tt := range []struct{ give, want error }{{broken, broken}, {nil, nil}} {
		synctest.Test(t, func(t *testing.T) {
			a, m := newArena(t), newMemory()
			x := a.play("x", m)
			a.await("x leads")
			x.give <- tt.give
			if err := <-x.ended; !errors.Is(err, tt.want) {
				t.Errorf("Run: %v, want %v", err, tt.want)
			}
			if m.world.redis.token != "" {
				t.Error("the lease is not released")
			}
			x.stop()
		})
	}
}

// A process that stops while Redis is away does not wait for it for long.
func TestRunStopsWithoutRedis(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, m := newArena(t), newMemory()
		x := a.play("x", m)
		a.await("x leads")
		y := a.play("y", m)
		synctest.Wait()
		m.change(func() { m.away = true })
		begun := time.Now()
		x.end()
		y.end()
		if took := time.Since(begun); took > 2*(stopTimeout+opTimeout) {
			t.Errorf("took %v", took)
		}
		if a.logged("lease not released") == 0 {
			t.Error("not logged")
		}
	})
}

func TestConfig(t *testing.T) {
	with := func(change func(c *Config)) Config {
		c := usual
		c.Name, c.Holder, c.Done = "stocks", "x", func(error) {}
		change(&c)
		return c
	}
	for name, c := range map[string]Config{
		"no name":         with(func(c *Config) { c.Name = "" }),
		"no holder":       with(func(c *Config) { c.Holder = "" }),
		"braces":          with(func(c *Config) { c.Name = "a{b}" }),
		"a space":         with(func(c *Config) { c.Holder = "x y" }),
		"long":            with(func(c *Config) { c.Holder = strings.Repeat("x", 129) }),
		"no Done":         with(func(c *Config) { c.Done = nil }),
		"no retry":        with(func(c *Config) { c.Retry = 0 }),
		"TTL too short":   with(func(c *Config) { c.TTL = 2500 * time.Millisecond }),
		"TTL not in ms":   with(func(c *Config) { c.TTL = 9*time.Second + 1 }),
		"margin too long": with(func(c *Config) { c.Margin = 4 * time.Second }),
	} {
		if _, err := New(c, at("localhost:1"), slog.New(slog.DiscardHandler)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := New(with(func(*Config) {}), redisx.Options{}, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("no address: no error")
	}
}
