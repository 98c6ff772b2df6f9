package lock

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cutemarkets/relay/services/internal/redisx"
)

// The scripts take locks of one bucket in KEYS and their tokens in ARGV, behind
// the TTL where one is set, and answer per key: 1 mine, 0 another token, -1 no
// key. Only reacquireScript creates keys. They are sent as text: in a pipeline
// there is no falling back to it, and it is little beside the keys.
const (
	reacquireScript = `
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
return r`

	// The script that costs: one MGET is cheaper than GETs, a local than a global.
	refreshScript = `
local call, keys, args = redis.call, KEYS, ARGV
local ttl = args[1]
local r = call('MGET', unpack(keys))
for i = 1, #keys do
  if r[i] == args[i + 1] then
    call('PEXPIRE', keys[i], ttl)
    r[i] = 1
  else
    r[i] = r[i] and 0 or -1
  end
end
return r`

	releaseScript = `
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
return r`
)

// scripts are those of what buckets do.
var scripts = [opEnd]string{opRefresh: refreshScript, opReacquire: reacquireScript, opRelease: releaseScript}

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
	if redisx.Refused(err) {
		return refused
	}
	return unknown
}

// send carries out requests from the line.
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
			commands[n] = pipe.Eval(ctx, releaseScript, []string{key}, token)
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

// run carries out tasks.
func (m *Manager) run(tasks []task) [][]outcome {
	ctx, cancel := context.WithTimeout(context.Background(), opTimeout)
	defer cancel()
	sent := time.Now()
	pipe := m.redis.Pipeline()
	commands := make([]*redis.Cmd, len(tasks))
	memory := scratches.Get().(*scratch)
	defer scratches.Put(memory)
	for n, t := range tasks {
		commands[n] = pipe.Do(ctx, m.arguments(memory, n, t)...)
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

// scratch is the memory of the arguments of a pipeline's scripts.
type scratch [pipelineScripts]struct {
	names []byte
	ends  []int32
	parts []string
	args  []any
}

var scratches = sync.Pool{New: func() any { return new(scratch) }}

// arguments returns the arguments of a task's EVAL, the nth of a pipeline; they
// are valid until the next call for the same n. Keys and tokens are parts of one
// string, and passed by reference: an edge refreshes some 12,500 locks a second.
func (m *Manager) arguments(memory *scratch, n int, t task) []any {
	s := &memory[n]
	keys := len(t.leases)
	s.names, s.ends, s.parts = s.names[:0], s.ends[:0], s.parts[:0]
	for _, l := range t.leases {
		s.names = appendKey(s.names, l.bucket, l.user)
		s.ends = append(s.ends, int32(len(s.names)))
	}
	for _, l := range t.leases {
		s.names = m.appendToken(s.names, l.number, l.owner)
		s.ends = append(s.ends, int32(len(s.names)))
	}
	text, start := string(s.names), int32(0)
	for _, end := range s.ends {
		s.parts = append(s.parts, text[start:end])
		start = end
	}
	s.args = append(s.args[:0], "EVAL", scripts[t.op], keys)
	for n := range s.parts {
		if n == keys && t.op != opRelease {
			s.args = append(s.args, m.timing.ttl.Milliseconds())
		}
		s.args = append(s.args, &s.parts[n])
	}
	return s.args
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
