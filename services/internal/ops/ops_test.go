package ops

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cutemarkets/relay/services/internal/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve runs the server until the test ends, or until stop is called, which
// returns the result of Run.
func serve(t *testing.T, s *Server) (base string, stop func() error) {
	t.Helper()
	addr, err := s.Listen()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	result, done := make(chan error, 1), make(chan struct{})
	go func() {
		defer close(done)
		result <- s.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		http.DefaultClient.CloseIdleConnections()
	})
	return "http://" + addr.String(), func() error {
		cancel()
		return <-result
	}
}

func newServer(o Options) *Server {
	o.Listen = "127.0.0.1:0"
	return New(o, telemetry.Discard())
}

func do(t *testing.T, method, url string) (status int, body string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, string(b)
}

func TestOptionsValidate(t *testing.T) {
	for listen, ok := range map[string]bool{":9090": true, "127.0.0.1:0": true, "[::]:9090": true, "": false, "9090": false, "host": false} {
		if err := (Options{Listen: listen}).Validate(); (err == nil) != ok {
			t.Errorf("%q: %v", listen, err)
		}
	}
}

func TestRoutes(t *testing.T) {
	for _, pprof := range []bool{false, true} {
		s := newServer(Options{Pprof: pprof})
		s.Handle("POST /drain", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusAccepted) }))
		base, _ := serve(t, s)
		profiles := http.StatusNotFound
		if pprof {
			profiles = http.StatusOK
		}
		for _, tt := range []struct {
			method, path string
			status       int
		}{
			{"GET", "/livez", http.StatusOK},
			{"HEAD", "/livez", http.StatusOK},
			{"POST", "/livez", http.StatusMethodNotAllowed},
			{"GET", "/readyz", http.StatusOK},
			{"GET", "/metrics", http.StatusOK},
			{"POST", "/drain", http.StatusAccepted},
			{"GET", "/", http.StatusNotFound},
			{"GET", "/debug/pprof/", profiles},
			{"GET", "/debug/pprof/heap", profiles},
			{"GET", "/debug/pprof/cmdline", profiles},
			{"GET", "/debug/pprof/symbol", profiles},
			{"GET", "/debug/pprof/profile?seconds=1", profiles},
			{"GET", "/debug/pprof/trace?seconds=0.01", profiles},
		} {
			if status, body := do(t, tt.method, base+tt.path); status != tt.status {
				t.Errorf("pprof %v: %s %s: %d, want %d: %s", pprof, tt.method, tt.path, status, tt.status, body)
			}
		}
	}
}

func TestReadinessNamesWhatFails(t *testing.T) {
	var mu sync.Mutex
	failing := map[string]error{}
	set := func(name string, err error) {
		mu.Lock()
		defer mu.Unlock()
		failing[name] = err
	}
	s := newServer(Options{})
	for _, name := range []string{"redis", "auth", "drain"} {
		s.Ready(name, func() error {
			mu.Lock()
			defer mu.Unlock()
			return failing[name]
		})
	}
	base, _ := serve(t, s)
	expect := func(status int, body string) {
		t.Helper()
		if gotStatus, got := do(t, "GET", base+"/readyz"); gotStatus != status || got != body {
			t.Errorf("readiness %d %q, want %d %q", gotStatus, got, status, body)
		}
		// Liveness depends on none of them.
		if gotStatus, got := do(t, "GET", base+"/livez"); gotStatus != http.StatusOK || got != "ok\n" {
			t.Errorf("liveness %d %q", gotStatus, got)
		}
	}
	expect(http.StatusOK, "ok\n")
	set("auth", errors.New("unreachable"))
	expect(http.StatusServiceUnavailable, "auth: unreachable\n")
	set("redis", errors.New("timeout"))
	expect(http.StatusServiceUnavailable, "redis: timeout\nauth: unreachable\n")
	set("redis", nil)
	set("auth", nil)
	expect(http.StatusOK, "ok\n")
	s.Ready("late", func() error { return errors.New("not started") })
	expect(http.StatusServiceUnavailable, "late: not started\n")
}

func TestMetricsAreServed(t *testing.T) {
	tel := telemetry.Discard()
	counter, err := tel.Meter("test").Int64Counter("relay_test")
	if err != nil {
		t.Fatal(err)
	}
	counter.Add(t.Context(), 1)
	base, _ := serve(t, New(Options{Listen: "127.0.0.1:0"}, tel))
	if _, body := do(t, "GET", base+"/metrics"); !strings.Contains(body, "relay_test_total 1\n") {
		t.Errorf("metrics: %s", body)
	}
}

func TestStopWaitsForRequests(t *testing.T) {
	s := newServer(Options{})
	began, release := make(chan struct{}), make(chan struct{})
	s.Handle("GET /slow", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(began)
		<-release
		w.WriteHeader(http.StatusTeapot)
	}))
	base, stop := serve(t, s)
	answered := make(chan int, 1)
	go func() {
		status, _ := do(t, "GET", base+"/slow")
		answered <- status
	}()
	<-began
	stopped := make(chan error, 1)
	go func() { stopped <- stop() }()
	close(release)
	if status := <-answered; status != http.StatusTeapot {
		t.Errorf("status %d", status)
	}
	if err := <-stopped; err != nil {
		t.Errorf("Run: %v", err)
	}
}

func TestStopIsBounded(t *testing.T) {
	s := newServer(Options{})
	s.stopTimeout = time.Millisecond
	began := make(chan struct{})
	s.Handle("GET /stuck", http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(began)
		<-r.Context().Done()
	}))
	base, stop := serve(t, s)
	cut := make(chan error, 1)
	go func() {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+"/stuck", nil)
		if err == nil {
			var answer *http.Response
			if answer, err = http.DefaultClient.Do(request); err == nil {
				answer.Body.Close()
			}
		}
		cut <- err
	}()
	<-began
	if err := stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
	if err := <-cut; err == nil {
		t.Error("the request was answered")
	}
}

func TestListenRefused(t *testing.T) {
	first := newServer(Options{})
	base, _ := serve(t, first)
	address := strings.TrimPrefix(base, "http://")
	if addr, err := first.Listen(); err != nil || addr.String() != address {
		t.Errorf("second Listen: %v, %v", addr, err)
	}
	second := New(Options{Listen: address}, telemetry.Discard())
	if err := second.Run(t.Context()); err == nil || !strings.Contains(err.Error(), address) {
		t.Errorf("Run on a taken address: %v", err)
	}
}

// TestStopBeforeServe: a service may be stopped before it has come up.
func TestStopBeforeServe(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 50 {
		s := newServer(Options{})
		if err := s.Run(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := net.Dial("tcp", s.listener.Addr().String()); err == nil {
			t.Fatal("the listener is still open")
		}
	}
}

// TestBrokenListenerEndsRun: Run does not go on without a listener.
func TestBrokenListenerEndsRun(t *testing.T) {
	s := newServer(Options{})
	if _, err := s.Listen(); err != nil {
		t.Fatal(err)
	}
	s.listener.Close()
	if err := s.Run(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Run: %v", err)
	}
}

// TestServerErrorsAreLogged: what net/http has to say goes to the log.
func TestServerErrorsAreLogged(t *testing.T) {
	logged := make(lines, 10)
	tel, err := telemetry.New(t.Context(), "test", telemetry.Options{LogFormat: "text", LogOutput: logged})
	if err != nil {
		t.Fatal(err)
	}
	defer tel.Shutdown(context.Background())
	s := New(Options{Listen: "127.0.0.1:0"}, tel)
	s.Handle("GET /abort", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusOK)
		w.WriteHeader(http.StatusOK) // superfluous
	}))
	base, _ := serve(t, s)
	do(t, "GET", base+"/abort")
	<-logged // listening
	if line := <-logged; !strings.Contains(line, "level=WARN") || !strings.Contains(line, "superfluous") || !strings.Contains(line, "component=ops") {
		t.Errorf("logged %s", line)
	}
}

// lines passes on each record of the log.
type lines chan string

func (l lines) Write(b []byte) (int, error) {
	l <- string(bytes.Clone(b))
	return len(b), nil
}
