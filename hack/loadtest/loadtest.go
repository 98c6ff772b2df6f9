// Package loadtest is the load tester's command line: it reads the flags, has
// workers do the run, shows its progress, and writes, judges and merges results.
// README.md tells how it is used.
//
// It starts a goroutine for the listener of --prometheus; all else is done by
// package worker. A run that is interrupted ends early, with a whole report.
package loadtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/alecthomas/kong"

	"github.com/cutemarkets/relay/hack/loadtest/report"
	"github.com/cutemarkets/relay/hack/loadtest/scenario"
	"github.com/cutemarkets/relay/hack/loadtest/tally"
	"github.com/cutemarkets/relay/hack/loadtest/worker"
)

// exitCrossed is the exit status when a threshold was crossed.
const exitCrossed = 99

// Crossed is the error of a run that went well, but crossed thresholds.
type Crossed struct {
	Verdicts []tally.Verdict // the crossed ones
}

// Error names the thresholds and what was measured.
func (c Crossed) Error() string {
	var all []string
	for _, v := range c.Verdicts {
		all = append(all, fmt.Sprintf("%s (%s)", v.Threshold, v.Value))
	}
	return "crossed: " + strings.Join(all, ", ")
}

// ExitCode is the exit status of the program.
func (Crossed) ExitCode() int { return exitCrossed }

// CLI is the command line.
type CLI struct {
	Ramp   Ramp   `cmd:"" help:"Open connections: at a rate, in steps, or with a spike. How many sockets does a server take?"`
	Storm  Storm  `cmd:"" help:"Open all connections at once, as at the opening of the market."`
	Idle   Idle   `cmd:"" help:"Hold connections without topics. What does an idle socket cost?"`
	Stream Stream `cmd:"" help:"Hold connections with topics. What is the latency, and how much can be delivered?"`
	Churn  Churn  `cmd:"" help:"As stream, and a share of the clients goes and comes back each second."`
	Slow   Slow   `cmd:"" help:"As stream, and a share of the clients reads slowly or not at all."`
	Drain  Drain  `cmd:"" help:"As stream, while you replace the servers: how long is each client away?"`
	Soak   Soak   `cmd:"" help:"As drain, for long: does something leak?"`

	Merge      Merge      `cmd:"" help:"Merge the results of shards and judge them as one."`
	Thresholds Thresholds `cmd:"" help:"Explain --fail-if and list the figures."`
	Worker     Worker     `cmd:"" hidden:"" help:"Do a part of a run, told on the standard input."`
}

// Ramp is the command of that name.
type Ramp struct {
	Flags
	Shape scenario.Shape `name:"shape" default:"linear" enum:"linear,step,spike" help:"linear: at the rate; step: in equal steps over the run; spike: a tenth at the rate, all others at once at half time."`
	Steps int            `name:"steps" default:"5" help:"Steps of --shape step."`
}

// Run does the run.
func (c *Ramp) Run(ctx context.Context, k *kong.Context) error {
	return c.run(ctx, k, scenario.Settings{Name: scenario.Ramp, Shape: c.Shape, Steps: c.Steps})
}

// Storm is the command of that name.
type Storm struct{ Flags }

// Run does the run.
func (c *Storm) Run(ctx context.Context, k *kong.Context) error {
	return c.run(ctx, k, scenario.Settings{Name: scenario.Storm})
}

// Idle is the command of that name.
type Idle struct{ Flags }

// Run does the run.
func (c *Idle) Run(ctx context.Context, k *kong.Context) error {
	return c.run(ctx, k, scenario.Settings{Name: scenario.Idle})
}

// Stream is the command of that name.
type Stream struct{ Flags }

// Run does the run.
func (c *Stream) Run(ctx context.Context, k *kong.Context) error {
	return c.run(ctx, k, scenario.Settings{Name: scenario.Stream})
}

// Return is how clients come back.
type Return struct {
	BackOff time.Duration `name:"back-off" default:"1s" help:"Mean of the time that a client waits before it connects again; it doubles with each failure, up to 30s, and is spread by half of it."`
}

// Churn is the command of that name.
type Churn struct {
	Flags
	Return
	Percent float64 `name:"percent" default:"1" help:"Clients that go and come back, in percent per second."`
}

// Run does the run.
func (c *Churn) Run(ctx context.Context, k *kong.Context) error {
	return c.run(ctx, k, scenario.Settings{Name: scenario.Churn, ChurnPercent: c.Percent, BackOff: c.BackOff})
}

// Slow is the command of that name.
type Slow struct {
	Flags
	Percent  float64 `name:"percent" default:"10" help:"Clients that are slow, in percent."`
	ReadRate int     `name:"read-rate" default:"1" help:"KiB per second that a slow client reads. 0: nothing at all."`
}

// Run does the run.
func (c *Slow) Run(ctx context.Context, k *kong.Context) error {
	return c.run(ctx, k, scenario.Settings{Name: scenario.Slow, SlowPercent: c.Percent, ReadRate: c.ReadRate << 10})
}

// Drain is the command of that name.
type Drain struct {
	Flags
	Return
}

// Run does the run.
func (c *Drain) Run(ctx context.Context, k *kong.Context) error {
	return c.run(ctx, k, scenario.Settings{Name: scenario.Drain, BackOff: c.BackOff})
}

// Soak is the command of that name.
type Soak struct {
	Flags
	Return
}

// Run does the run.
func (c *Soak) Run(ctx context.Context, k *kong.Context) error {
	return c.run(ctx, k, scenario.Settings{Name: scenario.Soak, BackOff: c.BackOff})
}

// Merge is the command of that name.
type Merge struct {
	Outputs
	Results []string `arg:"" name:"result" type:"existingfile" help:"Files with a result in the last line: of --json, or the log of a pod with --json=-."`
}

// Run merges.
func (c *Merge) Run() error {
	thresholds, err := c.thresholds()
	if err != nil {
		return err
	}
	var all []tally.Result
	for _, name := range c.Results {
		r, err := readResult(name)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		all = append(all, r)
	}
	merged, err := tally.Merge(all...)
	if err != nil {
		return err
	}
	return c.conclude(merged, thresholds)
}

// readResult reads the result in the last line of a file.
func readResult(name string) (tally.Result, error) {
	text, err := os.ReadFile(filepath.Clean(name))
	if err != nil {
		return tally.Result{}, err
	}
	last := strings.TrimSpace(string(text))
	return tally.Read(strings.NewReader(last[strings.LastIndexByte(last, '\n')+1:]))
}

// Thresholds is the command of that name.
type Thresholds struct{}

// Run prints.
func (Thresholds) Run() error {
	_, err := fmt.Fprintln(os.Stdout, tally.Grammar)
	return err
}

// Worker is the command of a process that RunAll starts.
type Worker struct{}

// Run serves.
func (Worker) Run(ctx context.Context) error { return worker.Serve(ctx, os.Stdin, os.Stdout) }

// startLead is how long processes have to begin before the run does.
const startLead = time.Second

// run does a scenario and reports it.
func (f *Flags) run(ctx context.Context, k *kong.Context, s scenario.Settings) error {
	thresholds, err := f.thresholds()
	if err != nil {
		return err
	}
	s.Connections, s.Rate, s.Duration = f.Connections, f.Rate, f.Duration
	if s.Topics, err = f.topics(usualTopics(s.Name)); err != nil {
		return err
	}
	plan, err := scenario.New(s)
	if err != nil {
		return err
	}
	machine, err := os.Hostname()
	if err != nil {
		return err
	}
	list, err := f.assignments(s, machine, parameters(k))
	if err != nil {
		return err
	}
	start := time.Now()
	if len(list) > 1 {
		start = start.Add(startLead)
	}
	for i := range list {
		list[i].Start = start
	}
	var state atomic.Pointer[tally.Snapshot]
	state.Store(&tally.Snapshot{})
	stop, err := f.serve(ctx, func() tally.Snapshot { return *state.Load() })
	if err != nil {
		return err
	}
	progress := report.NewProgress(os.Stderr, plan.Duration())
	outcome, err := worker.RunAll(ctx, list, func(s tally.Snapshot) {
		state.Store(&s)
		_ = progress.Show(s) // a run is not given up because nobody watches
	})
	if err := errors.Join(err, stop()); err != nil {
		return err
	}
	for _, note := range outcome.Notes {
		fmt.Fprintln(os.Stderr, "NOTE:", note)
	}
	return f.conclude(outcome.Result, thresholds)
}

// usualTopics are those of a scenario when none are chosen.
func usualTopics(name scenario.Name) string {
	switch name {
	case scenario.Ramp, scenario.Storm, scenario.Idle:
		return ""
	default:
		return "T.*"
	}
}

// notParameters are the flags that say nothing about what was done.
var notParameters = []string{"json", "html", "fail-if", "prometheus", "shard"}

// parameters are the flags that were given, once each.
func parameters(k *kong.Context) (all []tally.Parameter) {
	seen := slices.Clone(notParameters)
	for _, part := range k.Path {
		if flag := part.Flag; flag != nil && !slices.Contains(seen, flag.Name) {
			seen = append(seen, flag.Name)
			all = append(all, tally.Parameter{Name: flag.Name, Value: strings.Trim(fmt.Sprint(flag.Target.Interface()), "[]")})
		}
	}
	return all
}

// serve serves the metrics until stop is called.
func (f *Flags) serve(ctx context.Context, state func() tally.Snapshot) (stop func() error, err error) {
	if f.Prometheus == "" {
		return func() error { return nil }, nil
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", f.Prometheus)
	if err != nil {
		return nil, fmt.Errorf("--prometheus: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("/metrics", tally.Metrics(state))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	return func() error {
		err := server.Close()
		if ended := <-ended; !errors.Is(ended, http.ErrServerClosed) {
			err = errors.Join(err, ended)
		}
		return err
	}, nil
}

// conclude judges a result and writes it.
func (o *Outputs) conclude(r tally.Result, thresholds []tally.Threshold) error {
	r.Thresholds = r.Judge(thresholds)
	summary := os.Stdout
	if o.JSON == "-" {
		summary = os.Stderr
	}
	err := report.Summary(summary, r)
	if o.HTML != "" {
		err = errors.Join(err, write(o.HTML, func(w io.Writer) error { return report.HTML(w, r) }))
	}
	if o.JSON == "-" {
		err = errors.Join(err, r.Write(os.Stdout))
	} else if o.JSON != "" {
		err = errors.Join(err, write(o.JSON, r.Write))
	}
	if err != nil {
		return err
	}
	var crossed Crossed
	for _, v := range r.Thresholds {
		if v.Crossed {
			crossed.Verdicts = append(crossed.Verdicts, v)
		}
	}
	if len(crossed.Verdicts) > 0 {
		return crossed
	}
	return nil
}

func write(name string, content func(io.Writer) error) error {
	file, err := os.Create(filepath.Clean(name))
	if err != nil {
		return err
	}
	return errors.Join(content(file), file.Close())
}
