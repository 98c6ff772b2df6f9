// Package feedsim simulates the market data vendor: its WebSocket endpoints
// /stocks and /options with invented events, and an HTTP API that makes it
// misbehave on purpose.
//
// It owns the listeners and starts one goroutine per listener and per market;
// package market starts those of the connections. Overload is the business of
// package market too.
package feedsim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cutemarkets/relay/hack/feedsim/market"
	"github.com/cutemarkets/relay/hack/feedsim/session"
	"github.com/cutemarkets/relay/hack/feedsim/tape"
)

const (
	headerTimeout = 5 * time.Second
	headerLimit   = 16 << 10
	stopTimeout   = 2 * time.Second // for answers of the control API
)

// Simulator is the vendor's two servers.
type Simulator struct {
	// Static after construction.
	log     *slog.Logger
	stocks  *market.Market
	options *market.Market
	servers []server
}

type server struct {
	listener net.Listener
	http     *http.Server
}

// New checks the options and opens the listeners; the addresses are known when
// it returns. Only Run closes them again.
func New(o Options, log *slog.Logger) (*Simulator, error) {
	if err := o.Validate(); err != nil {
		return nil, fmt.Errorf("feedsim: %w", err)
	}
	keys, err := o.keys()
	if err != nil {
		return nil, fmt.Errorf("feedsim: %w", err)
	}
	s := &Simulator{log: log.With("component", "feedsim")}
	accept := func(key session.Key) bool {
		_, ok := keys[key]
		return ok
	}
	s.stocks = market.New(o.market(tape.Stocks, o.OnLimit.Stocks, accept), s.log)
	s.options = market.New(o.market(tape.Options, o.OnLimit.Options, accept), s.log)

	mux := http.NewServeMux()
	mux.Handle("GET /stocks", s.stocks)
	mux.Handle("GET /options", s.options)
	control := mux
	if o.ControlListen != "" {
		control = http.NewServeMux()
	}
	s.handleControl(control)
	if err := s.listen(o.Listen, mux); err != nil {
		return nil, err
	}
	if o.ControlListen != "" {
		if err := s.listen(o.ControlListen, control); err != nil {
			_ = s.servers[0].listener.Close()
			return nil, err
		}
	}
	return s, nil
}

func (o *Options) market(m tape.Market, rule market.LimitRule, accept func(session.Key) bool) market.Config {
	rules := session.Rules{Market: m, Accept: accept}
	for _, prefix := range o.Unauthorized {
		if kind, known := tape.ParseKind(m, prefix); known {
			rules.Unauthorized = append(rules.Unauthorized, kind)
		}
	}
	return market.Config{
		Rules:          rules,
		Tape:           tape.Config{Market: m, Symbols: o.Symbols, Rate: o.Rate, Seed: o.Seed, Minute: o.Minute},
		Start:          o.Start,
		MaxConnections: o.MaxConnections,
		OnLimit:        rule,
		Buffer:         o.Buffer,
		AuthTimeout:    o.AuthTimeout,
	}
}

func (s *Simulator) listen(address string, h http.Handler) error {
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", address)
	if err != nil {
		return fmt.Errorf("feedsim: %w", err)
	}
	s.servers = append(s.servers, server{l, &http.Server{
		Handler:           h,
		ReadHeaderTimeout: headerTimeout,
		MaxHeaderBytes:    headerLimit,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}})
	return nil
}

// Addr is the address of the WebSocket endpoints.
func (s *Simulator) Addr() net.Addr { return s.servers[0].listener.Addr() }

// ControlAddr is the address of the control API.
func (s *Simulator) ControlAddr() net.Addr { return s.servers[len(s.servers)-1].listener.Addr() }

// Run serves until ctx is done and returns nil then. Call it once.
func (s *Simulator) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.stocks.Run(ctx) })
	group.Go(func() error { return s.options.Run(ctx) })
	for _, srv := range s.servers {
		group.Go(func() error { return srv.run(ctx) })
	}
	s.log.Info("serving", "address", s.Addr().String(), "control", s.ControlAddr().String())
	if err := group.Wait(); err != nil {
		return fmt.Errorf("feedsim: %w", err)
	}
	return nil
}

// run serves until ctx is done. The markets end their sockets themselves.
func (s server) run(ctx context.Context) error {
	stopped := make(chan error, 1)
	defer context.AfterFunc(ctx, func() {
		deadline, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		stopped <- s.http.Shutdown(deadline)
	})()
	if err := s.http.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return <-stopped
}
