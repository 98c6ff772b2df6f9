package lease

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.opentelemetry.io/otel/metric/noop"
	"go.uber.org/goleak"
)

// A pool of go-redis that could not dial looks after a second whether it is closed.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/redis/go-redis/v9/internal/pool.(*ConnPool).tryDial"))
}

// arena is where processes compete for a lease. It sees to it that works whose
// context lives do not overlap, and that epochs rise.
type arena struct {
	*testing.T
	log  syncBuffer
	read int // lines of the story that await has passed

	mu sync.Mutex
	// Guarded by mu.
	holders []string // whose work runs and has not been told
	last    uint64
	story   []string // "a leads 7", "a told: …", "a ended"
	changed chan struct{}
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

// count returns how many log records have a text.
func (s *syncBuffer) count(text string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Count(s.b.String(), text)
}

func newArena(t *testing.T) *arena { return &arena{T: t, changed: make(chan struct{}, 1)} }

func (a *arena) noteLocked(format string, args ...any) {
	a.story = append(a.story, fmt.Sprintf(format, args...))
	select {
	case a.changed <- struct{}{}:
	default:
	}
}

// await waits for a line of the story that begins with a text, after the one that
// it was last called for, and returns it.
func (a *arena) await(text string) string {
	a.Helper()
	timeout := time.After(time.Minute)
	for {
		a.mu.Lock()
		story := slices.Clone(a.story)
		a.mu.Unlock()
		for n := a.read; n < len(story); n++ {
			if strings.HasPrefix(story[n], text) {
				a.read = n + 1
				return story[n]
			}
		}
		select {
		case <-a.changed:
		case <-timeout:
			a.Fatalf("not %q in a minute: %q", text, story)
		}
	}
}

// player is a process that competes.
type player struct {
	*arena
	name    string
	lease   *Lease
	stop    context.CancelFunc
	ended   chan error // what Run returned
	give    chan error // makes work return
	closing time.Duration
}

// make makes a player that does not compete yet.
func (a *arena) make(name string, c Config, client redis.UniversalClient) *player {
	a.Helper()
	c.Name, c.Holder = "stocks", name
	log := slog.New(slog.NewTextHandler(&a.log, nil))
	l, err := New(c, client, noop.Meter{}, log)
	if err != nil {
		a.Fatal(err)
	}
	return &player{arena: a, name: name, lease: l, ended: make(chan error, 1), give: make(chan error)}
}

// join makes a player compete until the test ends.
func (p *player) join(run func(context.Context, Work) error) *player {
	ctx, stop := context.WithCancel(context.Background())
	p.stop = stop
	go func() { p.ended <- run(ctx, p.work) }()
	return p
}

// join makes a player compete by a client.
func (a *arena) join(name string, c Config, client redis.UniversalClient) *player {
	a.Helper()
	p := a.make(name, c, client)
	return p.join(p.lease.Run)
}

// end stops the player and waits for it.
func (p *player) end() {
	p.Helper()
	p.stop()
	if err := <-p.ended; err != nil {
		p.Error(err)
	}
}

func (p *player) work(ctx context.Context, epoch uint64) error {
	p.mu.Lock()
	p.holders = append(p.holders, p.name)
	if len(p.holders) > 1 {
		p.Errorf("at a time %q hold the lease; %q", p.holders, p.story)
	}
	if epoch <= p.last {
		p.Errorf("epoch %d after %d", epoch, p.last)
	}
	p.last = epoch
	p.noteLocked("%s leads %d", p.name, epoch)
	p.mu.Unlock()
	var err error
	select {
	case err = <-p.give:
	case <-ctx.Done():
		p.mu.Lock()
		p.leaveLocked()
		p.noteLocked("%s told: %v", p.name, context.Cause(ctx))
		p.mu.Unlock()
		if p.closing > 0 {
			time.Sleep(p.closing)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.leaveLocked()
	p.noteLocked("%s ended", p.name)
	return err
}

func (p *player) leaveLocked() {
	p.holders = slices.DeleteFunc(p.holders, func(name string) bool { return name == p.name })
}
