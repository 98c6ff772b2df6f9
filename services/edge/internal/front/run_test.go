package front

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
)

// TestStop stops a Front: it listens no more, a slow handshake is cut, a socket
// that was handed over lives on.
func TestStop(t *testing.T) {
	g := prepare(t, defaults())
	g.run()
	c, s := g.open(request("/v1/ws/stocks/"))
	slow := g.dial()
	g.eventually("one is being opened", func() bool { return g.front.opening() == 1 })
	began := time.Now()
	g.stop()
	if err := g.wait(); err != nil {
		t.Errorf("Run: %v", err)
	}
	if d := time.Since(began); d > stopTimeout+time.Second {
		t.Errorf("stopped after %v, want at most %v", d, stopTimeout)
	}
	if _, err := io.ReadAll(slow); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the slow handshake was not cut")
	}
	if _, err := net.Dial("tcp", g.addr); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial: %v, want refused", err)
	}
	go func() { _, _ = io.WriteString(s.conn, "x") }()
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Errorf("the socket: %v", err)
	}
	if err := g.front.Run(t.Context()); !errors.Is(err, ErrRunTwice) {
		t.Errorf("second Run: %v", err)
	}
	g.eventually("no slot is taken", func() bool { return g.front.opening() == 0 })
}

// TestAddressInUse holds that Run and Listen say so.
func TestAddressInUse(t *testing.T) {
	g := start(t, defaults())
	o := defaults()
	o.Listen = g.addr
	f, err := New(o, g.front.deps)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Run(t.Context()); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("Run: %v", err)
	}
}

// TestPanic holds that net/http does not swallow a panic of a handler.
func TestPanic(t *testing.T) {
	g := prepare(t, defaults())
	g.engine.set(func(e *catcher) { e.panics = "broken invariant" })
	raised := make(chan any, 1)
	go func() {
		defer func() { raised <- recover() }()
		_ = g.front.Run(t.Context())
	}()
	c := g.dial()
	_, _ = io.WriteString(c, request("/v1/ws/stocks/?api_key="+canary))
	select {
	case v := <-raised:
		if v != "broken invariant" {
			t.Errorf("Run panics with %v", v)
		}
	case <-time.After(patience):
		t.Fatal("Run does not panic")
	}
	_ = g.front.server.Close()
	log := g.log.String()
	if !strings.Contains(log, "broken invariant") || !strings.Contains(log, "catcher).Attach") {
		t.Errorf("no stack in the log: %s", log)
	}
	if strings.Contains(log, canary) {
		t.Errorf("the key is in the log: %s", log)
	}
}

// exhausted is a listener without descriptors at first.
type exhausted struct {
	net.Listener
	failures int
}

func (l *exhausted) Accept() (net.Conn, error) {
	if l.failures > 0 {
		l.failures--
		return nil, &net.OpError{Op: "accept", Net: "tcp", Err: os.NewSyscallError("accept4", syscall.EMFILE)}
	}
	return l.Listener.Accept()
}

// TestOutOfDescriptors holds that accepting goes on after EMFILE, and not in a
// spin: net/http waits 5, 10, 20 ms.
func TestOutOfDescriptors(t *testing.T) {
	g := prepare(t, defaults())
	g.front.listener.(*listener).Listener = &exhausted{Listener: g.front.listener.(*listener).Listener, failures: 3}
	began := time.Now()
	g.run()
	defer func() { g.stop(); _ = g.wait() }()
	g.open(request("/v1/ws/stocks/"))
	if d := time.Since(began); d < 35*time.Millisecond {
		t.Errorf("accepted after %v, want back-off", d)
	}
	if n := g.counts("relay_edge_http_errors")["accept"]; n != 3 {
		t.Errorf("%d errors counted, want 3", n)
	}
}

// TestCanary sends an API key in every way and place, and looks for it.
func TestCanary(t *testing.T) {
	o := defaults()
	o.FailureRate, o.FailureBurst = 0.01, 5
	g := start(t, o)
	target := "/v1/ws/stocks/?api_key=" + canary
	header := "+Authorization: Bearer " + canary
	var answers strings.Builder
	g.open(request(target, header))
	for _, raw := range []string{
		request(target, header, "-Upgrade"),
		request(target, header, "-Sec-WebSocket-Key"),
		request("/"+canary, header),
		request("/v1/ws/"+canary, header, "Upgrade: "+canary),
		request(target, header, "Sec-WebSocket-Version: "+canary),
		request(target, header, "Sec-WebSocket-Key: "+canary),
		request(target, header, "+Content-Length: 22") + canary,
		request(target + "\x00"),
		request("/v1/ws/%zz?api_key=" + canary),
		"GET " + target + " " + canary + " HTTP/1.1\r\n\r\n",
		canary + " / HTTP/1.1\r\nHost: x\r\n\r\n",
		request(target, header),
		request(target, header),
	} {
		answers.WriteString(g.exchange(raw))
	}
	g.stop()
	g.eventually("spans are there", func() bool { return len(g.spans.GetSpans()) >= 8 })
	for name, text := range map[string]string{
		"answers": answers.String(),
		"log":     g.log.String(),
		"spans":   fmt.Sprintf("%+v", g.spans.GetSpans()),
		"metrics": fmt.Sprint(g.counts("relay_edge_upgrades"), g.counts("relay_edge_http_errors")),
	} {
		if strings.Contains(text, canary) {
			t.Errorf("the key is in the %s: %s", name, text)
		}
	}
	if n := strings.Count(g.log.String(), "handshake refused"); n != 1 {
		t.Errorf("%d refusals of one address logged in a minute, want 1: %s", n, g.log.String())
	}
}

// TestSpans looks at the spans of a good and a bad handshake.
func TestSpans(t *testing.T) {
	g := start(t, defaults())
	g.open(request("/v1/ws/options"))
	g.exchange(request("/v1/ws/crypto/", "Sec-WebSocket-Version: 8"))
	g.exchange("GET /v1/status/ HTTP/1.1\r\nHost: x\r\n\r\n")
	g.eventually("two spans", func() bool { return len(g.spans.GetSpans()) == 2 })
	want := [][]attribute.KeyValue{
		{attribute.String("market", "options"), attribute.String("result", "ok")},
		{attribute.String("market", "other"), attribute.String("result", "upgrade_required")},
	}
	for i, s := range g.spans.GetSpans() {
		if s.Name != "relay.handshake" || fmt.Sprint(s.Attributes) != fmt.Sprint(want[i]) || s.EndTime.Before(s.StartTime) {
			t.Errorf("span %s %v, want %v", s.Name, s.Attributes, want[i])
		}
	}
}
