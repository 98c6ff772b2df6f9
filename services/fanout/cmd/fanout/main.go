// Command fanout relays the vendor's market-data feed to edges.
package main

import (
	"context"
	"os"

	"github.com/cutemarkets/relay/services/fanout"
	"github.com/cutemarkets/relay/services/internal/config"
	"github.com/cutemarkets/relay/services/internal/lifecycle"
)

func main() { os.Exit(lifecycle.Main("fanout", run)) }

func run(ctx context.Context) error {
	var options fanout.Options
	if err := config.Parse("fanout", "Relays the vendor's market-data feed to edges.", os.Args[1:], &options); err != nil {
		return err
	}
	service, err := fanout.New(options)
	if err != nil {
		return err
	}
	return service.Run(ctx)
}
