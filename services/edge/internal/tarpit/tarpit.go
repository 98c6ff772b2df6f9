// Package tarpit decides how long the refusal of a user's second connection is
// held. SDKs of the vendor dial again without any delay as soon as they are
// closed; the hold is all that slows them down. So a refusal that follows another
// one of the user directly is held for twice as long as that, up to 30 s. What
// does not follow directly is held for the least: the first refusal, one of a user
// who has been let in since or who has stayed away for 5 s, and one that comes
// while another is held: a user has one socket that is held for longer, not many.
//
// A Tarpit remembers 4,096 users, of each a hash and some 100 bytes; beyond it the
// user who was refused longest ago is forgotten. It starts no goroutine and has no
// clock. A socket that ends before its hold is over counts until then.
package tarpit

import (
	"hash/maphash"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// Bounds of a Tarpit.
const (
	// Longest is the longest hold, unless the least one is longer.
	Longest = 30 * time.Second
	// Memory is how long after the end of a hold a refusal follows it directly.
	Memory = 5 * time.Second
	// MaxUsers is how many users are remembered.
	MaxUsers = 4096

	// skew is by how much a refusal may seem to come before the end of the hold it
	// follows: shards look at the clock once a round.
	skew = 200 * time.Millisecond
)

// Tarpit remembers who was refused of late. Safe for concurrent use.
type Tarpit struct {
	// Static after construction.
	seed   maphash.Seed
	origin time.Time // what times count from

	mu sync.Mutex
	// Guarded by mu.
	users *simplelru.LRU[uint64, *user] // by the hash of the user's id
}

// user is one who was refused of late.
type user struct {
	hold  time.Duration // of the refusal that the next one follows; 0: it follows none
	until time.Duration // when that is over, since the origin
}

// New makes a Tarpit; nothing comes before now.
func New(now time.Time) *Tarpit {
	users, err := simplelru.NewLRU[uint64, *user](MaxUsers, nil)
	if err != nil {
		panic("tarpit: " + err.Error())
	}
	return &Tarpit{seed: maphash.MakeSeed(), origin: now, users: users}
}

// Refused notes a refusal of the user and returns how long to hold it: least, or
// longer when it follows another one directly.
func (t *Tarpit) Refused(id string, least time.Duration, now time.Time) time.Duration {
	hash, at := maphash.String(t.seed, id), now.Sub(t.origin)
	t.mu.Lock()
	defer t.mu.Unlock()
	u, known := t.users.Get(hash)
	switch {
	case !known:
		u = new(user)
		t.users.Add(hash, u)
	case at < u.until-skew:
		return least
	case at >= u.until+Memory:
		u.hold = 0
	}
	u.hold = max(least, min(2*u.hold, Longest))
	u.until = at + u.hold
	return u.hold
}

// Granted notes that the user got a connection: the next refusal follows none.
func (t *Tarpit) Granted(id string) {
	hash := maphash.String(t.seed, id)
	t.mu.Lock()
	defer t.mu.Unlock()
	if u, known := t.users.Peek(hash); known {
		u.hold = 0
	}
}
