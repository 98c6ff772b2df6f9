package front

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.uber.org/goleak"

	"github.com/cutemarkets/relay/services/edge/internal/dialect"
	"github.com/cutemarkets/relay/services/edge/internal/front/envelope"
	"github.com/cutemarkets/relay/services/internal/secret"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// canary is an API key that must appear nowhere.
const canary = "cm_canary_0123456789"

// patience bounds every wait of a test.
const patience = 10 * time.Second

// plainDialect is the little of a dialect that the front uses.
type plainDialect struct{ dialect.Dialect }

func (plainDialect) Open(r *http.Request) dialect.Opening {
	return dialect.Opening{Market: r.URL.Path, Credential: secret.New(r.URL.Query().Get("api_key"))}
}

func (plainDialect) Greeting() []byte { return []byte("hello") }

func (plainDialect) Bye(r dialect.Reason) dialect.Bye {
	codes := map[dialect.Reason]uint16{dialect.Draining: 1012, dialect.PodFull: 1013}
	return dialect.Bye{Frames: [][]byte{[]byte("bye"), []byte(r.String())}, Code: codes[r], Text: r.String()}
}

// socket is what an Attach was called with.
type socket struct {
	conn    net.Conn
	early   []byte
	opening dialect.Opening
	client  netip.Addr
	deflate bool
}

// catcher is an engine that keeps the sockets for the test.
type catcher struct {
	sockets chan socket

	mu sync.Mutex
	// Guarded by mu.
	full    bool
	refuses func() // what Attach does instead of taking a socket; nil: it takes it
	panics  any    // what Attach panics with
}

func (e *catcher) Full() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.full
}

func (e *catcher) set(change func(e *catcher)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	change(e)
}

func (e *catcher) Attach(conn net.Conn, early []byte, _ dialect.Dialect, o dialect.Opening, client netip.Addr, deflate bool) bool {
	e.mu.Lock()
	refuses, panics := e.refuses, e.panics
	e.mu.Unlock()
	if panics != nil {
		_ = conn.Close()
		panic(panics)
	}
	if refuses != nil {
		refuses()
		return false
	}
	e.sockets <- socket{conn, early, o, client, deflate}
	return true
}

// syncBuffer is a log that a test can read while it is written.
type syncBuffer struct {
	mu sync.Mutex
	// Guarded by mu.
	b bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// rig is a Front that runs, with what it was given.
type rig struct {
	t      testing.TB
	front  *Front
	engine *catcher
	log    *syncBuffer
	reader *metric.ManualReader
	spans  *tracetest.InMemoryExporter
	addr   string

	stop func() // cancels Run
	ran  chan error
}

// defaults are the options of a rig.
func defaults() Options {
	return Options{
		Listen: "127.0.0.1:0", MaxHandshakes: 100,
		HandshakeBurst: 50, KeyBurst: 100, FailureRate: 1000, FailureBurst: 100000,
	}
}

// prepare makes a rig that does not run yet.
func prepare(t testing.TB, o Options) *rig {
	t.Helper()
	g := &rig{
		t:      t,
		engine: &catcher{sockets: make(chan socket, 100)},
		log:    new(syncBuffer),
		reader: metric.NewManualReader(),
		spans:  tracetest.NewInMemoryExporter(),
		ran:    make(chan error, 1),
	}
	f, err := New(o, Deps{
		Engine:  g.engine,
		Dialect: plainDialect{},
		Status: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			envelope.Write(w, http.StatusOK, map[string]string{"status": "ok"})
		}),
		Log:    slog.New(slog.NewJSONHandler(g.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Meter:  metric.NewMeterProvider(metric.WithReader(g.reader)).Meter("front"),
		Tracer: trace.NewTracerProvider(trace.WithSyncer(g.spans)).Tracer("front"),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Listen(t.Context()); err != nil {
		t.Fatal(err)
	}
	g.front, g.addr = f, f.Addr().String()
	return g
}

// start makes a rig and runs it until the test ends.
func start(t testing.TB, o Options) *rig {
	t.Helper()
	g := prepare(t, o)
	g.run()
	t.Cleanup(func() {
		g.stop()
		if err := g.wait(); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return g
}

func (g *rig) run() {
	ctx, cancel := context.WithCancel(context.Background())
	g.stop = cancel
	go func() { g.ran <- g.front.Run(ctx) }()
}

func (g *rig) wait() error {
	select {
	case err := <-g.ran:
		return err
	case <-time.After(patience):
		return errors.New("Run does not return")
	}
}

func (g *rig) dial() net.Conn {
	g.t.Helper()
	c, err := net.Dial("tcp", g.addr)
	if err != nil {
		g.t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	g.t.Cleanup(func() { _ = c.Close() })
	return c
}

// exchange sends bytes and returns all that comes back until the connection is
// closed by the other side.
func (g *rig) exchange(raw string) string {
	g.t.Helper()
	c := g.dial()
	if _, err := io.WriteString(c, raw); err != nil {
		g.t.Fatal(err)
	}
	answer, err := io.ReadAll(c)
	if err != nil {
		g.t.Fatalf("after %q: %v", answer, err)
	}
	return string(answer)
}

// open does a handshake and returns the client's end and what the engine got.
func (g *rig) open(raw string) (net.Conn, socket) {
	g.t.Helper()
	c := g.dial()
	if _, err := io.WriteString(c, raw); err != nil {
		g.t.Fatal(err)
	}
	if got := g.expect101(bufio.NewReader(c)); got != "" {
		g.t.Errorf("Sec-WebSocket-Extensions: %q, want none", got)
	}
	s := g.attached()
	if s.deflate {
		g.t.Error("the engine was told of compression")
	}
	return c, s
}

func (g *rig) attached() socket {
	g.t.Helper()
	select {
	case s := <-g.engine.sockets:
		g.t.Cleanup(func() { _ = s.conn.Close() })
		return s
	case <-time.After(patience):
		g.t.Fatal("the engine got no socket")
		return socket{}
	}
}

// expect101 reads an upgrade that accepts no subprotocol, and returns the
// extensions it accepts.
func (g *rig) expect101(r *bufio.Reader) (extensions string) {
	g.t.Helper()
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		g.t.Fatal(err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		body, _ := io.ReadAll(resp.Body)
		g.t.Fatalf("%s: %s", resp.Status, body)
	}
	if got := resp.Header.Get("Sec-WebSocket-Accept"); got != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" {
		g.t.Errorf("Sec-WebSocket-Accept: %q", got)
	}
	if v := resp.Header.Values("Sec-WebSocket-Protocol"); len(v) != 0 {
		g.t.Errorf("Sec-WebSocket-Protocol: %q, want none", v)
	}
	return strings.Join(resp.Header.Values("Sec-WebSocket-Extensions"), " and ")
}

// counts returns the values of an instrument by its one label.
func (g *rig) counts(name string) map[string]int64 {
	g.t.Helper()
	var all metricdata.ResourceMetrics
	if err := g.reader.Collect(context.Background(), &all); err != nil {
		g.t.Fatal(err)
	}
	values := map[string]int64{}
	add := func(points []metricdata.DataPoint[int64]) {
		for _, p := range points {
			label := ""
			for _, kv := range p.Attributes.ToSlice() {
				label += kv.Value.AsString()
			}
			values[label] = p.Value
		}
	}
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			if m.Name != name {
				continue
			}
			switch data := m.Data.(type) {
			case metricdata.Sum[int64]:
				add(data.DataPoints)
			case metricdata.Gauge[int64]:
				add(data.DataPoints)
			case metricdata.Histogram[float64]:
				values[""] = int64(data.DataPoints[0].Count)
			}
		}
	}
	return values
}

// eventually waits until a condition holds that nothing tells us of.
func (g *rig) eventually(what string, holds func() bool) {
	g.t.Helper()
	for deadline := time.Now().Add(patience); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			g.t.Fatalf("not so in %v: %s", patience, what)
		}
	}
}

// request is a good handshake with lines changed: "Name: value" replaces the
// field, "-Name" takes it away, "+Name: value" adds one. target is the path.
func request(target string, changes ...string) string {
	fields := []string{
		"Host: relay.test",
		"Upgrade: websocket",
		"Connection: Upgrade",
		"Sec-WebSocket-Version: 13",
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
	}
	line := "GET " + target + " HTTP/1.1"
	for _, change := range changes {
		name, _, _ := strings.Cut(strings.TrimLeft(change, "+-"), ":")
		switch {
		case strings.HasPrefix(change, "+"):
			fields = append(fields, change[1:])
			continue
		case strings.HasSuffix(change, "HTTP/1.0") || strings.HasSuffix(change, "HTTP/1.1") || strings.HasSuffix(change, "HTTP/1.2"):
			line = change
			continue
		}
		for i, f := range fields {
			if strings.HasPrefix(f, name+":") {
				fields[i] = strings.TrimPrefix(change, "-"+name)
			}
		}
	}
	var b strings.Builder
	b.WriteString(line + "\r\n")
	for _, f := range fields {
		if f != "" {
			b.WriteString(f + "\r\n")
		}
	}
	b.WriteString("\r\n")
	return b.String()
}

var requestID = regexp.MustCompile(`^cm_[0-9a-f]{32}$`)

// refused checks that an answer is a refusal of ours and that nothing follows.
func refused(answer string, status int, code string) error {
	r := bufio.NewReader(strings.NewReader(answer))
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return fmt.Errorf("%q: %w", answer, err)
	}
	var body struct {
		Status    string `json:"status"`
		RequestID string `json:"request_id"`
		Error     struct{ Code, Message string }
	}
	d := json.NewDecoder(resp.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(&body); err != nil {
		return fmt.Errorf("%q: %w", answer, err)
	}
	switch {
	case resp.StatusCode != status:
		return fmt.Errorf("status %d, want %d", resp.StatusCode, status)
	case body.Status != "ERROR" || body.Error.Code != code || len(body.Error.Message) < 20:
		return fmt.Errorf("envelope %+v, want code %s", body, code)
	case !requestID.MatchString(body.RequestID):
		return fmt.Errorf("request id %q", body.RequestID)
	case !resp.Close:
		return errors.New("no Connection: close")
	case resp.Header.Get("Content-Type") != "application/json" || resp.Header.Get("Cache-Control") != "no-store":
		return fmt.Errorf("header %v", resp.Header)
	}
	if rest, _ := io.ReadAll(r); len(rest) > 0 {
		return fmt.Errorf("%q follows", rest)
	}
	return nil
}
