// Package edge is the edge service: it terminates the WebSockets of clients,
// checks who they are, holds each user's lock and hands them the events they
// subscribed to. It composes the parts and owns their order; it is done by
// internal/front (handshake), internal/session (the life of a socket),
// internal/engine (delivery), internal/feed (events from fanout), internal/authn
// and internal/lock.
//
// Its goroutines are those of the parts. Overload is their matter: see the
// package comments of front (handshakes) and engine (slow clients).
package edge

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"github.com/cutemarkets/relay/services/edge/internal/authn"
	"github.com/cutemarkets/relay/services/edge/internal/dialect"
	"github.com/cutemarkets/relay/services/edge/internal/dialect/cutemarkets"
	"github.com/cutemarkets/relay/services/edge/internal/engine"
	"github.com/cutemarkets/relay/services/edge/internal/feed"
	"github.com/cutemarkets/relay/services/edge/internal/front"
	"github.com/cutemarkets/relay/services/edge/internal/lock"
	"github.com/cutemarkets/relay/services/edge/internal/status"
	"github.com/cutemarkets/relay/services/internal/grpcx"
	"github.com/cutemarkets/relay/services/internal/lifecycle"
	"github.com/cutemarkets/relay/services/internal/ops"
	"github.com/cutemarkets/relay/services/internal/redisx"
	"github.com/cutemarkets/relay/services/internal/telemetry"
)

const (
	// shutdownTimeout bounds the sending of the last traces.
	shutdownTimeout = 5 * time.Second
	// drainGrace is how much longer than its window a drain may take: lock
	// releases and close handshakes of the last sockets.
	drainGrace = 5 * time.Second
)

var errRunTwice = errors.New("edge: service has been run already")

// Service is the edge service.
type Service struct {
	// Static after construction.
	options    Options
	telemetry  *telemetry.Telemetry
	auth       *grpc.ClientConn
	redis      *redisx.Client
	locks      *lock.Manager
	eviction   *lock.Eviction
	feed       *feed.Client
	engine     *engine.Engine
	front      *front.Front
	operations *ops.Server

	draining atomic.Bool
	ran      atomic.Bool
}

// New makes the service. It opens no listener and connects to nothing.
func New(o Options) (*Service, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	if o.EdgeID == "" {
		o.EdgeID = edgeID()
	}
	t, err := telemetry.New(context.Background(), "edge", o.Telemetry)
	if err != nil {
		return nil, err
	}
	s := &Service{options: o, telemetry: t, operations: ops.New(o.Operations, t)}
	if err := s.build(); err != nil {
		return nil, errors.Join(fmt.Errorf("edge: %w", err), s.close(context.Background()))
	}
	return s, nil
}

// edgeID names this process: hosts have names of their own in a cluster, and the
// digits tell a restarted process from the one before.
func edgeID() string {
	host, err := os.Hostname()
	if err != nil {
		host = "edge"
	}
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails
	return host + "-" + hex.EncodeToString(b[:])
}

func (s *Service) build() (err error) {
	o, t := s.options, s.telemetry
	if s.auth, err = grpcx.Dial(o.AuthAddress, o.AuthTLS, t); err != nil {
		return err
	}
	authenticator, err := authn.New(s.auth, t.Meter("authn"), t.Logger)
	if err != nil {
		return err
	}
	if s.redis, err = lock.NewClient(o.Redis, o.EdgeID); err != nil {
		return err
	}
	if s.locks, err = lock.New(lock.Config{EdgeID: o.EdgeID, Grace: o.LockGrace, Lost: s.lockLost, Released: s.lockReleased, Probe: s.lockProbe}, s.redis, t.Meter("lock"), t.Logger); err != nil {
		return err
	}
	if s.eviction, err = lock.NewEviction(s.redis, t.Meter("lock"), t.Logger); err != nil {
		return err
	}
	s.feed, err = feed.New(feed.Config{Target: o.FanoutAddress, Markets: o.Markets, EdgeID: o.EdgeID, TLS: o.FanoutTLS}, t)
	if err != nil {
		return err
	}
	connections, err := o.connectionLimit()
	if err != nil {
		return err
	}
	interests := map[string]engine.Interest{}
	for _, market := range o.Markets {
		interests[market] = s.feed.Interest(market)
	}
	s.engine, err = engine.New(engine.Config{
		Markets: interests, Meter: t.Meter("engine"), Logger: t.Logger,
		Backend: backend{authenticator, s.locks},
		Kind:    engine.Kind(o.Engine), MaxConnections: connections,
		QueueBytes: o.QueueBytes, BurstBytes: max(o.BurstBytes, o.QueueBytes), QueueAge: o.QueueAge, UpstreamGrace: o.UpstreamGrace,
		Refused: func(client netip.Addr) { s.front.Failed(client) },
	})
	if err != nil {
		return err
	}
	s.front, err = front.New(o.Front, front.Deps{
		Engine: s.engine, Dialect: cutemarkets.New(o.dialect()), Status: s.statusPage(authenticator),
		Log: t.Logger, Meter: t.Meter("front"), Tracer: t.Tracer("front"),
	})
	return err
}

// lockLost, lockReleased and lockProbe are called by the locks, which exist before
// the engine but hold nothing until it asks.
func (s *Service) lockLost(owner uint64, r dialect.Reason) { s.engine.Lost(engine.Owner(owner), r) }
func (s *Service) lockReleased(owner uint64)               { s.engine.Released(engine.Owner(owner)) }
func (s *Service) lockProbe(owner uint64, answer func(alive bool)) {
	s.engine.Probe(engine.Owner(owner), answer)
}

func (s *Service) statusPage(authenticator *authn.Authenticator) *status.Handler {
	live := func(market string) func() bool {
		if !slices.Contains(s.options.Markets, market) {
			return nil
		}
		return func() bool { return s.feed.Status(market).Live }
	}
	return status.New(status.Sources{
		Database: func(ctx context.Context) (time.Duration, error) {
			health := authenticator.Status(ctx)
			if !health.OK {
				return 0, errStoreAway
			}
			return health.Latency, nil
		},
		Cache: func(ctx context.Context) error {
			_, err := s.locks.Ping(ctx)
			return err
		},
		Stocks:  live("stocks"),
		Options: live("options"),
	})
}

var errStoreAway = errors.New("edge: auth or its store does not answer")

// Run serves until ctx is done, then drains: not ready, no new sockets, closes
// spread over the drain window, locks given back. It can be called once. With a
// Redis that may evict locks it does not begin: lock.ErrEviction.
func (s *Service) Run(ctx context.Context) (err error) {
	if s.ran.Swap(true) {
		return errRunTwice
	}
	defer func() {
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
		defer cancel()
		err = errors.Join(err, s.close(ending))
	}()
	if err := s.eviction.Check(ctx); err != nil {
		return fmt.Errorf("edge: %w", err)
	}
	s.operations.Ready("drain", func() error {
		if s.draining.Load() {
			return errDraining
		}
		return nil
	})
	s.operations.Handle("GET /locks", http.HandlerFunc(s.locksPage))
	sinks := map[string]feed.Sink{}
	for _, market := range s.options.Markets {
		sinks[market] = s.engine.Sink(market)
	}
	group := lifecycle.NewGroup(s.telemetry.Logger)
	group.Add("operations", s.operations.Run)
	group.Add("locks", s.locks.Run)
	group.Add("eviction", s.eviction.Run)
	group.Add("engine", s.engine.Run)
	group.Add("feed", func(ctx context.Context) error { return s.feed.Run(ctx, sinks) })
	group.Add("front", s.front.Run)
	group.Add("drain", s.drain)
	return group.Run(ctx)
}

var errDraining = errors.New("the edge is draining")

// drain waits for the end and then empties the edge, while every other part
// still runs: clients get events, and refusals of new sockets, to the last.
func (s *Service) drain(ctx context.Context) error {
	<-ctx.Done()
	s.draining.Store(true)
	s.front.SetDraining(true)
	window := s.options.DrainWindow
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), window+drainGrace)
	defer cancel()
	return s.engine.Drain(bounded, window)
}

func (s *Service) close(ctx context.Context) error {
	var errs []error
	if s.auth != nil {
		errs = append(errs, s.auth.Close())
	}
	if s.redis != nil {
		errs = append(errs, s.redis.Close())
	}
	return errors.Join(append(errs, s.telemetry.Shutdown(ctx))...)
}
