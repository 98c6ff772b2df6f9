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

	"go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
)

// memory is the Redis of the model, by the clock of a bubble.
type memory struct {
	mu sync.Mutex
	// Guarded by mu.
	world world
	born  time.Time
	away  bool // no answer
}

func newMemory() *memory { return &memory{born: time.Now(), world: world{redis: store{counter: 0}}} }

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
	p := a.make(name, Config{}, nil)
	return p.join(func(ctx context.Context, work Work) error {
		r := p.lease.newRun(work)
		r.perform = m.perform(name)
		return r.loop(ctx)
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
		if !x.lease.Valid() || y.lease.Valid() {
			t.Error("the wrong one holds the lease")
		}
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
		if n := a.log.count("level=WARN") + a.log.count("level=ERROR"); n > 0 {
			t.Errorf("%d warnings", n)
		}
	})
}

func TestRunExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, m := newArena(t), newMemory()
		x := a.play("x", m)
		x.closing = 7 * time.Second
		a.await("x leads")
		time.Sleep(time.Minute)
		m.change(func() { m.away = true })
		away := time.Now()
		a.await("x told: " + ErrExpired.Error())
		if took := time.Since(away); took < 3400*time.Millisecond || took > 4*time.Second {
			t.Errorf("told after %v", took)
		}
		if x.lease.Valid() {
			t.Error("valid after its deadline")
		}
		if n := a.log.count("level=ERROR"); n > 0 {
			t.Errorf("%d errors before work is overdue", n)
		}
		a.await("x ended")
		if n := a.log.count("level=ERROR"); n != 1 {
			t.Errorf("%d errors, work took longer than the TTL", n)
		}
		m.change(func() { m.away = false })
		a.await("x leads")
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
		if m.world.redis.token != "y" || a.log.count("level=ERROR") > 0 {
			t.Errorf("%+v", m.world.redis)
		}
	})
}

func TestRunWorkEnds(t *testing.T) {
	broken := errors.New("broken")
	for _, tt := range []struct{ give, want error }{{broken, broken}, {nil, ErrEnded}} {
		synctest.Test(t, func(t *testing.T) {
			a, m := newArena(t), newMemory()
			x := a.play("x", m)
			a.await("x leads")
			x.give <- tt.give
			if err := <-x.ended; !errors.Is(err, tt.want) {
				t.Errorf("Run: %v, want %v", err, tt.want)
			}
			if m.world.redis.token != "" || x.lease.Valid() {
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
		if a.log.count("lease not released") == 0 {
			t.Error("not logged")
		}
	})
}

func TestRunTwice(t *testing.T) {
	p := newArena(t).make("x", Config{}, nil)
	p.lease.ran.Store(true)
	if err := p.lease.Run(t.Context(), p.work); !errors.Is(err, ErrRunTwice) {
		t.Error(err)
	}
}

func TestConfig(t *testing.T) {
	for name, c := range map[string]Config{
		"no name":         {Holder: "x"},
		"no holder":       {Name: "x"},
		"braces":          {Name: "a{b}", Holder: "x"},
		"a space":         {Name: "a", Holder: "x y"},
		"long":            {Name: "a", Holder: strings.Repeat("x", 129)},
		"negative":        {Name: "a", Holder: "x", Retry: -1},
		"TTL too short":   {Name: "a", Holder: "x", TTL: 2500 * time.Millisecond},
		"TTL not in ms":   {Name: "a", Holder: "x", TTL: 9*time.Second + 1},
		"margin too long": {Name: "a", Holder: "x", Margin: 4 * time.Second},
	} {
		if _, err := New(c, nil, noop.Meter{}, slog.New(slog.DiscardHandler)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestMetrics(t *testing.T) {
	reader := metric.NewManualReader()
	meter := metric.NewMeterProvider(metric.WithReader(reader)).Meter("test")
	l, err := New(Config{Name: "stocks", Holder: "x"}, nil, meter, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	m := newMemory()
	r := l.newRun(func(ctx context.Context, _ uint64) error {
		var got metricdata.ResourceMetrics
		if err := reader.Collect(ctx, &got); err != nil {
			t.Error(err)
		}
		for _, one := range got.ScopeMetrics[0].Metrics {
			if held, ok := one.Data.(metricdata.Gauge[int64]); ok && held.DataPoints[0].Value != 1 {
				t.Error("relay_lease_held is not 1")
			}
		}
		return ErrEnded
	})
	r.perform = m.perform("x")
	if err := r.loop(t.Context()); !errors.Is(err, ErrEnded) {
		t.Fatal(err)
	}
	var got metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &got); err != nil {
		t.Fatal(err)
	}
	counted := map[string]int64{}
	for _, one := range got.ScopeMetrics[0].Metrics {
		switch data := one.Data.(type) {
		case metricdata.Gauge[int64]:
			counted[one.Name] = data.DataPoints[0].Value
		case metricdata.Sum[int64]:
			for _, p := range data.DataPoints {
				counted[one.Name] += p.Value
			}
		}
	}
	if len(counted) != 3 || counted["relay_lease_held"] != 0 || counted["relay_lease_changes"] != 2 || counted["relay_lease_operations"] != 2 {
		t.Errorf("%v", counted)
	}
}
