// Command loadtest loads a relay with clients and says how it bears them.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/cutemarkets/relay/hack/loadtest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // the second signal ends the program at once
	var c loadtest.CLI
	parsed := kong.Parse(&c,
		kong.Name("loadtest"),
		kong.Description("Loads a relay with clients and says how it bears them."),
		kong.UsageOnError(),
		kong.BindTo(ctx, (*context.Context)(nil)))
	parsed.FatalIfErrorf(parsed.Run())
}
