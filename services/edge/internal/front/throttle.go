package front

import (
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// maxBuckets bounds the clients a throttle remembers, some 150 bytes each. Beyond
// it the one that was seen longest ago is forgotten, and so forgiven.
const maxBuckets = 16384

// throttle is a token bucket per client, named by its address or by a digest of
// its API key. A nil throttle lets everybody pass.
type throttle[K comparable] struct {
	// Static after construction.
	rate  float64 // tokens per second
	burst float64

	mu sync.Mutex
	// Guarded by mu.
	buckets *simplelru.LRU[K, bucket]
}

type bucket struct {
	tokens float64
	at     time.Time
}

func newThrottle[K comparable](rate float64, burst int) *throttle[K] {
	buckets, err := simplelru.NewLRU[K, bucket](maxBuckets, nil)
	if err != nil {
		panic("front: " + err.Error())
	}
	return &throttle[K]{rate: rate, burst: float64(burst), buckets: buckets}
}

// take takes a token of the client; false: there is none.
func (t *throttle[K]) take(client K, now time.Time) bool {
	if t == nil {
		return true
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	tokens := t.tokensLocked(client, now)
	ok := tokens >= 1
	if ok {
		tokens--
	}
	t.buckets.Add(client, bucket{tokens: tokens, at: now})
	return ok
}

// ready reports whether the client has a token, and takes none.
func (t *throttle[K]) ready(client K, now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.tokensLocked(client, now) >= 1
}

func (t *throttle[K]) tokensLocked(client K, now time.Time) float64 {
	b, ok := t.buckets.Peek(client)
	if !ok {
		return t.burst
	}
	return min(t.burst, b.tokens+max(0, now.Sub(b.at).Seconds())*t.rate)
}
