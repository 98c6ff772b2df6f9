//go:build linux

package benchedge

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cutemarkets/relay/hack/benchedge/process"
	"github.com/cutemarkets/relay/hack/benchedge/shape"
	"github.com/cutemarkets/relay/hack/benchedge/sockets"
	"github.com/cutemarkets/relay/hack/loadtest/fleet"
)

const (
	// slowShare: one in so many connections reads nothing, and one reads a
	// trickle.
	slowShare = 100
	trickle   = 5 << 10 // bytes per second

	// slowBallast makes a moment's events 5.7 KB for those who have the wildcard,
	// so that what they do not read fills the queues within seconds.
	slowBallast = 40

	// slowEnd is how long the slow ones may take to learn of their end, once they
	// read all there is.
	slowEnd = 5 * time.Second

	watchTick  = time.Second
	socketTick = 2 // in watchTicks
)

// Where those who are aside come from, so that the kernel tells them apart.
var sources = map[class]netip.Addr{
	stalled:   netip.AddrFrom4([4]byte{127, 0, 1, 1}),
	trickling: netip.AddrFrom4([4]byte{127, 0, 2, 1}),
}

// Slow is one measurement of most clients while some, with the wildcard, read
// slowly, or as fast as all others.
type Slow struct {
	Round       int     `json:"round"` // from 0
	Slow        bool    `json:"slow"`  // else they read as fast as all others
	Connections int     `json:"connections"`
	Latency     Latency `json:"latency_ms"` // of the others
	Served      float64 `json:"of_due"`     // of the others
	ServerShare float64 `json:"server_core_share"`
	WaitShare   float64 `json:"server_wait_share"`

	// At most at a moment.
	RSS   int64 `json:"rss_growth_bytes"` // since before the events
	Queue int64 `json:"send_queue_bytes"` // by the edge's own count

	// What the edge did with slow clients, by its own count.
	Actions     map[string]int `json:"actions"`
	Closed      int            `json:"closed"`
	FirstClosed float64        `json:"first_closed_seconds"` // after the first event, to the second
	LastClosed  float64        `json:"last_closed_seconds"`

	Classes  map[class]SlowClass `json:"classes"`
	Troubles map[string]int      `json:"troubles"` // of the others
}

// SlowClass is what became of those who read nothing, or a trickle.
type SlowClass struct {
	Clients int `json:"clients"`
	// Kernel is what the kernel held for them, on the edge's side of their
	// connections, at most at a moment: bytes of one, on average and the most.
	Kernel     float64 `json:"kernel_bytes"`
	KernelMost int64   `json:"kernel_bytes_most"`

	Warned   int            `json:"warned"` // clients that got a status
	Statuses map[string]int `json:"statuses"`
	Ends     map[string]int `json:"ends"`
}

// String is a line of progress.
func (c SlowClass) String() string {
	return fmt.Sprintf("%d in all, %d got a status%s; ends: %s; the kernel held %.0f KiB for each, %.0f KiB at most for one",
		c.Clients, c.Warned, list(": ", c.Statuses), list("", c.Ends), c.Kernel/1024, float64(c.KernelMost)/1024)
}

// variant names the measurement.
func (s Slow) variant() string {
	if s.Slow {
		return "some slow"
	}
	return "none slow"
}

// slows measures with slow clients and without, in turns.
func (b *bench) slows(ctx context.Context) error {
	for round := range b.options.Rounds {
		for i := range 2 {
			s, err := b.slow(ctx, round, (i+round)%2 == 1)
			if err != nil {
				return fmt.Errorf("%s: %w", s.variant(), err)
			}
			b.result.Slow = append(b.result.Slow, s)
			b.say("%d/%d %s: p50 %s p99 %s ms (%.2f of due), core %.0f %%, RSS grew by %.1f MB, %.1f MB queued; slow by the edge's count: %s%s",
				round+1, b.options.Rounds, s.variant(), short(s.Latency.P50), short(s.Latency.P99), s.Served, 100*s.ServerShare,
				float64(s.RSS)/1e6, float64(s.Queue)/1e6, list("", s.Actions), list("; ", s.Troubles))
			for _, name := range []class{stalled, trickling} {
				if c := s.Classes[name]; s.Slow {
					b.say("who %s: %s", name, c)
				}
			}
		}
	}
	return nil
}

// slow measures once.
func (b *bench) slow(ctx context.Context, round int, slow bool) (s Slow, err error) {
	n := b.options.SlowConnections
	each := n / slowShare
	s = Slow{Round: round, Slow: slow, Connections: n}
	sh, _ := shape.ByName("S2r95")
	sh.Name, sh.Rate, sh.Ballast = "slow", b.options.SlowRate, slowBallast
	others := sh.Subscriptions(n - 2*each)
	aside := newAside(len(others), each)
	t, err := b.launch(ctx, b.edge(), kind{awake: true, aside: aside})
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, t.stop(ctx)) }()
	t.fanOut, t.window = sh.FanOut(others), b.options.SlowWindow
	t.plan = func(i int, p *fleet.Plan) {
		if i < len(others) {
			p.Topics = shape.TopicList(others[i])
			return
		}
		name := aside.class(i)
		p.Topics, p.Source = shape.Wildcard, sources[name]
		switch {
		case slow && name == stalled:
			p.ReadLimit = -1
		case slow:
			p.ReadLimit = trickle
		}
	}
	if _, err := t.connect(ctx, 0, n, connectInterval); err != nil {
		return s, err
	}
	if err := wait(ctx, b.options.Quiet); err != nil {
		return s, err
	}
	if err := t.streamSlow(ctx, sh, &s); err != nil {
		return s, err
	}
	s.Troubles = t.clients.trouble()
	if slow {
		err = aside.hurry(ctx, t.fleet)
	}
	aside.fill(&s)
	return s, errors.Join(err, t.leave(ctx))
}

// streamSlow publishes, measures and watches.
func (t *trial) streamSlow(ctx context.Context, sh shape.Shape, s *Slow) error {
	before, err := process.RSS(t.instance.pid)
	if err != nil {
		return err
	}
	s.Classes, s.Actions = map[class]SlowClass{}, map[string]int{}
	watching, stop := context.WithCancel(ctx)
	defer stop()
	var group errgroup.Group
	group.Go(func() error { return t.watch(watching, s) })
	var sample Sample
	err = t.stream(ctx, sh, t.bench.options.WarmUp, &sample)
	stop()
	if err := errors.Join(err, group.Wait()); err != nil {
		return err
	}
	s.RSS -= before
	s.Latency, s.ServerShare, s.WaitShare = sample.Latency, sample.ServerShare, sample.WaitShare
	s.Served = float64(t.clients.seen()) / float64(max(sample.Due, 1))
	return nil
}

// watch takes down the most that is held at a moment, until ctx is done.
func (t *trial) watch(ctx context.Context, s *Slow) error {
	_, text, err := net.SplitHostPort(t.instance.target.Host())
	if err != nil {
		return err
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return err
	}
	begin := time.Now()
	for n := 0; wait(ctx, watchTick) == nil; n++ {
		rss, err := process.RSS(t.instance.pid)
		if err != nil {
			return err
		}
		s.RSS = max(s.RSS, rss)
		metrics, err := t.instance.operations.Metrics(context.WithoutCancel(ctx))
		if err != nil {
			return err
		}
		s.Queue = max(s.Queue, int64(metrics.Sum("relay_edge_send_queue_bytes")))
		for action, n := range metrics.By("relay_edge_slow_clients_total", "action") {
			s.Actions[action] = int(n)
		}
		if closed := int(metrics.Sum("relay_edge_closes_total", `reason="slow_consumer"`)); closed > s.Closed {
			s.LastClosed = time.Since(begin).Seconds()
			if s.Closed == 0 {
				s.FirstClosed = s.LastClosed
			}
			s.Closed = closed
		}
		if n%socketTick != 0 {
			continue
		}
		all, err := sockets.Of(uint16(port))
		if err != nil {
			return err
		}
		for name, source := range sources {
			c := s.Classes[name]
			c.take(all, source)
			s.Classes[name] = c
		}
	}
	return nil
}

// take looks at the sockets of a moment whose client has an address.
func (c *SlowClass) take(all []sockets.Socket, source netip.Addr) {
	count, sum := 0, int64(0)
	for _, s := range all {
		if s.Peer.Addr() == source {
			count++
			sum += s.Memory()
			c.KernelMost = max(c.KernelMost, s.Memory())
		}
	}
	if count > 0 {
		c.Kernel = max(c.Kernel, float64(sum)/float64(count))
	}
}
