package lock

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

const (
	evictionEvery = 30 * time.Second
	evictionWait  = 2 * opTimeout
)

// ErrEviction says that Redis may evict locks, and then two sockets of a user can
// be open at once.
var ErrEviction = errors.New("lock: Redis may evict locks")

// retention is whether Redis keeps locks until their TTL, from the best to the
// worst, so that of several masters the greatest counts.
type retention int32

const (
	retentionUnasked retention = iota
	retentionKept
	retentionUntold  // Redis does not say, and never will
	retentionUnheard // no answer
	retentionEvicted // or may be
)

// Eviction asks Redis whether its settings let it evict locks: INFO memory, or
// CONFIG GET where INFO is not permitted or says nothing of it; each master of a
// Cluster. Without an answer it asks again; where neither is permitted it does
// not. It starts no goroutine.
type Eviction struct {
	// Static after construction.
	redis redis.UniversalClient
	log   *slog.Logger
	every time.Duration

	state atomic.Int32 // a retention
}

// NewEviction makes an Eviction that has not asked yet.
func NewEviction(client redis.UniversalClient, meter metric.Meter, log *slog.Logger) (*Eviction, error) {
	e := &Eviction{redis: client, log: log.With(slog.String("component", "lock")), every: evictionEvery}
	labels := map[string]metric.MeasurementOption{}
	for _, name := range []string{"impossible", "possible", "unknown"} {
		labels[name] = metric.WithAttributes(attribute.String("state", name))
	}
	_, err := meter.Int64ObservableGauge("relay_edge_redis_eviction",
		metric.WithDescription("Whether the settings of Redis let it evict locks: 1 for the state that is, impossible, possible or unknown."),
		metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error {
			is := e.name()
			for name, label := range labels {
				value := int64(0)
				if name == is {
					value = 1
				}
				o.Observe(value, label)
			}
			return nil
		}))
	if err != nil {
		return nil, fmt.Errorf("lock: make metric: %w", err)
	}
	return e, nil
}

// name is the state as a label value.
func (e *Eviction) name() string {
	switch retention(e.state.Load()) {
	case retentionKept:
		return "impossible"
	case retentionEvicted:
		return "possible"
	default:
		return "unknown"
	}
}

// Check asks Redis, for 2 s at most, and returns an ErrEviction that says what to
// do when it may evict locks. That Redis does not answer, or does not say, is
// logged and no error.
func (e *Eviction) Check(ctx context.Context) error {
	_, err := e.check(ctx)
	return err
}

// Run asks again until ctx is done, as settings change and masters too. Sockets
// that are open are worth more than the risk: eviction that became possible is
// logged and shown, and no error.
func (e *Eviction) Run(ctx context.Context) error {
	ticker := time.NewTicker(e.every)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		if retention(e.state.Load()) != retentionUntold { // else each time would be an entry in the log of denied commands
			if changed, err := e.check(ctx); changed && err != nil {
				e.log.Error("users may get a second connection", slog.Any("error", err))
			}
		}
	}
}

// check is Check; changed reports whether the state is another one than before.
func (e *Eviction) check(ctx context.Context) (changed bool, err error) {
	state, why := e.ask(ctx)
	select {
	case <-ctx.Done(): // that there is no answer says nothing
		return false, nil
	default:
	}
	changed = retention(e.state.Swap(int32(state))) != state
	switch {
	case state == retentionEvicted:
		return changed, why
	case !changed:
	case state == retentionKept:
		e.log.Info("Redis does not evict locks")
	default:
		e.log.Warn("cannot tell whether Redis may evict locks: make sure that its maxmemory-policy is noeviction", slog.Any("error", why))
	}
	return changed, nil
}

// ask returns the state of the worst master, and why.
func (e *Eviction) ask(ctx context.Context) (retention, error) {
	ctx, cancel := context.WithTimeout(ctx, evictionWait)
	defer cancel()
	cluster, ok := e.redis.(*redis.ClusterClient)
	if !ok {
		return askRetention(ctx, e.redis, "")
	}
	var mu sync.Mutex
	worst, why := retentionUnasked, error(nil)
	err := cluster.ForEachMaster(ctx, func(ctx context.Context, node *redis.Client) error {
		state, err := askRetention(ctx, node, " at "+node.Options().Addr)
		mu.Lock()
		defer mu.Unlock()
		if state > worst {
			worst, why = state, err
		}
		return nil
	})
	switch {
	case err != nil:
		return retentionUnheard, fmt.Errorf("lock: ask the masters of the Cluster: %w", err)
	case worst == retentionUnasked:
		return retentionUnheard, errors.New("lock: the Cluster has no master")
	}
	return worst, why
}

// askRetention asks one server.
func askRetention(ctx context.Context, node redis.Cmdable, where string) (retention, error) {
	text, err := node.Info(ctx, "memory").Result()
	facts := evictionFacts(text)
	policy, limit := facts["maxmemory_policy"], facts["maxmemory"]
	if err == nil && policy == "" || commandDenied(err) {
		facts, err = node.ConfigGet(ctx, "maxmemory*").Result()
		policy, limit = facts["maxmemory-policy"], facts["maxmemory"]
	}
	switch {
	case commandDenied(err):
		return retentionUntold, fmt.Errorf("lock: neither INFO nor CONFIG GET tells the settings of Redis%s: %w", where, err)
	case err != nil:
		return retentionUnheard, fmt.Errorf("lock: ask Redis%s for its settings: %w", where, err)
	case policy == "":
		return retentionUntold, fmt.Errorf("lock: neither INFO nor CONFIG GET of Redis%s has a maxmemory-policy", where)
	case mayEvict(policy, limit):
		if limit == "" {
			limit = "unknown"
		}
		return retentionEvicted, fmt.Errorf("%w: Redis%s has maxmemory-policy %s and maxmemory %s; a user whose lock is evicted can open a second connection. "+
			"Set maxmemory-policy to noeviction (CONFIG SET maxmemory-policy noeviction, and in the configuration of the server), or give the locks a Redis of their own",
			ErrEviction, where, policy, limit)
	}
	return retentionKept, nil
}

// commandDenied reports whether a command failed because there is none for us: it is not
// permitted, renamed, or not known to a proxy.
func commandDenied(err error) bool {
	reply := redis.Error(nil)
	return errors.As(err, &reply) && (redis.IsPermissionError(reply) || strings.HasPrefix(reply.Error(), "ERR "))
}

// mayEvict reports whether a policy and a limit in bytes ("0": none; empty: unknown)
// let Redis drop a key that has a TTL before its time.
func mayEvict(policy, limit string) bool { return policy != "noeviction" && limit != "0" }

// evictionFacts reads a reply to INFO.
func evictionFacts(text string) map[string]string {
	facts := map[string]string{}
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			facts[name] = value
		}
	}
	return facts
}
