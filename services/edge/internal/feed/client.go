// Package feed is the edge's side of feed.v1. It owns the topic tables
// (Interest), the look-up of the fanout name, one gRPC connection per fanout
// address, one stream per (address, market), and the arbiter that merges the
// streams of a market into the one order its Sink sees.
//
// Goroutines: one per market (runs the arbiter and calls the Sink), one for the
// look-up, two per stream (receive, send). All end with Run.
//
// Under overload nothing is dropped here: a Sink that blocks fills the market's
// inbox (8 messages of at most 4 MiB) and then the streams' windows (1 MiB each);
// the fanout pod then cuts the stream (RESOURCE_EXHAUSTED). The next one goes on
// from the pod's ring, or with a hole, which reaches the clients as a Gap. What an edge has yet to say of its interest is
// coalesced per topic.
package feed

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/cutemarkets/relay/services/internal/grpcx"
	"github.com/cutemarkets/relay/services/internal/lifecycle"
	"github.com/cutemarkets/relay/services/internal/telemetry"
)

// streamWindow is how many bytes of a stream may have arrived and not been taken.
// By its own measurements gRPC would let it grow to 16 MiB.
const streamWindow = 1 << 20

// Config says where the feed comes from.
type Config struct {
	// Target is the fanout service: host:port, where the host may have any
	// number of addresses, or a list of them (10.0.0.1:9000,10.0.0.2:9000).
	Target string
	// Markets lists the markets to stream.
	Markets []string
	// EdgeID is unique among live edges.
	EdgeID string
	// TLS of the connections. An empty server name means the host of Target.
	TLS grpcx.ClientTLS
}

// Status is the state of a market's feed.
type Status struct {
	Live    bool          // false: events may be missing
	Since   time.Time     // since when it is (or is not) live
	Lag     time.Duration // time since the feed last stated its coverage
	Streams int           // streams to fanout pods
}

// Client streams the markets from all fanout pods.
type Client struct {
	// Static after construction.
	config  Config
	targets []target
	markets map[string]*market
	log     *slog.Logger
	dial    func(address string) (*grpc.ClientConn, error)
	lookup  func(ctx context.Context, host string) ([]string, error)

	lookupFailures atomic.Int64
	running        atomic.Bool
}

// New makes a client; it connects in Run.
func New(c Config, t *telemetry.Telemetry) (*Client, error) {
	targets, err := parseTargets(c.Target)
	if err != nil {
		return nil, err
	}
	if len(c.Markets) == 0 || c.EdgeID == "" {
		return nil, errors.New("feed: markets and an edge id are needed")
	}
	client := &Client{
		config:  c,
		targets: targets,
		markets: make(map[string]*market),
		log:     t.Logger.With(slog.String("component", "feed")),
		lookup:  net.DefaultResolver.LookupHost,
	}
	for _, name := range c.Markets {
		client.markets[name] = newMarket(name)
	}
	tls := c.TLS
	if tls.CAFile != "" && tls.ServerName == "" {
		tls.ServerName = targets[0].host
	}
	client.dial = func(address string) (*grpc.ClientConn, error) {
		return grpcx.Dial("passthrough:///"+address, tls, t, grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: minBackoff, Multiplier: 2, Jitter: 0.2, MaxDelay: maxBackoff},
			MinConnectTimeout: silence,
		}), grpc.WithStaticStreamWindowSize(streamWindow), grpc.WithStaticConnWindowSize(int32(len(c.Markets))*streamWindow))
	}
	if err := client.observe(t.Meter("relay/edge/feed")); err != nil {
		return nil, err
	}
	return client, nil
}

// Interest returns the topic table of a market; nil for a market that is not
// configured.
func (c *Client) Interest(name string) *Interest {
	if m := c.markets[name]; m != nil {
		return m.interest
	}
	return nil
}

// Status returns the state of a market; the zero Status for one that is not
// configured.
func (c *Client) Status(name string) Status {
	if m := c.markets[name]; m != nil {
		return m.status(time.Now())
	}
	return Status{}
}

// Run streams until ctx is done; each market needs its sink. It runs once.
func (c *Client) Run(ctx context.Context, sinks map[string]Sink) error {
	if c.running.Swap(true) {
		return errors.New("feed: Run was called before")
	}
	for name := range c.markets {
		if sinks[name] == nil {
			return fmt.Errorf("feed: no sink for market %s", name)
		}
	}
	var wg sync.WaitGroup
	root := func(name string, fn func()) {
		wg.Add(1)
		lifecycle.Go(name, func() {
			defer wg.Done()
			fn()
		})
	}
	for name, m := range c.markets {
		root("feed market "+name, func() { m.run(ctx, sinks[name]) })
	}
	p := &pool{client: c, ctx: ctx, root: root, peers: make(map[string]*peer)}
	root("feed look-up", func() { c.follow(ctx, p) })
	wg.Wait()
	return nil
}
