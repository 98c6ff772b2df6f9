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
	upstreams  map[string]*upstream.Upstream
	markets    []string

	ran atomic.Bool
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
	s := &Service{
		telemetry:  t,
		operations: ops.New(o.Operations, t),
		grpc:       server,
		elector:    elector(o.Leader, time.Now()),
		upstreams:  make(map[string]*upstream.Upstream),
		markets:    o.Markets,
	}
	var routers []*router.Router
	var upstreams []*upstream.Upstream
	for _, market := range o.Markets {
		r := router.New(market, o.EdgeQueueBytes)
		u := upstream.New(o.UpstreamURL, o.UpstreamKeyFile, r, t.Logger)
		routers = append(routers, r)
		upstreams = append(upstreams, u)
		s.upstreams[market] = u
	}
	s.feed = feedserver.New(routers, t.Logger)
	feedv1.RegisterFeedServiceServer(server, s.feed)
	meter := t.Meter("fanout")
	if err := errors.Join(router.Observe(meter, routers), upstream.Observe(meter, upstreams), s.feed.Observe(meter)); err != nil {
		return nil, err
	}
	return s, nil
}

func elector(name string, now time.Time) leader.Elector {
	if name == leaderStandby {
		return leader.Standby{}
	}
	return leader.NewStatic(now)
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
	s.telemetry.Logger.Info("fanout", slog.String("address", address.String()), slog.Any("markets", s.markets))

	group := lifecycle.NewGroup(s.telemetry.Logger)
	group.Add("operations", s.operations.Run)
	group.Add("grpc", s.grpc.Run)
	group.Add("feed", s.feed.Run)
	for _, market := range s.markets {
		group.Add("leader "+market, func(ctx context.Context) error {
			return s.elector.Run(ctx, market, s.upstreams[market].Run)
		})
	}
	return group.Run(ctx)
}
