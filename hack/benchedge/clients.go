//go:build linux

package benchedge

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
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
	measured   *atomic.Bool
	retry      func(tag int) error
	persistent bool   // they try again for as long as it takes
	aside      *aside // those whose figures are not the others'; nil: none

	mu sync.Mutex
	// Guarded by mu.
	wanted   int
	settled  chan struct{} // closed when as many as wanted are ready, or there is a failure
	ready    []time.Time   // when each became so, in the order of time
	retries  int
	over     bool // settled is closed
	failure  error
	latency  *hdrhistogram.Histogram // of events while measured
	troubles map[string]int          // what should not happen, since the beginning
}

func newClients(measured *atomic.Bool, retry func(tag int) error, k kind) *clients {
	return &clients{
		measured: measured, retry: retry, persistent: k.persistent, aside: k.aside, troubles: map[string]int{},
		latency: hdrhistogram.New(1, int64(maxLatency), 2),
	}
}

// expect says how many connections there are to be.
func (c *clients) expect(wanted int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wanted, c.settled, c.over = wanted, make(chan struct{}), false
}

// errNotReady is the error of await when the time was up.
var errNotReady = errors.New("not all connections became ready")

// await returns when all connections are ready.
func (c *clients) await(ctx context.Context, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	c.mu.Lock()
	settled := c.settled
	c.mu.Unlock()
	select {
	case <-settled:
	case <-ctx.Done():
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failure == nil && !c.over {
		return fmt.Errorf("%w: %d of %d (%w)", errNotReady, len(c.ready), c.wanted, ctx.Err())
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
	s.Troubles = maps.Clone(c.troubles)
}

// seen is how many events came while measured.
func (c *clients) seen() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return uint64(c.latency.TotalCount())
}

// readyAt returns when a part of those that are wanted were ready, 0 < part <= 1;
// false: they never were.
func (c *clients) readyAt(part float64) (time.Time, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := int(math.Ceil(part * float64(c.wanted)))
	if n > len(c.ready) {
		return time.Time{}, false
	}
	return c.ready[n-1], true
}

// trouble returns what went wrong so far.
func (c *clients) trouble() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.troubles)
}

// Ready implements fleet.Handler.
func (c *clients) Ready(conn *fleet.Conn, _ fleet.Times) {
	if c.aside.has(conn) {
		c.aside.begun(conn)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ready = append(c.ready, time.Now()); len(c.ready) == c.wanted {
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
func (c *clients) Event(conn *fleet.Conn, raw []byte, received int64) {
	if !c.measured.Load() || c.aside.has(conn) {
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
func (c *clients) Status(conn *fleet.Conn, status, message string, _ []byte) {
	if c.aside.has(conn) {
		c.aside.told(conn, status, message)
		return
	}
	c.note("status " + status)
}

// Misframed implements fleet.Handler.
func (c *clients) Misframed(_ *fleet.Conn, fault wire.Fault, _ []byte) {
	c.note("misframed: " + string(fault))
}

// Closed implements fleet.Handler. A connection that did not become ready is
// tried again; as many retries as there are connections are too many, unless the
// clients are persistent.
func (c *clients) Closed(conn *fleet.Conn, e fleet.End) {
	if e.Reason == fleet.ReasonStopped {
		return
	}
	if e.Stage == fleet.StageLive && c.aside.has(conn) {
		c.aside.ended(conn, e)
		return
	}
	if e.Stage == fleet.StageLive {
		c.note("lost: " + e.Reason)
		return
	}
	c.note("refused at first: " + e.Reason)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.retries++
	err := c.retry(conn.Tag())
	if (err != nil || c.retries > c.wanted && !c.persistent) && c.failure == nil {
		c.failure = errors.Join(fmt.Errorf("a connection ended at the stage %s: %s by %s, close code %d, HTTP status %d", e.Stage, e.Reason, e.By, e.Code, e.HTTP), err)
		c.settleLocked()
	}
}

// Round implements fleet.Handler.
func (c *clients) Round(time.Duration) {}

func (c *clients) note(what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.troubles[what]++
}
