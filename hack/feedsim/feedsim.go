// Package feedsim simulates the market data vendor: its WebSocket endpoints
// /stocks and /options with invented or recorded events, and an HTTP API and
// scripts that make it misbehave on purpose.
//
// It owns the listeners and the files, and starts one goroutine per listener and
// per market, one for the script and one that flushes files; package market
// starts those of the connections. Overload is the business of package market
// too.
package feedsim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cutemarkets/relay/hack/feedsim/fault"
	"github.com/cutemarkets/relay/hack/feedsim/market"
	"github.com/cutemarkets/relay/hack/feedsim/oddity"
	"github.com/cutemarkets/relay/hack/feedsim/recording"
	"github.com/cutemarkets/relay/hack/feedsim/session"
	"github.com/cutemarkets/relay/hack/feedsim/source"
	"github.com/cutemarkets/relay/hack/feedsim/tape"
)

const (
	headerTimeout = 5 * time.Second
	headerLimit   = 16 << 10
	stopTimeout   = 2 * time.Second // for answers of the control API
)

// numbers are the values of --number.
var numbers = map[string]oddity.Number{"topic": oddity.ByTopic, "market": oddity.ByMarket}

// Simulator is the vendor's two servers.
type Simulator struct {
	// Static after construction.
	log     *slog.Logger
	stocks  *market.Market
	options *market.Market
	script  []fault.Step
	files   files
	servers []server
}

type server struct {
	listener net.Listener
	http     *http.Server
}

// New checks the options and opens the files and listeners; the addresses are
// known when it returns. Only Run closes them again.
func New(o Options, log *slog.Logger) (*Simulator, error) {
	if err := o.Validate(); err != nil {
		return nil, fmt.Errorf("feedsim: %w", err)
	}
	s := &Simulator{log: log.With("component", "feedsim")}
	if err := s.build(o); err != nil {
		_ = s.files.close()
		for _, srv := range s.servers {
			_ = srv.listener.Close()
		}
		return nil, fmt.Errorf("feedsim: %w", err)
	}
	return s, nil
}

func (s *Simulator) build(o Options) error {
	keys, err := o.keys()
	if err != nil {
		return err
	}
	if s.script, err = o.script(); err != nil {
		return err
	}
	if s.files, err = openFiles(o); err != nil {
		return err
	}
	accept := func(key session.Key) bool {
		_, ok := keys[key]
		return ok
	}
	if s.stocks, err = s.market(o, tape.Stocks, o.Rate.Stocks, o.OnLimit.Stocks, accept); err != nil {
		return err
	}
	if s.options, err = s.market(o, tape.Options, o.Rate.Options, o.OnLimit.Options, accept); err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle("GET /stocks", s.stocks)
	mux.Handle("GET /options", s.options)
	control := mux
	if o.ControlListen != "" {
		control = http.NewServeMux()
	}
	s.handleControl(control)
	if err := s.listen(o.Listen, mux); err != nil {
		return err
	}
	if o.ControlListen != "" {
		return s.listen(o.ControlListen, control)
	}
	return nil
}

func (s *Simulator) market(o Options, m tape.Market, rate int, rule market.LimitRule, accept func(session.Key) bool) (*market.Market, error) {
	rules := session.Rules{Market: m, Accept: accept}
	for _, prefix := range o.Unauthorized {
		if kind, known := tape.ParseKind(m, prefix); known {
			rules.Unauthorized = append(rules.Unauthorized, kind)
		}
	}
	now := time.Now()
	universe := source.NewUniverse(tape.Tickers(m, o.Symbols), o.Replay != "")
	var events source.Source
	if o.Replay != "" {
		// Each market reads for itself, as fast as its clients.
		file, err := s.files.add(o.Replay, os.O_RDONLY)
		if err != nil {
			return nil, err
		}
		events = recording.NewSource(file, m, o.ReplaySpeed, universe, now)
	} else {
		events = source.NewTape(tape.Config{Market: m, Symbols: o.Symbols, Rate: rate, Seed: o.Seed, Minute: o.Minute}, o.Start, now)
	}
	return market.New(market.Config{
		Rules:          rules,
		Universe:       universe,
		Source:         events,
		Number:         numbers[o.Number],
		Stamp:          o.Stamp,
		Quiesced:       o.Quiesced,
		MaxConnections: o.MaxConnections,
		OnLimit:        rule,
		Buffer:         o.Buffer,
		AuthTimeout:    o.AuthTimeout,
		Truth:          s.files.truth,
		Record:         s.files.record,
	}, s.log), nil
}

func (s *Simulator) listen(address string, h http.Handler) error {
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", address)
	if err != nil {
		return err
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

// Run serves until ctx is done and returns nil then, when all is in the files.
// Call it once.
func (s *Simulator) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.stocks.Run(ctx) })
	group.Go(func() error { return s.options.Run(ctx) })
	group.Go(func() error { return s.files.run(ctx) })
	group.Go(func() error { return s.play(ctx) })
	for _, srv := range s.servers {
		group.Go(func() error { return srv.run(ctx) })
	}
	s.log.Info("serving", "address", s.Addr().String(), "control", s.ControlAddr().String())
	if err := errors.Join(group.Wait(), s.files.close()); err != nil {
		return fmt.Errorf("feedsim: %w", err)
	}
	return nil
}

// play commits the faults of the script in time.
func (s *Simulator) play(ctx context.Context) error {
	began := time.Now()
	for _, step := range s.script {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Until(began.Add(step.At))):
			s.order(step.Command)
		}
	}
	return nil
}

// order carries out a command.
func (s *Simulator) order(c fault.Command) {
	for _, m := range s.markets(c.Market) {
		m.Order(c)
	}
	s.log.Info("fault", "name", c.Name.String(), "market", string(c.Market), "for", c.For.String())
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
