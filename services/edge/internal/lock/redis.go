package lock

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/redis/go-redis/v9"
)

// The scripts take locks of one bucket in KEYS and their tokens in ARGV, behind
// the TTL where one is set, and answer per key: 1 mine, 0 another token, -1 no
// key. Only reacquireScript creates keys.
var (
	reacquireScript = redis.NewScript(`
local r = {}
for i = 1, #KEYS do
  local v = redis.call('GET', KEYS[i])
  if not v then
    redis.call('SET', KEYS[i], ARGV[i + 1], 'PX', ARGV[1])
  elseif v == ARGV[i + 1] then
    redis.call('PEXPIRE', KEYS[i], ARGV[1])
  end
  r[i] = (not v or v == ARGV[i + 1]) and 1 or 0
end
return r`)

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

// scripts are those of what buckets do.
var scripts = [opEnd]*redis.Script{opRefresh: refreshScript, opReacquire: reacquireScript, opRelease: releaseScript}

// acquireOutcome reads the reply to SET NX GET: no answer means set, and our own
// token means that an earlier try of ours was carried out.
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
	case errors.As(err, &reply), errors.Is(err, errGeneration), errors.Is(err, redis.ErrPoolTimeout), errors.Is(err, redis.ErrClosed):
		return refused
	case errors.As(err, &dial) && dial.Op == "dial":
		return refused
	}
	return unknown
}

// send carries out requests from the line. The script goes as text: in a pipeline
// there is no falling back to it.
func (m *Manager) send(ctx context.Context, requests []request) []outcome {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	sent := time.Now()
	pipe := m.redis.Pipeline()
	commands := make([]*redis.Cmd, len(requests))
	tokens := make([]string, len(requests))
	ttl := m.timing.ttl.Milliseconds()
	for n, r := range requests {
		key, token := r.lease.names()
		tokens[n] = token
		if r.op == opAcquire {
			commands[n] = pipe.Do(ctx, "SET", key, token, "NX", "GET", "PX", ttl)
		} else {
			commands[n] = releaseScript.Eval(ctx, pipe, []string{key}, token)
		}
	}
	_, err := pipe.Exec(ctx)
	if err != nil && !errors.Is(err, redis.Nil) {
		m.failing(err)
	}
	got := make([]outcome, len(requests))
	counts := map[op][]outcome{}
	for n, r := range requests {
		if r.op == opAcquire {
			got[n] = acquireOutcome(commands[n], tokens[n])
		} else {
			got[n] = scriptOutcomes(commands[n], 1)[0]
		}
		counts[r.op] = append(counts[r.op], got[n])
	}
	for o, outcomes := range counts {
		m.metrics.done(o, time.Since(sent), outcomes)
	}
	return got
}

// run carries out tasks. Scripts go as text, for the same reason; that is little
// beside their keys.
func (m *Manager) run(tasks []task) [][]outcome {
	ctx, cancel := context.WithTimeout(context.Background(), opTimeout)
	defer cancel()
	sent := time.Now()
	pipe := m.redis.Pipeline()
	commands := make([]*redis.Cmd, len(tasks))
	for n, t := range tasks {
		keys := make([]string, len(t.leases))
		args := make([]any, 0, 1+len(t.leases))
		if t.op != opRelease {
			args = append(args, m.timing.ttl.Milliseconds())
		}
		for i, l := range t.leases {
			key, token := l.names()
			keys[i] = key
			args = append(args, token)
		}
		commands[n] = scripts[t.op].Eval(ctx, pipe, keys, args...)
	}
	if _, err := pipe.Exec(ctx); err != nil {
		m.failing(err)
	}
	took := time.Since(sent)
	got := make([][]outcome, len(tasks))
	for n, t := range tasks {
		got[n] = scriptOutcomes(commands[n], len(t.leases))
		m.metrics.done(t.op, took, got[n])
	}
	return got
}

// scriptOutcomes reads the reply of a script that was given so many keys.
func scriptOutcomes(c *redis.Cmd, keys int) []outcome {
	got := make([]outcome, keys)
	replies, err := c.Int64Slice()
	if err == nil && len(replies) != keys {
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
	return got
}

var errReply = errors.New("lock: a script's reply has the wrong length")
