// Command auth answers who API keys belong to (auth serve), and keeps the users
// and keys it answers from.
package main

import (
	"context"
	"io"
	"os"

	"github.com/cutemarkets/relay/services/auth/internal/admin"
	"github.com/cutemarkets/relay/services/internal/config"
	"github.com/cutemarkets/relay/services/internal/lifecycle"
)

type commands struct {
	Serve   serve         `cmd:"" help:"Answer keys over gRPC until stopped."`
	Users   admin.Users   `cmd:"" help:"Keep users and their plans."`
	Keys    admin.Keys    `cmd:"" help:"Keep API keys."`
	Migrate admin.Migrate `cmd:"" help:"Create the database, or bring it up to date."`
}

func main() {
	os.Exit(lifecycle.Main("auth", func(ctx context.Context) error {
		return run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	}))
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	command, err := config.ParseCommands("auth", "Answers who API keys belong to.", args, &commands{})
	if err != nil {
		return err
	}
	command.BindTo(ctx, (*context.Context)(nil))
	return command.Run(admin.Output{Stdout: stdout, Stderr: stderr})
}
