// Package ops is the operations listener of a service: metrics, liveness,
// readiness and, if opted in, profiles. It is for the cluster's own eyes, apart
// from the public listener. It starts one goroutine per connection (net/http)
// and one that accepts; every request has deadlines, so a stuck client holds
// nothing for long.
package ops

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"strings"
	"sync"
	"time"

	"github.com/cutemarkets/relay/services/internal/lifecycle"
	"github.com/cutemarkets/relay/services/internal/telemetry"
)

// stopTimeout is how long a stop waits for requests in progress.
const stopTimeout = 2 * time.Second

// Options are the flags of the operations listener.
type Options struct {
	Listen string `name:"operations-listen" default:":9090" placeholder:"ADDRESS" help:"Address of the operations listener (/metrics, /livez, /readyz)."`
	Pprof  bool   `name:"pprof" help:"Serve profiles at /debug/pprof/ on the operations listener."`
}

// Validate reports values that make no sense.
func (o Options) Validate() error {
	if _, _, err := net.SplitHostPort(o.Listen); err != nil {
		return fmt.Errorf("--operations-listen must be an address like :9090: %w", err)
	}
	return nil
}

// Server is the operations listener.
type Server struct {
	// Static after construction.
	options     Options
	log         *slog.Logger
	mux         *http.ServeMux
	stopTimeout time.Duration

	mu sync.Mutex
	// Guarded by mu.
	checks   []check
	listener net.Listener
}

type check struct {
	name string
	test func() error
}

// New makes the server; it opens no listener.
func New(o Options, t *telemetry.Telemetry) *Server {
	s := &Server{
		options:     o,
		log:         t.Logger.With(slog.String("component", "ops")),
		mux:         http.NewServeMux(),
		stopTimeout: stopTimeout,
	}
	s.mux.Handle("GET /metrics", t.MetricsHandler())
	s.mux.HandleFunc("GET /livez", live)
	s.mux.HandleFunc("GET /readyz", s.ready)
	if o.Pprof {
		s.mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		s.mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
		s.mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		s.mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
		s.mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	}
	return s
}

// Ready adds a readiness check. It is called for each probe, by several
// goroutines, and must return at once: nil, or why the service is not ready. The
// reason is shown to whoever asks, so it holds no secret.
func (s *Server) Ready(name string, test func() error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.checks = append(s.checks, check{name: name, test: test})
}

// Handle adds a handler before Run, by a pattern of http.ServeMux. It has 10 s
// to read its request; writing the answer has no deadline.
func (s *Server) Handle(pattern string, h http.Handler) { s.mux.Handle(pattern, h) }

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
		return nil, fmt.Errorf("ops: %w", err)
	}
	s.listener = l
	return l.Addr(), nil
}

// Run serves until ctx is done. It is a part of a lifecycle.Group, the first one
// added, so that it answers probes until everything else has stopped.
func (s *Server) Run(ctx context.Context) error {
	addr, err := s.Listen()
	if err != nil {
		return err
	}
	server := &http.Server{
		Handler:           s.mux,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
		// No WriteTimeout: a profile takes as long as was asked for.
	}
	s.log.Info("listening", slog.String("address", addr.String()))
	served := make(chan error, 1)
	lifecycle.Go("ops accept", func() { served <- server.Serve(s.listener) })
	select {
	case err := <-served:
		return fmt.Errorf("ops: %w", err)
	case <-ctx.Done():
	}
	stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.stopTimeout)
	defer cancel()
	if server.Shutdown(stopping) != nil {
		server.Close()
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("ops: %w", err)
	}
	return nil
}

// live answers as long as the process serves requests: liveness depends on
// nothing outside, for a restart cures nothing there.
func live(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, "ok\n") }

func (s *Server) ready(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	checks := s.checks
	s.mu.Unlock()
	var failing strings.Builder
	for _, c := range checks {
		if err := c.test(); err != nil {
			fmt.Fprintf(&failing, "%s: %v\n", c.name, err)
		}
	}
	if failing.Len() > 0 {
		answer(w, http.StatusServiceUnavailable, failing.String())
		return
	}
	answer(w, http.StatusOK, "ok\n")
}

func answer(w http.ResponseWriter, status int, body string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(body)) // A probe that went away needs no answer.
}
