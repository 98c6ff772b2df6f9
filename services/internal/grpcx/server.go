// Package grpcx builds the gRPC servers and clients between the services, so
// that all of them agree on keep-alive, message sizes, TLS, telemetry and the
// way they stop. A server starts one goroutine that accepts and, by grpc-go, a
// few per connection and one per call; a panic in one ends the process after it
// has been logged. Flow control of grpc-go bounds what a slow peer can hold: 64
// KiB per stream at first, grown to at most 16 MiB.
package grpcx

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"

	"github.com/cutemarkets/relay/services/internal/lifecycle"
	"github.com/cutemarkets/relay/services/internal/telemetry"
)

const (
	// MaxMessageBytes bounds a message in both directions. The whole interest of
	// an edge, 131,072 topics, fits.
	MaxMessageBytes = 16 << 20

	// Both sides ping a quiet connection and give it up without an answer: a
	// dead peer is noticed after 15 s.
	pingAfter   = 10 * time.Second
	pingTimeout = 5 * time.Second
	// pingMinimum is how often a client may ping. The default of grpc-go, 5
	// minutes, would cut our own clients off with ENHANCE_YOUR_CALM.
	pingMinimum = 5 * time.Second

	// stopTimeout is how long a stopping server waits for calls and streams.
	stopTimeout = 5 * time.Second
)

// ServerOptions are the flags of a gRPC server.
type ServerOptions struct {
	Listen          string `name:"listen" default:":9000" placeholder:"ADDRESS" help:"Address of the gRPC listener."`
	TLSCertFile     string `name:"tls-cert-file" placeholder:"FILE" help:"PEM certificate of the gRPC listener, re-read when it changes. Empty: plain text."`
	TLSKeyFile      string `name:"tls-key-file" placeholder:"FILE" help:"PEM private key of the certificate."`
	TLSClientCAFile string `name:"tls-client-ca-file" placeholder:"FILE" help:"PEM certificates of the CA that must have signed the certificate of a client (mutual TLS). Empty: any client."`
}

// Validate reports values that make no sense.
func (o ServerOptions) Validate() error {
	if _, _, err := net.SplitHostPort(o.Listen); err != nil {
		return fmt.Errorf("the gRPC listen address must be like :9000: %w", err)
	}
	if (o.TLSCertFile == "") != (o.TLSKeyFile == "") {
		return ErrPair
	}
	if o.TLSClientCAFile != "" && o.TLSCertFile == "" {
		return errors.New("a CA of the clients needs a TLS certificate of the gRPC listener")
	}
	return nil
}

// Server is a gRPC server with a health service.
type Server struct {
	// Static after construction.
	options     ServerOptions
	log         *slog.Logger
	grpc        *grpc.Server
	health      *health.Server
	stopTimeout time.Duration

	mu sync.Mutex
	// Guarded by mu.
	listener net.Listener
}

// NewServer makes a server; it opens no listener. options come after its own.
func NewServer(o ServerOptions, t *telemetry.Telemetry, options ...grpc.ServerOption) (*Server, error) {
	if err := o.Validate(); err != nil {
		return nil, fmt.Errorf("grpcx: %w", err)
	}
	creds, err := serverCredentials(o, t)
	if err != nil {
		return nil, err
	}
	log := t.Logger.With(slog.String("component", "grpc"))
	s := &Server{
		options: o,
		log:     log,
		grpc: grpc.NewServer(append([]grpc.ServerOption{
			grpc.Creds(creds),
			grpc.MaxRecvMsgSize(MaxMessageBytes),
			grpc.MaxSendMsgSize(MaxMessageBytes),
			grpc.KeepaliveParams(keepalive.ServerParameters{Time: pingAfter, Timeout: pingTimeout}),
			grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: pingMinimum, PermitWithoutStream: true}),
			grpc.ConnectionTimeout(pingAfter),
			grpc.StatsHandler(serverStats(t)),
			grpc.ChainUnaryInterceptor(crashUnary(log)),
			grpc.ChainStreamInterceptor(crashStream(log)),
		}, options...)...),
		health:      health.NewServer(),
		stopTimeout: stopTimeout,
	}
	healthv1.RegisterHealthServer(s.grpc, s.health)
	return s, nil
}

// RegisterService implements grpc.ServiceRegistrar, for the generated functions.
func (s *Server) RegisterService(d *grpc.ServiceDesc, implementation any) {
	s.grpc.RegisterService(d, implementation)
}

// SetServing sets what health answers for the server as a whole and for each
// service registered so far, for a service that can be unwell; until then it is
// SERVING.
func (s *Server) SetServing(serving bool) {
	status := healthv1.HealthCheckResponse_NOT_SERVING
	if serving {
		status = healthv1.HealthCheckResponse_SERVING
	}
	s.health.SetServingStatus("", status)
	for name := range s.grpc.GetServiceInfo() {
		if name != healthv1.Health_ServiceDesc.ServiceName {
			s.health.SetServingStatus(name, status)
		}
	}
}

// Listen opens the listener and returns its address. Run does so by itself;
// Listen before it is for those who need the address.
func (s *Server) Listen() (net.Addr, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.listener != nil {
		return s.listener.Addr(), nil
	}
	l, err := net.Listen("tcp", s.options.Listen) //nolint:noctx // opening a local address waits for nothing
	if err != nil {
		return nil, fmt.Errorf("grpcx: %w", err)
	}
	s.listener = l
	return l.Addr(), nil
}

// Run serves until ctx is done; it is a part of a lifecycle.Group. Then health
// turns to NOT_SERVING, no new call is taken, and calls in progress have 5 s to
// end before they are cut. A handler of a long stream does not learn of the stop
// from here: its service tells it.
func (s *Server) Run(ctx context.Context) error {
	addr, err := s.Listen()
	if err != nil {
		return err
	}
	s.log.Info("listening", slog.String("address", addr.String()), slog.Bool("tls", s.options.TLSCertFile != ""))
	served := make(chan error, 1)
	lifecycle.Go("grpc accept", func() { served <- s.grpc.Serve(s.listener) })
	select {
	case err := <-served:
		return fmt.Errorf("grpcx: %w", err)
	case <-ctx.Done():
	}
	s.health.Shutdown()
	s.stop()
	// Serve may come after the stop.
	if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("grpcx: %w", err)
	}
	return nil
}

// stop returns when all handlers have.
func (s *Server) stop() {
	cut := time.AfterFunc(s.stopTimeout, func() {
		s.log.Warn("calls still in progress are cut", slog.Duration("after", s.stopTimeout))
		s.grpc.Stop()
	})
	defer cut.Stop()
	s.grpc.GracefulStop()
}
