package authn

import (
	"encoding/binary"
	"testing"
	"testing/synctest"
	"time"
)

func numbered(n int) (d digest) {
	binary.BigEndian.PutUint64(d[:], uint64(n))
	return d
}

func TestCacheLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCache[int](time.Minute, 1000, time.Now)
		began := time.Now()
		asked := map[int]time.Time{}
		for n := range 100 { // one every 2 s, some of them long on their way
			late := time.Duration(n%5) * 500 * time.Millisecond
			asked[n] = time.Now().Add(-late)
			c.put(numbered(n), n, asked[n])
			for n, at := range asked {
				age := time.Since(at)
				switch a, ok := c.get(numbered(n), time.Now()); {
				case ok && a != n:
					t.Fatalf("%d is another's answer: %d", n, a)
				case ok && age >= time.Minute:
					t.Fatalf("%d is there after %v", n, age)
				case !ok && age < 53*time.Second:
					t.Fatalf("%d has gone after %v", n, age)
				}
			}
			time.Sleep(2 * time.Second)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if c.generations != nil || c.timer != nil {
			t.Fatalf("%v after the start: %d generations kept", time.Since(began), len(c.generations))
		}
		c.put(numbered(1), 1, time.Now()) // and again
		if _, ok := c.get(numbered(1), time.Now()); !ok {
			t.Fatal("a new answer is not there")
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if c.generations != nil {
			t.Fatal("nothing emptied the cache the second time")
		}
	})
}

func TestCacheBound(t *testing.T) {
	const limit = 1200
	now := time.Now()
	c := newCache[int](time.Minute, limit, func() time.Time { return now })
	defer func() { c.timer.Stop() }()
	for n := range 10 * limit {
		c.put(numbered(n), n, now)
		if size := c.sizeLocked(); size > limit {
			t.Fatalf("%d answers", size)
		}
	}
	for n := range limit - limit/spans { // the youngest are there
		if _, ok := c.get(numbered(10*limit-1-n), now); !ok {
			t.Fatalf("the answer %d before the last has gone", n)
		}
	}
}
