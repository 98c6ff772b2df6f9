// Package worker does a part of a load test: it opens the connections that the
// scenario gives it, takes down in a tally what the fleet tells, and judges at the
// end what was lost. Run does it in this process, RunAll in several, whose
// results are merged.
//
// A worker has the goroutine of its fleet, which all events are taken down on;
// one that samples and shows once a second, the caller's; and two that close
// connections in a churn and end the slowness of slow clients. RunAll has one for
// each process. A child gets all it has to know, the keys too, on its standard
// input, and ends early when that ends: so no key is ever an argument, and no
// child outlives its parent.
//
// Overload: a fleet that cannot keep up leaves bytes in the kernel, and the
// result says that the tester was the limit. What is kept to judge losses is
// bounded; beyond it, losses are not judged and a note says so.
package worker

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cutemarkets/relay/hack/loadtest/fleet"
	"github.com/cutemarkets/relay/hack/loadtest/scenario"
	"github.com/cutemarkets/relay/hack/loadtest/tally"
)

// Assignment is the part of a run that one worker does: of all connections,
// those whose number leaves the remainder Worker when divided by Workers.
type Assignment struct {
	Scenario   scenario.Settings
	Start      time.Time
	Tester     string // name of this worker in the result
	Worker     int    // from 0
	Workers    int
	Keys       []string      // one of each of its connections
	Targets    []string      // URLs; connections take turns
	Sources    []netip.Addr  // addresses to connect from, in turns; none: the system chooses
	InQuery    bool          // keys go into the query
	Deflate    bool          // offer compression
	CA         string        // file with the certificates that sign the targets'; "": the system's
	Stamp      string        // field of an event with its time, in unix ns, µs or ms; "": none
	Number     string        // field of an event with its sequence in the ground truth
	Truth      string        // file of the ground truth; "": losses are not judged
	Market     string        // in the ground truth
	Settle     time.Duration // losses of a connection are judged from so long after it was ready
	Pids       []int         // processes of the server to sample, on this machine
	Metrics    []string      // URLs of metrics of servers to sample
	Parameters []tally.Parameter
}

// connections is how many the worker has.
func (a *Assignment) connections() int {
	return (a.Scenario.Connections - a.Worker + a.Workers - 1) / a.Workers
}

// Outcome is what came of an assignment.
type Outcome struct {
	Result tally.Result
	Notes  []string // what the user has to know besides
}

// tick is how often a worker samples and shows.
const tick = time.Second

// spareFiles is how many open files a worker needs besides its connections.
const spareFiles = 64

// Run does the assignment; with ctx done, it ends early. show is called once a
// second, on the caller's goroutine.
func Run(ctx context.Context, a Assignment, show func(tally.Snapshot)) (Outcome, error) {
	plan, err := scenario.New(a.Scenario)
	if err != nil {
		return Outcome{}, err
	}
	if err := files(a.connections()); err != nil {
		return Outcome{}, err
	}
	c, err := newCrowd(ctx, a, plan)
	if err != nil {
		return Outcome{}, err
	}
	fleetCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- c.fleet.Run(fleetCtx) }()
	if err := c.openAll(); err != nil {
		stop()
		return Outcome{}, errors.Join(err, <-ended)
	}
	var meddlers sync.WaitGroup
	meddlers.Go(func() { c.churn(fleetCtx) })
	meddlers.Go(func() { c.hurry(fleetCtx) })
	servers := newServers(a.Pids, a.Metrics)
	over := time.NewTimer(time.Until(a.Start.Add(plan.Duration())))
	defer over.Stop()
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for running := true; running; {
		c.sample(servers.used(ctx))
		show(c.tally.Snapshot(time.Now()))
		select {
		case <-ticker.C:
		case <-over.C:
			running = false
		case <-ctx.Done():
			running = false
		case err := <-ended:
			stop()
			meddlers.Wait()
			return Outcome{}, fmt.Errorf("worker: %w", err)
		}
	}
	c.sample(servers.used(context.WithoutCancel(ctx)))
	end := time.Now()
	stop()
	meddlers.Wait()
	if err := <-ended; err != nil {
		return Outcome{}, fmt.Errorf("worker: %w", err)
	}
	return c.outcome(context.WithoutCancel(ctx), end), nil
}

// files reports whether there may be as many open files as there are
// connections. The runtime has raised the soft limit to the hard one.
func files(connections int) error {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("worker: the limit of open files: %w", err)
	}
	if needed := connections + spareFiles; uint64(needed) > limit.Cur {
		return fmt.Errorf("worker: %d connections need %d open files in a process, and the hard limit is %d: raise it (ulimit -Hn, LimitNOFILE=), or share them with --workers",
			connections, needed, limit.Cur)
	}
	return nil
}

// tlsConfig trusts the certificates of a file; "": those of the system.
func tlsConfig(file string) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if file == "" {
		return config, nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("worker: --ca: %w", err)
	}
	config.RootCAs = x509.NewCertPool()
	if !config.RootCAs.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("worker: --ca: %s has no certificate in PEM", file)
	}
	return config, nil
}

// cores is how many cores a worker can keep busy: the fleet's one loop, and
// all of them where each connection has TLS of its own.
func cores(targets []string) int {
	for _, t := range targets {
		if strings.HasPrefix(t, "wss:") {
			return runtime.GOMAXPROCS(0)
		}
	}
	return 1
}

// ownCPU is what this process has used.
func ownCPU() time.Duration {
	var usage syscall.Rusage
	// It cannot fail for the process itself.
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &usage)
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// targets parses the URLs, and returns their hosts.
func targets(ctx context.Context, urls []string) (all []*fleet.Target, hosts []string, err error) {
	for _, u := range urls {
		t, err := fleet.NewTarget(ctx, u)
		if err != nil {
			return nil, nil, fmt.Errorf("worker: --target: %w", err)
		}
		all, hosts = append(all, t), append(hosts, t.Host())
	}
	return all, hosts, nil
}
