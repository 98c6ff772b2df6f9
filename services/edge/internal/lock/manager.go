// Package lock is the cluster-wide right of a user to one socket, kept in Redis.
// It owns the keys relay:lock:{b<bucket>}:<user>, whose value tells who holds it:
// edge id, a random number of the process, when the lock was asked for and the
// owner; each has a TTL, always.
//
// A lock is valid until the send time of its last confirmed refresh + TTL -
// margin on this process's monotonic clock, which goes on while the machine is
// suspended; then the holder is told that it is lost and must stop delivering at
// once. Who delivers calls Fence before, in case the process stood still. A lock
// that Redis has lost is set anew while its holder lives; one that another edge
// took is lost. Releases are compare-and-delete, on no caller's context, retried
// until Redis has dropped the key by itself. Only GET, MGET, SET, PEXPIRE, PTTL,
// DEL, EVAL, PING, HELLO and CLIENT SETNAME are needed; CONFIG is not, INFO only to
// see whether Redis may evict locks or is another process than before, and SSUBSCRIBE
// and SPUBLISH only for probes.
//
// When Redis may have lost data (it is another process, or a lock is missing while
// its lease is valid), newcomers are refused for 2.5 s and all locks are asserted
// anew, spread over 0.75 s: the edges that hold locks set them before anybody may
// take them. A process that has just started knows of no loss. In a Cluster a
// replica that takes over is noticed by the locks it lacks alone.
//
// Who is refused may have the holder probed (probe.go): its edge, asked through its
// channel relay:edge:<edge id>, finds out whether the holder's client lives, and
// releases the lock if it does not. Nobody else ever does.
//
// Locks are spread over 128 buckets by user, each a Redis Cluster slot. All locks
// of a bucket are refreshed by one script per 100 keys, every 4 s ±20 %, at
// moments a quarter of a second apart: up to 8 buckets share a pipeline then.
// Acquires stand in one line for all buckets, and so do releases when they are
// first tried, as far as there is room: what waits there at the same time is sent
// together, up to 256 in a pipeline. What else is to be done, a bucket does, one
// operation at a time. A lock never has more than one operation in flight.
//
// Goroutines: Run is the wheel that wakes buckets and calls Fence, and beside it a
// beat that keeps a connection to Redis and a listener to what other edges ask; a
// probe has one, and so has an answer, 1024 of each; up to 8 buckets with something
// to do share one goroutine until it is done; the line has four turns to send,
// used by a caller or by a goroutine. Under overload callers wait in line until
// their context ends; only once a request was sent has Redis 1 s to answer, and an
// acquire is tried twice. 1024 are in flight at most. What waits for Redis is
// bounded by the sockets, and by the acquires of unknown outcome within two TTLs.
package lock

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/metric"

	"github.com/cutemarkets/relay/services/edge/internal/dialect"
	"github.com/cutemarkets/relay/services/internal/redisx"
)

const (
	buckets    = 128
	scriptKeys = 100
	gridLines  = 16  // moments within the time between two refreshes
	turns      = 4   // pipelines of acquires and releases at a time
	batchKeys  = 256 // of one of them

	// pipelineScripts is how many buckets share a pipeline: Redis runs it in one go,
	// and others wait for a millisecond.
	pipelineScripts = 8

	wheelTick   = 20 * time.Millisecond
	opTimeout   = time.Second
	stopTimeout = 2 * time.Second
	never       = time.Duration(math.MaxInt64)
	maxUser     = 128 // bytes of a user id in a key; longer ones are hashed
)

// Config says how locks are kept. Zero durations mean the defaults, which
// satisfy TTL - margin >= 2 * longest refresh gap + operation timeout.
type Config struct {
	// EdgeID is unique among live edges, without a slash; part of a lock's value.
	EdgeID string
	// TTL of a lock; default 15 s.
	TTL time.Duration
	// Refresh is the mean time between two refreshes; default 4 s.
	Refresh time.Duration
	// Margin by which a holder gives up before Redis does; default 1 s.
	Margin time.Duration
	// Grace is how long a holder goes on after that while Redis does not answer;
	// another edge may give the lock away meanwhile. Default none.
	Grace time.Duration
	// Lost is called at most once per lease, with the owner it was acquired for,
	// when the lock is lost while held (LockLost: another socket has it;
	// LockUnavailable: Redis was silent too long). It does not block. It may come
	// before Acquire returns and while Release is being called. Required.
	Lost func(owner uint64, r dialect.Reason)
	// Released is called once for each Lease.Release, when Redis holds nothing of
	// the lease any more; it may come before Release returns. It does not block.
	// Required.
	Released func(owner uint64)
	// Probe finds out whether the client of an owner lives and ends it if not.
	// answer is called once, within 2.5 s or in vain: true when it does, false
	// when there is no such owner any more. Neither blocks. Required.
	Probe func(owner uint64, answer func(alive bool))
}

// Manager keeps the locks of this edge. All methods are safe for concurrent use.
type Manager struct {
	// Static after construction.
	config  Config
	timing  timing
	redis   *redisx.Client
	log     *slog.Logger
	metrics *metrics
	born    time.Duration // by monotonic
	tokens  string        // what all tokens of this process begin with
	buckets [buckets]bucket

	line    chan request  // waits for a turn
	turns   chan struct{} // a token per turn taken
	closing chan struct{} // closed when Run ends

	number  atomic.Uint64 // of the last lease
	held    atomic.Int64
	leases  atomic.Int64 // that Redis may hold
	workers atomic.Int64
	warned  atomic.Int64 // when a failure was last logged, ns since born
	losses  losses
	fences  fences
	pings   pings
	probes  probes
}

// Lease is a lock, held or on its way out.
type Lease struct {
	// Static after construction.
	manager *Manager
	user    string
	owner   uint64
	number  uint64

	// Guarded by the bucket's mu.
	machine machine
	place   int32 // in the bucket
	bucket  uint8 // static after construction
	due     bool  // to be refreshed in this round
	inLine  bool  // a request for its release waits
	unheld  bool  // Release was called
}

// New makes a manager; locks are refreshed in Run. The client is one of NewClient.
func New(c Config, r *redisx.Client, meter metric.Meter, log *slog.Logger) (*Manager, error) {
	if c.EdgeID == "" || strings.Contains(c.EdgeID, "/") || c.Lost == nil || c.Released == nil || c.Probe == nil {
		return nil, errors.New("lock: an edge id without a slash and the callbacks Lost, Released and Probe are needed")
	}
	c.TTL = orDefault(c.TTL, 15*time.Second)
	c.Refresh = orDefault(c.Refresh, 4*time.Second)
	c.Margin = orDefault(c.Margin, time.Second)
	if gap := c.Refresh * 12 / 10; c.TTL-c.Margin < 2*gap+opTimeout {
		return nil, fmt.Errorf("lock: a TTL of %v is too short for a refresh every %v", c.TTL, c.Refresh)
	}
	m := &Manager{
		config:  c,
		timing:  timing{ttl: c.TTL, margin: c.Margin, timeout: opTimeout, grace: c.Grace},
		redis:   r,
		log:     log.With(slog.String("component", "lock")),
		born:    monotonic() - 1, // so that no time is 0
		tokens:  c.EdgeID + "/" + random() + "/",
		line:    make(chan request, turns*batchKeys),
		turns:   make(chan struct{}, turns),
		closing: make(chan struct{}),
		probes:  probes{waiting: map[uint64]chan<- bool{}},
	}
	for n := range m.buckets {
		m.buckets[n].fenceAt = never
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

// now is the time since the manager was made.
func (m *Manager) now() time.Duration { return monotonic() - m.born }

func (m *Manager) release(l *Lease) {
	m.step(l, func(x *machine) event {
		x.release(m.now())
		return event{}
	})
}

// endedLocked reports whether Redis holds nothing of the lease.
func (l *Lease) endedLocked() bool { return l.machine.told || l.machine.state == gone }

// names returns the lock's key and its value, the token, in Redis.
func (l *Lease) names() (key, token string) {
	var room [256]byte
	b := appendKey(room[:0], l.bucket, l.user)
	length := len(b)
	both := string(l.manager.appendToken(b, l.number, l.owner))
	return both[:length], both[length:]
}

func appendKey(b []byte, bucket uint8, user string) []byte {
	b = append(b, "relay:lock:{b"...)
	b = strconv.AppendUint(b, uint64(bucket), 10)
	b = append(b, "}:"...)
	return append(b, nameOf(user)...)
}

// bucketOf returns the bucket of a user: its FNV-1a hash.
func bucketOf(user string) uint8 {
	h := uint32(2166136261)
	for n := range len(user) {
		h = (h ^ uint32(user[n])) * 16777619
	}
	return uint8(h % buckets)
}

// nameOf returns a user's name in a key. An id that is long or has other bytes
// than [0-9A-Za-z._@-] is hashed; "~" keeps the two apart.
func nameOf(user string) string {
	plain := user != "" && len(user) <= maxUser
	for n := 0; plain && n < len(user); n++ {
		plain = plainBytes[user[n]]
	}
	if plain {
		return user
	}
	sum := sha256.Sum256([]byte(user))
	return "~" + hex.EncodeToString(sum[:])
}

// plainBytes are the bytes of a user id that stand for themselves.
var plainBytes = func() (plain [256]bool) {
	for _, c := range []byte("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz._@-") {
		plain[c] = true
	}
	return plain
}()

func random() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}

// step gives a lease's machine an input and carries out what it means.
func (m *Manager) step(l *Lease, input func(*machine) event) event {
	b := &m.buckets[l.bucket]
	b.mu.Lock()
	before := l.machine
	ev := input(&l.machine)
	m.settleLocked(b, l, &before)
	n := news{l, ev, l.unheld, l.machine.confirmed(m.timing)}
	b.mu.Unlock()
	m.tell(n)
	return ev
}

// news is what an event means to others than the lease's own caller.
type news struct {
	lease     *Lease
	event     event
	unheld    bool
	confirmed time.Duration
}

func (m *Manager) tell(n news) {
	switch {
	case n.event.lost != dialect.OK:
		m.config.Lost(n.lease.owner, n.event.lost)
	case n.event.released && n.unheld:
		m.config.Released(n.lease.owner)
	case n.event.missing:
		m.vanished(m.now(), n.confirmed)
	}
}

// settleLocked follows a change of a lease's machine.
func (m *Manager) settleLocked(b *bucket, l *Lease, before *machine) {
	x := &l.machine
	if x.live() {
		b.fenceAt = min(b.fenceAt, x.at+m.timing.grace)
	}
	if before.live() != x.live() {
		if x.live() {
			m.held.Add(1)
		} else {
			m.held.Add(-1)
		}
	}
	if x.state == releasing && !l.inLine {
		b.wakeAt = sooner(b.wakeAt, x.at)
	}
	if x.state == gone && before.state != gone {
		b.removeLocked(l)
	}
	if l.endedLocked() && !before.told && before.state != gone {
		m.leases.Add(-1)
	}
}

// failing logs that Redis fails, at most once in 10 s.
func (m *Manager) failing(err error) {
	now := int64(m.now())
	last := m.warned.Load()
	if (last == 0 || now-last > int64(10*time.Second)) && m.warned.CompareAndSwap(last, now) {
		m.log.Warn("lock operation failed", slog.Any("error", err))
	}
}
