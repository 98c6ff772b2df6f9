package engine

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// BenchmarkDelivery sends events to clients on real sockets. It stops its clock
// when the last reader has the last byte, because what is not read yet has not
// been delivered.
func BenchmarkDelivery(b *testing.B) {
	for _, n := range []int{1, 100, 1000, 5000} {
		b.Run(fmt.Sprintf("subscribers=%d", n), func(b *testing.B) {
			r := newRig(b, Auto, nil)
			text := `"` + strings.Repeat("x", 133) + `"`
			var delivered atomic.Int64
			progress := make(chan struct{}, 1)
			var readers sync.WaitGroup
			for range n {
				p := r.dial()
				p.expect("hello", "welcome")
				p.say("sub T.A")
				p.expect("ok T.A")
				readers.Add(1)
				go func() {
					defer readers.Done()
					buf := make([]byte, 64<<10)
					for {
						k, err := p.conn.Read(buf)
						for _, c := range buf[:k] {
							if c == '"' {
								delivered.Add(1)
							}
						}
						if err != nil {
							return
						}
						select {
						case progress <- struct{}{}:
						default:
						}
					}
				}()
				b.Cleanup(func() { _ = p.conn.Close() })
			}
			batch := r.batch(event{text, "T.A", ""})
			sink := r.engine.Sink("stocks")
			stats := r.engine.shards[0].stats
			before := stats.writes.Load()
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				sink.Batch(batch)
				for delivered.Load() < 2*int64(n)*int64(i-64) { // at most 64 events ahead of the readers
					<-progress
				}
			}
			for delivered.Load() < 2*int64(n)*int64(b.N) {
				<-progress
			}
			b.StopTimer()
			total := float64(b.N) * float64(n)
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/total, "ns/delivery")
			b.ReportMetric(float64(stats.writes.Load()-before)/total, "writes/delivery")
			r.stop()
			readers.Wait()
		})
	}
}
