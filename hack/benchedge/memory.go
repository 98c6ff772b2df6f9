//go:build linux

package benchedge

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/cutemarkets/relay/hack/benchedge/operations"
	"github.com/cutemarkets/relay/hack/benchedge/process"
	"github.com/cutemarkets/relay/hack/benchedge/shape"
	"github.com/cutemarkets/relay/hack/loadtest/fleet"
)

const (
	// fewerSockets is the part of the connections at which the memory is looked at
	// first, so that what an edge needs without any does not count.
	fewerSockets = 15
	// connectInterval is the time between two connects where handshakes are not
	// what is measured: a storm would leave its own traces in the memory.
	connectInterval = 2 * time.Millisecond
	// maxSites is how many entries of a heap profile are kept.
	maxSites = 10
)

// Memory is what idle connections cost an edge: what it grew by from a few
// to many, by connection.
type Memory struct {
	Topics int `json:"topics_per_connection"`
	Few    int `json:"connections_few"`
	Many   int `json:"connections_many"`

	RSSFew        int64   `json:"rss_bytes_few"`
	RSSMany       int64   `json:"rss_bytes_many"`
	RSS           float64 `json:"rss_bytes_per_connection"`
	Heap          float64 `json:"heap_bytes_per_connection"` // spans in use
	Stacks        float64 `json:"stack_bytes_per_connection"`
	Goroutines    float64 `json:"goroutines_per_connection"`
	KernelObjects float64 `json:"kernel_object_bytes_per_connection"` // both ends; less than 0: not readable
	KernelBuffers float64 `json:"kernel_buffer_bytes_per_connection"` // both ends

	Sites    []operations.Site `json:"sites,omitempty"` // with many connections, the most bytes first
	Live     int64             `json:"live_heap_bytes,omitempty"`
	Profile  string            `json:"profile,omitempty"` // a file
	Troubles map[string]int    `json:"troubles"`
}

// memories measures connections with few topics and with many, each on an edge
// of its own.
func (b *bench) memories(ctx context.Context) error {
	for _, name := range []string{"S1r10", "S2r95"} {
		sh, _ := shape.ByName(name)
		m, err := b.memory(ctx, sh)
		if err != nil {
			return fmt.Errorf("%d topics: %w", sh.PerConnection, err)
		}
		b.result.Memory = append(b.result.Memory, m)
	}
	return nil
}

func (b *bench) memory(ctx context.Context, sh shape.Shape) (m Memory, err error) {
	many := b.options.Sockets
	m = Memory{Topics: sh.PerConnection, Few: many / fewerSockets, Many: many}
	t, err := b.launch(ctx, b.edge(), kind{})
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, t.stop(ctx)) }()
	subscriptions := sh.Subscriptions(many)
	t.plan = func(i int, p *fleet.Plan) { p.Topics = shape.TopicList(subscriptions[i]) }
	few, err := t.grow(ctx, 0, m.Few)
	if err != nil {
		return m, err
	}
	all, err := t.grow(ctx, m.Few, many-m.Few)
	if err != nil {
		return m, err
	}
	m.take(few, all)
	m.Troubles = t.clients.trouble()
	if b.options.Pprof {
		if err := b.profile(ctx, t.instance.operations, &m); err != nil {
			return m, err
		}
	}
	b.say("memory, topics: %d: %.0f bytes of RSS for a connection (%.1f MB at %d, %.1f MB at %d)",
		m.Topics, m.RSS, float64(m.RSSFew)/1e6, m.Few, float64(m.RSSMany)/1e6, m.Many)
	return m, t.leave(ctx)
}

// footprint is what an edge holds at a moment.
type footprint struct {
	rss                      int64
	heap, stacks, goroutines float64
	kernel                   process.Kernel
}

// grow opens connections, lets the edge settle and looks at its memory.
func (t *trial) grow(ctx context.Context, first, count int) (f footprint, err error) {
	if _, err := t.connect(ctx, first, count, connectInterval); err != nil {
		return f, err
	}
	if err := wait(ctx, t.bench.options.MemoryWait); err != nil {
		return f, err
	}
	if f.rss, err = process.RSS(t.instance.pid); err != nil {
		return f, err
	}
	if f.kernel, err = process.KernelTCP(); err != nil {
		return f, err
	}
	metrics, err := t.instance.operations.Metrics(ctx)
	f.heap, f.stacks = metrics.Sum("go_memstats_heap_inuse_bytes"), metrics.Sum("go_memstats_stack_inuse_bytes")
	f.goroutines = metrics.Sum("go_goroutines")
	return f, err
}

// take computes what one connection costs.
func (m *Memory) take(few, many footprint) {
	n := float64(m.Many - m.Few)
	m.RSSFew, m.RSSMany = few.rss, many.rss
	m.RSS = float64(many.rss-few.rss) / n
	m.Heap, m.Stacks, m.Goroutines = (many.heap-few.heap)/n, (many.stacks-few.stacks)/n, (many.goroutines-few.goroutines)/n
	m.KernelBuffers = float64(many.kernel.Buffers-few.kernel.Buffers) / n
	if m.KernelObjects = -1; few.kernel.Objects >= 0 {
		m.KernelObjects = float64(many.kernel.Objects-few.kernel.Objects) / n
	}
}

// profile stores a heap profile, and keeps its greatest entries.
func (b *bench) profile(ctx context.Context, edge *operations.Listener, m *Memory) error {
	heap, err := edge.Heap(ctx)
	if err != nil {
		return err
	}
	m.Live, m.Sites = heap.Live, heap.Sites[:min(maxSites, len(heap.Sites))]
	packed, err := edge.Profile(ctx, "heap")
	if err != nil {
		return err
	}
	m.Profile = filepath.Join(b.dir, fmt.Sprintf("heap-%d.pb.gz", m.Topics))
	if err := os.WriteFile(m.Profile, packed, 0o600); err != nil {
		return fmt.Errorf("benchedge: %w", err)
	}
	return nil
}
