//go:build linux

package benchfanout

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/cutemarkets/relay/hack/benchedge/operations"
	"github.com/cutemarkets/relay/hack/benchedge/process"
	"github.com/cutemarkets/relay/hack/cluster"
	"github.com/cutemarkets/relay/hack/feedsim"
)

const (
	// edges is how many of them, or stand-ins, are behind fanout.
	edges = 2
	// roomy is a bound of queues that a burst of the vendor does not reach: what is
	// measured is the steady cost.
	roomy       = 1 << 28
	stopTimeout = 30 * time.Second
)

// setup is the processes of a measurement.
type setup struct {
	subject  string
	cluster  *cluster.Cluster
	children map[string]*child
}

// start runs the processes of a subject until stop.
func (b *bench) start(ctx context.Context, subject string, rate int, dir string) (_ *setup, err error) {
	s := &setup{subject: subject, children: map[string]*child{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.stop(ctx))
		}
	}()
	o := cluster.Options{
		Rate: rate, Processes: true, Binaries: b.binaries, Dir: dir, Ports: cluster.FreePorts, LogLevel: "warn",
		Args: map[string][]string{
			"feedsim": {fmt.Sprintf("--rate=stocks=%d,options=1", rate), fmt.Sprintf("--buffer=%d", roomy)},
			"fanout":  {"--markets=stocks", fmt.Sprintf("--edge-queue-bytes=%d", roomy)},
			"edge":    {"--markets=stocks", fmt.Sprintf("--queue-bytes=%d", roomy), fmt.Sprintf("--burst-bytes=%d", roomy), "--drain-window=0s"},
		},
	}
	if subject != subjectReader {
		o.Fanouts = 1
	}
	if subject == subjectEdges {
		o.Edges = edges
	}
	if s.cluster, err = cluster.Start(ctx, o); err != nil {
		return nil, err
	}
	info := s.cluster.Info()
	switch subject {
	case subjectReader:
		url := strings.Replace(info.Feedsim, "http://", "ws://", 1) + "/stocks"
		return s, b.child(ctx, s, subjectReader, "read", url, filepath.Join(dir, "vendor.key"))
	case subjectStandIns:
		for n := range edges {
			if err := b.child(ctx, s, fmt.Sprintf("stand-in-%d", n), "stand-in", info.Fanouts[0], fmt.Sprintf("stand-in-%d", n)); err != nil {
				return s, err
			}
		}
	case subjectEdges:
		for n, edge := range info.Edges {
			file := filepath.Join(dir, fmt.Sprintf("client-%d.key", n))
			if err := writeKey(file, info.Keys["stocks"][cluster.Plans[2+n]][0]); err != nil {
				return s, err
			}
			if err := b.child(ctx, s, fmt.Sprintf("client-%d", n), "read", edge+"/v1/ws/stocks/", file); err != nil {
				return s, err
			}
		}
	}
	return s, nil
}

func (s *setup) stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	var errs []error
	for _, c := range s.children {
		errs = append(errs, c.stop())
	}
	if s.cluster != nil {
		errs = append(errs, s.cluster.Stop(ctx))
	}
	return errors.Join(errs...)
}

// child is a process of this program. It says "ready" once events come, answers
// each line with the numbers of events and bytes so far, and ends with its input.
type child struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// child starts a process and waits until it is ready.
func (b *bench) child(ctx context.Context, s *setup, name string, args ...string) error {
	cmd := exec.CommandContext(context.WithoutCancel(ctx), filepath.Join(b.binaries, "benchfanout"), args...) //nolint:gosec // our own binary
	var failure strings.Builder
	cmd.Stderr = &failure
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	c := &child{cmd, in, bufio.NewReader(out)}
	s.children[name] = c
	if line, err := c.out.ReadString('\n'); err != nil || line != "ready\n" {
		return fmt.Errorf("%s did not become ready: %w: %s", name, errors.Join(err, c.stop()), strings.TrimSpace(failure.String()))
	}
	return nil
}

func (c *child) count() (n counted, err error) {
	if _, err := c.in.Write([]byte{'\n'}); err != nil {
		return n, err
	}
	_, err = fmt.Fscanln(c.out, &n.Events, &n.Bytes)
	return n, err
}

func (c *child) stop() error {
	_ = c.in.Close()
	return c.cmd.Wait()
}

// mark is all counters at a moment.
type mark struct {
	at       time.Time
	cpu      map[string]process.CPU
	sent     uint64 // events by the vendor to the socket
	skipped  uint64 // ms
	received map[string]float64
	troubles map[string]float64
}

// mark reads the counters.
func (s *setup) mark(ctx context.Context) (m mark, err error) {
	m = mark{at: time.Now(), cpu: map[string]process.CPU{}, received: map[string]float64{}, troubles: map[string]float64{}}
	info := s.cluster.Info()
	pids := info.Pids
	delete(pids, "auth")
	delete(pids, "redis")
	for name, c := range s.children {
		pids[name] = c.cmd.Process.Pid
	}
	for name, pid := range pids {
		if m.cpu[name], err = process.Usage(pid); err != nil {
			return m, err
		}
	}
	stats, err := vendorStats(ctx, info.Feedsim)
	if err != nil {
		return m, err
	}
	m.sent, m.skipped = stats.Stocks.Sent, stats.Stocks.SkippedMS
	for reason, n := range stats.Stocks.Closed {
		m.troubles["vendor's connections: "+reason] = float64(n)
	}
	for name, url := range info.Operations {
		if name == "auth" {
			continue
		}
		page, err := operations.New(url).Metrics(ctx)
		if err != nil {
			return m, err
		}
		for _, metric := range []string{"relay_fanout_gaps_total", "relay_fanout_streams_ended_total", "relay_edge_feed_gaps_total"} {
			m.troubles[metric] += page.Sum(metric)
		}
		if strings.HasPrefix(name, "edge") {
			m.received[name] = page.Sum("relay_edge_events_total")
		}
	}
	if s.subject == subjectEdges {
		return m, nil
	}
	for name, c := range s.children {
		n, err := c.count()
		if err != nil {
			return m, fmt.Errorf("%s: %w", name, err)
		}
		m.received[name] = float64(n.Events)
	}
	return m, nil
}

func vendorStats(ctx context.Context, url string) (stats feedsim.Stats, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/stats", nil)
	if err != nil {
		return stats, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return stats, err
	}
	defer func() { _ = res.Body.Close() }()
	return stats, json.NewDecoder(res.Body).Decode(&stats)
}

// measure runs a subject for a while.
func (b *bench) measure(ctx context.Context, subject string, rate int, dir string) (_ Sample, err error) {
	s, err := b.start(ctx, subject, rate, dir)
	if err != nil {
		return Sample{}, err
	}
	defer func() { err = errors.Join(err, s.stop(ctx)) }()
	if err := wait(ctx, b.options.WarmUp); err != nil {
		return Sample{}, err
	}
	from, err := s.mark(ctx)
	if err != nil {
		return Sample{}, err
	}
	if err := wait(ctx, b.options.Duration); err != nil {
		return Sample{}, err
	}
	to, err := s.mark(ctx)
	if err != nil {
		return Sample{}, err
	}
	return newSample(subject, rate, from, to), nil
}

func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
