package lock

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/cutemarkets/relay/services/internal/redisx"
)

const (
	evictionEvery = 30 * time.Second
	evictionWait  = 2 * opTimeout
)

// ErrEviction says that Redis may evict locks, and then two sockets of a user can
// be open at once.
var ErrEviction = errors.New("lock: Redis may evict locks")

// evictionStates are the label values of the metric.
var evictionStates = [...]string{evictionUnknown: "unknown", evictionImpossible: "impossible", evictionPossible: "possible"}

const (
	evictionUnknown = iota // Redis does not answer, or not this
	evictionImpossible
	evictionPossible
)

// Eviction asks Redis whether its settings let it evict locks, each master of a
// Cluster, by INFO memory. It starts no goroutine.
type Eviction struct {
	// Static after construction.
	redis *redisx.Client
	log   *slog.Logger
	every time.Duration

	state atomic.Int32 // index of evictionStates
}

// NewEviction makes an Eviction that has not asked yet.
func NewEviction(r *redisx.Client, meter metric.Meter, log *slog.Logger) (*Eviction, error) {
	e := &Eviction{redis: r, log: log.With(slog.String("component", "lock")), every: evictionEvery}
	_, err := meter.Int64ObservableGauge("relay_edge_redis_eviction",
		metric.WithDescription("Whether the settings of Redis let it evict locks: 1 for the state that is, impossible, possible or unknown."),
		metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error {
			is := int(e.state.Load())
			for state, name := range evictionStates {
				value := int64(0)
				if state == is {
					value = 1
				}
				o.Observe(value, metric.WithAttributes(attribute.String("state", name)))
			}
			return nil
		}))
	if err != nil {
		return nil, fmt.Errorf("lock: make metric: %w", err)
	}
	return e, nil
}

// Check asks Redis, for 2 s at most, and returns an ErrEviction that says what to
// do when it may evict locks. That it does not tell is logged and no error.
func (e *Eviction) Check(ctx context.Context) error {
	err := e.ask(ctx)
	if err == nil || errors.Is(err, ErrEviction) {
		return err
	}
	e.log.Warn("cannot tell whether Redis may evict locks: make sure that its maxmemory-policy is noeviction", slog.Any("error", err))
	return nil
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
		before := e.state.Load()
		if err := e.ask(ctx); errors.Is(err, ErrEviction) && before != evictionPossible {
			e.log.Error("users may get a second connection", slog.Any("error", err))
		}
	}
}

// ask returns nil when no master may evict locks, an ErrEviction when one may, and
// why that is not known otherwise.
func (e *Eviction) ask(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, evictionWait)
	defer cancel()
	var mu sync.Mutex
	var each []error
	err = e.redis.Masters(ctx, func(ctx context.Context, server string, r redis.Cmdable) error {
		if err := askEviction(ctx, server, r); err != nil {
			mu.Lock()
			defer mu.Unlock()
			each = append(each, err)
		}
		return nil
	})
	err = errors.Join(append(each, err)...)
	switch {
	case err == nil:
		e.state.Store(evictionImpossible)
	case errors.Is(err, ErrEviction):
		e.state.Store(evictionPossible)
	default:
		e.state.Store(evictionUnknown)
	}
	return err
}

// askEviction asks one server; "" is the only one.
func askEviction(ctx context.Context, server string, r redis.Cmdable) error {
	if server != "" {
		server = " " + server
	}
	text, err := r.Info(ctx, "memory").Result()
	if err != nil {
		return fmt.Errorf("lock: ask Redis%s for its settings: %w", server, err)
	}
	facts := redisx.Facts(text)
	switch policy, limit := facts["maxmemory_policy"], facts["maxmemory"]; {
	case policy == "":
		return fmt.Errorf("lock: INFO memory of Redis%s has no maxmemory_policy", server)
	case policy != "noeviction" && limit != "0": // 0: as much as there is
		return fmt.Errorf("%w: Redis%s has maxmemory-policy %s and maxmemory %s; a user whose lock is evicted can open a second connection. "+
			"Set maxmemory-policy to noeviction (CONFIG SET maxmemory-policy noeviction, and in the configuration of the server), or give the locks a Redis of their own",
			ErrEviction, server, policy, limit)
	}
	return nil
}
