//go:build linux

// Command benchedge measures one edge of a real relay against the floor, and is
// the floor's process.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/alecthomas/kong"

	"github.com/cutemarkets/relay/hack/benchedge"
	"github.com/cutemarkets/relay/hack/benchedge/floor"
)

type commands struct {
	Run   runCommand   `cmd:"" default:"withargs" help:"Measure, print tables and store the figures."`
	Floor floorCommand `cmd:"" help:"Be a floor until standard input ends; prints the addresses for clients and for the publisher, and in the end how many writes a full socket did not take."`
}

type runCommand struct {
	benchedge.Options `embed:""`
}

// Run is called by kong.
func (r *runCommand) Run(ctx context.Context) error {
	binary, err := os.Executable()
	if err != nil {
		return err
	}
	_, err = benchedge.Run(ctx, r.Options, filepath.Dir(binary), os.Stdout)
	return err
}

type floorCommand struct {
	Mode     floor.Mode    `enum:"write,writev" default:"write" help:"write: one write for each frame. writev: one for each connection and flush."`
	Interval time.Duration `default:"100ms" help:"Time between two rounds of the bare loop, which each byte on standard input begins or ends."`
}

// Run is called by kong.
func (f *floorCommand) Run() error {
	dropped, err := floor.Run(floor.Options{
		Mode: f.Mode, Interval: f.Interval, Control: os.Stdin,
		Listening: func(clients, publisher string) { fmt.Println(clients, publisher) },
	})
	if err == nil {
		fmt.Println(dropped)
	}
	return err
}

func main() {
	var c commands
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	command := kong.Parse(&c, kong.Name("benchedge"), kong.Description("Measure an edge against the least that the kernel costs."), kong.BindTo(ctx, (*context.Context)(nil)))
	if err := command.Run(); err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, "benchedge:", err)
		os.Exit(1) //nolint:gocritic // nothing is left to be undone
	}
}
