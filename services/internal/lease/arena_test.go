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

	"go.uber.org/goleak"

	"github.com/cutemarkets/relay/services/internal/redisx"
)

// A pool of go-redis that could not dial looks after a second whether it is closed.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/redis/go-redis/v9/internal/pool.(*ConnPool).tryDial"))
}

// arena is where processes compete for a lease. It sees to it that works with
// proof do not overlap, and that epochs rise.
type arena struct {
	*testing.T
	read int // lines of the story that await has passed

	mu sync.Mutex
	// Guarded by mu.
	log     bytes.Buffer
	holders []string // whose work runs and is proven
	last    uint64
	story   []string // "a leads 7", "a proven false", "a told: …", "a ended"
	changed chan struct{}
}

func newArena(t *testing.T) *arena { return &arena{T: t, changed: make(chan struct{}, 1)} }

// Write takes log records.
func (a *arena) Write(p []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.log.Write(p)
}

// logged returns how many log records have a text.
func (a *arena) logged(text string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return strings.Count(a.log.String(), text)
}

// onlyOne fails the test if more has happened than that somebody leads.
func (a *arena) onlyOne() {
	a.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.story) != 1 {
		a.Errorf("happened %q", a.story)
	}
}

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
func (a *arena) make(name string, c Config, o redisx.Options) *player {
	a.Helper()
	c.Name, c.Holder, c.Done = "stocks", name, func(error) {}
	l, err := New(c, o, slog.New(slog.NewTextHandler(a, nil)))
	if err != nil {
		a.Fatal(err)
	}
	return &player{arena: a, name: name, lease: l, ended: make(chan error, 1), give: make(chan error)}
}

// start makes a player compete until the test ends.
func (p *player) start(run func(context.Context, Work) error) *player {
	ctx, stop := context.WithCancel(context.Background())
	p.stop = stop
	go func() { p.ended <- run(ctx, p.work) }()
	return p
}

// join makes a player compete at the address of a Redis.
func (a *arena) join(name string, c Config, address string) *player {
	a.Helper()
	p := a.make(name, c, at(address))
	return p.start(p.lease.Run)
}

func at(address string) redisx.Options { return redisx.Options{Address: []string{address}} }

// end stops the player and waits for it.
func (p *player) end() {
	p.Helper()
	p.stop()
	if err := <-p.ended; err != nil {
		p.Error(err)
	}
}

func (p *player) work(ctx context.Context, epoch uint64, proof *Proof) error {
	p.mu.Lock()
	p.enterLocked()
	if epoch <= p.last {
		p.Errorf("epoch %d after %d", epoch, p.last)
	}
	p.last = epoch
	p.noteLocked("%s leads %d", p.name, epoch)
	p.mu.Unlock()
	working, stop := context.WithCancel(ctx)
	defer stop()
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		watchProof(working, proof, p.proven)
	}()
	var err error
	select {
	case err = <-p.give:
		stop()
		<-watched
	case <-ctx.Done():
		<-watched
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

// watchProof tells of each change of a proof until ctx ends.
func watchProof(ctx context.Context, proof *Proof, tell func(proven bool)) {
	for before := true; ; {
		changed := proof.Changed()
		if now := proof.Proven(); now != before {
			before = now
			tell(now)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

func (p *player) proven(proven bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.noteLocked("%s proven %v", p.name, proven)
	if proven {
		p.enterLocked()
	} else {
		p.leaveLocked()
	}
}

func (p *player) enterLocked() {
	p.holders = append(p.holders, p.name)
	if len(p.holders) > 1 {
		p.Errorf("at a time %q hold the lease; %q", p.holders, p.story)
	}
}

func (p *player) leaveLocked() {
	p.holders = slices.DeleteFunc(p.holders, func(name string) bool { return name == p.name })
}
