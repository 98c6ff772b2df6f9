// Package tarpit decides how long the refusal of a user's second connection is
// held. SDKs of the vendor dial again without any delay as soon as they are
// closed; the hold is all that slows them down. So each refusal that follows
// another one of the same user within a minute is held for twice as long as that,
// up to 30 s.
//
// A Tarpit remembers 4,096 users, of each a hash and some 200 bytes; beyond it the
// user who was refused longest ago is forgotten. It starts no goroutine and has
// no clock. A refused socket is held in a place of the edge, so a user who dials
// many times at once has at most 8 of them held for longer than the least; the
// others are held for that. What closes before its hold is over counts until then.
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
	// Memory is how long after the last refusal a user is forgotten.
	Memory = time.Minute
	// MaxUsers is how many users are remembered.
	MaxUsers = 4096
	// MaxHeld is how many sockets of a user are held for longer than the least
	// hold at a time.
	MaxHeld = 8
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

// user is one who was refused of late; times count from the origin.
type user struct {
	last time.Duration          // refusal
	hold time.Duration          // of the last refusal that did not find MaxHeld held
	held [MaxHeld]time.Duration // when the longer holds end; those in the past are free
}

// New makes a Tarpit; no refusal comes before now.
func New(now time.Time) *Tarpit {
	users, err := simplelru.NewLRU[uint64, *user](MaxUsers, nil)
	if err != nil {
		panic("tarpit: " + err.Error())
	}
	return &Tarpit{seed: maphash.MakeSeed(), origin: now, users: users}
}

// Hold notes a refusal of the user, whose id is not empty, and returns how long to
// hold it: least, or longer when the user was refused of late. A least of 0 is
// never made longer.
func (t *Tarpit) Hold(id string, least time.Duration, now time.Time) time.Duration {
	hash, at := maphash.String(t.seed, id), now.Sub(t.origin)
	t.mu.Lock()
	defer t.mu.Unlock()
	u := t.userLocked(hash, at)
	hold := least
	if least > 0 {
		hold = max(least, min(2*u.hold, Longest))
	}
	if hold > least && !u.keep(at, at+hold) {
		return least
	}
	u.hold = hold
	return hold
}

// userLocked returns the user of a refusal, with what counts of the earlier ones.
func (t *Tarpit) userLocked(hash uint64, at time.Duration) *user {
	u, known := t.users.Get(hash)
	if !known || at-u.last >= Memory {
		u = &user{last: at}
		t.users.Add(hash, u)
	}
	u.last = max(u.last, at) // shards may be told of the time in another order
	return u
}

// keep takes one of the places for longer holds; false: none is free.
func (u *user) keep(at, until time.Duration) bool {
	for i, end := range u.held {
		if end <= at {
			u.held[i] = until
			return true
		}
	}
	return false
}
