package cluster

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
	"github.com/alicebob/miniredis/v2"
	"github.com/alicebob/miniredis/v2/server"

	"github.com/cutemarkets/relay/hack/feedsim"
	"github.com/cutemarkets/relay/services/auth"
	"github.com/cutemarkets/relay/services/edge"
	"github.com/cutemarkets/relay/services/fanout"
)

// program is a part that can run in this process or as a process, with the same
// command line.
type program struct {
	name    string
	kind    string   // name of the binary, and key of Options.Args
	command []string // before the flags: serve
	args    []string
	ready   string
	// inProcess builds it from its flags and runs it.
	inProcess func(ctx context.Context, args []string, log io.Writer) error
}

func (c *Cluster) addProgram(ctx, run context.Context, g program) error {
	args := slices.Concat(g.args, c.options.Args[g.kind])
	if g.name != g.kind {
		args = append(args, c.options.Args[g.name]...)
	}
	p := &part{name: g.name, ready: g.ready, logFile: filepath.Join(c.options.Dir, g.name+".log")}
	if c.options.Processes {
		p.command = func(ctx context.Context) *exec.Cmd {
			cmd := exec.CommandContext(ctx, filepath.Join(c.options.Binaries, g.kind), append(g.command, args...)...) //nolint:gosec // our own binaries
			cmd.Env = environment()
			// Ctrl-C in a terminal goes to the whole process group: the parts are
			// stopped by us, in order.
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			return cmd
		}
	} else {
		p.run = func(ctx context.Context) error {
			log, err := os.OpenFile(p.logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
			if err != nil {
				return err
			}
			return errors.Join(g.inProcess(ctx, args, log), log.Close())
		}
	}
	return c.add(ctx, run, p)
}

// environment is ours without RELAY_* names: a developer's own settings must
// not reach the parts.
func environment() []string {
	var env []string
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "RELAY_") {
			env = append(env, e)
		}
	}
	return env
}

// inProcess makes a program of a service: it parses the flags as the binary does,
// sends the log to a file and runs the service in this process.
func inProcess[O any, S interface {
	Run(ctx context.Context) error
}](
	build func(O) (S, error), logTo func(*O, io.Writer),
) func(ctx context.Context, args []string, log io.Writer) error {
	return func(ctx context.Context, args []string, log io.Writer) error {
		var o O
		if err := parse(&o, args); err != nil {
			return err
		}
		logTo(&o, log)
		s, err := build(o)
		if err != nil {
			return err
		}
		return s.Run(ctx)
	}
}

// parse fills options from flags as the binaries do, but without the environment.
func parse(options any, args []string) error {
	k, err := kong.New(options)
	if err != nil {
		return err
	}
	_, err = k.Parse(args)
	return err
}

func (c *Cluster) startRedis(run context.Context) error {
	if c.options.Redis != "" {
		c.info.Redis = c.options.Redis
		return nil
	}
	address, err := c.options.Ports.address(run, redisPort, 0)
	if err != nil {
		return err
	}
	c.info.Redis = address
	embedded := miniredis.NewMiniRedis()
	if err := embedded.StartAddr(address); err != nil {
		return fmt.Errorf("cluster: start the embedded Redis: %w", err)
	}
	if err := shardChannels(embedded.Server()); err != nil {
		return fmt.Errorf("cluster: start the embedded Redis: %w", err)
	}
	return c.add(run, run, &part{name: "redis", run: func(ctx context.Context) error {
		defer embedded.Close()
		return advance(ctx, embedded)
	}})
}

// shardChannels adds the commands of sharded channels to the embedded Redis, which
// has none: on a single server all channels are alike.
func shardChannels(s *server.Server) error {
	var errs []error
	for _, command := range []string{"SUBSCRIBE", "PUBLISH"} {
		errs = append(errs, s.Register("S"+command, func(c *server.Peer, _ string, args []string) {
			s.Dispatch(c, append([]string{command}, args...))
		}))
	}
	return errors.Join(errs...)
}

// advance lets the embedded Redis's TTLs run: its clock moves only when told to.
func advance(ctx context.Context, embedded *miniredis.Miniredis) error {
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-ticker.C:
			embedded.FastForward(now.Sub(last))
			last = now
		}
	}
}

func (c *Cluster) file(name string) string { return filepath.Join(c.options.Dir, name) }

// secretFile makes a file with a random secret unless it is there.
func (c *Cluster) secretFile(name string) (string, error) {
	path := c.file(name)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	var b [24]byte
	_, _ = rand.Read(b[:]) // never fails
	return path, os.WriteFile(path, []byte(hex.EncodeToString(b[:])), 0o600)
}

func (c *Cluster) startFeedsim(ctx, run context.Context) error {
	address, err := c.options.Ports.address(ctx, feedsimPort, 0)
	if err != nil {
		return err
	}
	key, err := c.secretFile("vendor.key")
	if err != nil {
		return err
	}
	c.info.Feedsim = "http://" + address
	return c.addProgram(ctx, run, program{
		name: "feedsim", kind: "feedsim", command: []string{"serve"},
		args:  []string{"--listen=" + address, "--key-file=" + key, "--rate=" + strconv.Itoa(c.options.Rate)},
		ready: c.info.Feedsim + "/healthz",
		inProcess: func(ctx context.Context, args []string, log io.Writer) error {
			var o feedsim.Options
			if err := parse(&o, args); err != nil {
				return err
			}
			s, err := feedsim.New(o, slog.New(slog.NewTextHandler(log, nil)))
			if err != nil {
				return err
			}
			return s.Run(ctx)
		},
	})
}

// operations gives a part its operations listener and returns its flag and
// ready URL.
func (c *Cluster) operations(ctx context.Context, name string, first, n int) (flag, ready string, err error) {
	address, err := c.options.Ports.address(ctx, first, n)
	if err != nil {
		return "", "", err
	}
	c.info.Operations[name] = "http://" + address
	return "--operations-listen=" + address, "http://" + address + "/readyz", nil
}

func (c *Cluster) startAuth(ctx, run context.Context) error {
	address, err := c.options.Ports.address(ctx, authPort, 0)
	if err != nil {
		return err
	}
	operations, ready, err := c.operations(ctx, "auth", authOperationsPort, 0)
	if err != nil {
		return err
	}
	if _, err := c.secretFile("pepper"); err != nil {
		return err
	}
	c.auth = address
	err = c.addProgram(ctx, run, program{
		name: "auth", kind: "auth", command: []string{"serve"},
		args: []string{
			"--listen=" + address, operations, "--log-level=" + c.options.LogLevel,
			"--database=" + c.file("auth.db"), "--pepper-file=" + c.file("pepper"),
		},
		ready:     ready,
		inProcess: inProcess(auth.New, func(o *auth.Options, log io.Writer) { o.Telemetry.LogOutput = log }),
	})
	if err != nil {
		return err
	}
	return c.makeKeys(ctx)
}

func (c *Cluster) startFanouts(ctx, run context.Context) (addresses []string, err error) {
	for i := range c.options.Fanouts {
		name := fmt.Sprintf("fanout-%d", i)
		address, err := c.options.Ports.address(ctx, fanoutPort, i)
		if err != nil {
			return nil, err
		}
		operations, ready, err := c.operations(ctx, name, fanoutOperationsPort, i)
		if err != nil {
			return nil, err
		}
		addresses = append(addresses, address)
		c.info.Fanouts = append(c.info.Fanouts, address)
		err = c.addProgram(ctx, run, program{
			name: name, kind: "fanout",
			args: append([]string{
				"--listen=" + address, operations, "--log-level=" + c.options.LogLevel,
				"--trading-hours=never", // feedsim has none
				"--upstream-url=ws://" + c.way(name, "feedsim", strings.TrimPrefix(c.info.Feedsim, "http://")),
				"--upstream-key-file=" + c.file("vendor.key"),
			}, c.leader(name, i)...),
			ready:     ready,
			inProcess: inProcess(fanout.New, func(o *fanout.Options, log io.Writer) { o.Telemetry.LogOutput = log }),
		})
		if err != nil {
			return nil, err
		}
	}
	return addresses, nil
}

// leader are the flags of the n-th fanout that say who leads.
func (c *Cluster) leader(name string, n int) []string {
	switch {
	case c.options.Leader != "":
		return []string{"--leader=" + c.options.Leader, "--redis-address=" + c.way(name, "redis", c.info.Redis)}
	case n == 0:
		return []string{"--leader=static"}
	default:
		return []string{"--leader=standby"}
	}
}

func (c *Cluster) startEdges(ctx, run context.Context, fanouts []string) error {
	for i := range c.options.Edges {
		name := fmt.Sprintf("edge-%d", i)
		address, err := c.options.Ports.address(ctx, edgePort, i)
		if err != nil {
			return err
		}
		operations, ready, err := c.operations(ctx, name, edgeOperationsPort, i)
		if err != nil {
			return err
		}
		c.info.Edges = append(c.info.Edges, "ws://"+address)
		var ways []string
		for n, fanout := range fanouts {
			ways = append(ways, c.way(name, fmt.Sprintf("fanout-%d", n), fanout))
		}
		err = c.addProgram(ctx, run, program{
			name: name, kind: "edge",
			args: []string{
				"--listen=" + address, operations, "--log-level=" + c.options.LogLevel,
				"--auth-address=" + c.way(name, "auth", c.auth), "--fanout-address=" + strings.Join(ways, ","),
				"--redis-address=" + c.way(name, "redis", c.info.Redis), "--drain-window=1s",
			},
			ready:     ready,
			inProcess: inProcess(edge.New, func(o *edge.Options, log io.Writer) { o.Telemetry.LogOutput = log }),
		})
		if err != nil {
			return err
		}
	}
	return nil
}
