package front

import (
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// maxBuckets bounds the addresses a throttle remembers, some 150 bytes each.
// Beyond it the address that was seen longest ago is forgotten, and so forgiven.
const maxBuckets = 16384

// throttle is a token bucket per address. A nil throttle lets everybody pass.
type throttle struct {
	// Static after construction.
	rate  float64 // tokens per second
	burst float64

	mu sync.Mutex
	// Guarded by mu.
	buckets *simplelru.LRU[netip.Addr, bucket]
}

type bucket struct {
	tokens float64
	at     time.Time
}

func newThrottle(rate float64, burst int) *throttle {
	buckets, err := simplelru.NewLRU[netip.Addr, bucket](maxBuckets, nil)
	if err != nil {
		panic("front: " + err.Error())
	}
	return &throttle{rate: rate, burst: float64(burst), buckets: buckets}
}

// take takes a token of the address; false: there is none.
func (t *throttle) take(a netip.Addr, now time.Time) bool {
	if t == nil {
		return true
	}
	a = bucketKey(a)
	t.mu.Lock()
	defer t.mu.Unlock()
	tokens := t.tokensLocked(a, now)
	ok := tokens >= 1
	if ok {
		tokens--
	}
	t.buckets.Add(a, bucket{tokens: tokens, at: now})
	return ok
}

// ready reports whether the address has a token, and takes none.
func (t *throttle) ready(a netip.Addr, now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.tokensLocked(bucketKey(a), now) >= 1
}

func (t *throttle) tokensLocked(a netip.Addr, now time.Time) float64 {
	b, ok := t.buckets.Peek(a)
	if !ok {
		return t.burst
	}
	return min(t.burst, b.tokens+max(0, now.Sub(b.at).Seconds())*t.rate)
}
