// Package feedserver serves feed.v1: one stream per (edge, market) from the
// market's router to the edge. A standby serves as a leader does; its streams
// carry heartbeats only.
//
// Each stream is supervised by the goroutine of its handler, and has one that
// receives (and owns the edge's interest) and one that sends. Only the sender
// waits for the edge. What the edge does not take stays in its queue of package
// router, whose bound ends the stream as "cut" (RESOURCE_EXHAUSTED).
package feedserver

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	feedv1 "github.com/cutemarkets/relay/proto/feed/v1"
	"github.com/cutemarkets/relay/services/fanout/internal/router"
)

const (
	helloWait      = 10 * time.Second // for the first message of an edge
	heartbeatEvery = time.Second
	drainWait      = 2 * time.Second // for an edge to take what is queued

	marketUnknown = "unknown" // metric label
)

// Server serves the streams of all markets. Safe for concurrent use.
type Server struct {
	feedv1.UnimplementedFeedServiceServer

	// Static after construction.
	routers  map[string]*router.Router
	log      *slog.Logger
	draining chan struct{} // closed when the process is about to stop
	ended    map[string]*[reasonEnd]atomic.Uint64

	mu sync.Mutex
	// Guarded by mu.
	stopped bool
	streams sync.WaitGroup // handlers and their goroutines; a handler's Add is guarded
}

// New makes the server of the routers' markets.
func New(routers []*router.Router, log *slog.Logger) *Server {
	s := &Server{
		routers:  make(map[string]*router.Router),
		log:      log.With(slog.String("component", "feedserver")),
		draining: make(chan struct{}),
		ended:    map[string]*[reasonEnd]atomic.Uint64{marketUnknown: new([reasonEnd]atomic.Uint64)},
	}
	for _, r := range routers {
		s.routers[r.Market()] = r
		s.ended[r.Market()] = new([reasonEnd]atomic.Uint64)
	}
	return s
}

// Run waits until ctx ends, then tells all edges that the process is about to
// stop, and returns when all streams have ended. Later ones are refused.
func (s *Server) Run(ctx context.Context) error {
	<-ctx.Done()
	s.mu.Lock()
	if !s.stopped {
		s.stopped = true
		close(s.draining)
	}
	s.mu.Unlock()
	s.streams.Wait()
	return nil
}

// Subscribe implements feedv1.FeedServiceServer.
func (s *Server) Subscribe(wire feedv1.FeedService_SubscribeServer) error {
	s.mu.Lock()
	if s.stopped {
		s.mu.Unlock()
		return s.end(marketUnknown, ReasonDraining, nil)
	}
	s.streams.Add(1)
	s.mu.Unlock()
	defer s.streams.Done()

	st := newStream(s, wire)
	reason, err := st.supervise()
	market := marketUnknown
	if st.opened() {
		market = st.market
		s.log.Info("stream ended", slog.String("market", market), slog.String("edge", st.edgeID),
			slog.String("reason", reason.String()))
	}
	return s.end(market, reason, err)
}

// end counts the end of a stream and makes its status. err says what was wrong
// with the edge's input.
func (s *Server) end(market string, reason Reason, err error) error {
	s.ended[market][reason].Add(1)
	r := reasons[reason]
	switch {
	case r.code == codes.OK:
		return nil
	case err != nil:
		return status.Error(r.code, err.Error())
	}
	return status.Error(r.code, r.text)
}

// Observe registers the server's metrics.
func (s *Server) Observe(meter metric.Meter) error {
	ended, err := meter.Int64ObservableCounter("relay_fanout_streams_ended_total",
		metric.WithDescription("Streams of edges that ended, by reason."))
	if err != nil {
		return fmt.Errorf("feedserver: metrics: %w", err)
	}
	_, err = meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		for market, counts := range s.ended {
			for reason := range reasonEnd {
				o.ObserveInt64(ended, int64(counts[reason].Load()),
					metric.WithAttributes(attribute.String("market", market), attribute.String("reason", reason.String())))
			}
		}
		return nil
	}, ended)
	if err != nil {
		return fmt.Errorf("feedserver: metrics: %w", err)
	}
	return nil
}
