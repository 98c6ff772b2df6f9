//go:build linux

// Package benchfanout measures what an event costs fanout, beside a process that
// only reads the vendor's socket and does nothing with it, and how many events per
// second pass. The vendor is feedsim, with all kinds of events of stocks but
// those that clients hardly use; behind fanout are either two stand-ins for edges,
// which take everything and do nothing with it, or two real edges with a client
// each.
//
// Each measurement has fresh processes: those of a relay, and of this program for
// the reader, the stand-ins and the clients. Subjects take turns within a round, and the
// order rotates, so that ratios are taken of neighbours. Run starts no goroutine
// of its own. Who cannot keep up is cut by fanout, or makes feedsim skip time; both
// are figures.
package benchfanout

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"
)

// Options are the flags of a run.
type Options struct {
	Subjects []string      `default:"reader,stand-ins,edges" help:"What to measure: reader, stand-ins, edges."`
	Rates    []int         `default:"175000,350000,525000,700000" help:"Events per second, ascending; a subject that fails at one is not tried at those after it."`
	Rounds   int           `default:"3" help:"Measurements of each subject and rate."`
	Duration time.Duration `default:"10s" help:"Time that is measured."`
	WarmUp   time.Duration `default:"3s" help:"Time with events before it."`
	Dir      string        `default:".bench" help:"Folder for logs and what the relay keeps."`
}

// The subjects, by what reads the vendor's socket and what is behind it.
const (
	subjectReader   = "reader"
	subjectStandIns = "stand-ins"
	subjectEdges    = "edges"
)

var subjects = []string{subjectReader, subjectStandIns, subjectEdges}

const maxRate = 5_000_000

// Validate is called by kong.
func (o Options) Validate() error {
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	check(len(o.Subjects) > 0, "--subjects is empty")
	for _, name := range o.Subjects {
		check(slices.Contains(subjects, name), "--subjects: %s is not one of reader, stand-ins, edges", name)
	}
	check(len(o.Rates) > 0 && slices.IsSorted(o.Rates), "--rates must be ascending, and at least one")
	for _, rate := range o.Rates {
		check(rate > 0 && rate <= maxRate, "--rates: %d is not from 1 to %d", rate, maxRate)
	}
	check(o.Rounds > 0, "--rounds is %d, must be more than 0", o.Rounds)
	check(o.Duration > 0 && o.WarmUp >= 0, "--duration must be more than 0, --warm-up must not be negative")
	return errors.Join(errs...)
}

// bench is a run. It is owned by the goroutine of Run; not thread-safe.
type bench struct {
	options  Options
	binaries string
	dir      string // of this run
	out      io.Writer
	begin    time.Time
	result   Result
}

// Run measures and prints the figures. binaries is the folder of the programs
// auth, fanout, edge, feedsim and benchfanout.
func Run(ctx context.Context, o Options, binaries string, out io.Writer) (Result, error) {
	b := &bench{options: o, binaries: binaries, out: out, begin: time.Now(), result: Result{Cores: runtime.NumCPU()}}
	var err error
	if b.dir, err = filepath.Abs(filepath.Join(o.Dir, "fanout-"+b.begin.UTC().Format("20060102T150405Z"))); err != nil {
		return b.result, fmt.Errorf("benchfanout: %w", err)
	}
	for round := range o.Rounds {
		if err := b.round(ctx, round); err != nil {
			return b.result, fmt.Errorf("benchfanout: %w", err)
		}
	}
	b.say("logs are in %s", b.dir)
	return b.result, b.result.Print(out)
}

// round measures each subject at each rate, as far as it sustains them.
func (b *bench) round(ctx context.Context, round int) error {
	failed := map[string]bool{}
	for _, rate := range b.options.Rates {
		for i := range b.options.Subjects {
			subject := b.options.Subjects[(i+round)%len(b.options.Subjects)]
			if failed[subject] {
				continue
			}
			dir := filepath.Join(b.dir, fmt.Sprintf("%s-%d-%d", subject, rate, round))
			if err := os.MkdirAll(dir, 0o700); err != nil {
				return err
			}
			s, err := b.measure(ctx, subject, rate, dir)
			if err != nil {
				return fmt.Errorf("%s at %d events/s: %w", subject, rate, err)
			}
			s.Round = round
			failed[subject] = !s.Sustained()
			b.result.Samples = append(b.result.Samples, s)
			b.say("%d/%d  %s", round+1, b.options.Rounds, s)
		}
	}
	return nil
}

// say prints a line of progress.
func (b *bench) say(format string, args ...any) {
	_, _ = fmt.Fprintf(b.out, "%4.0f s  %s\n", time.Since(b.begin).Seconds(), fmt.Sprintf(format, args...)) // a terminal that is gone is no reason to stop
}
