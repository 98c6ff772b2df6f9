package lock

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	"go.opentelemetry.io/otel/metric/noop"
)

// BenchmarkRefresh50k refreshes 50,000 locks once, all buckets one after the
// other, against a real Redis.
func BenchmarkRefresh50k(b *testing.B) {
	const locks = 50_000
	address := startRedis(b)
	client, err := NewClient(Options{Address: []string{address}}, "bench")
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	m, err := New(Config{EdgeID: "bench", TTL: time.Minute, Refresh: 20 * time.Second}, client, noop.Meter{}, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	for n := range locks {
		mustAcquire(b, m, fmt.Sprint("user-", n), neverLost(b))
	}
	b.ReportAllocs()
	for b.Loop() {
		for n := range m.buckets {
			m.buckets[n].refreshAt = time.Time{}
			m.buckets[n].working = true
			m.work(&m.buckets[n])
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/locks, "ns/lock")
}
