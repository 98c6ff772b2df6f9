package leader

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	coordination "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/cutemarkets/relay/services/internal/lease"
)

// arena is where processes want to lead a market: by an API server and in a bubble,
// or by a Redis.
type arena struct {
	*testing.T
	api    *apiServer
	access func() *rest.Config
	config LeaseConfig
	log    *syncBuffer

	mu sync.Mutex
	// Guarded by mu.
	working int // works with proof, those of dead processes left out
	epochs  []Epoch
	story   []string // "a leads", "a degraded", "a proven", "a ended", "released"
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

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// count returns how many log records have a text.
func (s *syncBuffer) count(text string) int { return strings.Count(s.String(), text) }

func newBareArena(t *testing.T) *arena {
	return &arena{T: t, config: config, log: &syncBuffer{}, changed: make(chan struct{}, 1)}
}

func newArena(t *testing.T, names ...string) *arena {
	a := newBareArena(t)
	a.api = newAPIServer(t, names...)
	a.access = a.api.inMemory()
	a.api.answered = func(lease *coordination.Lease) {
		if *lease.Spec.HolderIdentity == "" {
			a.note("released")
		}
	}
	return a
}

func (a *arena) note(format string, args ...any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.story = append(a.story, fmt.Sprintf(format, args...))
	select {
	case a.changed <- struct{}{}:
	default:
	}
}

// told returns the story since the last call.
func (a *arena) told() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	story := strings.Join(a.story, ", ")
	a.story = nil
	return story
}

// await waits until the story ends with a line.
func (a *arena) await(line string) (waited time.Duration) {
	a.Helper()
	begun := time.Now()
	for {
		a.mu.Lock()
		ok := len(a.story) > 0 && a.story[len(a.story)-1] == line
		story := slices.Clone(a.story)
		a.mu.Unlock()
		if ok {
			return time.Since(begun)
		}
		select {
		case <-a.changed:
		case <-time.After(time.Minute):
			a.Fatalf("not %q in a minute: %q\n%s", line, story, a.log)
		}
	}
}

// process is one process that wants to lead.
type process struct {
	*arena
	name    string
	elector *Kubernetes
	closing time.Duration // that work takes to end
	stop    context.CancelFunc
	ended   chan error
	fail    chan error // makes work return
	dead    bool       // guarded by arena.mu
}

// join starts a process; its requests carry its name to the faults.
func (a *arena) join(name string, closing time.Duration) *process {
	a.Helper()
	access := a.access()
	access.Transport = named{name, access.Transport.(*http.Transport)}
	k, err := NewKubernetes(access, a.config, []string{"stocks"}, a.logger(name))
	if err != nil {
		a.Fatal(err)
	}
	p := a.start(name, closing, k)
	p.elector = k
	return p
}

func (a *arena) logger(name string) *slog.Logger {
	return slog.New(slog.NewTextHandler(a.log, &slog.HandlerOptions{Level: slog.LevelInfo})).With(slog.String("process", name))
}

// start starts a process that takes part by an elector of its own.
func (a *arena) start(name string, closing time.Duration, e Elector) *process {
	ctx, stop := context.WithCancel(context.Background())
	p := &process{arena: a, name: name, closing: closing, stop: stop, ended: make(chan error, 1), fail: make(chan error)}
	go func() { p.ended <- e.Run(ctx, "stocks", p.work) }()
	return p
}

func (p *process) work(ctx context.Context, l Leadership) error {
	epoch := l.Epoch
	p.mu.Lock()
	if n := len(p.epochs); n > 0 && epoch.Compare(p.epochs[n-1]) <= 0 {
		p.Errorf("epoch %v after %v", epoch, p.epochs[n-1])
	}
	p.epochs = append(p.epochs, epoch)
	p.mu.Unlock()
	proven := p.count(l.Proof, false)
	p.note("%s leads", p.name)
	over := make(chan error, 1)
	go func() {
		select {
		case <-ctx.Done():
			time.Sleep(p.closing)
			over <- nil
		case err := <-p.fail:
			over <- err
		}
	}()
	for {
		changed := l.Proof.Changed()
		if now := p.count(l.Proof, proven); now != proven {
			proven = now
			p.note("%s %s", p.name, map[bool]string{true: "proven", false: "degraded"}[now])
		}
		select {
		case <-changed:
		case err := <-over:
			p.mu.Lock()
			if proven && !p.dead {
				p.working--
			}
			p.mu.Unlock()
			p.note("%s ended", p.name)
			return err
		}
	}
}

// count counts a work with proof, which it had or not before. There is never
// another.
func (p *process) count(proof *lease.Proof, before bool) (now bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now = proof.Proven()
	switch {
	case now == before || p.dead:
	case now:
		p.working++
	default:
		p.working--
	}
	if p.working > 1 {
		p.Errorf("%d processes lead at a time: %q", p.working, p.story)
	}
	return now
}

// end stops the process and waits for it.
func (p *process) end() {
	p.Helper()
	p.stop()
	if err := <-p.ended; err != nil {
		p.Error(err)
	}
}

// named is a transport that says whose it is.
type named struct {
	name string
	*http.Transport
}

func (n named) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Process", n.name)
	return n.Transport.RoundTrip(r)
}

func from(name string, r *http.Request) bool { return name == "" || r.Header.Get("Process") == name }

// hang lets requests of a process (empty: all) wait until they are given up.
func hang(name string) func(http.ResponseWriter, *http.Request) bool {
	return func(_ http.ResponseWriter, r *http.Request) bool {
		if from(name, r) {
			<-r.Context().Done()
		}
		return !from(name, r)
	}
}

func refuseAll(code int, reason metav1.StatusReason) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, _ *http.Request) bool {
		refuse(w, code, reason)
		return false
	}
}
