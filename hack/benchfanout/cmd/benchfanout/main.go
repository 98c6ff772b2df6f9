//go:build linux

// Command benchfanout measures fanout beside a bare reader of the vendor's socket,
// and is the processes that stand beside it.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/cutemarkets/relay/hack/benchfanout"
)

type commands struct {
	Run     runCommand     `cmd:"" default:"withargs" help:"Measure and print a table."`
	Read    readCommand    `cmd:"" help:"Subscribe to everything at a WebSocket and read it, until standard input ends."`
	StandIn standInCommand `cmd:"" help:"Take the feed of a fanout in the place of an edge, until standard input ends."`
}

type runCommand struct {
	benchfanout.Options `embed:""`
}

// Run is called by kong.
func (r *runCommand) Run(ctx context.Context) error {
	binary, err := os.Executable()
	if err != nil {
		return err
	}
	_, err = benchfanout.Run(ctx, r.Options, filepath.Dir(binary), os.Stdout)
	return err
}

type readCommand struct {
	URL     string `arg:""`
	KeyFile string `arg:"" type:"path"`
}

// Run is called by kong.
func (r *readCommand) Run(ctx context.Context) error {
	return benchfanout.Read(ctx, r.URL, r.KeyFile, os.Stdin, os.Stdout)
}

type standInCommand struct {
	Address string `arg:""`
	Name    string `arg:""`
}

// Run is called by kong.
func (s *standInCommand) Run(ctx context.Context) error {
	return benchfanout.StandIn(ctx, s.Address, s.Name, os.Stdin, os.Stdout)
}

func main() {
	var c commands
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	command := kong.Parse(&c, kong.Name("benchfanout"), kong.Description("Measure fanout beside a bare reader of the vendor's socket."), kong.BindTo(ctx, (*context.Context)(nil)))
	if err := command.Run(); err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, "benchfanout:", err)
		os.Exit(1) //nolint:gocritic // nothing is left to be undone
	}
}
