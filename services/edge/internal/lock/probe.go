package lock

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/singleflight"

	"github.com/cutemarkets/relay/services/edge/internal/dialect"
	"github.com/cutemarkets/relay/services/internal/lifecycle"
)

const (
	// answerWait is how long an answer may take: the holder's client has 2 s to show
	// that it lives; the rest is for the release of its lock, and for the ways.
	answerWait = 2500 * time.Millisecond
	// maxProbes is how many probes of this edge may be under way, and how many of
	// other edges it may have to answer.
	maxProbes = 1024

	receiveWait  = time.Second // without a word of Redis, until it is pinged, and after that
	listenAgain  = time.Second
	permitsAgain = time.Minute
)

// probeResult is what came of a probe.
type probeResult uint8

const (
	probeGone     probeResult = iota // the lock is free, or its holder's connection has gone
	probeAlive                       // the holder's client lives
	probeNoAnswer                    // the holder's edge has gone, or is late
	probeFailed                      // Redis was not reached or does not permit it, or there are too many
	probeEnd
)

// probes is what there is under way of probes.
type probes struct {
	calls     singleflight.Group // by user
	asking    atomic.Int64       // probes of this edge
	answering atomic.Int64       // probes of other edges
	listening atomic.Bool        // what other edges say is received
	warned    atomic.Bool        // that Redis does not permit it

	mu sync.Mutex
	// Guarded by mu.
	waiting map[uint64]chan<- bool // for an answer, by number of the probe; has room for one
}

// Probe asks whether the holder of the user's lock still lives. OK: the lock may be
// free now, as nobody holds it, or it was given back because its holder's client
// was dead. DuplicateConnection: the client lives, or could not be asked for.
// HolderSilent: its edge does not answer. It takes 2.5 s at most, or until ctx ends;
// callers who ask for the same user share the answer. Nothing is taken from the
// holder: only its own edge releases its lock.
func (m *Manager) Probe(ctx context.Context, user string) dialect.Reason {
	result := m.probes.calls.DoChan(user, func() (any, error) { return m.probe(user), nil })
	select {
	case r := <-result:
		return r.Val.(dialect.Reason)
	case <-ctx.Done():
		return dialect.DuplicateConnection
	}
}

func (m *Manager) probe(user string) dialect.Reason {
	m.workers.Add(1)
	defer m.workers.Add(-1)
	result := probeFailed
	if m.probes.asking.Add(1) <= maxProbes {
		result = m.ask(user)
	}
	m.probes.asking.Add(-1)
	m.metrics.probed(result)
	switch result {
	case probeGone:
		return dialect.OK
	case probeNoAnswer:
		return dialect.HolderSilent
	}
	return dialect.DuplicateConnection
}

// ask asks the holder's edge, which may be this one.
func (m *Manager) ask(user string) probeResult {
	ctx, cancel := context.WithTimeout(context.Background(), answerWait)
	defer cancel()
	token, err := m.redis.Get(ctx, string(appendKey(nil, bucketOf(user), user))).Result()
	if errors.Is(err, redis.Nil) {
		return probeGone
	}
	if err != nil {
		return m.unsent(err)
	}
	answer := make(chan bool, 1)
	if strings.HasPrefix(token, m.tokens) {
		m.config.Probe(holderOf(token).Owner, func(alive bool) { answer <- alive })
	} else {
		number := rand.Uint64() // names the probe among those under way
		m.await(number, answer)
		defer m.forget(number)
		if result, sent := m.sendProbe(ctx, number, token); !sent {
			return result
		}
	}
	select {
	case alive := <-answer:
		if alive {
			return probeAlive
		}
		return probeGone
	case <-ctx.Done():
		return probeNoAnswer
	case <-m.closing:
		return probeFailed
	}
}

// sendProbe reports whether the holder's edge has been asked, and what to make of
// it if not. Redis tells how many receive a message.
func (m *Manager) sendProbe(ctx context.Context, number uint64, token string) (probeResult, bool) {
	holder := holderOf(token)
	switch {
	case holder.Edge == "":
		return probeNoAnswer, false
	case !m.probes.listening.Load():
		return probeFailed, false
	}
	text := edgeMessage{kind: probeMessage, number: number, edge: m.config.EdgeID, token: token}.String()
	receivers, err := m.redis.SPublish(ctx, channelOf(holder.Edge), text).Result()
	switch {
	case err != nil:
		return m.unsent(err), false
	case receivers == 0:
		return probeNoAnswer, false
	}
	return 0, true
}

// unsent notes that a command of a probe has failed.
func (m *Manager) unsent(err error) probeResult {
	if !m.forbidden(err) {
		m.failing(err)
	}
	return probeFailed
}

// forbidden reports whether Redis will not carry out such a command at all, and
// says so once.
func (m *Manager) forbidden(err error) bool {
	var reply redis.Error
	if !errors.As(err, &reply) || !strings.HasPrefix(reply.Error(), "NOPERM") && !strings.HasPrefix(reply.Error(), "ERR unknown command") {
		return false
	}
	if !m.probes.warned.Swap(true) {
		m.log.Warn("edges cannot ask each other whether a user's socket still lives: who comes back after a broken connection is refused for up to 30 s; permit the Redis user +get, +ssubscribe and +spublish on the channels relay:edge:* (Redis 7 or later)",
			slog.Any("error", err))
	}
	return true
}

func (m *Manager) await(number uint64, answer chan<- bool) {
	m.probes.mu.Lock()
	defer m.probes.mu.Unlock()
	m.probes.waiting[number] = answer
}

func (m *Manager) forget(number uint64) {
	m.probes.mu.Lock()
	defer m.probes.mu.Unlock()
	delete(m.probes.waiting, number)
}

// listen receives what other edges say, until ctx is done.
func (m *Manager) listen(ctx context.Context) {
	for ctx.Err() == nil {
		err := m.receive(ctx)
		m.probes.listening.Store(false)
		wait := listenAgain
		if m.forbidden(err) {
			wait = permitsAgain
		}
		again := time.NewTimer(wait)
		select {
		case <-again.C:
		case <-ctx.Done():
			again.Stop()
		}
	}
}

// receive receives until the connection ends. Redis is pinged when it is silent:
// a connection that is broken would be silent too.
func (m *Manager) receive(ctx context.Context) error {
	subscription := m.redis.SSubscribe(ctx, channelOf(m.config.EdgeID))
	defer context.AfterFunc(ctx, func() { _ = subscription.Close() })() // ends the wait
	defer func() { _ = subscription.Close() }()
	for pinged := false; ; {
		received, err := subscription.ReceiveTimeout(ctx, receiveWait)
		var silence net.Error
		if errors.As(err, &silence) && silence.Timeout() && !pinged {
			pinged, err = true, subscription.Ping(ctx)
			if err == nil {
				continue
			}
		}
		if err != nil {
			return err
		}
		pinged = false
		switch received := received.(type) {
		case *redis.Subscription:
			if received.Kind == "sunsubscribe" {
				return errMoved
			}
			m.probes.listening.Store(true)
		case *redis.Message:
			m.heard(received.Payload)
		}
	}
}

var errMoved = errors.New("lock: the channel of this edge has moved to another node")

// heard takes what another edge says.
func (m *Manager) heard(text string) {
	said, ok := parse(text)
	switch {
	case !ok:
		m.metrics.malformed()
	case said.kind == probeMessage:
		m.asked(said)
	default:
		m.probes.mu.Lock()
		answer := m.probes.waiting[said.number]
		delete(m.probes.waiting, said.number)
		m.probes.mu.Unlock()
		if answer != nil {
			answer <- said.kind == aliveMessage
		}
	}
}

// asked has a probe of another edge answered. One about an earlier process with
// this edge's id is not: nothing is known of that.
func (m *Manager) asked(q edgeMessage) {
	if !strings.HasPrefix(q.token, m.tokens) {
		return
	}
	if m.probes.answering.Add(1) > maxProbes {
		m.probes.answering.Add(-1)
		return
	}
	m.config.Probe(holderOf(q.token).Owner, func(alive bool) {
		m.workers.Add(1)
		lifecycle.Go("lock answer", func() {
			defer m.workers.Add(-1)
			defer m.probes.answering.Add(-1)
			m.answer(q, alive)
		})
	})
}

// answer tells the edge that asks.
func (m *Manager) answer(q edgeMessage, alive bool) {
	ctx, cancel := context.WithTimeout(context.Background(), opTimeout)
	defer cancel()
	said := edgeMessage{kind: goneMessage, number: q.number}
	if alive {
		said.kind = aliveMessage
	}
	if err := m.redis.SPublish(ctx, channelOf(q.edge), said.String()).Err(); err != nil {
		m.unsent(err)
	}
}
