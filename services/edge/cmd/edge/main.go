// Command edge terminates the WebSockets of clients.
package main

import (
	"context"
	"os"

	"github.com/cutemarkets/relay/services/edge"
	"github.com/cutemarkets/relay/services/internal/config"
	"github.com/cutemarkets/relay/services/internal/lifecycle"
)

func main() { os.Exit(lifecycle.Main("edge", run)) }

func run(ctx context.Context) error {
	var options edge.Options
	if err := config.Parse("edge", "Terminates the WebSockets of clients.", os.Args[1:], &options); err != nil {
		return err
	}
	service, err := edge.New(options)
	if err != nil {
		return err
	}
	return service.Run(ctx)
}
