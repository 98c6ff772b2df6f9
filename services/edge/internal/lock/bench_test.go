package lock

import (
	"fmt"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cutemarkets/relay/services/internal/redisx"
)

// BenchmarkRefresh50k refreshes 50,000 locks once, in groups of buckets one after
// the other, against a real Redis. It reports the processor time of this process
// and that of Redis, and the memory that Redis uses. At the default interval an edge refreshes each lock once in 4 s.
func BenchmarkRefresh50k(b *testing.B) {
	const locks = 50_000
	address := startRedis(b)
	server := plain(b, address)
	m := newIdleManager(b, Config{EdgeID: "bench", TTL: time.Minute, Refresh: 20 * time.Second}, redisx.Options{Address: []string{address}})
	memory := -redisMemory(b, server)
	for n := range locks {
		mustAcquire(b, m, fmt.Sprint("user-", n))
	}
	memory += redisMemory(b, server)
	b.ReportAllocs()
	var used time.Duration
	redisUsed := -redisTime(b, server)
	for b.Loop() {
		used -= processorTime()
		for n := 0; n < buckets; n += pipelineScripts {
			var group []*bucket
			for k := range pipelineScripts {
				group = append(group, &m.buckets[n+k])
				group[k].refreshAt, group[k].working = 0, true
			}
			m.work(group)
		}
		used += processorTime()
	}
	redisUsed += redisTime(b, server)
	b.ReportMetric(float64(used.Nanoseconds())/float64(b.N)/locks, "ns-cpu/lock")
	b.ReportMetric(memory/locks, "B-redis/lock")
	b.ReportMetric(redisUsed*1e9/float64(b.N)/locks, "ns-redis/lock")
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/locks, "ns/lock")
}

// BenchmarkHandshakes takes and gives back 1,000 locks, as many at a time as
// there are callers, against a real Redis. It reports the processor time of this
// process alone.
func BenchmarkHandshakes(b *testing.B) {
	const locks = 1000
	var released sync.WaitGroup
	m := newManager(b, Config{EdgeID: "bench", Released: func(uint64) { released.Done() }}, redisx.Options{Address: []string{startRedis(b)}})
	users := make([]string, locks)
	for n := range users {
		users[n] = fmt.Sprint("user-", n)
	}
	for _, callers := range []int{1, 16, 1000} {
		b.Run(fmt.Sprint(callers, " callers"), func(b *testing.B) {
			leases := make([]*Lease, locks)
			each := func(do func(n int)) time.Duration {
				before := processorTime()
				var wg sync.WaitGroup
				for c := range callers {
					wg.Go(func() {
						for n := c; n < locks; n += callers {
							do(n)
						}
					})
				}
				wg.Wait()
				released.Wait()
				return processorTime() - before
			}
			var acquire, release time.Duration
			for b.Loop() {
				acquire += each(func(n int) { leases[n] = mustAcquire(b, m, users[n]) })
				released.Add(locks)
				release += each(func(n int) { leases[n].Release() })
			}
			b.ReportMetric(float64(acquire.Microseconds())/float64(b.N)/1000, "ms-cpu/1000-acquires")
			b.ReportMetric(float64(release.Microseconds())/float64(b.N)/1000, "ms-cpu/1000-releases")
		})
	}
}

// processorTime is what this process has used, user and system.
func processorTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// redisTime is the processor time that Redis has used, in s, and redisMemory the
// bytes that it uses.
func redisTime(b *testing.B, server *redis.Client) float64 {
	return redisFact(b, server, "cpu", "used_cpu_sys") + redisFact(b, server, "cpu", "used_cpu_user")
}

func redisMemory(b *testing.B, server *redis.Client) float64 {
	return redisFact(b, server, "memory", "used_memory")
}

func redisFact(b *testing.B, server *redis.Client, section, name string) float64 {
	b.Helper()
	value, err := strconv.ParseFloat(redisx.Facts(server.Info(b.Context(), section).Val())[name], 64)
	if err != nil {
		b.Fatal(err)
	}
	return value
}

// BenchmarkIdle reports the live heap of a lock that is held, its user's name
// aside.
func BenchmarkIdle(b *testing.B) {
	const items = 10_000
	var released sync.WaitGroup
	m := newManager(b, Config{EdgeID: "bench", Released: func(uint64) { released.Done() }}, redisx.Options{Address: []string{startRedis(b)}})
	leases := make([]*Lease, items)
	users := make([]string, items)
	for n := range users {
		users[n] = fmt.Sprint("user-", n)
	}
	each := func(do func(n int)) {
		var wg sync.WaitGroup
		for c := range 100 {
			wg.Go(func() {
				for n := c; n < items; n += 100 {
					do(n)
				}
			})
		}
		wg.Wait()
		released.Wait()
	}
	acquire := func(n int) { leases[n] = mustAcquire(b, m, users[n]) }
	release := func(n int) {
		released.Add(1)
		leases[n].Release()
		leases[n] = nil
	}
	each(acquire) // connections and their buffers come first
	each(release)
	for b.Loop() {
		before := liveHeap()
		each(acquire)
		b.ReportMetric((liveHeap()-before)/items, "B/lock")
		each(release)
		b.ReportMetric((liveHeap()-before)/items, "B/lock-released")
	}
}

func liveHeap() float64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc)
}
