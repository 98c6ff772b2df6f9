// Command watch keeps many clients at a relay and judges what they get, and makes
// a folder of a node's disk that a service can write.
package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/cutemarkets/relay/hack/watch"
)

type cli struct {
	Clients clients `cmd:"" help:"Keep clients connected and judge what they get."`
	Folder  folder  `cmd:"" help:"Make a folder for a user id, and remove it when told to stop."`
}

type clients struct{ watch.Options }

// Run watches until the context is done.
func (c *clients) Run(ctx context.Context) error {
	w, err := watch.New(c.Options, logger())
	if err != nil {
		return err
	}
	return w.Run(ctx)
}

type folder struct{ watch.Folder }

// Run keeps the folder until the context is done.
func (f *folder) Run(ctx context.Context) error { return f.Keep(ctx, logger()) }

func logger() *slog.Logger { return slog.New(slog.NewJSONHandler(os.Stdout, nil)) }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var c cli
	parsed := kong.Parse(&c,
		kong.Name("watch"),
		kong.Description("Watches a relay from inside its cluster."),
		kong.BindTo(ctx, (*context.Context)(nil)))
	parsed.FatalIfErrorf(parsed.Run())
}
