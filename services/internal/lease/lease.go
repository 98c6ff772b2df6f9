// Package lease is a named right that at most one process has at a time, kept in
// Redis, with an epoch that is greater each time the right is given.
//
// It owns three keys per name, in one Redis Cluster slot: relay:lease:{<name>},
// whose value is the holder's token and epoch and which always has a TTL;
// relay:lease:{<name>}:epoch, the last epoch; and relay:lease:{<name>}:server, the
// run id of the Redis that was asked for the lease last.
//
// A lease is proven until the send time of its last confirmed refresh + TTL -
// margin on the process's monotonic clock. Work is told when the proof ends, and
// goes on: a Redis that is away ends nothing. It has the margin to end what must
// not meet another's. A holder that finds its key gone sets it anew with the same
// epoch while it is proven, unless a greater epoch has been given since.
//
// # What holds, and what for
//
// Without loss of data in Redis no two processes hold a proven lease at a time,
// whatever is delayed, lost, paused or restarted. It takes clocks that run at the same
// rate, and a TTL and margin that are the same everywhere. A process must not be
// suspended with its monotonic clock (a virtual machine that sleeps): it would
// believe in its proof until its next refresh.
//
// A holder whose proof has ended is in doubt: its lease may have been given to
// another, or to nobody. What it does then may meet what a holder with proof does,
// so it must be such that meeting it does no harm, or can be seen to be old by its
// epoch. The holder goes on asking Redis. If that knows of another holder or of a
// greater epoch, the work ends, at the first answer; else the lease is proven
// again, with the same epoch. One who waits takes a lease that has ended at once if
// it has seen it end, or released, with Redis answering for the margin at least;
// else, as after an outage, the holder has the margin to take it back first. So
// outages of Redis alone do not change the holder.
//
// When Redis may have lost data, the lease is guarded for one TTL, in which only
// its holder can set it anew, at once if it is proven and in the last margin of the
// time if it is in doubt: there are still no two with proof. That is so when Redis
// is another process than the one that was asked last (a restart, a failover to a
// replica that lagged), and when it has no epoch (FLUSHALL). A Redis that has never
// been used looks the same, so the first lease of all takes a TTL. What shows
// neither (a DEL by hand or an eviction of the lease alone, a clock of the Redis
// host set forward, any failover where INFO is not permitted) may give two holders
// until the older one hears of it: at its next refresh, or after TTL - margin it is
// in doubt. If Redis loses data while one holder is in doubt and another, given a
// greater epoch in the meantime, is cut off for longer than the TTL, the older one
// may be proven again with an epoch that is not the greatest.
//
// The epoch is the greatest of: the last one in Redis + 1; the greatest that the
// process has heard of + 1 (one that waits hears of each holder's); and its wall
// clock in µs. The first alone makes epochs rise without loss of data. After a
// loss they rise if the wall clocks of the processes, over restarts too, are apart
// by less than what went by between the two acquisitions, less 500 ms, which is a
// TTL - 500 ms at least where the lease was guarded; or if the one that acquires
// has heard of the epochs before. A wall clock set wrongly into the future spoils
// nothing as long as the counter is kept. Epochs are below 2^53.
//
// Only GET, SET, PEXPIRE, PTTL, DEL, EVALSHA and EVAL on relay:lease:* are needed,
// HELLO, CLIENT SETNAME and INFO, and in a Cluster CLUSTER SLOTS and COMMAND. Redis must not evict keys without a TTL.
//
// # Goroutines
//
// Run does everything on its caller's goroutine, but for one that work runs on and
// one for the operation in flight, of which there is one at a time. Nothing queues.
// A Redis that is slow or away costs the proof, at its deadline, and nothing else.
package lease

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/cutemarkets/relay/services/internal/redisx"
)

// ErrTaken says that another holds the lease, or has held it since: the cause of the
// end of work's context.
var ErrTaken = errors.New("lease: taken by another")

const (
	opTimeout   = 500 * time.Millisecond
	stopTimeout = 2 * time.Second // for the release
	maxName     = 128             // bytes of a name or holder
)

// Config says which lease it is and how it is kept. TTL - Margin must be at least
// 2.4 Refresh + 500 ms, so that one refresh may fail without an end of the proof.
type Config struct {
	// Name of the lease, and Holder, which tells operators who has it: at most 128
	// bytes each, without spaces, control characters and braces. Two processes with
	// the same Holder are still two.
	Name   string
	Holder string
	// TTL is how long a lease that is not refreshed binds the others; the same for
	// all, in whole ms.
	TTL time.Duration
	// Refresh is the mean time between two refreshes.
	Refresh time.Duration
	// Margin by which the proof ends before the lease in Redis does. What work ends
	// within it never meets the work of the next holder. The same for all.
	Margin time.Duration
	// Retry is the mean time between two tries of one who waits, hence twice the
	// mean time until a lease that was released has its next holder.
	Retry time.Duration
	// Done is told what came of each operation, nil if Redis carried it out. It does
	// not block; its calls do not overlap. Required.
	Done func(err error)
}

// Work is what the holder of a lease does. ctx ends when Run's does, or with the
// lease and ErrTaken as its cause. Others may hold the lease once Work has returned,
// and while it is not proven. Epochs rise from one call of Work to the next, in all
// processes.
type Work func(ctx context.Context, epoch uint64, proof *Proof) error

// Lease is one process's part in a lease.
type Lease struct {
	// Static after construction.
	config Config
	redis  *redisx.Client
	log    *slog.Logger
	born   time.Time
}

// New makes a lease that nobody competes for until Run. It fails when the config
// or the options make no sense.
func New(c Config, o redisx.Options, log *slog.Logger) (*Lease, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	client, err := redisx.NewClient(o, redisx.Config{Name: c.Holder, Timeout: opTimeout})
	if err != nil {
		return nil, fmt.Errorf("lease: %w", err)
	}
	return &Lease{
		config: c,
		redis:  client,
		log:    log.With(slog.String("component", "lease"), slog.String("lease", c.Name)),
		born:   time.Now(),
	}, nil
}

func (c Config) validate() error {
	for what, text := range map[string]string{"name": c.Name, "holder": c.Holder} {
		bad := func(r rune) bool { return r <= ' ' || r == '{' || r == '}' || r == 0x7f }
		if text == "" || len(text) > maxName || strings.ContainsFunc(text, bad) {
			return fmt.Errorf("lease: the %s %q must have 1 to %d bytes, without spaces, control characters and braces", what, text, maxName)
		}
	}
	if min(c.TTL, c.Refresh, c.Margin, c.Retry) <= 0 || c.TTL%time.Millisecond != 0 || c.Done == nil {
		return errors.New("lease: durations must be more than 0, the TTL must be in whole milliseconds, and Done must be given")
	}
	if least := c.Margin + time.Duration(2*(1+jitter)*float64(c.Refresh)) + opTimeout; c.TTL < least {
		return fmt.Errorf("lease: a TTL of %v is too short for a refresh every %v and a margin of %v; it must be %v or more", c.TTL, c.Refresh, c.Margin, least)
	}
	return nil
}

// now is the time since the lease was made.
func (l *Lease) now() time.Duration { return time.Since(l.born) }

// Run competes for the lease until ctx ends, and runs work each time this process
// holds it. No two calls of work overlap. When ctx ends, the lease is kept until
// work has returned, and then released, for which Redis has 2 s; otherwise the
// others wait for the TTL. It ends too, with what work returned, when that is an
// error or work returns while it holds the lease. It runs once: at its end it
// closes the connection to Redis.
func (l *Lease) Run(ctx context.Context, work Work) error {
	defer func() { _ = l.redis.Close() }()
	return l.newRun(work, newServer(l.redis, l.config, l.config.Holder+"/"+rand.Text()).perform).loop(ctx)
}
