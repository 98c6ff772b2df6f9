package worker

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cutemarkets/relay/hack/loadtest/tally"
)

func TestParseStat(t *testing.T) {
	const stat = "4711 (a (b) c) S 1 4711 4711 0 -1 4194560 1 2 3 4 250 50 7 8 20 0 9 0 100 123456789 321 18446744073709551615 1 1\n"
	name, used, ok := parseStat(stat)
	want := tally.ServerUsed{CPU: 3 * time.Second, RSS: 321 * uint64(os.Getpagesize())}
	if name != "a (b) c" || used != want || !ok {
		t.Errorf("%q %+v %t", name, used, ok)
	}
	for _, bad := range []string{"", "1 (x", "1 (x) S 1", strings.Replace(stat, " 250 ", " x ", 1)} {
		if _, _, ok := parseStat(bad); ok {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestParseMetrics(t *testing.T) {
	const text = "# HELP process_cpu_seconds_total x\n# TYPE process_cpu_seconds_total counter\nprocess_cpu_seconds_total 1.5\nprocess_resident_memory_bytes 3.2e+07\n"
	if used, ok := parseMetrics(strings.NewReader(text)); !ok || used.CPU != 1500*time.Millisecond || used.RSS != 32_000_000 {
		t.Errorf("%+v %t", used, ok)
	}
	if _, ok := parseMetrics(strings.NewReader("process_cpu_seconds_total 1.5\n")); ok {
		t.Error("memory is missing")
	}
}

// TestUsed samples this process both ways; what does not answer is left out.
func TestUsed(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/metrics" {
			http.NotFound(w, r)
			return
		}
		fmt.Fprint(w, "process_cpu_seconds_total 2\nprocess_resident_memory_bytes 4096\n")
	}))
	defer server.Close()
	used := newServers([]int{os.Getpid(), 1 << 30}, []string{server.URL + "/metrics", "http://127.0.0.1:1/metrics"}).used(t.Context())
	scraped := used[strings.TrimPrefix(server.URL, "http://")]
	if len(used) != 2 || scraped != (tally.ServerUsed{CPU: 2 * time.Second, RSS: 4096}) {
		t.Errorf("%+v", used)
	}
	delete(used, strings.TrimPrefix(server.URL, "http://"))
	for name, own := range used {
		if !strings.Contains(name, fmt.Sprintf("[%d] on ", os.Getpid())) || own.RSS < 1<<20 {
			t.Errorf("%s: %+v", name, own)
		}
	}
}
