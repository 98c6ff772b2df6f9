package lease

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cutemarkets/relay/services/internal/redisx"
)

// The scripts take the keys of the lease, of the epoch and of the server. A lease
// that is held has the value "<token> <epoch>", one that is guarded has the value
// "guard". Whatever is no epoch counts as none: Redis has lost it.
const prelude = `
local function number(s)
  local n = tonumber(s)
  return n and n >= 0 and n < 2^53 and n or nil
end
local lease = redis.call('GET', KEYS[1])
local last = number(redis.call('GET', KEYS[2]))
local function guard(ms)
  redis.call('SET', KEYS[1], 'guard', 'PX', ms)
end
`

// moved is whether Redis is another process than the one that was asked last; from
// now on it is not.
const moved = `
local info = redis.pcall('INFO', 'server')
local run = type(info) == 'string' and string.match(info, 'run_id:(%x+)')
local moved = run and run ~= redis.call('GET', KEYS[3])
if moved then
  redis.call('SET', KEYS[3], run)
end
`

var (
	// ARGV: token, TTL in ms, wall clock in µs, the greatest epoch the process
	// knows, margin in ms, 1 if the process has seen the lease end. Answers
	// {1, epoch}, or {0, the greatest epoch, ms left, value}. What an earlier try of
	// the process has left is replaced; a late try leaves alone what a newer one has
	// set. When data may be lost, nobody gets the lease for a TTL: the one who holds
	// it has that time to say so. When it has ended and the process has neither seen
	// that nor heard of a release, the one who may hold it has the margin.
	acquireScript = redis.NewScript(prelude + moved + `
local token, epoch = string.match(lease or '', '^(%S+) (%d+)$')
epoch = number(epoch) or 0
local known = tonumber(ARGV[4])
local least = math.max(tonumber(ARGV[3]), known + 1)
local lost = moved or not lease and not last
if lease and token ~= ARGV[1] then
  if lost then
    redis.call('PEXPIRE', KEYS[1], ARGV[2])
  end
  return {0, math.max(epoch, last or 0), redis.call('PTTL', KEYS[1]), lease}
end
if lost then
  redis.call('SET', KEYS[2], string.format('%.0f', last or 0))
  guard(ARGV[2])
  return {0, math.max(epoch, last or 0), tonumber(ARGV[2]), 'guard'}
end
if not lease and ARGV[6] == '0' and (known == 0 or last <= known) then
  guard(ARGV[5])
  return {0, last, tonumber(ARGV[5]), 'guard'}
end
if lease and epoch >= least then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  return {1, epoch}
end
epoch = math.max((last or 0) + 1, least)
local text = string.format('%.0f', epoch)
redis.call('SET', KEYS[2], text)
redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. text, 'PX', ARGV[2])
return {1, epoch}`)

	// ARGV: token, TTL in ms, epoch. Answers 1 mine, 0 another's, -1 nobody's.
	refreshScript = redis.NewScript(prelude + `
if lease and lease ~= 'guard' and lease ~= ARGV[1] .. ' ' .. ARGV[3] then
  return 0
elseif not lease or lease == 'guard' then
  return -1
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
if (last or -1) < tonumber(ARGV[3]) then
  redis.call('SET', KEYS[2], ARGV[3])
end
return 1`)

	// As refreshScript, and creates what is missing; but not when there has been
	// a greater epoch since.
	restoreScript = redis.NewScript(prelude + `
local value = ARGV[1] .. ' ' .. ARGV[3]
local free = not lease or lease == 'guard'
if lease ~= value and not (free and (last or 0) <= tonumber(ARGV[3])) then
  return 0
end
redis.call('SET', KEYS[2], string.format('%.0f', math.max(last or 0, tonumber(ARGV[3]))))
redis.call('SET', KEYS[1], value, 'PX', ARGV[2])
return 1`)

	// As refreshScript, for a holder in doubt; ARGV has the margin in ms, too. It
	// creates what has ended, but not when there has been a greater epoch since.
	// Without proof this holder is no better than another whose lease Redis may have
	// lost, so when data may be lost it waits until all proofs there may have been
	// have ended. That it waits is told by the counter: one with a smaller epoch,
	// who may do the same, is refused.
	reclaimScript = redis.NewScript(prelude + moved + `
local value = ARGV[1] .. ' ' .. ARGV[3]
local epoch = tonumber(ARGV[3])
if lease and lease ~= 'guard' and lease ~= value then
  if moved then
    redis.call('PEXPIRE', KEYS[1], ARGV[2])
  end
  return 0
elseif (last or 0) > epoch then
  return 0
end
redis.call('SET', KEYS[2], ARGV[3])
if moved or not last or not lease and last < epoch then
  guard(ARGV[2])
  return -1
elseif lease == 'guard' and redis.call('PTTL', KEYS[1]) > tonumber(ARGV[4]) then
  return -1
end
redis.call('SET', KEYS[1], value, 'PX', ARGV[2])
return 1`)

	// ARGV: token. Answers like refreshScript. A lease that is released leaves a
	// greater epoch, so that others see that it has not just ended.
	releaseScript = redis.NewScript(prelude + `
if not lease then
  return -1
end
local token, epoch = string.match(lease, '^(%S+) (%d+)$')
if token ~= ARGV[1] then
  return 0
end
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[2], string.format('%.0f', math.max(last or 0, (number(epoch) or 0) + 1)))
return 1`)
)

const guarded = "guard"

// request is an operation and what it needs of the machine.
type request struct {
	op    op
	epoch uint64 // of the lease held
	known uint64
	wall  time.Time
	ended bool // the process has seen the lease of another end
}

// server is where a lease is kept.
type server struct {
	redis redis.Scripter
	keys  []string
	token string
	ttl   time.Duration
	// margin that one who may hold the lease has to take it back
	margin time.Duration
}

func newServer(client redis.Scripter, c Config, token string) server {
	key := "relay:lease:{" + c.Name + "}"
	return server{redis: client, keys: []string{key, key + ":epoch", key + ":server"}, token: token, ttl: c.TTL, margin: c.Margin}
}

// perform carries out an operation.
func (s server) perform(ctx context.Context, r request) (answer, error) {
	ttl, margin := s.ttl.Milliseconds(), s.margin.Milliseconds()
	var c *redis.Cmd
	switch r.op {
	case opAcquire:
		c = acquireScript.Run(ctx, s.redis, s.keys, s.token, ttl, max(0, r.wall.UnixMicro()), r.known, margin, r.ended)
		return acquireAnswer(c)
	case opRefresh:
		c = refreshScript.Run(ctx, s.redis, s.keys, s.token, ttl, r.epoch)
	case opRestore:
		c = restoreScript.Run(ctx, s.redis, s.keys, s.token, ttl, r.epoch)
	case opReclaim:
		c = reclaimScript.Run(ctx, s.redis, s.keys, s.token, ttl, r.epoch, margin)
	default:
		c = releaseScript.Run(ctx, s.redis, s.keys[:2], s.token)
	}
	a := answer{op: r.op, outcome: absent}
	n, err := c.Int()
	switch {
	case err != nil:
		a.outcome = failure(err)
	case n == 1:
		a.outcome = mine
	case n == 0:
		a.outcome = other
	}
	return a, err
}

// acquireAnswer reads the reply of acquireScript.
func acquireAnswer(c *redis.Cmd) (answer, error) {
	a := answer{op: opAcquire}
	reply, err := c.Slice()
	if err != nil {
		a.outcome = failure(err)
		return a, err
	}
	if len(reply) == 2 {
		epoch, ok := reply[1].(int64)
		if ok && epoch > 0 {
			a.epoch = uint64(epoch)
			return a, nil
		}
	}
	if len(reply) == 4 {
		epoch, ok1 := reply[1].(int64)
		left, ok2 := reply[2].(int64)
		value, ok3 := reply[3].(string)
		if ok1 && ok2 && ok3 && epoch >= 0 {
			a.outcome, a.epoch, a.rest = other, uint64(epoch), 0
			if left >= 0 {
				a.rest = time.Duration(left+1) * time.Millisecond
			}
			a.holder, _, _ = strings.Cut(value, " ")
			return a, nil
		}
	}
	a.outcome = unknown
	return a, fmt.Errorf("lease: unexpected reply %v; is there something else than Redis 7 at the address?", reply)
}

// failure tells whether a command that failed may have run.
func failure(err error) outcome {
	if redisx.Refused(err) {
		return refused
	}
	return unknown
}
