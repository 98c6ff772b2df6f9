//go:build linux

// Package benchedge measures one edge of a real relay against the floor: the
// cheapest server that can send the same events to the same clients (package
// floor). Every figure of the edge thereby has a ratio to what the kernel itself
// costs on this machine, at this moment.
//
// The server under test has a core to itself and GOMAXPROCS=1; clients,
// publisher and the rest of the relay share another one. Each measurement is a
// fresh server process with fresh connections; servers take turns within a
// round, and the order rotates from round to round, so that ratios are taken of
// neighbours. What has no floor is measured of the edge alone: the memory of idle
// connections, handshakes and storms of them, and what slow clients do.
//
// Run starts processes, the goroutine of a fleet and that of a publisher; all
// have ended when it returns. A server that cannot keep up makes the publisher
// late and its own queues grow; both are figures.
package benchedge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/cutemarkets/relay/hack/benchedge/floor"
	"github.com/cutemarkets/relay/hack/benchedge/process"
	"github.com/cutemarkets/relay/hack/benchedge/shape"
)

// Options are the flags of a run.
type Options struct {
	Parts       []string      `default:"delivery,ceiling,memory,handshakes,slow" help:"What to measure: delivery, ceiling, memory, handshakes, slow."`
	Engine      string        `default:"auto" enum:"auto,epoll,portable" help:"Engine of the edge. auto: what the edge takes by itself."`
	Connections int           `default:"5000" help:"Connections to each server in delivery, ceiling and handshakes."`
	Rounds      int           `default:"5" help:"Measurements of each server and shape, of handshakes and of slow clients."`
	Shapes      []string      `default:"S1r10,S2r95,S2b400,S2r400,S1r200" help:"Shapes of delivery: S1r10, S2r95, S2b400, S2r400, S1r200."`
	Window      time.Duration `default:"3s" help:"Time that is measured."`
	WarmUp      time.Duration `default:"1s" help:"Time with events before it."`
	Quiet       time.Duration `default:"500ms" help:"Time without events before that."`
	Ceiling     int           `default:"2000" help:"Events per second, spread over the topics of S2, up to which it is tried what a server can hold."`

	Sockets    int           `default:"15000" help:"Idle connections in memory, and connections of the storm in handshakes."`
	MemoryWait time.Duration `default:"60s" help:"Time from the last handshake to the look at the memory."`
	Pprof      bool          `help:"Store a heap profile of each edge in memory, and print where most of it was allocated."`

	SlowConnections int           `default:"10000" help:"Connections in slow; one in a hundred of them reads nothing, and another one 5 KB/s."`
	SlowRate        int           `default:"50" help:"Events per second in slow, spread over the topics of S2."`
	SlowWindow      time.Duration `default:"20s" help:"Time that is measured in slow."`

	Dir string `default:".bench" help:"Folder for results, logs and what the relay keeps."`
}

// The parts of a run, in their order.
const (
	partDelivery   = "delivery"
	partCeiling    = "ceiling"
	partMemory     = "memory"
	partHandshakes = "handshakes"
	partSlow       = "slow"
)

var parts = []string{partDelivery, partCeiling, partMemory, partHandshakes, partSlow}

// engineAuto is the engine that an edge takes by itself.
const engineAuto = "auto"

// Validate is called by kong.
func (o Options) Validate() error {
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	check(len(o.Parts) > 0, "--parts is empty")
	for _, name := range o.Parts {
		check(slices.Contains(parts, name), "--parts: %s is not one of %s", name, strings.Join(parts, ", "))
	}
	check(o.Connections > 0, "--connections is %d, must be more than 0", o.Connections)
	check(o.Rounds > 0, "--rounds is %d, must be more than 0", o.Rounds)
	for _, name := range o.Shapes {
		_, ok := shape.ByName(name)
		check(ok, "--shapes: %s is not one of S1r10, S2r95, S2b400, S2r400, S1r200", name)
	}
	check(o.Window > 0 && o.SlowWindow > 0, "--window and --slow-window must be more than 0")
	check(o.WarmUp >= 0 && o.Quiet >= 0 && o.MemoryWait >= 0, "--warm-up, --quiet and --memory-wait must not be negative")
	check(o.Ceiling >= firstRate, "--ceiling is %d, must be at least %d (--parts leaves the part out)", o.Ceiling, firstRate)
	check(o.Sockets >= fewerSockets, "--sockets is %d, must be at least %d", o.Sockets, fewerSockets)
	check(o.SlowConnections >= slowShare, "--slow-connections is %d, must be at least %d", o.SlowConnections, slowShare)
	check(o.SlowRate > 0, "--slow-rate is %d, must be more than 0", o.SlowRate)
	return errors.Join(errs...)
}

func (o Options) has(part string) bool { return slices.Contains(o.Parts, part) }

// users is how many users the relay needs: each has one connection.
func (o Options) users() int {
	n := 0
	if o.has(partDelivery) || o.has(partCeiling) || o.has(partHandshakes) {
		n = o.Connections
	}
	if o.has(partMemory) || o.has(partHandshakes) {
		n = max(n, o.Sockets)
	}
	if o.has(partSlow) {
		n = max(n, o.SlowConnections)
	}
	return n
}

// The servers that are compared, by their names in figures.
const (
	nameEdge   = "edge"
	nameWrite  = "floor write"
	nameWritev = "floor writev"
	nameBare   = "bare loop"
)

// bareShape is the shape at whose pace floor write is also measured as a bare
// loop of write, over the same sockets.
const bareShape = "S1r10"

// bench is a run. It is owned by the goroutine of Run; not thread-safe.
type bench struct {
	options  Options
	binaries string
	dir      string // of this run
	out      io.Writer
	cores    cores
	relay    *relay
	result   *Result
	begin    time.Time
}

// cores say where what runs; -1: anywhere.
type cores struct{ server, rest int }

// Run measures, prints and stores the figures. binaries is the folder of the
// programs auth, fanout, edge, feedsim and benchedge.
func Run(ctx context.Context, o Options, binaries string, out io.Writer) (result *Result, err error) {
	b := &bench{options: o, binaries: binaries, out: out, begin: time.Now()}
	b.result = newResult(o, b.begin)
	if b.dir, err = filepath.Abs(filepath.Join(o.Dir, b.begin.UTC().Format("20060102T150405Z"))); err != nil {
		return nil, fmt.Errorf("benchedge: %w", err)
	}
	if err := os.MkdirAll(b.dir, 0o700); err != nil {
		return nil, fmt.Errorf("benchedge: %w", err)
	}
	if err := b.place(); err != nil {
		return nil, err
	}
	if b.relay, err = b.startRelay(ctx); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.relay.stop(context.WithoutCancel(ctx))) }()
	if err := b.measure(ctx); err != nil {
		return nil, err
	}
	b.result.Took = time.Since(b.begin).Seconds()
	b.result.Print(out)
	path, err := b.result.store(b.dir)
	if err != nil {
		return nil, err
	}
	b.say("%.0f s in all; stored as %s", b.result.Took, path)
	return b.result, nil
}

// place binds this process, and so what it will start, to the core of the rest.
func (b *bench) place() error {
	// The fleet never sleeps: the publisher needs a P of its own.
	runtime.GOMAXPROCS(4)
	if err := os.Setenv("GOMAXPROCS", "1"); err != nil {
		return fmt.Errorf("benchedge: %w", err)
	}
	b.cores = cores{-1, -1}
	allowed, err := process.Cores()
	switch {
	case err != nil:
		b.note("cores cannot be chosen (%v): all processes share what there is, and the figures are those of servers disturbed by their clients", err)
	case len(allowed) < 2:
		b.note("there is one core only: the figures are those of servers disturbed by their clients")
	default:
		b.cores = cores{allowed[0], allowed[1]}
		if err := process.Pin(0, b.cores.rest); err != nil {
			b.note("cores cannot be chosen (%v): the figures are those of servers disturbed by their clients", err)
			b.cores = cores{-1, -1}
		}
	}
	return nil
}

// pin gives a process the core of the server.
func (b *bench) pin(pid int) error {
	if b.cores.server < 0 {
		return nil
	}
	return process.Pin(pid, b.cores.server)
}

func (b *bench) measure(ctx context.Context) error {
	for _, part := range []struct {
		name string
		run  func(ctx context.Context) error
	}{
		{partDelivery, b.deliveries},
		{partCeiling, b.ceilings},
		{partMemory, b.memories},
		{partHandshakes, b.handshakes},
		{partSlow, b.slows},
	} {
		if !b.options.has(part.name) {
			continue
		}
		if err := part.run(ctx); err != nil {
			return fmt.Errorf("benchedge: %s: %w", part.name, err)
		}
	}
	return nil
}

// deliveries measures each server under each shape, in turns.
func (b *bench) deliveries(ctx context.Context) error {
	for round := range b.options.Rounds {
		for _, name := range b.options.Shapes {
			s, _ := shape.ByName(name) // validated
			servers := b.servers()
			for i := range servers {
				server := servers[(i+round)%len(servers)]
				samples, err := b.run(ctx, server, s, round)
				if err != nil {
					return fmt.Errorf("%s under %s: %w", server.name, s.Name, err)
				}
				for _, sample := range samples {
					b.say("%d/%d %-7s %s", round+1, b.options.Rounds, s.Name, sample)
				}
				b.result.Samples = append(b.result.Samples, samples...)
			}
		}
	}
	return nil
}

func (b *bench) servers() []server {
	return []server{
		b.edge(),
		{nameWrite, func(ctx context.Context) (*instance, error) { return b.startFloor(ctx, floor.Write) }},
		{nameWritev, func(ctx context.Context) (*instance, error) { return b.startFloor(ctx, floor.Writev) }},
	}
}

func (b *bench) edge() server { return server{nameEdge, b.startEdge} }

// say prints a line of progress.
func (b *bench) say(format string, args ...any) {
	_, _ = fmt.Fprintf(b.out, "%4.0f s  %s\n", time.Since(b.begin).Seconds(), fmt.Sprintf(format, args...)) // a terminal that is gone is no reason to stop
}

// note tells, and stores, what makes the figures worth less.
func (b *bench) note(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	b.result.Notes = append(b.result.Notes, text)
	b.say("note: %s", text)
}
