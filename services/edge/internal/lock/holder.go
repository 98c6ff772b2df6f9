package lock

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// Holder is who holds a user's lock.
type Holder struct {
	// Edge is the id of its edge; "" where the value in Redis is not one of ours.
	Edge string
	// Owner is whom the lock was acquired for.
	Owner uint64
	// Since is when it was asked for, by the clock of its edge.
	Since time.Time
	// Expires is how long the lock is kept unless it is refreshed; of Holder only.
	Expires time.Duration
}

// Holder returns who holds the user's lock in any edge, as Redis tells; false:
// nobody does.
func (m *Manager) Holder(ctx context.Context, user string) (Holder, bool, error) {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	key := string(appendKey(nil, bucketOf(user), user))
	value, err := m.redis.Get(ctx, key).Result()
	if errors.Is(err, redis.Nil) {
		return Holder{}, false, nil
	}
	expires, err2 := m.redis.PTTL(ctx, key).Result()
	if err = errors.Join(err, err2); err != nil {
		return Holder{}, false, fmt.Errorf("lock: look up a holder: %w", err)
	}
	h := holderOf(value)
	h.Expires = max(expires, 0)
	return h, true, nil
}

// Held calls each with the locks that this edge holds and their users, in no
// order.
func (m *Manager) Held(each func(user string, h Holder)) {
	for n := range m.buckets {
		b := &m.buckets[n]
		b.mu.Lock()
		held := make([]*Lease, 0, len(b.leases))
		for _, l := range b.leases {
			if l.machine.live() {
				held = append(held, l)
			}
		}
		b.mu.Unlock()
		for _, l := range held {
			each(l.user, Holder{Edge: m.config.EdgeID, Owner: l.owner, Since: sinceOf(l.number)})
		}
	}
}

// appendToken appends the value of a lock: edge id, a random number of the
// process, number and owner of the lease.
func (m *Manager) appendToken(b []byte, number, owner uint64) []byte {
	b = append(b, m.tokens...)
	b = strconv.AppendUint(b, number, 10)
	b = append(b, '/')
	return strconv.AppendUint(b, owner, 16)
}

// holderOf reads a token.
func holderOf(token string) Holder {
	parts := strings.Split(token, "/")
	if len(parts) != 4 {
		return Holder{}
	}
	number, err := strconv.ParseUint(parts[2], 10, 63)
	owner, err2 := strconv.ParseUint(parts[3], 16, 64)
	if err != nil || err2 != nil {
		return Holder{}
	}
	return Holder{Edge: parts[0], Owner: owner, Since: sinceOf(number)}
}

// stamp returns the number of a new lease: the wall clock in µs, or one more than
// the last number.
func (m *Manager) stamp() uint64 {
	now := uint64(time.Now().UnixMicro())
	for {
		last := m.number.Load()
		if n := max(now, last+1); m.number.CompareAndSwap(last, n) {
			return n
		}
	}
}

func sinceOf(number uint64) time.Time { return time.UnixMicro(int64(number)) }
