// Package lock is the cluster-wide right of a user to one socket, kept in Redis.
// It owns the keys relay:lock:{b<bucket>}:<user>, whose value is edge id,
// number and a random token; each has a TTL, always.
//
// A lock is valid until the send time of its last confirmed refresh + TTL -
// margin on this process's monotonic clock; then the holder is told that it is
// lost and must stop delivering at once. A lock that Redis has lost is set anew
// while its holder lives; one that another edge took is lost. Releases are
// compare-and-delete, on no caller's context, retried until Redis has dropped
// the key by itself. Only GET, SET, PEXPIRE, DEL, EVALSHA, EVAL and PING are
// needed, neither INFO nor CONFIG.
//
// Locks are spread over 512 buckets by user, each a Redis Cluster slot. A bucket
// has at most one operation in flight beside acquires, so the operations of a
// lock are ordered; all locks of a bucket are refreshed by one script per 100
// keys, every 4 s ±20 %.
//
// Goroutines: Run is the wheel that wakes buckets and watches deadlines; a
// bucket with something to do has one goroutine until it is done, at most 512.
// Under overload an acquire is denied (LockUnavailable) after 1 s at most; what
// waits for Redis is bounded by the sockets, and by the acquires of unknown
// outcome within one TTL.
package lock

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"go.opentelemetry.io/otel/metric"
	"golang.org/x/sync/singleflight"

	"github.com/cutemarkets/relay/services/edge/internal/dialect"
)

const (
	buckets     = 512
	scriptKeys  = 100
	wheelTick   = 20 * time.Millisecond
	opTimeout   = time.Second
	stopTimeout = 2 * time.Second
	maxUser     = 128 // bytes of a user id in a key; longer ones are hashed
	pingTTL     = time.Second
)

// Config says how locks are kept. Zero durations mean the defaults, which
// satisfy TTL - margin >= 2 * longest refresh gap + operation timeout.
type Config struct {
	// EdgeID is unique among live edges; part of a lock's value, for operators.
	EdgeID string
	// TTL of a lock; default 15 s.
	TTL time.Duration
	// Refresh is the mean time between two refreshes; default 4 s.
	Refresh time.Duration
	// Margin by which a holder gives up before Redis does; default 1 s.
	Margin time.Duration
}

// Manager keeps the locks of this edge. All methods are safe for concurrent use.
type Manager struct {
	// Static after construction.
	config  Config
	timing  timing
	redis   redis.UniversalClient
	log     *slog.Logger
	metrics *metrics
	born    time.Time
	buckets [buckets]bucket

	number  atomic.Uint64 // of the last lease
	held    atomic.Int64
	leases  atomic.Int64 // that Redis may hold
	workers atomic.Int64
	closing atomic.Bool
	warned  atomic.Int64 // when a failure was last logged, ns since born
	pings   pings
}

// Lease is a lock, held or on its way out.
type Lease struct {
	// Static after construction.
	manager *Manager
	bucket  *bucket
	key     string
	token   string
	lost    func(dialect.Reason)
	done    chan struct{} // closed when Redis holds nothing of it

	// Guarded by bucket.mu.
	machine machine
}

// New makes a manager; locks are refreshed in Run.
func New(c Config, client redis.UniversalClient, meter metric.Meter, log *slog.Logger) (*Manager, error) {
	if c.EdgeID == "" {
		return nil, errors.New("lock: an edge id is needed")
	}
	c.TTL = orDefault(c.TTL, 15*time.Second)
	c.Refresh = orDefault(c.Refresh, 4*time.Second)
	c.Margin = orDefault(c.Margin, time.Second)
	if gap := c.Refresh * 12 / 10; c.TTL-c.Margin < 2*gap+opTimeout {
		return nil, fmt.Errorf("lock: a TTL of %v is too short for a refresh every %v", c.TTL, c.Refresh)
	}
	m := &Manager{
		config: c,
		timing: timing{ttl: c.TTL, margin: c.Margin, timeout: opTimeout},
		redis:  client,
		log:    log.With(slog.String("component", "lock")),
		born:   time.Now(),
	}
	for n := range m.buckets {
		m.buckets[n].leases = make(map[*Lease]struct{})
	}
	var err error
	m.metrics, err = newMetrics(meter, &m.held)
	return m, err
}

func orDefault(d, otherwise time.Duration) time.Duration {
	if d == 0 {
		return otherwise
	}
	return d
}

// Acquire takes the user's lock: OK and the lease, or DuplicateConnection when
// another socket holds it, or LockUnavailable when Redis cannot tell (also when
// ctx ends first). lost is called at most once, when the lock is lost while
// held (LockLost: another socket has it; LockUnavailable: Redis was silent too
// long). It must not block, and may come while Release is being called.
func (m *Manager) Acquire(ctx context.Context, user string, lost func(dialect.Reason)) (*Lease, dialect.Reason) {
	if m.closing.Load() {
		return nil, dialect.LockUnavailable
	}
	l := m.newLease(user, lost)
	now := time.Now()
	l.bucket.mu.Lock()
	l.bucket.addLocked(l, now, m.config.Refresh)
	l.machine.send(now, opAcquire)
	l.bucket.mu.Unlock()
	m.leases.Add(1)

	got := m.acquire(ctx, l)
	m.metrics.done(opAcquire, time.Since(now), []outcome{got})
	ev := m.step(l, func(x *machine) event { return x.reply(time.Now(), opAcquire, got) })
	if ev.granted {
		return l, dialect.OK
	}
	if ev.denied == dialect.OK { // released by a stopping Run
		return nil, dialect.LockUnavailable
	}
	return nil, ev.denied
}

// Release gives the lock back and waits until Redis no longer holds it, or ctx
// ends; the release goes on by itself then. It is idempotent.
func (l *Lease) Release(ctx context.Context) {
	l.manager.release(l)
	l.manager.wake(l.bucket)
	select {
	case <-l.done:
	case <-ctx.Done():
	}
}

func (m *Manager) release(l *Lease) {
	m.step(l, func(x *machine) event {
		x.release(time.Now())
		return event{}
	})
}

func (m *Manager) newLease(user string, lost func(dialect.Reason)) *Lease {
	name, n := bucketOf(user)
	return &Lease{
		manager: m,
		bucket:  &m.buckets[n],
		key:     fmt.Sprintf("relay:lock:{b%d}:%s", n, name),
		token:   fmt.Sprintf("%s/%d/%s", m.config.EdgeID, m.number.Add(1), random()),
		lost:    lost,
		done:    make(chan struct{}),
		machine: machine{timing: m.timing},
	}
}

const plainBytes = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz._@-"

// bucketOf returns a user's name in a key and its bucket. An id that is long or
// has other bytes than [0-9A-Za-z._@-] is hashed; "~" keeps the two apart.
func bucketOf(user string) (string, uint32) {
	odd := func(r rune) bool { return !strings.ContainsRune(plainBytes, r) }
	h := fnv.New32a()
	_, _ = h.Write([]byte(user))
	if user == "" || len(user) > maxUser || strings.ContainsFunc(user, odd) {
		sum := sha256.Sum256([]byte(user))
		user = "~" + hex.EncodeToString(sum[:])
	}
	return user, h.Sum32() % buckets
}

func random() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}

// step gives a lease's machine an input and carries out what it means.
func (m *Manager) step(l *Lease, input func(*machine) event) event {
	l.bucket.mu.Lock()
	before := l.machine
	ev := input(&l.machine)
	m.settleLocked(l, &before)
	l.bucket.mu.Unlock()
	if ev.lost != dialect.OK {
		l.lost(ev.lost)
	}
	return ev
}

// settleLocked follows a change of a lease's machine.
func (m *Manager) settleLocked(l *Lease, before *machine) {
	x := &l.machine
	if x.live() {
		l.bucket.fenceAt = sooner(l.bucket.fenceAt, x.deadline)
	}
	if before.live() != x.live() {
		if x.live() {
			m.held.Add(1)
		} else {
			m.held.Add(-1)
		}
	}
	if x.state == releasing {
		l.bucket.wakeAt = sooner(l.bucket.wakeAt, x.retryAt)
	}
	if x.state == gone && before.state != gone {
		delete(l.bucket.leases, l)
	}
	if (x.told || x.state == gone) && !before.told && before.state != gone {
		m.leases.Add(-1)
		close(l.done)
	}
}

// failing logs that Redis fails, at most once in 10 s.
func (m *Manager) failing(err error) {
	now := int64(time.Since(m.born)) + 1
	last := m.warned.Load()
	if (last == 0 || now-last > int64(10*time.Second)) && m.warned.CompareAndSwap(last, now) {
		m.log.Warn("lock operation failed", slog.Any("error", err))
	}
}

// pings is the cache of Ping.
type pings struct {
	calls singleflight.Group

	mu sync.Mutex
	// Guarded by mu.
	latency time.Duration
	err     error
	at      time.Time
}

// Ping returns how long Redis takes to answer; answers are kept for 1 s and
// callers share a call.
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
	if err != nil {
		latency, err = 0, fmt.Errorf("lock: ping: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.latency, p.err, p.at = latency, err, time.Now()
	return latency, err
}
