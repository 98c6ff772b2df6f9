//go:build linux

package benchedge

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/cutemarkets/relay/hack/benchedge/shape"
	"github.com/cutemarkets/relay/hack/loadtest/fleet"
	"github.com/cutemarkets/relay/hack/loadtest/fleet/wire"
)

// maxLatency is counted for all greater ones.
const maxLatency = 10 * time.Minute

// clients is the handler of a fleet.
type clients struct {
	// Static after construction.
	wanted   int
	measured *atomic.Bool
	retry    func(tag int) error
	settled  chan struct{} // closed when all are ready, or there is a failure

	mu sync.Mutex
	// Guarded by mu.
	ready    int
	retries  int
	over     bool // settled is closed
	failure  error
	latency  *hdrhistogram.Histogram // of events while measured
	troubles map[string]int          // what should not happen, since the beginning
}

func newClients(wanted int, measured *atomic.Bool, retry func(tag int) error) *clients {
	return &clients{
		wanted: wanted, measured: measured, retry: retry, settled: make(chan struct{}), troubles: map[string]int{},
		latency: hdrhistogram.New(1, int64(maxLatency), 2),
	}
}

// await returns when all connections are ready.
func (c *clients) await(ctx context.Context, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	select {
	case <-c.settled:
	case <-ctx.Done():
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failure == nil && !c.over {
		return fmt.Errorf("%d of %d connections became ready: %w", c.ready, c.wanted, ctx.Err())
	}
	return c.failure
}

// reset forgets the latencies.
func (c *clients) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.latency.Reset()
}

// forget forgets what went wrong so far.
func (c *clients) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.troubles)
}

// fill adds what the clients saw to a sample.
func (c *clients) fill(s *Sample) {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := func(quantile float64) float64 {
		return milliseconds(time.Duration(c.latency.ValueAtQuantile(quantile)))
	}
	s.Latency = Latency{P50: at(50), P99: at(99), P999: at(99.9), Max: at(100)}
	s.Troubles = map[string]int{}
	for what, n := range c.troubles {
		s.Troubles[what] = n
	}
}

// Ready implements fleet.Handler.
func (c *clients) Ready(*fleet.Conn, fleet.Times) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ready++; c.ready == c.wanted {
		c.settleLocked()
	}
}

func (c *clients) settleLocked() {
	if !c.over {
		c.over = true
		close(c.settled)
	}
}

// Event implements fleet.Handler.
func (c *clients) Event(_ *fleet.Conn, raw []byte, received int64) {
	if !c.measured.Load() {
		return
	}
	at, ok := shape.Stamp(raw)
	c.mu.Lock()
	defer c.mu.Unlock()
	if !ok {
		c.troubles["events of another length"]++
		return
	}
	_ = c.latency.RecordValue(min(max(received-at, 1), int64(maxLatency))) // within its range
}

// Status implements fleet.Handler.
func (c *clients) Status(_ *fleet.Conn, status, _ string, _ []byte) { c.trouble("status " + status) }

// Misframed implements fleet.Handler.
func (c *clients) Misframed(_ *fleet.Conn, fault wire.Fault, _ []byte) {
	c.trouble("misframed: " + string(fault))
}

// Closed implements fleet.Handler. A connection that did not become ready is
// tried again; as many retries as there are connections are too many.
func (c *clients) Closed(conn *fleet.Conn, e fleet.End) {
	if e.Reason == fleet.ReasonStopped {
		return
	}
	if e.Stage == fleet.StageLive {
		c.trouble("lost: " + e.Reason)
		return
	}
	c.trouble("refused at first: " + e.Reason)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.retries++
	err := c.retry(conn.Tag())
	if (err != nil || c.retries > c.wanted) && c.failure == nil {
		c.failure = errors.Join(fmt.Errorf("a connection ended at the stage %s: %s by %s, close code %d, HTTP status %d", e.Stage, e.Reason, e.By, e.Code, e.HTTP), err)
		c.settleLocked()
	}
}

// Round implements fleet.Handler.
func (c *clients) Round(time.Duration) {}

func (c *clients) trouble(what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.troubles[what]++
}
