// Package fanout is the fanout service: it holds the vendor's feed of each market
// it leads, and sends every edge the events it has interest in (feed.v1). It
// composes the parts and owns their order: operations, gRPC, streams, leadership
// of each market. They stop the other way round, so that the vendor's socket is
// free at once and edges are told of the stop before their streams end.
//
// Its goroutines are those parts and what they start; what happens under overload
// is said by packages router (slow edges) and upstream (the vendor's socket).
package fanout

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	feedv1 "github.com/cutemarkets/relay/proto/feed/v1"
	"github.com/cutemarkets/relay/services/fanout/internal/feedserver"
	"github.com/cutemarkets/relay/services/fanout/internal/leader"
	"github.com/cutemarkets/relay/services/fanout/internal/router"
	"github.com/cutemarkets/relay/services/fanout/internal/upstream"
	"github.com/cutemarkets/relay/services/internal/grpcx"
	"github.com/cutemarkets/relay/services/internal/lifecycle"
	"github.com/cutemarkets/relay/services/internal/ops"
	"github.com/cutemarkets/relay/services/internal/telemetry"
)

// shutdownTimeout bounds the sending of the last traces.
const shutdownTimeout = 5 * time.Second

// The times of awaitEdges. DNS tells edges of a new pod within some 6 s.
const (
	edgesLook   = 100 * time.Millisecond
	edgesSettle = 2 * time.Second
	edgesMost   = 10 * time.Second
)

var (
	errRunTwice = errors.New("fanout: the service has been run already")
	errStopping = errors.New("stopping")
)

// Service is the fanout service.
type Service struct {
	// Static after construction.
	telemetry  *telemetry.Telemetry
	operations *ops.Server
	grpc       *grpcx.Server
	feed       *feedserver.Server
	elector    leader.Elector
	markets    []market
	elects     bool // others may lead as well

	ran atomic.Bool
}

// market is one market and its parts.
type market struct {
	name     string
	router   *router.Router
	upstream *upstream.Upstream
}

// New makes the service. It opens no listener and no connection.
func New(o Options) (_ *Service, err error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	t, err := telemetry.New(context.Background(), "fanout", o.Telemetry)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.Shutdown(context.Background()))
		}
	}()
	server, err := grpcx.NewServer(o.grpc(), t)
	if err != nil {
		return nil, err
	}
	elector, err := newElector(o, t)
	if err != nil {
		return nil, err
	}
	s := &Service{
		telemetry:  t,
		operations: ops.New(o.Operations, t),
		grpc:       server,
		elector:    elector,
		elects:     o.Leader == leaderKubernetes || o.Leader == leaderRedis,
	}
	var routers []*router.Router
	var upstreams []*upstream.Upstream
	for _, name := range o.Markets {
		r := router.New(name, o.EdgeQueueBytes, o.ring())
		u := upstream.New(o.upstream(name), r, t.Logger)
		routers = append(routers, r)
		upstreams = append(upstreams, u)
		s.markets = append(s.markets, market{name, r, u})
	}
	s.feed = feedserver.New(routers, t.Logger)
	feedv1.RegisterFeedServiceServer(server, s.feed)
	meter := t.Meter("fanout")
	if err := errors.Join(router.Observe(meter, routers), upstream.Observe(meter, upstreams), s.feed.Observe(meter)); err != nil {
		return nil, err
	}
	return s, nil
}

// awaitEdges waits, before an election, until the edges know this process: there
// are streams, and for edgesSettle none has come or gone. A newcomer that nobody
// knows must not win over a standby that every edge has a stream to. It waits
// edgesMost at the longest, and until ctx is done.
func awaitEdges(ctx context.Context, edges func() int) {
	ctx, cancel := context.WithTimeout(ctx, edgesMost)
	defer cancel()
	ticker := time.NewTicker(edgesLook)
	defer ticker.Stop()
	count, since := 0, time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			switch n := edges(); {
			case n != count:
				count, since = n, now
			case n > 0 && now.Sub(since) >= edgesSettle:
				return
			}
		}
	}
}

func newElector(o Options, t *telemetry.Telemetry) (leader.Elector, error) {
	switch o.Leader {
	case leaderKubernetes:
		k, err := leader.InCluster(o.lease(), o.Markets, t.Logger)
		if err != nil {
			return nil, err
		}
		return k, k.Observe(t.Meter("fanout"))
	case leaderRedis:
		r, err := leader.NewRedis(o.Redis, o.LeaseName, upstream.CloseWait, o.Markets, t.Logger)
		if err != nil {
			return nil, err
		}
		return r, r.Observe(t.Meter("fanout"))
	case leaderStandby:
		return leader.Standby{}, nil
	}
	return leader.NewStatic(time.Now()), nil
}

// Run serves until ctx is done, then stops in order. It can be called once.
func (s *Service) Run(ctx context.Context) (err error) {
	if s.ran.Swap(true) {
		return errRunTwice
	}
	defer func() {
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
		defer cancel()
		err = errors.Join(err, s.telemetry.Shutdown(ending))
	}()
	// Ready means serving, by a leader or a standby alike: the listener is open
	// before readiness can be asked for. The vendor's state is no part of it.
	address, err := s.grpc.Listen()
	if err != nil {
		return err
	}
	s.operations.Ready("fanout", func() error {
		if ctx.Err() != nil {
			return errStopping
		}
		return nil
	})
	group := lifecycle.NewGroup(s.telemetry.Logger)
	group.Add("operations", s.operations.Run)
	group.Add("grpc", s.grpc.Run)
	group.Add("feed", s.feed.Run)
	for _, m := range s.markets {
		s.telemetry.Logger.Info("relaying", slog.String("market", m.name), slog.String("address", address.String()))
		group.Add("leader "+m.name, func(ctx context.Context) error {
			if s.elects {
				awaitEdges(ctx, func() int { return m.router.Stats().Edges })
			}
			return s.elector.Run(ctx, m.name, m.upstream.Run)
		})
	}
	return group.Run(ctx)
}
