package leader

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cutemarkets/relay/services/internal/lease"
	"github.com/cutemarkets/relay/services/internal/redisx"
)

// The times of a lease in Redis. A process that dies is replaced when the TTL has
// run out, so that another has the feed again within 6 s. With 2 s for what may not
// meet another's, a Redis that is away for 3 s costs nobody the proof: 3.7 s after
// the last refresh are left, and some of it to try again. Redis does some 15
// commands a second for a leader and a standby.
const (
	redisTTL     = 5700 * time.Millisecond
	redisRefresh = 200 * time.Millisecond
	redisRetry   = 100 * time.Millisecond
)

// Redis elects the leader of a market by a lease in Redis.
//
// The epoch is that of the lease, in ns as those of the others. A leadership is in
// doubt when the lease could not be refreshed in time, and ends when it proves to be
// another's.
type Redis struct {
	// Static after construction.
	tallies
	seats map[string]*seat
}

// seat is what the processes compete for in one market.
type seat struct {
	tally
	lease *lease.Lease
}

var redisAdvice = [reasonEnd]string{
	ReasonForbidden:   "give the user of Redis +get +set +pexpire +pttl +del +eval +evalsha +hello +client|setname +info on ~relay:lease:*, in a Cluster +cluster|slots +command, too; see to --redis-username and --redis-password-file",
	ReasonFailed:      "see to Redis; " + withoutStore,
	ReasonUnreachable: "see to Redis, the way to it and --redis-address; " + withoutStore,
}

// NewRedis makes a Redis. The lease of a market is called <name>-<market>. The proof
// of a leadership ends by closing before another may lead: work that has not ended
// within it what needs a proof may meet that of another. It fails when the options make no sense or their files cannot be read.
func NewRedis(o redisx.Options, name string, closing time.Duration, markets []string, log *slog.Logger) (*Redis, error) {
	host, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("leader: name of the host: %w", err)
	}
	r := &Redis{seats: make(map[string]*seat)}
	for _, market := range markets {
		log := log.With(slog.String("market", market))
		s := &seat{tally: tally{
			market:   market,
			identity: host,
			advice:   redisAdvice,
			log:      log.With(slog.String("component", "leader")),
		}}
		s.lease, err = lease.New(lease.Config{
			Name: name + "-" + market, Holder: host,
			TTL: redisTTL, Refresh: redisRefresh, Margin: closing, Retry: redisRetry,
			Done: s.done,
		}, o, log)
		if err != nil {
			return nil, fmt.Errorf("leader: %w", err)
		}
		r.seats[market] = s
		r.tallies = append(r.tallies, &s.tally)
	}
	return r, nil
}

// Run implements Elector. It releases the lease when ctx has ended and work has
// returned. It runs once for a market.
func (r *Redis) Run(ctx context.Context, market string, work Work) error {
	s := r.seats[market]
	if s == nil {
		return fmt.Errorf("%w %q", ErrMarket, market)
	}
	err := s.lease.Run(ctx, func(ctx context.Context, number uint64, proof *lease.Proof) error {
		epoch := Epoch{Generation: number * uint64(time.Microsecond), Term: 1}
		return s.lead(ctx, Leadership{epoch, proof}, work, func() error { return lossOf(context.Cause(ctx)) })
	})
	if err != nil {
		return fmt.Errorf("leader of %s: %w", market, err)
	}
	return nil
}

// lossOf returns the cause of the end of a work's context if that is the loss of
// the lease.
func lossOf(cause error) error {
	if errors.Is(cause, lease.ErrTaken) {
		return cause
	}
	return nil
}

// done takes what came of an operation on the lease. One that meets another Redis
// than before is tried again at once.
func (s *seat) done(err error) {
	if !errors.Is(err, redisx.ErrGeneration) {
		s.judge(redisReasonOf(err), err)
	}
}

func redisReasonOf(err error) Reason {
	var answer redis.Error
	switch {
	case err == nil:
		return ReasonNone
	case redis.HasErrorPrefix(err, "NOPERM"), redis.HasErrorPrefix(err, "NOAUTH"), redis.HasErrorPrefix(err, "WRONGPASS"),
		errors.As(err, &answer) && strings.Contains(answer.Error(), "user executing the script can't"):
		return ReasonForbidden
	case errors.As(err, &answer):
		return ReasonFailed
	}
	return ReasonUnreachable
}
