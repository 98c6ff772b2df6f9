//go:build linux

package benchedge

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/cutemarkets/relay/hack/benchedge/floor"
	"github.com/cutemarkets/relay/hack/benchedge/operations"
	"github.com/cutemarkets/relay/hack/benchedge/publisher"
	"github.com/cutemarkets/relay/hack/benchedge/shape"
	"github.com/cutemarkets/relay/hack/benchedge/vendor"
	"github.com/cutemarkets/relay/hack/cluster"
	"github.com/cutemarkets/relay/hack/loadtest/fleet"
)

// server is one of those that are compared.
type server struct {
	name  string
	start func(ctx context.Context) (*instance, error)
}

// instance is a running server.
type instance struct {
	pid     int
	target  *fleet.Target
	keys    []string // one for each connection; nil: none is needed
	framing publisher.Framing
	events  io.Writer // to the server
	// operations is its operations listener; nil: it has none.
	operations *operations.Listener
	stop       func(ctx context.Context) error
	dropped    int // writes that a full socket did not take, known after stop
	// toggleBare begins or ends a bare loop at the pace of bareShape; nil: the
	// server has none.
	toggleBare func() error
}

const stopTimeout = 30 * time.Second

// startFloor starts a floor in a process of its own.
func (b *bench) startFloor(ctx context.Context, mode floor.Mode) (_ *instance, err error) {
	sh, _ := shape.ByName(bareShape)
	cmd := exec.CommandContext(ctx, filepath.Join(b.binaries, "benchedge"), "floor", "--mode="+string(mode), "--interval="+sh.Interval().String()) //nolint:gosec // our own binary
	control, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	said, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	var failure strings.Builder
	cmd.Stderr = &failure
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	out := bufio.NewReader(said)
	i := &instance{pid: cmd.Process.Pid, framing: publisher.Lines}
	i.toggleBare = func() error {
		_, err := control.Write([]byte{'b'})
		return err
	}
	i.stop = func(context.Context) error {
		_ = control.Close()
		if _, err := fmt.Fscan(out, &i.dropped); err != nil {
			return errors.Join(cmd.Wait(), errors.New(strings.TrimSpace(failure.String())))
		}
		return cmd.Wait()
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, i.stop(ctx))
		}
	}()
	var clients, publishers string
	if _, err := fmt.Fscanln(out, &clients, &publishers); err != nil {
		return nil, err
	}
	if i.target, err = fleet.NewTarget(ctx, "ws://"+clients+"/stocks"); err != nil {
		return nil, err
	}
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", publishers)
	if err != nil {
		return nil, err
	}
	i.events = conn
	stop := i.stop
	i.stop = func(ctx context.Context) error { return errors.Join(stop(ctx), conn.Close()) }
	return i, b.pin(i.pid)
}

// relay is what stands around an edge.
type relay struct {
	cluster *cluster.Cluster
	redis   *exec.Cmd
	locks   *redis.Client
	vendor  *vendor.Vendor
	target  *fleet.Target
	group   *errgroup.Group
	cancel  context.CancelFunc
}

// startRelay starts a relay whose vendor is ours, and stops its edge again.
func (b *bench) startRelay(ctx context.Context) (_ *relay, err error) {
	users := b.options.users()
	b.say("starting redis-server, auth, fanout and edge, with %d users", users)
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	r := &relay{cancel: cancel, group: new(errgroup.Group)}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.stop(context.WithoutCancel(ctx)))
		}
	}()
	if r.vendor, err = vendor.New(ctx); err != nil {
		return nil, err
	}
	r.group.Go(func() error { return r.vendor.Run(run) })
	dir := filepath.Join(b.dir, "relay")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	address, err := r.startRedis(ctx, dir)
	if err != nil {
		return nil, err
	}
	edge := []string{"--markets=stocks", "--drain-window=0s"}
	if b.options.Engine != engineAuto {
		edge = append(edge, "--engine="+b.options.Engine)
	}
	if b.options.Pprof {
		edge = append(edge, "--pprof")
	}
	r.cluster, err = cluster.Start(ctx, cluster.Options{
		Edges: 1, Fanouts: 1, Users: users, Redis: address, Rate: 1, Processes: true,
		Binaries: b.binaries, Dir: dir, Ports: cluster.FreePorts, LogLevel: "warn",
		Args: map[string][]string{
			"feedsim": {"--quiesced"},
			"fanout":  {"--markets=stocks", "--upstream-url=" + r.vendor.URL()},
			"edge":    edge,
		},
	})
	if err != nil {
		return nil, err
	}
	if err := r.cluster.StopPart(ctx, edgePart); err != nil {
		return nil, err
	}
	r.target, err = fleet.NewTarget(ctx, r.cluster.Info().Edges[0]+"/v1/ws/stocks/")
	return r, err
}

const edgePart = "edge-0"

func (r *relay) startRedis(ctx context.Context, dir string) (address string, err error) {
	binary, err := exec.LookPath("redis-server")
	if err != nil {
		return "", errors.New("benchedge: redis-server is not installed: run `make deps`")
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	address = l.Addr().String()
	_, port, _ := net.SplitHostPort(address)
	if err := l.Close(); err != nil {
		return "", err
	}
	cmd := exec.CommandContext(context.WithoutCancel(ctx), binary, "--port", port, "--bind", "127.0.0.1", "--save", "", "--dir", dir) //nolint:gosec // the system's Redis
	if err := cmd.Start(); err != nil {
		return "", fmt.Errorf("benchedge: %w", err)
	}
	r.redis, r.locks = cmd, redis.NewClient(&redis.Options{Addr: address})
	return address, nil
}

// freeTimeout is longer than a lock lives that nobody holds.
const freeTimeout = 30 * time.Second

// awaitFree waits until nobody has a lock.
func (r *relay) awaitFree(ctx context.Context) error {
	const tick = 20 * time.Millisecond
	ctx, cancel := context.WithTimeout(ctx, freeTimeout)
	defer cancel()
	for {
		n, err := r.locks.DBSize(ctx).Result()
		if err != nil {
			return fmt.Errorf("benchedge: locks: %w", err)
		}
		if n == 0 {
			return nil
		}
		if wait(ctx, tick) != nil {
			return fmt.Errorf("benchedge: %d locks are held %s after all connections have ended", n, freeTimeout)
		}
	}
}

func (r *relay) stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	var errs []error
	if r.cluster != nil {
		errs = append(errs, r.cluster.Stop(ctx))
	}
	r.cancel()
	errs = append(errs, r.group.Wait())
	if r.redis != nil {
		errs = append(errs, r.locks.Close())
		errs = append(errs, r.redis.Process.Signal(os.Interrupt))
		_ = r.redis.Wait() // how Redis ends does not matter
	}
	return errors.Join(errs...)
}

// startEdge starts a fresh edge.
func (b *bench) startEdge(ctx context.Context) (*instance, error) {
	c := b.relay.cluster
	if err := c.RestartPart(ctx, edgePart); err != nil {
		return nil, err
	}
	info := c.Info()
	listener := operations.New(info.Operations[edgePart])
	i := &instance{
		pid: info.Pids[edgePart], target: b.relay.target, keys: info.Users,
		framing: publisher.Vendor, events: b.relay.vendor, operations: &listener,
		stop: func(ctx context.Context) error { return c.StopPart(ctx, edgePart) },
	}
	return i, b.pin(i.pid)
}
