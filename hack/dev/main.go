// Command dev runs a whole relay on this machine: a simulated vendor feed, auth,
// fanout, edges and Redis, in one process or (--processes) as processes of the
// real binaries. It prints URLs, keys and commands to copy, writes .dev/dev.json
// for scripts, and stops all on Ctrl-C. It is for development only.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kong"

	"github.com/cutemarkets/relay/hack/cluster"
)

const stopTimeout = 60 * time.Second

type options struct {
	Edges     int      `default:"2" help:"Number of edges; the first listens on 127.0.0.1:8000."`
	Fanouts   int      `default:"1" help:"Number of fanouts; the first leads, the others stand by."`
	Users     int      `default:"0" help:"Make this many further expert users with a stocks key each."`
	Redis     string   `placeholder:"HOST:PORT" help:"Use this Redis instead of the embedded one."`
	Rate      int      `default:"200" help:"Events per second and market of the simulated feed."`
	Processes bool     `help:"Run the parts as processes of the real binaries, so that one can be killed or stopped."`
	LogLevel  string   `default:"info" enum:"debug,info,warn,error" help:"Log level of all parts: debug, info, warn or error."`
	Dir       string   `default:".dev" help:"Folder for dev.json, logs, the database and keys; made anew at each start."`
	PartFlag  []string `sep:"none" placeholder:"PART=FLAG" help:"A further flag for a part, by kind (edge, fanout, auth, feedsim) or name (edge-1): --part-flag=edge=--pprof. Repeatable."`
}

// Validate is called by kong.
func (o *options) Validate() error {
	if o.Edges < 1 || o.Fanouts < 1 || o.Users < 0 || o.Rate < 1 {
		return errors.New("--edges, --fanouts and --rate must be at least 1, --users at least 0")
	}
	_, err := o.partFlags()
	return err
}

func (o *options) partFlags() (map[string][]string, error) {
	flags := map[string][]string{}
	for _, f := range o.PartFlag {
		part, flag, ok := strings.Cut(f, "=")
		if !ok || !strings.HasPrefix(flag, "--") {
			return nil, fmt.Errorf("--part-flag=%s: write PART=--flag=value", f)
		}
		flags[part] = append(flags[part], flag)
	}
	return flags, nil
}

func main() {
	var o options
	kong.Parse(&o, kong.Name("dev"), kong.Description("Run a whole relay on this machine."))
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o, os.Stdout); err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, "dev:", err)
		os.Exit(1) //nolint:gocritic // nothing is left to be undone
	}
}

func run(ctx context.Context, o options, out io.Writer) error {
	binary, err := os.Executable()
	if err != nil {
		return err
	}
	dir, err := fresh(o.Dir)
	if err != nil {
		return err
	}
	flags, err := o.partFlags()
	if err != nil {
		return err
	}
	begin := time.Now()
	printf(out, "starting (logs: %s)\n", filepath.Join(o.Dir, "*.log"))
	c, err := cluster.Start(ctx, cluster.Options{
		Edges: o.Edges, Fanouts: o.Fanouts, Users: o.Users, Redis: o.Redis, Rate: o.Rate, Processes: o.Processes,
		Binaries: filepath.Dir(binary), Dir: dir, Ports: cluster.FixedPorts, LogLevel: o.LogLevel, Args: flags,
		Progress: func(what string) { printf(out, "  %-10s ready\n", what) },
	})
	if err != nil {
		return err
	}
	err = serve(ctx, c, o, out, begin)
	printf(out, "stopping\n")
	stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	return errors.Join(err, c.Stop(stopCtx))
}

// serve tells what runs and waits until it shall end.
func serve(ctx context.Context, c *cluster.Cluster, o options, out io.Writer, begin time.Time) error {
	info := c.Info()
	text, err := json.MarshalIndent(info, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(o.Dir, "dev.json"), append(text, '\n'), 0o600); err != nil {
		return err
	}
	printf(out, "ready after %.1f s\n\n%s\n", time.Since(begin).Seconds(), banner(info))
	select {
	case <-ctx.Done():
		return ctx.Err()
	case err := <-c.Failed():
		return err
	}
}

// printf writes to the terminal; that it cannot be written to is no reason to stop.
func printf(out io.Writer, format string, args ...any) { _, _ = fmt.Fprintf(out, format, args...) }

func banner(info cluster.Info) string {
	var b strings.Builder
	for i, edge := range info.Edges {
		fmt.Fprintf(&b, "edge-%d      %s/v1/ws/stocks/   %s/v1/ws/options/\n", i, edge, edge)
	}
	for name, url := range sorted(info.Operations) {
		fmt.Fprintf(&b, "%-11s %s/metrics\n", name, url)
	}
	fmt.Fprintf(&b, "feedsim     %s/stats\nredis       %s\n\n", info.Feedsim, info.Redis)
	for _, product := range cluster.Products {
		for _, plan := range cluster.Plans {
			fmt.Fprintf(&b, "%-8s %-11s %s\n", product, plan, info.Keys[product][plan][0])
		}
	}
	stocks, options := info.Keys["stocks"]["expert"][0], info.Keys["options"]["expert"][0]
	http := strings.Replace(info.Edges[0], "ws://", "http://", 1)
	fmt.Fprintf(&b, `
try:
  wscat -c %[1]s/v1/ws/stocks/ -H "Authorization: Bearer %[2]s" -x '{"action":"subscribe","params":"T.AAPL,AM.*"}' -w 10
  wscat -c %[1]s/v1/ws/options/ -H "Authorization: Bearer %[3]s" -x '{"action":"subscribe","params":"T.*"}' -w 10
  bin/feedsim probe %[1]s/v1/ws/stocks/ %[2]s 'T.AAPL,AM.*' --verbose
  curl -s %[4]s/v1/status/
  curl -s -X POST '%[5]s/outage?market=stocks&for=3s'    # watch the gap notice

Ctrl-C stops all.
`, info.Edges[0], stocks, options, http, info.Feedsim)
	return b.String()
}
