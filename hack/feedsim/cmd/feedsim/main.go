// Command feedsim serves a simulated market data vendor, or probes a server
// that speaks the vendor's protocol.
package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/cutemarkets/relay/hack/feedsim"
	"github.com/cutemarkets/relay/hack/feedsim/probe"
)

type cli struct {
	Serve serve `cmd:"" help:"Serve events as the vendor would, and misbehave on command."`
	Probe ask   `cmd:"" help:"Subscribe at a relay or vendor server and wait for events."`
}

type serve struct{ feedsim.Options }

// Run serves until the context is done.
func (s *serve) Run(ctx context.Context) error {
	simulator, err := feedsim.New(s.Options, slog.New(slog.NewTextHandler(os.Stderr, nil)))
	if err != nil {
		return err
	}
	return simulator.Run(ctx)
}

type ask struct{ probe.Options }

// Run probes once.
func (a *ask) Run(ctx context.Context) error { return probe.Run(ctx, a.Options, os.Stdout) }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var c cli
	parsed := kong.Parse(&c,
		kong.Name("feedsim"),
		kong.Description("A simulated market data vendor."),
		kong.BindTo(ctx, (*context.Context)(nil)))
	parsed.FatalIfErrorf(parsed.Run())
}
