package status

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func yes() bool { return true }
func no() bool  { return false }

func wellDatabase(context.Context) (time.Duration, error) { return 1420 * time.Microsecond, nil }
func wellCache(context.Context) error                     { return nil }

// get asks a handler once; the request id is replaced by "ID".
func get(t *testing.T, h http.Handler) string {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/v1/status/", nil))
	if w.Code != http.StatusOK {
		t.Errorf("status %d, want 200", w.Code)
	}
	for name, want := range map[string]string{"Content-Type": "application/json", "Cache-Control": "no-store"} {
		if got := w.Header().Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	id := regexp.MustCompile(`"cm_[0-9a-f]{32}"`)
	if n := len(id.FindAllString(w.Body.String(), -1)); n != 1 {
		t.Errorf("%d request ids in %s, want 1", n, w.Body)
	}
	return id.ReplaceAllString(w.Body.String(), `"ID"`)
}

func TestAnswer(t *testing.T) {
	secretive := errors.New("dial tcp 10.1.2.3:5432: password authentication failed")
	badDatabase := func(context.Context) (time.Duration, error) { return time.Second, secretive }
	badCache := func(context.Context) error { return secretive }
	for name, tt := range map[string]struct {
		sources Sources
		want    string
	}{
		"all well": {
			Sources{wellDatabase, wellCache, yes, yes},
			`{"status":"ok","request_id":"ID","services":{"api":{"status":"ok"},"database":{"status":"ok","latency_ms":1.42},"cache":{"status":"ok","latency_ms":0},"stream_stocks":{"status":"ok"},"stream_options":{"status":"ok"}}}`,
		},
		"one market configured": {
			Sources{wellDatabase, wellCache, yes, nil},
			`{"status":"ok","request_id":"ID","services":{"api":{"status":"ok"},"database":{"status":"ok","latency_ms":1.42},"cache":{"status":"ok","latency_ms":0},"stream_stocks":{"status":"ok"}}}`,
		},
		"database": {
			Sources{badDatabase, wellCache, yes, nil},
			`{"status":"degraded","request_id":"ID","services":{"api":{"status":"ok"},"database":{"status":"degraded"},"cache":{"status":"ok","latency_ms":0},"stream_stocks":{"status":"ok"}}}`,
		},
		"cache": {
			Sources{wellDatabase, badCache, yes, nil},
			`{"status":"degraded","request_id":"ID","services":{"api":{"status":"ok"},"database":{"status":"ok","latency_ms":1.42},"cache":{"status":"degraded"},"stream_stocks":{"status":"ok"}}}`,
		},
		"stream": {
			Sources{wellDatabase, wellCache, yes, no},
			`{"status":"degraded","request_id":"ID","services":{"api":{"status":"ok"},"database":{"status":"ok","latency_ms":1.42},"cache":{"status":"ok","latency_ms":0},"stream_stocks":{"status":"ok"},"stream_options":{"status":"degraded"}}}`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { // in which nothing takes time
				if got := get(t, New(tt.sources)); got != tt.want {
					t.Errorf("got  %s\nwant %s", got, tt.want)
				}
			})
		})
	}
}

// TestHang lets the dependencies hang, one of them for longer than it may.
func TestHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int64
		h := New(Sources{
			Database: func(ctx context.Context) (time.Duration, error) {
				<-ctx.Done()
				return 0, ctx.Err()
			},
			Cache: func(context.Context) error {
				asked.Add(1)
				time.Sleep(time.Minute)
				return nil
			},
			Stocks: yes,
		})
		for range 3 {
			began := time.Now()
			got := get(t, h)
			if d := time.Since(began); d >= time.Second {
				t.Errorf("answered after %v, want less than 1s", d)
			}
			if n := strings.Count(got, `"degraded"`); n != 3 {
				t.Errorf("%d times degraded in %s, want 3", n, got)
			}
		}
		if n := asked.Load(); n != 1 {
			t.Errorf("a hanging dependency was asked %d times at once, want 1", n)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if get(t, h); asked.Load() != 2 {
			t.Errorf("a dependency that hung was not asked again")
		}
		time.Sleep(time.Minute)
	})
}

// TestAskedOnceASecond floods the handler.
func TestAskedOnceASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int64
		h := New(Sources{
			Database: wellDatabase,
			Cache: func(context.Context) error {
				asked.Add(1)
				return nil
			},
		})
		for range 1000 {
			get(t, h)
			time.Sleep(10 * time.Millisecond)
		}
		if n := asked.Load(); n != 10 {
			t.Errorf("asked %d times in 10 s, want 10", n)
		}
	})
}

// TestRedis asks a real client, before and after its server goes.
func TestRedis(t *testing.T) {
	server := miniredis.RunT(t)
	client := redis.NewClient(&redis.Options{Addr: server.Addr(), MaxRetries: -1})
	defer client.Close()
	sources := Sources{Database: wellDatabase, Cache: func(ctx context.Context) error { return client.Ping(ctx).Err() }}
	var a answer
	if err := json.Unmarshal([]byte(get(t, New(sources))), &a); err != nil {
		t.Fatal(err)
	}
	if a.Status != stateOK || a.Services.Cache.Status != stateOK || a.Services.Cache.LatencyMS == nil {
		t.Errorf("with Redis: %+v", a)
	}
	server.Close()
	if got := get(t, New(sources)); !strings.Contains(got, `"cache":{"status":"degraded"}`) {
		t.Errorf("without Redis: %s", got)
	}
}
