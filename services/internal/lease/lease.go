// Package lease is a named right that at most one process has at a time, kept in
// Redis, with an epoch that is greater each time the right is given.
//
// It owns two keys per name, in one Redis Cluster slot: relay:lease:{<name>},
// whose value is the holder's token and epoch and which always has a TTL, and
// relay:lease:{<name>}:epoch, the last epoch, which has none.
//
// A lease is valid until the send time of its last confirmed refresh + TTL -
// margin on the process's monotonic clock; then the context of the work ends. Work
// has the margin to end before another process can hold the lease. A holder that
// finds its key gone sets it anew with the same epoch while it is valid, unless a
// greater epoch has been given since.
//
// # What holds, and what for
//
// Without loss of data in Redis no two processes hold a lease at a time, whatever
// is delayed, lost, paused or restarted. It takes clocks that run at the same
// rate, and a TTL that is the same everywhere. A process must not be suspended
// with its monotonic clock (a virtual machine that sleeps): it would hold on
// until its next refresh.
//
// When Redis has lost everything (a restart without persistence, FLUSHALL), the
// counter is gone too. The first to ask then guards the lease for one TTL, in
// which only the holder can set it anew: there are still no two holders. A Redis
// that has never been used looks the same, so the first lease of all takes a TTL.
// When Redis has lost part of its data (a failover to a replica that lagged, an
// eviction, a clock of the Redis host set forward, a DEL by hand), two may hold the
// lease until the older one hears of it at its next refresh, after TTL - margin at
// the latest.
//
// The epoch is the greatest of: the last one in Redis + 1; the greatest that the
// process has heard of + 1 (one that waits hears of each holder's); and its wall
// clock in ms. The first alone makes epochs rise without loss of data. After loss
// of all, they rise if the wall clocks of the processes, over restarts too, are
// apart by less than TTL - 500 ms, or if the one that acquires has heard of the
// epochs before. After loss of a part, they rise if the clocks are apart by less
// than what went by between the two acquisitions, less 500 ms: a failover takes
// longer than a second. A wall clock set wrongly into the future spoils nothing as
// long as the counter is kept. Epochs are below 2^53.
//
// # The Redis client
//
// It is the caller's, and may be shared. Each operation has 500 ms; for that to be
// true ContextTimeoutEnabled must be set, and DialTimeout must not be longer.
// MaxRetries -1 and DialerRetries 1 leave retries to this package, PoolTimeout must
// be short. Only GET, SET, PEXPIRE, PTTL, DEL, EVALSHA and EVAL on relay:lease:*
// are needed. Redis must not evict keys without a TTL.
//
// # Goroutines
//
// Run does everything on its caller's goroutine, but for one that work runs on and
// one for the operation in flight, of which there is one at a time. Nothing queues.
// A Redis that is slow or away costs the lease, at its deadline, and nothing else.
package lease

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"go.opentelemetry.io/otel/metric"
)

// Why a lease was lost: the cause of the end of work's context.
var (
	// ErrExpired says that Redis did not confirm the lease in time. Nobody else
	// has it before the margin has passed.
	ErrExpired = errors.New("lease: not refreshed in time")
	// ErrTaken says that another holds the lease, or has held it since.
	ErrTaken = errors.New("lease: taken by another")
)

var (
	// ErrEnded says that work returned while it held the lease.
	ErrEnded = errors.New("lease: work ended before the lease")
	// ErrRunTwice says that Run was called a second time.
	ErrRunTwice = errors.New("lease: Run was called twice")
)

const (
	opTimeout   = 500 * time.Millisecond
	stopTimeout = 2 * time.Second // for the release
	maxName     = 128             // bytes of a name or holder
)

// Config says which lease it is and how it is kept. Zero durations mean the
// defaults. TTL - Margin must be at least 2.4 Refresh + 500 ms, so that one refresh
// may fail.
type Config struct {
	// Name of the lease, and Holder, which tells operators who has it: at most 128
	// bytes each, without spaces, control characters and braces. Two processes with
	// the same Holder are still two.
	Name   string
	Holder string
	// TTL is how long a lease that is not refreshed binds the others; the same for
	// all, in whole ms; default 5 s.
	TTL time.Duration
	// Refresh is the mean time between two refreshes; default 500 ms.
	Refresh time.Duration
	// Margin by which a holder gives up before Redis does. Work that ends within it
	// never overlaps with that of the next holder; default 1 s.
	Margin time.Duration
	// Retry is the mean time between two tries of one who waits, hence twice the
	// mean time until a lease that was released has its next holder; default 200 ms.
	Retry time.Duration
}

// Work is what the holder of a lease does. ctx ends when Run's does, or with the
// lease and ErrExpired or ErrTaken as its cause. Work returns nil only after ctx
// has ended, and when nothing of it is left: others may hold the lease then. An
// error ends Run. Epochs rise from one call of Work to the next, in all processes.
type Work func(ctx context.Context, epoch uint64) error

// Lease is one process's part in a lease.
type Lease struct {
	// Static after construction.
	config  Config
	server  server
	log     *slog.Logger
	metrics *metrics
	born    time.Time

	ran      atomic.Bool
	deadline atomic.Int64 // of the lease held, ns since born; 0: none
}

// New makes a lease that nobody competes for until Run.
func New(c Config, client redis.UniversalClient, meter metric.Meter, log *slog.Logger) (*Lease, error) {
	c.TTL = orDefault(c.TTL, 5*time.Second)
	c.Refresh = orDefault(c.Refresh, 500*time.Millisecond)
	c.Margin = orDefault(c.Margin, time.Second)
	c.Retry = orDefault(c.Retry, 200*time.Millisecond)
	if err := c.validate(); err != nil {
		return nil, err
	}
	l := &Lease{
		config: c,
		server: newServer(client, c, c.Holder+"/"+rand.Text()),
		log:    log.With(slog.String("component", "lease"), slog.String("lease", c.Name)),
		born:   time.Now().Add(-time.Nanosecond), // so that no time is 0
	}
	var err error
	l.metrics, err = newMetrics(meter, l)
	return l, err
}

func (c Config) validate() error {
	for what, text := range map[string]string{"name": c.Name, "holder": c.Holder} {
		bad := func(r rune) bool { return r <= ' ' || r == '{' || r == '}' || r == 0x7f }
		if text == "" || len(text) > maxName || strings.ContainsFunc(text, bad) {
			return fmt.Errorf("lease: the %s %q must have 1 to %d bytes, without spaces, control characters and braces", what, text, maxName)
		}
	}
	if min(c.TTL, c.Refresh, c.Margin, c.Retry) < 0 || c.TTL%time.Millisecond != 0 {
		return errors.New("lease: durations must not be negative, and the TTL must be in whole milliseconds")
	}
	if least := c.Margin + time.Duration(2*(1+jitter)*float64(c.Refresh)) + opTimeout; c.TTL < least {
		return fmt.Errorf("lease: a TTL of %v is too short for a refresh every %v and a margin of %v; it must be %v or more", c.TTL, c.Refresh, c.Margin, least)
	}
	return nil
}

func orDefault(d, otherwise time.Duration) time.Duration {
	if d == 0 {
		return otherwise
	}
	return d
}

// now is the time since the lease was made.
func (l *Lease) now() time.Duration { return time.Since(l.born) }

// Valid reports whether this process holds the lease at this moment. After a pause
// of the process it tells the truth even before the context of work has ended.
func (l *Lease) Valid() bool { return l.now() < time.Duration(l.deadline.Load()) }

// Run competes for the lease until ctx ends, and runs work each time this process
// holds it. No two calls of work overlap. When ctx ends, the lease is kept until
// work has returned, and then released, for which Redis has 2 s; otherwise the
// others wait for the TTL. It returns nil after ctx has ended, else the error of
// work or ErrEnded. It runs once.
func (l *Lease) Run(ctx context.Context, work Work) error {
	if l.ran.Swap(true) {
		return ErrRunTwice
	}
	r := l.newRun(work)
	if err := r.loop(ctx); err != nil {
		return fmt.Errorf("lease %s: %w", l.config.Name, err)
	}
	return nil
}
