package redisx

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/redis/go-redis/v9"
)

// ErrGeneration says that a command was not sent because Redis is another process
// than before.
var ErrGeneration = errors.New("redis: Redis is another process than before")

// Masters calls do with the master, or with each one of a Cluster at the same time,
// of which it tells the address.
func (c *Client) Masters(ctx context.Context, do func(ctx context.Context, server string, r redis.Cmdable) error) error {
	if cluster, ok := c.UniversalClient.(*redis.ClusterClient); ok {
		return cluster.ForEachMaster(ctx, func(ctx context.Context, node *redis.Client) error { return do(ctx, node.Options().Addr, node) })
	}
	return do(ctx, "", c)
}

// Reach makes sure that there is a connection to each master.
func (c *Client) Reach(ctx context.Context) error {
	return c.Masters(ctx, func(ctx context.Context, _ string, r redis.Cmdable) error { return r.Ping(ctx).Err() })
}

// Generation counts how often a server proved to be another process than before.
// Where INFO is not permitted it stays 0; so it does when a replica of a Cluster
// takes over, which is a server of its own.
func (c *Client) Generation() uint64 { return c.generations.changes.Load() }

// OfGeneration returns a context for commands that fail with ErrGeneration instead
// of being sent to a server of another generation than there is now.
func (c *Client) OfGeneration(ctx context.Context) context.Context {
	return context.WithValue(ctx, changesKey{}, c.Generation())
}

// generations are the run ids of the servers: of each node of a Cluster by its
// address, otherwise of the one master, wherever it is.
type generations struct {
	changes atomic.Uint64

	mu sync.Mutex
	// Guarded by mu.
	runs map[string]string
}

// changesKey is what a context knows the generation by.
type changesKey struct{}

// onConnect looks at a connection that was made. One to another process than
// before fails, so that nothing is done there before it is known; so do all that
// commands make which belong to a generation before. Where INFO is not permitted
// all generations are alike.
func (g *generations) onConnect(server string) func(context.Context, *redis.Conn) error {
	return func(ctx context.Context, c *redis.Conn) error {
		info, err := c.Info(ctx, "server").Result()
		var reply redis.Error
		switch {
		case errors.As(err, &reply):
			return nil
		case err != nil:
			return err
		case g.changed(server, runOf(info)):
			return ErrGeneration
		}
		if known, ok := ctx.Value(changesKey{}).(uint64); ok && known != g.changes.Load() {
			return ErrGeneration
		}
		return nil
	}
}

// changed takes the run id of a server; "" is none.
func (g *generations) changed(server, run string) bool {
	if run == "" {
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	before := g.runs[server]
	g.runs[server] = run
	if before == "" || before == run {
		return false
	}
	g.changes.Add(1)
	return true
}

// Facts reads the answer to INFO.
func Facts(info string) map[string]string {
	facts := map[string]string{}
	for line := range strings.Lines(info) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			facts[name] = value
		}
	}
	return facts
}

// runOf returns the run id in the answer to INFO server; "": there is none, or it
// is a Sentinel's, which keeps nothing.
func runOf(info string) string {
	facts := Facts(info)
	if facts["redis_mode"] == "sentinel" {
		return ""
	}
	return facts["run_id"]
}
