package conformance

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	metricnoop "go.opentelemetry.io/otel/metric/noop"
	tracenoop "go.opentelemetry.io/otel/trace/noop"
	"go.uber.org/goleak"

	"github.com/cutemarkets/relay/services/edge/internal/dialect"
	"github.com/cutemarkets/relay/services/edge/internal/engine"
	"github.com/cutemarkets/relay/services/edge/internal/front"
	"github.com/cutemarkets/relay/services/edge/internal/principal"
	"github.com/cutemarkets/relay/services/internal/secret"
)

// TestMain lets more rows run at a time than there are processors: most of a row
// is waiting, and some wait for seconds.
func TestMain(m *testing.M) {
	if err := flag.Set("test.parallel", "32"); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

// kinds are the engines that every row runs on.
var kinds = []struct {
	name   string
	choose func(c *engine.Config)
}{
	{"portable", func(c *engine.Config) { c.Kind = engine.Portable }},
	{"epoll", func(c *engine.Config) { c.Kind = engine.Epoll }},
}

// patience bounds every wait of a test.
const patience = 20 * time.Second

// messageLimit is how long a message to the echo dialect may be: 256 KiB, the
// longest that a row has echoed.
const messageLimit = 256 << 10

// echo is a dialect that sends every message back; it says "empty" for an empty
// one, as the engine sends none of those.
type echo struct{}

func (echo) Name() string                       { return "echo" }
func (echo) Policy() dialect.Policy             { return dialect.Policy{MaxMessage: messageLimit, MaxTopics: 1} }
func (echo) Greeting() []byte                   { return nil }
func (echo) Welcome() []byte                    { return []byte("welcome") }
func (echo) Signin(r dialect.Reason) []byte     { return []byte(r.String()) }
func (echo) Reply(*dialect.Command) []byte      { return nil }
func (echo) Gap(dialect.Gap) []byte             { return nil }
func (echo) TopicProblem(string, string) []byte { return nil }
func (echo) Slow() []byte                       { return nil }
func (echo) Conflatable([]byte) []byte          { return nil }
func (echo) Envelope() (string, string, string) { return "", "", "" }
func (echo) Encode(event []byte) []byte         { return event }

func (echo) Open(*http.Request) dialect.Opening {
	return dialect.Opening{Market: "stocks", Credential: secret.New("key")}
}

func (echo) Decode(_ string, message []byte, c *dialect.Command) {
	*c = dialect.Command{Params: c.Params[:0], Reply: bytes.Clone(message)}
	if len(message) == 0 {
		c.Reply = []byte("empty")
	}
}

func (echo) Bye(r dialect.Reason) dialect.Bye {
	code := map[dialect.Reason]uint16{
		dialect.ProtocolError: 1002, dialect.UnsupportedData: 1003, dialect.InvalidUTF8: 1007, dialect.MessageTooBig: 1009,
	}[r]
	if code == 0 {
		code = 1008
	}
	return dialect.Bye{Code: code, Text: r.String()}
}

// everyone lets every client in.
type everyone struct{ engine *engine.Engine }

func (*everyone) Authenticate(context.Context, string, secret.Secret) (principal.Principal, dialect.Reason) {
	return principal.Principal{UserID: "u"}, dialect.OK
}

func (*everyone) Probe(context.Context, principal.Principal) dialect.Reason {
	return dialect.DuplicateConnection
}

func (e *everyone) Acquire(_ context.Context, _ principal.Principal, o engine.Owner) (engine.Lock, dialect.Reason) {
	return lock{e.engine, o}, dialect.OK
}

func (*everyone) Fence() {}

// lock is a lock that nobody else wants.
type lock struct {
	engine *engine.Engine
	owner  engine.Owner
}

func (l lock) Release() { l.engine.Released(l.owner) }

// topics gives each topic an id of its own.
type topics struct{ given atomic.Uint32 }

func (t *topics) Acquire(string) uint32 { return t.given.Add(1) }
func (*topics) Release(uint32)          {}

func newEngine(t testing.TB, choose func(c *engine.Config)) *engine.Engine {
	t.Helper()
	backend := new(everyone)
	c := engine.Config{
		Markets:        map[string]engine.Interest{"stocks": &topics{}},
		Backend:        backend,
		Meter:          metricnoop.NewMeterProvider().Meter(""),
		Logger:         slog.New(slog.DiscardHandler),
		Shards:         2,
		MaxConnections: 1000,
	}
	choose(&c)
	e, err := engine.New(c)
	if err != nil {
		t.Fatal(err)
	}
	backend.engine = e
	return e
}

// serve runs a front and an engine until the test and its parallel subtests are
// over, and returns the address.
func serve(t testing.TB, choose func(c *engine.Config), d dialect.Dialect) string {
	t.Helper()
	e := newEngine(t, choose)
	f, err := front.New(front.Options{
		Listen: "127.0.0.1:0", MaxHandshakes: 1000, HandshakeBurst: 1, KeyBurst: 1, FailureRate: 1e6, FailureBurst: 1 << 30,
	}, front.Deps{
		Engine: e, Dialect: d, Status: http.NotFoundHandler(), Log: slog.New(slog.DiscardHandler),
		Meter: metricnoop.NewMeterProvider().Meter(""), Tracer: tracenoop.NewTracerProvider().Tracer(""),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	if err := f.Listen(ctx); err != nil {
		t.Fatal(err)
	}
	ran := make(chan error, 2)
	go func() { ran <- e.Run(ctx) }()
	go func() { ran <- f.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		for range cap(ran) {
			if err := <-ran; err != nil {
				t.Error(err)
			}
		}
	})
	return f.Addr().String()
}

// peer is a client that speaks octets.
type peer struct {
	t    testing.TB
	conn net.Conn
	in   *bufio.Reader
}

// dial opens a socket; early goes out in one write with the request, header
// lines are added to it.
func dial(t testing.TB, addr string, early []byte, header ...string) (*peer, *http.Response) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	lines := append([]string{
		"GET /v1/ws/stocks/?api_key=key HTTP/1.1", "Host: relay.test", "Upgrade: websocket", "Connection: Upgrade",
		"Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
	}, header...)
	p := &peer{t: t, conn: conn, in: bufio.NewReader(conn)}
	if _, err := conn.Write(append([]byte(strings.Join(lines, "\r\n")+"\r\n\r\n"), early...)); err != nil {
		t.Fatal(err)
	}
	answer, err := http.ReadResponse(p.in, nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = answer.Body.Close()
	if answer.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("handshake answered with %s", answer.Status)
	}
	return p, answer
}

// Opcodes of RFC 6455 §5.2.
const (
	opText  = 1
	opClose = 8
	opPing  = 9
	opPong  = 10
)

// frame is a frame of the server.
type frame struct {
	opcode  byte
	payload string
}

// next returns the next frame; false at the end of TCP. It fails the test for a
// frame that a server must not send, for a reset and for silence.
func (p *peer) next() (frame, bool) {
	p.t.Helper()
	head := make([]byte, 2)
	switch _, err := io.ReadFull(p.in, head); {
	case errors.Is(err, io.EOF):
		return frame{}, false
	case err != nil:
		p.t.Fatalf("instead of a frame or the end: %v", err)
	}
	opcode, length := head[0]&0x0f, uint64(head[1]&0x7f)
	switch {
	case head[0]&0x80 == 0 || head[0]&0x70 != 0 || head[1]&0x80 != 0:
		p.t.Fatalf("frame of the server begins with %x", head)
	case opcode != opText && opcode != opClose && opcode != opPing && opcode != opPong:
		p.t.Fatalf("frame of the server has opcode %d", opcode)
	case opcode >= opClose && length > 125:
		p.t.Fatal("control frame of the server is longer than 125 octets")
	}
	size, least := 0, uint64(0)
	switch length {
	case 126:
		size, least = 2, 126
	case 127:
		size, least = 8, 1<<16
	}
	if size > 0 {
		extended := make([]byte, 8)
		if _, err := io.ReadFull(p.in, extended[8-size:]); err != nil {
			p.t.Fatalf("inside a header: %v", err)
		}
		length = binary.BigEndian.Uint64(extended)
	}
	if length < least || length > 1<<20 {
		p.t.Fatalf("frame of the server has a length of %d octets in %d", length, size)
	}
	payload := make([]byte, length)
	if _, err := io.ReadFull(p.in, payload); err != nil {
		p.t.Fatalf("inside a payload of %d octets: %v", length, err)
	}
	if opcode == opText && !utf8.Valid(payload) {
		p.t.Fatalf("text of the server is not UTF-8: %.100q", payload)
	}
	return frame{opcode, string(payload)}, true
}

// String is for messages of tests.
func (f frame) String() string { return fmt.Sprintf("opcode %d %.100q", f.opcode, f.payload) }

// attach gives the engine one end of a pipe and returns the other.
func attach(t testing.TB, e *engine.Engine, d dialect.Dialect) *peer {
	t.Helper()
	near, far := net.Pipe()
	if !e.Attach(near, nil, d, d.Open(nil), netip.MustParseAddr("192.0.2.1"), false) {
		t.Fatal("not attached")
	}
	return &peer{t: t, conn: far, in: bufio.NewReader(far)}
}
