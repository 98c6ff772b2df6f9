package operations

import (
	"maps"
	"math"
	"net/http"
	"net/http/httptest"
	"net/http/pprof"
	"runtime"
	"slices"
	"strings"
	"testing"
)

const page = `# HELP relay_edge_closes_total Connections ended, by reason.
# TYPE relay_edge_closes_total counter
relay_edge_closes_total{reason="draining"} 3
relay_edge_closes_total{reason="slow_consumer"} 4
relay_edge_closes_total{reason="of two words",market="stocks"} 1
relay_edge_writes_total 1.5e+06

go_memstats_last_gc_time_seconds NaN
`

func TestMetrics(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/metrics" {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write([]byte(page))
	}))
	defer server.Close()
	l := New(server.URL)
	m, err := l.Metrics(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		labels []string
		want   float64
	}{
		{"relay_edge_writes_total", nil, 1.5e6},
		{"relay_edge_closes_total", nil, 8},
		{"relay_edge_closes_total", []string{`reason="slow_consumer"`}, 4},
		{"relay_edge_closes_total", []string{`market="stocks"`, `reason="of two words"`}, 1},
		{"relay_edge_closes_total", []string{`market="stocks"`, `reason="draining"`}, 0},
		{"relay_edge_closes", nil, 0},
	} {
		if got := m.Sum(test.name, test.labels...); got != test.want {
			t.Errorf("%s %v: %v, want %v", test.name, test.labels, got, test.want)
		}
	}
	want := map[string]float64{"draining": 3, "slow_consumer": 4, "of two words": 1}
	if got := m.By("relay_edge_closes_total", "reason"); !maps.Equal(got, want) {
		t.Errorf("by reason: %v, want %v", got, want)
	}
	if _, err := l.Heap(t.Context()); err == nil || !strings.Contains(err.Error(), "--pprof") {
		t.Errorf("a service without profiles: %v", err)
	}
	for _, bad := range []string{"word\n", "name of\n"} {
		if _, err := parse([]byte(bad)); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

// hold allocates what the test looks for in the profile.
//
//go:noinline
func hold(n int) []*[4096]byte {
	held := make([]*[4096]byte, n)
	for i := range held {
		held[i] = new([4096]byte)
	}
	return held
}

// TestHeap looks at this very process.
func TestHeap(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	server := httptest.NewServer(mux)
	defer server.Close()
	l := New(server.URL)
	const objects = 10_000
	held := hold(objects)
	h, err := l.Heap(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if h.Live < objects*4096 {
		t.Errorf("live: %d bytes", h.Live)
	}
	i := slices.IndexFunc(h.Sites, func(s Site) bool { return strings.HasSuffix(s.Function, "operations.hold") })
	if i < 0 || math.Abs(float64(h.Sites[i].Bytes)/(objects*4096)-1) > 0.5 || math.Abs(float64(h.Sites[i].Objects)/objects-1) > 0.5 {
		t.Errorf("no site of about %d bytes and %d objects: %+v", objects*4096, objects, h.Sites)
	}
	if !slices.IsSortedFunc(h.Sites, func(a, b Site) int { return int(b.Bytes - a.Bytes) }) {
		t.Errorf("not the most bytes first: %+v", h.Sites)
	}
	profile, err := l.Profile(t.Context(), "heap")
	if err != nil || len(profile) < 2 || profile[0] != 0x1f || profile[1] != 0x8b {
		t.Errorf("the profile is not compressed: %d bytes, %v", len(profile), err)
	}
	runtime.KeepAlive(held)
}

func TestParseHeap(t *testing.T) {
	const text = `heap profile: 3: 3145728 [4: 4194304] @ heap/2
2: 2097152 [2: 2097152] @ 0x1 0x2
#	0x1	example.com/a.(*T).f[...]+0x1f	/a.go:1
#	0x2	main.main+0x2	/m.go:2

0: 0 [1: 1048576] @ 0x3
#	0x3	example.com/gone.f+0x1	/g.go:1

1: 1048576 [1: 1048576] @ 0x1
#	0x1	example.com/a.(*T).f[...]+0x1f	/a.go:1


# runtime.MemStats
# Alloc = 5
# HeapAlloc = 4000000
`
	h, err := parseHeap([]byte(text))
	want := []Site{{"example.com/a.(*T).f[...]", 3 << 20, 3}}
	if err != nil || h.Live != 4_000_000 || !slices.Equal(h.Sites, want) {
		t.Errorf("%+v, %v", h, err)
	}
	for _, bad := range []string{"", "<html>", strings.Replace(text, "heap/2", "heap/x", 1), strings.Replace(text, "4000000", "much", 1)} {
		if _, err := parseHeap([]byte(bad)); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}
