package authn

import (
	"slices"
	"sync"
	"time"
)

// spans is how many generations share a life and a limit.
const spans = 12

// cache keeps answers for a limited time and gives their memory back when it is
// over, used or not. It is made of generations: the answers asked for within a
// twelfth of the life, which end together. When the cache is full, the oldest
// generation goes.
type cache[A any] struct {
	// Static after construction.
	life  time.Duration // of an answer, at most; eleven twelfths of it at least
	limit int           // answers
	now   func() time.Time

	mu sync.Mutex
	// Guarded by mu.
	generations []generation[A] // oldest first
	timer       *time.Timer     // nil: there is no generation
}

type generation[A any] struct {
	began   time.Time // when the first of its answers was asked for
	answers map[digest]A
}

func newCache[A any](life time.Duration, limit int, now func() time.Time) *cache[A] {
	return &cache[A]{life: life, limit: limit, now: now}
}

// get returns the answer to d, if there is one.
func (c *cache[A]) get(d digest, now time.Time) (A, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for n := len(c.generations) - 1; n >= 0; n-- {
		g := &c.generations[n]
		if a, ok := g.answers[d]; ok && now.Sub(g.began) < c.life {
			return a, true
		}
	}
	var none A
	return none, false
}

// put keeps an answer that was asked for at a time.
func (c *cache[A]) put(d digest, a A, asked time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.youngestLocked(asked).answers[d] = a
}

// youngestLocked returns the generation of answers asked for at a time. One that
// has its share of the limit gets no more, so that the cache never has to drop
// more than a share.
func (c *cache[A]) youngestLocked(asked time.Time) *generation[A] {
	share := c.limit / spans
	if n := len(c.generations); n > 0 {
		g := &c.generations[n-1]
		if asked.Sub(g.began) < c.life/spans && len(g.answers) < share {
			if asked.Before(g.began) {
				g.began = asked
			}
			return g
		}
	}
	for c.sizeLocked()+share > c.limit {
		c.generations = slices.Delete(c.generations, 0, 1)
	}
	c.generations = append(c.generations, generation[A]{began: asked, answers: make(map[digest]A)})
	if c.timer == nil {
		c.timer = time.AfterFunc(c.life, c.purge)
	}
	return &c.generations[len(c.generations)-1]
}

func (c *cache[A]) sizeLocked() int {
	size := 0
	for _, g := range c.generations {
		size += len(g.answers)
	}
	return size
}

// purge drops what has ended, and comes again for what has not.
func (c *cache[A]) purge() {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	for len(c.generations) > 0 && now.Sub(c.generations[0].began) >= c.life {
		c.generations = slices.Delete(c.generations, 0, 1)
	}
	if len(c.generations) == 0 {
		c.generations, c.timer = nil, nil
		return
	}
	c.timer.Reset(c.generations[0].began.Add(c.life).Sub(now))
}
