package lock

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
)

const pingTTL = time.Second

var errGuarded = errors.New("lock: Redis may have lost locks; newcomers are refused for a moment")

// pings is the cache of Ping.
type pings struct {
	calls singleflight.Group

	mu sync.Mutex
	// Guarded by mu.
	latency time.Duration
	err     error
	at      time.Time
}

// Ping returns how long Redis takes to answer, or an error, also while newcomers
// are refused because it may have lost locks. Answers are kept for 1 s and callers
// share a call.
func (m *Manager) Ping(ctx context.Context) (time.Duration, error) {
	result := m.pings.calls.DoChan("", func() (any, error) { return m.ping() })
	select {
	case r := <-result:
		return r.Val.(time.Duration), r.Err
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

func (m *Manager) ping() (time.Duration, error) {
	p := &m.pings
	p.mu.Lock()
	latency, err, at := p.latency, p.err, p.at
	p.mu.Unlock()
	if !at.IsZero() && time.Since(at) < pingTTL {
		return latency, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), opTimeout)
	defer cancel()
	sent := time.Now()
	err = m.redis.Ping(ctx).Err()
	latency = time.Since(sent)
	switch {
	case err != nil:
		latency, err = 0, fmt.Errorf("lock: ping: %w", err)
	case m.refuses(m.now()):
		latency, err = 0, errGuarded
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.latency, p.err, p.at = latency, err, time.Now()
	return latency, err
}
