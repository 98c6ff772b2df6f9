package lock

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/redis/go-redis/v9"
)

var errGeneration = errors.New("lock: Redis is another process than before")

// client is a Redis client that looks at the run id of each server it connects
// to.
type client struct {
	redis.UniversalClient
	generations generations
}

func clientOf(r redis.UniversalClient) (*client, error) {
	if ours, ok := r.(*client); ok {
		return ours, nil
	}
	return nil, errors.New("lock: the Redis client must be one of NewClient")
}

// masters calls do with the master, or with each one of a Cluster, at the same time.
func (c *client) masters(ctx context.Context, do func(ctx context.Context, server string, r redis.Cmdable) error) error {
	if cluster, ok := c.UniversalClient.(*redis.ClusterClient); ok {
		return cluster.ForEachMaster(ctx, func(ctx context.Context, node *redis.Client) error { return do(ctx, node.Options().Addr, node) })
	}
	return do(ctx, "", c)
}

// reach makes sure that there is a connection to each master.
func (c *client) reach(ctx context.Context) error {
	return c.masters(ctx, func(ctx context.Context, _ string, r redis.Cmdable) error { return r.Ping(ctx).Err() })
}

// generations are the run ids of the servers: of each node of a Cluster by its
// address, otherwise of the one master, wherever it is.
type generations struct {
	changes atomic.Uint64

	mu sync.Mutex
	// Guarded by mu.
	runs map[string]string
}

// changesKey is what a context knows changes by.
type changesKey struct{}

// known returns a context for operations that only the generation known now may
// carry out.
func (g *generations) known(ctx context.Context) context.Context {
	return context.WithValue(ctx, changesKey{}, g.changes.Load())
}

// onConnect looks at a connection that was made. One to another process than
// before fails, so that nothing is done there before the guard knows; so do all
// that operations made which began before. Where INFO is not permitted all
// generations are alike.
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
			return errGeneration
		}
		if known, ok := ctx.Value(changesKey{}).(uint64); ok && known != g.changes.Load() {
			return errGeneration
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

// runOf returns the run id in the answer to INFO server; "": there is none, or it
// is a Sentinel's, which has no locks.
func runOf(info string) string {
	run := ""
	for line := range strings.Lines(info) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		switch {
		case name == "run_id":
			run = value
		case name == "redis_mode" && value == "sentinel":
			return ""
		}
	}
	return run
}
