//go:build linux

package benchedge

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cutemarkets/relay/hack/benchedge/process"
	"github.com/cutemarkets/relay/hack/benchedge/publisher"
	"github.com/cutemarkets/relay/hack/benchedge/shape"
	"github.com/cutemarkets/relay/hack/loadtest/fleet"
)

// retryAfter is when a connection that the server refused is tried again.
const retryAfter = 500 * time.Millisecond

// publisherWait is how long a publisher may take to end.
const publisherWait = time.Second

// connectTimeout bounds the handshakes of all connections.
const connectTimeout = 2 * time.Minute

// perSource is how many connections come from one address: with more, the
// kernel searches long for a free port.
const perSource = 5000

// trial is one server with its connections.
type trial struct {
	bench    *bench
	instance *instance
	clients  *clients
	fleet    *fleet.Fleet
	end      func() error               // ends the fleet
	plan     func(i int, p *fleet.Plan) // adds to the plan of a connection; nil: nothing
	fanOut   []int                      // subscribers of each topic
	window   time.Duration
	measured atomic.Bool
}

// run measures one server under one shape.
func (b *bench) run(ctx context.Context, s server, sh shape.Shape, round int) ([]Sample, error) {
	sample := Sample{Server: s.name, Shape: sh.Name, Round: round}
	bare := Sample{Server: nameBare, Shape: sh.Name, Round: round}
	t, err := b.begins(ctx, s, sh, &sample)
	if err != nil {
		return nil, err
	}
	samples := []*Sample{&sample}
	if s.name == nameWrite && sh.Name == bareShape {
		samples = append(samples, &bare)
	}
	if round%2 == 1 {
		slices.Reverse(samples)
	}
	out := make([]Sample, len(samples))
	for i, one := range samples {
		if one == &bare {
			err = errors.Join(err, t.streamBare(ctx, sh, one))
		} else {
			err = errors.Join(err, t.stream(ctx, sh, b.options.WarmUp, one))
		}
		out[i] = *one
		if t.instance.stop == nil || err != nil {
			out = out[:i+1]
			break
		}
	}
	err = errors.Join(err, t.stop(ctx))
	return out, err
}

// begins starts a server and connects; it measures handshakes and memory.
func (b *bench) begins(ctx context.Context, s server, sh shape.Shape, sample *Sample) (_ *trial, err error) {
	t, err := b.launch(ctx, s, kind{awake: true})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.stop(ctx))
		}
	}()
	subscriptions := sh.Subscriptions(b.options.Connections)
	t.fanOut = sh.FanOut(subscriptions)
	t.plan = func(i int, p *fleet.Plan) { p.Topics = shape.TopicList(subscriptions[i]) }
	memory, err := process.RSS(t.instance.pid)
	if err != nil {
		return nil, err
	}
	o, err := t.connect(ctx, 0, b.options.Connections, 0)
	if err != nil {
		return nil, err
	}
	if err := wait(ctx, b.options.Quiet); err != nil {
		return nil, err
	}
	settled, err := process.RSS(t.instance.pid)
	if err != nil {
		return nil, err
	}
	n := float64(b.options.Connections)
	sample.Connections = b.options.Connections
	sample.HandshakesPerSecond = n / o.took.Seconds()
	sample.HandshakeCPU = milliseconds(o.used.Run) / n * 1000
	sample.MemoryPerConnection = float64(settled-memory) / n
	return t, nil
}

// kind is what clients are like.
type kind struct {
	awake      bool   // they never sleep, so that no server pays for waking them
	together   bool   // they connect all at once
	persistent bool   // they try again for as long as it takes
	aside      *aside // some of them; nil: none
}

// launch starts a server that has no connections yet.
func (b *bench) launch(ctx context.Context, s server, k kind) (t *trial, err error) {
	t = &trial{bench: b, window: b.options.Window}
	if t.instance, err = s.start(ctx); err != nil {
		return nil, err
	}
	if err := t.gather(ctx, k); err != nil {
		return nil, errors.Join(err, t.stop(ctx))
	}
	return t, nil
}

// gather begins a fleet without connections.
func (t *trial) gather(ctx context.Context, k kind) (err error) {
	t.clients = newClients(&t.measured, func(tag int) error { return t.open(tag, time.Now().Add(retryAfter)) }, k)
	o := fleet.Options{BusyPoll: k.awake, HandshakeTimeout: connectTimeout}
	if k.together {
		o.InFlight = t.bench.options.users()
	}
	if t.fleet, err = fleet.New(t.clients, o); err != nil {
		return err
	}
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan error, 1)
	f := t.fleet
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		ended <- errors.Join(process.Lower(), f.Run(run))
	}()
	t.end = func() error { cancel(); return <-ended }
	return nil
}

// opening is what it took to open connections.
type opening struct {
	begin time.Time
	took  time.Duration // from the first connect to the last acknowledgement
	used  process.CPU   // of the server
}

// connect opens some connections, one each interval (0: all are due at once),
// and returns when they are ready.
func (t *trial) connect(ctx context.Context, first, count int, interval time.Duration) (o opening, err error) {
	before, err := process.Usage(t.instance.pid)
	if err != nil {
		return o, err
	}
	t.clients.expect(first + count)
	o.begin = time.Now()
	for i := range count {
		if err := t.open(first+i, o.begin.Add(time.Duration(i)*interval)); err != nil {
			return o, err
		}
	}
	err = t.clients.await(ctx, connectTimeout)
	o.took = time.Since(o.begin)
	after, failure := process.Usage(t.instance.pid)
	o.used = after.Sub(before)
	return o, errors.Join(err, failure)
}

// open asks for a connection.
func (t *trial) open(i int, at time.Time) error {
	p := fleet.Plan{Scheduled: at, Target: t.instance.target, Tag: i}
	if i >= perSource {
		p.Source = netip.AddrFrom4([4]byte{127, 0, 0, byte(1 + i/perSource)})
	}
	if t.instance.keys != nil {
		p.Key = t.instance.keys[i]
	}
	if t.plan != nil {
		t.plan(i, &p)
	}
	return t.fleet.Open(p)
}

// mark is what had been used and done at a moment.
type mark struct {
	at         time.Time
	cpu        process.CPU
	stats      fleet.Stats
	events     uint64
	deliveries uint64
	counted    counts
}

// counts are the server's own; zero: it has none.
type counts struct{ writes, events float64 }

func (t *trial) counts(ctx context.Context) (c counts, err error) {
	if t.instance.operations == nil {
		return c, nil
	}
	m, err := t.instance.operations.Metrics(ctx)
	return counts{writes: m.Sum("relay_edge_writes_total"), events: m.Sum("relay_edge_events_total")}, err
}

func (t *trial) mark(sent func() (events, deliveries uint64)) (m mark, err error) {
	m.cpu, err = process.Usage(t.instance.pid)
	m.at, m.stats = time.Now(), t.fleet.Stats()
	m.events, m.deliveries = sent()
	return m, err
}

// stream publishes a shape and measures its window.
func (t *trial) stream(ctx context.Context, sh shape.Shape, warmUp time.Duration, sample *Sample) error {
	p := publisher.New(sh, t.fanOut, t.instance.framing, t.instance.events, &t.measured)
	group, publishing := errgroup.WithContext(ctx)
	publishing, cancel := context.WithCancel(publishing)
	defer cancel()
	group.Go(func() error { return p.Run(publishing) })
	from, to, err := t.measure(publishing, warmUp, p.Sent)
	cancel()
	if err = errors.Join(err, t.halt(ctx, group)); err != nil {
		return err
	}
	sample.take(from, to, sh)
	sample.PublisherLag = Lag{P50: milliseconds(p.Lag(50)), P99: milliseconds(p.Lag(99)), Max: milliseconds(p.Lag(100))}
	t.clients.fill(sample)
	return nil
}

// streamBare measures a bare loop, whose events are counted by the clock.
func (t *trial) streamBare(ctx context.Context, sh shape.Shape, sample *Sample) error {
	if err := t.instance.toggleBare(); err != nil {
		return err
	}
	start := time.Now()
	from, to, err := t.measure(ctx, t.bench.options.WarmUp, func() (events, deliveries uint64) {
		events = uint64(time.Since(start)/sh.Interval()) + 1
		return events, events * uint64(t.fanOut[0])
	})
	if err != nil {
		return err
	}
	sample.take(from, to, sh)
	t.clients.fill(sample)
	return t.instance.toggleBare()
}

// measure waits until the window is over; sent are the counters of the
// publisher. The server is asked for its own counts outside of what is measured,
// because the answer costs it something.
func (t *trial) measure(ctx context.Context, warmUp time.Duration, sent func() (events, deliveries uint64)) (from, to mark, err error) {
	if err := wait(ctx, warmUp); err != nil {
		return from, to, err
	}
	before, err := t.counts(ctx)
	if err != nil {
		return from, to, err
	}
	t.clients.reset()
	t.measured.Store(true)
	defer t.measured.Store(false)
	if from, err = t.mark(sent); err != nil {
		return from, to, err
	}
	if err := wait(ctx, t.window); err != nil {
		return from, to, err
	}
	if to, err = t.mark(sent); err != nil {
		return from, to, err
	}
	from.counted = before
	to.counted, err = t.counts(ctx)
	return from, to, err
}

// halt waits for a publisher that was told to end. One whom a server with a
// backlog keeps waiting ends with the server.
func (t *trial) halt(ctx context.Context, group *errgroup.Group) error {
	ended := make(chan error, 1)
	go func() { ended <- group.Wait() }()
	timer := time.NewTimer(publisherWait)
	defer timer.Stop()
	select {
	case err := <-ended:
		return err
	case <-timer.C:
		return errors.Join(t.stop(ctx), <-ended)
	}
}

// leave ends all connections and waits until their locks are free.
func (t *trial) leave(ctx context.Context) error {
	err := t.end()
	t.end = nil
	return errors.Join(err, t.bench.relay.awaitFree(ctx))
}

// stop ends the connections, then the server.
func (t *trial) stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	var err error
	if t.end != nil {
		err = t.end()
		t.end = nil
	}
	if t.instance.stop != nil {
		err = errors.Join(err, t.instance.stop(ctx))
		for range t.instance.dropped {
			t.clients.note("writes that a full socket did not take")
		}
		t.instance.stop = nil
	}
	return err
}

func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return fmt.Errorf("benchedge: %w", context.Cause(ctx))
	case <-timer.C:
		return nil
	}
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
