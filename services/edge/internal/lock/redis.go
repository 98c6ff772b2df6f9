package lock

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/redis/go-redis/v9"
)

// Both scripts take locks of one bucket in KEYS and their tokens in ARGV, and
// answer per key: 1 mine, 0 another token, -1 no key. Neither creates a key.
var (
	refreshScript = redis.NewScript(`
local r = {}
for i = 1, #KEYS do
  local v = redis.call('GET', KEYS[i])
  if v == ARGV[i + 1] then
    redis.call('PEXPIRE', KEYS[i], ARGV[1])
    r[i] = 1
  elseif v then
    r[i] = 0
  else
    r[i] = -1
  end
end
return r`)

	releaseScript = redis.NewScript(`
local r = {}
for i = 1, #KEYS do
  local v = redis.call('GET', KEYS[i])
  if v == ARGV[i] then
    redis.call('DEL', KEYS[i])
    r[i] = 1
  elseif v then
    r[i] = 0
  else
    r[i] = -1
  end
end
return r`)
)

// acquireArgs is SET NX GET: no answer means set, and our own token means that
// an earlier try of ours was carried out.
func acquireArgs(l *Lease, ttl time.Duration) []any {
	return []any{"SET", l.key, l.token, "NX", "GET", "PX", ttl.Milliseconds()}
}

func acquireOutcome(c *redis.Cmd, token string) outcome {
	value, err := c.Text()
	switch {
	case errors.Is(err, redis.Nil):
		return mine
	case err != nil:
		return failure(err)
	case value == token:
		return mine
	}
	return other
}

// failure tells whether a command that failed may have run.
func failure(err error) outcome {
	var reply redis.Error
	var dial *net.OpError
	switch {
	case errors.As(err, &reply), errors.Is(err, redis.ErrPoolTimeout), errors.Is(err, redis.ErrClosed):
		return refused
	case errors.As(err, &dial) && dial.Op == "dial":
		return refused
	}
	return unknown
}

// acquire sets one lock.
func (m *Manager) acquire(ctx context.Context, l *Lease) outcome {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	c := m.redis.Do(ctx, acquireArgs(l, m.timing.ttl)...)
	if err := c.Err(); err != nil && !errors.Is(err, redis.Nil) {
		m.failing(err)
	}
	return acquireOutcome(c, l.token)
}

// run carries out an operation on locks of one bucket.
func (m *Manager) run(o op, leases []*Lease) []outcome {
	ctx, cancel := context.WithTimeout(context.Background(), opTimeout)
	defer cancel()
	sent := time.Now()
	var got []outcome
	var err error
	switch o {
	case opReacquire:
		got, err = m.reacquire(ctx, leases)
	case opRefresh:
		got, err = m.script(ctx, refreshScript, leases, m.timing.ttl.Milliseconds())
	default:
		got, err = m.script(ctx, releaseScript, leases)
	}
	m.metrics.done(o, time.Since(sent), got)
	if err != nil {
		m.failing(err)
	}
	return got
}

func (m *Manager) reacquire(ctx context.Context, leases []*Lease) ([]outcome, error) {
	pipe := m.redis.Pipeline()
	commands := make([]*redis.Cmd, len(leases))
	for n, l := range leases {
		commands[n] = pipe.Do(ctx, acquireArgs(l, m.timing.ttl)...)
	}
	_, err := pipe.Exec(ctx)
	if errors.Is(err, redis.Nil) {
		err = nil
	}
	got := make([]outcome, len(leases))
	for n, c := range commands {
		got[n] = acquireOutcome(c, leases[n].token)
	}
	return got, err
}

// script runs by its hash, and by its text where Redis does not know it.
func (m *Manager) script(ctx context.Context, s *redis.Script, leases []*Lease, first ...any) ([]outcome, error) {
	keys := make([]string, len(leases))
	args := append(make([]any, 0, len(first)+len(leases)), first...)
	for n, l := range leases {
		keys[n] = l.key
		args = append(args, l.token)
	}
	got := make([]outcome, len(leases))
	replies, err := s.Run(ctx, m.redis, keys, args...).Int64Slice()
	if err == nil && len(replies) != len(leases) {
		err = errReply
	}
	for n := range got {
		switch {
		case err != nil:
			got[n] = failure(err)
		case replies[n] == 1:
			got[n] = mine
		case replies[n] == 0:
			got[n] = other
		default:
			got[n] = absent
		}
	}
	return got, err
}

var errReply = errors.New("lock: a script's reply has the wrong length")
