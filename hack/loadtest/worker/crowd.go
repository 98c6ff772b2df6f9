package worker

import (
	"bytes"
	"context"
	"math/rand/v2"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/cutemarkets/relay/hack/loadtest/fleet"
	"github.com/cutemarkets/relay/hack/loadtest/fleet/wire"
	"github.com/cutemarkets/relay/hack/loadtest/scenario"
	"github.com/cutemarkets/relay/hack/loadtest/tally"
)

// normal is the close code of a client that leaves of its own accord.
const normal = 1000

// crowd is the clients of a worker. It is the fleet's handler.
type crowd struct {
	// Static after construction.
	a       Assignment
	plan    *scenario.Plan
	fleet   *fleet.Fleet
	tally   *tally.Tally
	targets []*fleet.Target
	stamp   wire.Field
	stamped bool
	ledger  *ledger // nil: losses are not judged

	live      []atomic.Pointer[fleet.Conn] // of each client; nil: not ready
	misframed atomic.Uint64

	// Owned by Fleet.Run; not thread-safe.
	clients  []client
	advanced int64 // unix ns of the last read that was told

	// Owned by Run; not thread-safe.
	told fleet.Stats // of the last sample
}

// client is who has one connection at a time.
type client struct {
	session *session  // nil: none, or losses are not judged
	slow    bool      // its events are not counted: they are late because it wants so
	lost    time.Time // when a ready connection ended that it has not got back
	failed  int       // attempts since that failed
}

func newCrowd(ctx context.Context, a Assignment, plan *scenario.Plan) (*crowd, error) {
	parsed, hosts, err := targets(ctx, a.Targets)
	if err != nil {
		return nil, err
	}
	config, err := tlsConfig(a.CA)
	if err != nil {
		return nil, err
	}
	n := a.connections()
	c := &crowd{
		a: a, plan: plan, targets: parsed, stamp: wire.NewField(a.Stamp), stamped: a.Stamp != "",
		live: make([]atomic.Pointer[fleet.Conn], n), clients: make([]client, n),
		tally: tally.New(tally.Options{
			Run: tally.Run{
				Scenario: string(a.Scenario.Name), Start: a.Start, Targets: hosts, Wanted: n,
				Stamp: a.Stamp, Parameters: a.Parameters,
			},
			Tester: a.Tester, Cores: cores(a.Targets),
		}),
	}
	if a.Truth != "" {
		c.ledger = newLedger(a.Number, a.Settle)
	}
	// A client has one plan at a time, so the queue is never full. Handshakes are
	// begun when they are due, however many are in flight.
	c.fleet, err = fleet.New(c, fleet.Options{InFlight: n, Queue: n, TLS: config})
	return c, err
}

// openAll hands the fleet the first connection of each client.
func (c *crowd) openAll() error {
	for tag := range c.clients {
		c.clients[tag].slow = c.plan.ReadLimit(c.number(tag)) != 0
		if err := c.open(tag, c.a.Start.Add(c.plan.At(c.number(tag)))); err != nil {
			return err
		}
	}
	return nil
}

// number is that of a client among those of all workers.
func (c *crowd) number(tag int) int { return c.a.Worker + tag*c.a.Workers }

func (c *crowd) open(tag int, at time.Time) error {
	number := c.number(tag)
	var source netip.Addr
	if len(c.a.Sources) > 0 {
		source = c.a.Sources[number%len(c.a.Sources)]
	}
	return c.fleet.Open(fleet.Plan{
		Scheduled: at, Target: c.targets[number%len(c.targets)], Source: source, Key: c.a.Keys[tag], InQuery: c.a.InQuery,
		Topics: c.plan.Topics(number), Deflate: c.a.Deflate, ReadLimit: c.plan.ReadLimit(number), Tag: tag,
	})
}

// hurry makes slow clients read all there is, when the scenario wants it.
func (c *crowd) hurry(ctx context.Context) {
	timer := time.NewTimer(time.Until(c.a.Start.Add(c.plan.Hurried())))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return
	}
	for tag := range c.live {
		if conn := c.live[tag].Load(); conn != nil && c.plan.ReadLimit(c.number(tag)) != 0 {
			c.fleet.Hurry(conn)
		}
	}
}

// churn closes connections when the scenario wants it.
func (c *crowd) churn(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for n := 0; ; n++ {
		number, at, ok := c.plan.Churn(n)
		if !ok {
			return
		}
		if number%c.a.Workers != c.a.Worker {
			continue
		}
		timer.Reset(time.Until(c.a.Start.Add(at)))
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		if conn := c.live[number/c.a.Workers].Load(); conn != nil {
			c.fleet.Close(conn, normal)
		}
	}
}

// sample takes down what is measured from outside.
func (c *crowd) sample(servers map[string]tally.ServerUsed) {
	s := c.fleet.Stats()
	c.tally.Frames(s.Frames-c.told.Frames, s.Bytes-c.told.Bytes)
	c.told = s
	c.tally.Loss(tally.Loss{Misframed: c.misframed.Load()})
	c.tally.Sample(tally.Sample{At: time.Now(), Open: s.Open + s.Opening, Opening: s.Opening, CPU: ownCPU(), Servers: servers})
}

// outcome is what came of it all, once the fleet has ended.
func (c *crowd) outcome(ctx context.Context, end time.Time) Outcome {
	s := c.fleet.Stats()
	c.tally.Frames(s.Frames-c.told.Frames, s.Bytes-c.told.Bytes)
	loss, notes := tally.Loss{}, []string(nil)
	if c.ledger != nil {
		loss, notes = c.ledger.judge(ctx, c.a, c.plan, c.tally)
	}
	loss.Misframed = c.misframed.Load()
	c.tally.Loss(loss)
	return Outcome{Result: c.tally.Result(end), Notes: notes}
}

// Ready implements fleet.Handler.
func (c *crowd) Ready(conn *fleet.Conn, t fleet.Times) {
	now := time.Now()
	c.tally.Advance(now.UnixNano())
	c.tally.Lag(t.Begun)
	c.tally.Connected(t.Connected)
	c.tally.Upgraded(t.Upgraded)
	c.tally.Ready(max(t.Authenticated, t.Subscribed))
	tag := conn.Tag()
	client := &c.clients[tag]
	if !client.lost.IsZero() {
		c.tally.Reconnected(now.Sub(client.lost))
	}
	client.lost, client.failed = time.Time{}, 0
	if c.ledger != nil {
		client.session = c.ledger.begin(c.number(tag), now)
	}
	c.live[tag].Store(conn)
}

// Event implements fleet.Handler.
func (c *crowd) Event(conn *fleet.Conn, raw []byte, received int64) {
	if received != c.advanced {
		c.advanced = received
		c.tally.Advance(received)
	}
	client := &c.clients[conn.Tag()]
	if !client.slow {
		c.tally.Event(c.latency(raw, received), len(raw))
	}
	if client.session != nil {
		c.ledger.event(client.session, raw, received)
	}
}

// Stamps with fewer digits than these are in milliseconds, and in microseconds.
const (
	microseconds = 1e14
	nanoseconds  = 1e17
)

// latency is the time from the stamp of an event to its arrival.
func (c *crowd) latency(raw []byte, received int64) time.Duration {
	if !c.stamped {
		return tally.NoStamp
	}
	stamp, ok := wire.Stamp(raw, c.stamp)
	switch {
	case !ok:
		return tally.NoStamp
	case stamp < microseconds:
		stamp *= int64(time.Millisecond)
	case stamp < nanoseconds:
		stamp *= int64(time.Microsecond)
	}
	return time.Duration(received - stamp)
}

// lasting is what a gap has that is not over: its end is told in a second notice.
var lasting = []byte(`"to":null`)

// Status implements fleet.Handler.
func (c *crowd) Status(conn *fleet.Conn, status, _ string, raw []byte) {
	if status != "gap" {
		return
	}
	if !bytes.Contains(raw, lasting) {
		c.tally.Gap(true)
	}
	if s := c.clients[conn.Tag()].session; s != nil {
		s.account.Gap()
	}
}

// Misframed implements fleet.Handler.
func (c *crowd) Misframed(*fleet.Conn, wire.Fault, []byte) { c.misframed.Add(1) }

// Closed implements fleet.Handler.
func (c *crowd) Closed(conn *fleet.Conn, e fleet.End) {
	now := time.Now()
	// Connections that end with the run are ready in its last second.
	stopped := e.Reason == fleet.ReasonStopped
	if !stopped {
		c.tally.Advance(now.UnixNano())
	}
	c.tally.Closed(tally.Close{Stage: e.Stage.String(), By: e.By.String(), Reason: e.Reason, Code: e.Code, HTTP: e.HTTP})
	tag := conn.Tag()
	c.live[tag].Store(nil)
	client := &c.clients[tag]
	if client.session != nil {
		client.session.end(now)
		client.session = nil
	}
	if stopped || !c.plan.Reconnects() {
		return
	}
	wait := max(c.plan.BackOff(client.failed, rand.Float64()), e.RetryAfter)
	if e.Stage == fleet.StageLive {
		client.lost = now
	} else {
		client.failed++
	}
	// The only error is that the fleet has stopped.
	_ = c.open(tag, now.Add(wait))
}

// Round implements fleet.Handler.
func (c *crowd) Round(took time.Duration) { c.tally.Lag(took) }
