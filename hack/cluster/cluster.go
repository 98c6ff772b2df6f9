// Package cluster runs a whole relay on one machine: feedsim, auth, fanout,
// edges and Redis, either inside this process or as processes of the real
// binaries. Both ways use the same command lines and real sockets; there is no
// in-memory short cut. It is what `make up` and the end-to-end tests stand on.
//
// It starts one goroutine per part and stops the parts in reverse order. It is
// for development and tests: it keeps keys in a file and binds loopback only.
package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// Options say what to run.
type Options struct {
	Edges     int    // number of edges
	Fanouts   int    // number of fanouts
	Leader    string // of the fanouts: redis; empty: the first leads, the others stand by
	Users     int    // further expert users, each with a stocks key
	Redis     string // address of a Redis, or several with commas between them; empty: an embedded one
	Rate      int    // events per second and market of feedsim
	Processes bool   // run the real binaries instead of this process
	Binaries  string // folder of the binaries; auth's is always needed
	Dir       string // folder for the database, keys and logs
	Ports     Ports  // how listeners get their ports
	LogLevel  string // of all services
	// Args adds flags to parts, by kind (edge, fanout, auth, feedsim) or name (edge-1).
	Args map[string][]string
	// Way, if set, returns the address at which a part (fanout-0, edge-1) reaches
	// another one (feedsim, redis, auth, fanout-0) that listens at address.
	Way func(from, to, address string) string
	// Progress, if set, is told of each part that has become ready.
	Progress func(what string)
}

// Info is what scripts need to know of a running cluster: the content of .dev/dev.json.
type Info struct {
	Edges      []string                       `json:"edges"`
	Fanouts    []string                       `json:"fanouts"`
	Operations map[string]string              `json:"operations"`
	Keys       map[string]map[string][]string `json:"keys"`
	Users      []string                       `json:"users"`
	Feedsim    string                         `json:"feedsim"`
	Redis      string                         `json:"redis"`
	Pids       map[string]int                 `json:"pids"`
}

// Plans and products for which a key is made.
var (
	Plans    = []string{"free", "developer", "expert", "commercial"}
	Products = []string{"stocks", "options"}
)

// Cluster is a running cluster.
type Cluster struct {
	// Static after Start.
	options Options
	cancel  context.CancelFunc

	// Guarded by mu.
	mu    sync.Mutex
	parts []*part
	info  Info
	auth  string // address of the auth service

	failed chan error // never closed; holds the first failure of a part
}

// Start runs a cluster and returns when every part is ready and both markets
// stream. What it started is stopped again if it fails.
func Start(ctx context.Context, options Options) (*Cluster, error) {
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	c := &Cluster{
		options: options,
		cancel:  cancel,
		failed:  make(chan error, 1),
		info: Info{
			Operations: map[string]string{},
			Keys:       map[string]map[string][]string{},
			Users:      []string{},
			Pids:       map[string]int{},
		},
	}
	if err := c.start(ctx, run); err != nil {
		return nil, errors.Join(err, c.Stop(context.WithoutCancel(ctx)))
	}
	return c, nil
}

func (c *Cluster) start(ctx, run context.Context) error {
	if err := os.MkdirAll(c.options.Dir, 0o700); err != nil {
		return fmt.Errorf("cluster: %w", err)
	}
	if err := c.startRedis(run); err != nil {
		return err
	}
	if err := c.startFeedsim(ctx, run); err != nil {
		return err
	}
	if err := c.startAuth(ctx, run); err != nil {
		return err
	}
	fanouts, err := c.startFanouts(ctx, run)
	if err != nil {
		return err
	}
	if err := c.startEdges(ctx, run, fanouts); err != nil {
		return err
	}
	for _, edge := range c.info.Edges {
		if err := c.awaitStatus(ctx, edge); err != nil {
			return err
		}
	}
	return nil
}

// Info describes the cluster.
func (c *Cluster) Info() Info {
	c.mu.Lock()
	defer c.mu.Unlock()
	info := c.info
	info.Pids = map[string]int{}
	for _, p := range c.parts {
		if pid := p.pid(); pid != 0 {
			info.Pids[p.name] = pid
		}
	}
	return info
}

// Dir is the folder of the database, secrets and logs.
func (c *Cluster) Dir() string { return c.options.Dir }

// Failed yields the error of a part that ended by itself.
func (c *Cluster) Failed() <-chan error { return c.failed }

// Stop ends all parts, the last started first, and waits for them.
func (c *Cluster) Stop(ctx context.Context) error {
	c.mu.Lock()
	parts := c.parts
	c.parts = nil
	c.mu.Unlock()
	var errs []error
	for i := len(parts) - 1; i >= 0; i-- {
		if err := parts[i].stop(ctx); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", parts[i].name, err))
		}
	}
	c.cancel()
	return errors.Join(errs...)
}

// Signal sends a signal that does not end the part; only in process mode.
func (c *Cluster) Signal(name string, signal os.Signal) error {
	p, err := c.part(name)
	if err != nil {
		return err
	}
	return p.signal(signal)
}

// Kill sends a signal that ends the part at once and waits for its end; only in
// process mode.
func (c *Cluster) Kill(name string, signal os.Signal) error {
	p, err := c.part(name)
	if err != nil {
		return err
	}
	return p.kill(signal)
}

// StopPart ends one part cleanly and waits for it.
func (c *Cluster) StopPart(ctx context.Context, name string) error {
	p, err := c.part(name)
	if err != nil {
		return err
	}
	return p.stop(ctx)
}

// RestartPart starts a stopped part again, with the same command line, and
// waits until it is ready.
func (c *Cluster) RestartPart(ctx context.Context, name string) error {
	p, err := c.part(name)
	if err != nil {
		return err
	}
	if err := p.start(context.WithoutCancel(ctx), c.fail); err != nil {
		return err
	}
	return p.awaitReady(ctx)
}

// Log returns what a part has written so far; only in process mode.
func (c *Cluster) Log(name string) ([]byte, error) {
	return os.ReadFile(filepath.Join(c.options.Dir, name+".log"))
}

func (c *Cluster) way(from, to, address string) string {
	if c.options.Way == nil {
		return address
	}
	return c.options.Way(from, to, address)
}

func (c *Cluster) part(name string) (*part, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.parts {
		if p.name == name {
			return p, nil
		}
	}
	return nil, fmt.Errorf("cluster: no part is called %q", name)
}

func (c *Cluster) add(ctx, run context.Context, p *part) error {
	c.mu.Lock()
	c.parts = append(c.parts, p)
	c.mu.Unlock()
	if err := p.start(run, c.fail); err != nil {
		return err
	}
	if err := p.awaitReady(ctx); err != nil {
		return err
	}
	if c.options.Progress != nil {
		c.options.Progress(p.name)
	}
	return nil
}

func (c *Cluster) fail(err error) {
	select {
	case c.failed <- err:
	default:
	}
}

// awaitStatus waits until an edge reports all its services as ok.
func (c *Cluster) awaitStatus(ctx context.Context, edge string) error {
	url := strings.Replace(edge, "ws://", "http://", 1) + "/v1/status/"
	var last string
	err := c.poll(ctx, func() bool {
		var body struct {
			Status   string         `json:"status"`
			Services map[string]any `json:"services"`
		}
		last = "no answer"
		if getJSON(ctx, url, &body) != nil {
			return false
		}
		last = fmt.Sprint(body.Services)
		return body.Status == "ok"
	})
	if err != nil {
		return fmt.Errorf("cluster: %s is not ok: %s: %w", url, last, err)
	}
	return nil
}

const (
	readyTimeout = 30 * time.Second
	pollInterval = 20 * time.Millisecond
)

// poll calls ok until it holds, a part fails or the time is up.
func (c *Cluster) poll(ctx context.Context, ok func() bool) error {
	return poll(ctx, c.failed, ok)
}

func poll(ctx context.Context, failed <-chan error, ok func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-failed:
			return err
		case <-ticker.C:
		}
	}
	return nil
}

func getJSON(ctx context.Context, url string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", res.StatusCode)
	}
	if into == nil {
		return nil
	}
	return json.NewDecoder(res.Body).Decode(into)
}
