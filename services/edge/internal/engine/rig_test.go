package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gobwas/ws"
	"go.opentelemetry.io/otel/metric/noop"
	"go.uber.org/goleak"

	feedv1 "github.com/cutemarkets/relay/proto/feed/v1"
	"github.com/cutemarkets/relay/services/edge/internal/dialect"
	"github.com/cutemarkets/relay/services/edge/internal/principal"
	"github.com/cutemarkets/relay/services/internal/secret"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// plain is a dialect with words that are easy to compare. Commands are
// "sub A B", "unsub A", "key K"; everything else is malformed.
type plain struct {
	policy dialect.Policy
	hold   time.Duration
	market string // asked for by all; empty: stocks

	mu      sync.Mutex
	encoded int
}

func newPlain() *plain {
	return &plain{policy: dialect.Policy{
		MaxMessage: 16 << 10, MaxTopics: 1000, MaxScarce: 1000, CommandRate: 20, CommandBurst: 50, CredentialWait: 10 * time.Second,
	}}
}

func (d *plain) Name() string                        { return "plain" }
func (d *plain) Policy() dialect.Policy              { return d.policy }
func (d *plain) Greeting() []byte                    { return []byte("hello") }
func (d *plain) Welcome() []byte                     { return []byte("welcome") }
func (d *plain) Signin(r dialect.Reason) []byte      { return []byte("signin " + r.String()) }
func (d *plain) TopicProblem(topic, p string) []byte { return []byte("problem " + topic + ": " + p) }
func (d *plain) Slow() []byte                        { return []byte("slow") }
func (d *plain) Envelope() (string, string, string)  { return "[", ",", "]" }

// Open implements dialect.Dialect.
func (d *plain) Open(*http.Request) dialect.Opening {
	o := opening()
	if d.market != "" {
		o.Market = d.market
	}
	return o
}

// Conflatable implements dialect.Dialect: events such as "A=1", by what is left of
// the equals sign.
func (d *plain) Conflatable(event []byte) []byte {
	key, _, ok := bytes.Cut(event, []byte("="))
	if !ok {
		return nil
	}
	return key
}

func (d *plain) Decode(_ string, message []byte, c *dialect.Command) {
	words := strings.Fields(string(message))
	switch {
	case len(words) > 0 && words[0] == "sub":
		c.Op = dialect.OpSubscribe
	case len(words) > 0 && words[0] == "unsub":
		c.Op = dialect.OpUnsubscribe
	case len(words) > 0 && words[0] == "key":
		c.Op, c.Credential = dialect.OpSignin, secret.New(strings.Join(words[1:], " "))
		return
	default:
		c.Op, c.Malformed, c.Reply = dialect.OpNone, true, []byte("what?")
		return
	}
	for _, w := range words[1:] {
		c.Params = append(c.Params, dialect.Param{Topic: w, Text: w})
	}
}

func (d *plain) Reply(c *dialect.Command) []byte {
	reply := "ok"
	for _, p := range c.Params {
		reply += " " + p.Topic + p.Problem
	}
	return []byte(reply)
}

func (d *plain) Gap(g dialect.Gap) []byte {
	if g.To.IsZero() {
		return fmt.Appendf(nil, "gap %s %d-", g.Market, g.From.Unix())
	}
	return fmt.Appendf(nil, "gap %s %d-%d", g.Market, g.From.Unix(), g.To.Unix())
}

func (d *plain) Encode(event []byte) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.encoded++
	return event
}

func (d *plain) Bye(r dialect.Reason) dialect.Bye {
	codes := map[dialect.Reason]uint16{
		dialect.ProtocolError: 1002, dialect.UnsupportedData: 1003, dialect.InvalidUTF8: 1007, dialect.MessageTooBig: 1009,
		dialect.Draining: 1012, dialect.CredentialInvalid: 4401, dialect.DuplicateConnection: 4409,
		dialect.AuthUnavailable: 1011, dialect.LockUnavailable: 1011, dialect.UpstreamGone: 1011,
	}
	code := codes[r]
	if code == 0 {
		code = 1008
	}
	return dialect.Bye{Frames: [][]byte{[]byte("bye " + r.String())}, Hold: d.hold, Code: code, Text: r.String()}
}

func opening() dialect.Opening {
	return dialect.Opening{Market: "stocks", Credential: secret.New("key")}
}

// table is a topic table of a market.
type table struct {
	mu         sync.Mutex
	ids        map[string]uint32
	references map[uint32]int
	given      uint32
}

func newTable() *table { return &table{ids: make(map[string]uint32), references: make(map[uint32]int)} }

func (t *table) Acquire(topic string) uint32 {
	t.mu.Lock()
	defer t.mu.Unlock()
	id, ok := t.ids[topic]
	if !ok {
		t.given++
		id = t.given | 7<<24
		t.ids[topic] = id
	}
	t.references[id]++
	return id
}

func (t *table) Release(id uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.references[id] == 0 {
		panic("release of a topic nobody holds")
	}
	if t.references[id]--; t.references[id] == 0 {
		delete(t.references, id)
		for topic, other := range t.ids {
			if other == id {
				delete(t.ids, topic)
			}
		}
	}
}

func (t *table) id(topic string) uint32 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.ids[topic]
}

func (t *table) held() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.references)
}

// anyone lets everybody in; its functions may be replaced.
type anyone struct {
	engine       *Engine // told of releases
	authenticate func(ctx context.Context) (principal.Principal, dialect.Reason)
	acquire      func(ctx context.Context, o Owner) (Lock, dialect.Reason)
	fence        atomic.Pointer[func()]
	probe        func(ctx context.Context) dialect.Reason
}

// lock is a lock that calls release when it is given back.
type lock struct {
	engine  *Engine // nil: nobody is told
	owner   Owner
	release func()
}

func (l lock) Release() {
	if l.release != nil {
		l.release()
	}
	if l.engine != nil {
		l.engine.Released(l.owner)
	}
}

func (a *anyone) Authenticate(ctx context.Context, _ string, _ secret.Secret) (principal.Principal, dialect.Reason) {
	if a.authenticate != nil {
		return a.authenticate(ctx)
	}
	return principal.Principal{UserID: "u"}, dialect.OK
}

func (a *anyone) Acquire(ctx context.Context, _ principal.Principal, o Owner) (Lock, dialect.Reason) {
	if a.acquire != nil {
		return a.acquire(ctx, o)
	}
	return lock{engine: a.engine, owner: o}, dialect.OK
}

func (a *anyone) Fence() {
	if fence := a.fence.Load(); fence != nil {
		(*fence)()
	}
}

func (a *anyone) Probe(ctx context.Context, _ principal.Principal) dialect.Reason {
	if a.probe == nil {
		return dialect.DuplicateConnection
	}
	return a.probe(ctx)
}

// rig is an engine of one market on real sockets.
type rig struct {
	t       testing.TB
	engine  *Engine
	dialect *plain
	backend *anyone
	topics  *table
	deflate atomic.Bool
	server  *httptest.Server
	stop    func()
}

func newEngine(t testing.TB, backend Backend, topics *table, change func(c *Config)) *Engine {
	t.Helper()
	c := Config{
		Markets:        map[string]Interest{"stocks": topics},
		Backend:        backend,
		Meter:          noop.NewMeterProvider().Meter("test"),
		Logger:         slog.New(slog.DiscardHandler),
		Shards:         1,
		MaxConnections: 100_000,
	}
	if change != nil {
		change(&c)
	}
	e, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	if a, ok := c.Backend.(*anyone); ok {
		a.engine = e
	}
	return e
}

// bothKinds runs a test with each kind of transport there is on this system.
func bothKinds(t *testing.T, test func(t *testing.T, kind Kind)) {
	t.Helper()
	kinds := []Kind{Portable}
	if rawSockets {
		kinds = append(kinds, Epoll)
	}
	for _, kind := range kinds {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			test(t, kind)
		})
	}
}

func newRig(t testing.TB, kind Kind, change func(c *Config)) *rig {
	t.Helper()
	r := &rig{t: t, dialect: newPlain(), backend: &anyone{}, topics: newTable()}
	r.engine = newEngine(t, r.backend, r.topics, func(c *Config) {
		c.Kind = kind
		if change != nil {
			change(c)
		}
	})
	r.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		conn, rw, _, err := ws.UpgradeHTTP(q, w)
		if err != nil {
			return
		}
		early, _ := rw.Reader.Peek(rw.Reader.Buffered()) //nolint:staticcheck // the reader of the pair
		if !r.engine.Attach(conn, early, r.dialect, r.dialect.Open(q), netip.MustParseAddr("192.0.2.1"), r.deflate.Load()) {
			_ = conn.Close()
		}
	}))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.engine.Run(ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		r.server.Close()
	})
	t.Cleanup(r.stop)
	return r
}

func (r *rig) batch(events ...event) *feedv1.Batch { return batchOf(r.topics, events...) }

func (r *rig) send(events ...event) { r.engine.Sink("stocks").Batch(r.batch(events...)) }

// event is an event with its exact topic and wildcard, either may be empty.
type event struct{ text, exact, wildcard string }

func batchOf(t *table, events ...event) *feedv1.Batch {
	b := &feedv1.Batch{}
	for i, e := range events {
		b.Payload = append(b.Payload, e.text...)
		b.Ends = append(b.Ends, uint32(len(b.Payload)))
		b.SequenceOffsets = append(b.SequenceOffsets, uint32(i))
		b.TopicIds = append(b.TopicIds, t.id(e.exact), t.id(e.wildcard))
	}
	return b
}

// dial opens a connection with raw bytes; extra goes out with the request.
func (r *rig) dial(extra ...byte) *peer {
	r.t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(r.server.URL, "http://"))
	if err != nil {
		r.t.Fatal(err)
	}
	return r.upgrade(conn, extra...)
}

// upgrade makes a peer of a connection to the rig, as dial does.
func (r *rig) upgrade(conn net.Conn, extra ...byte) *peer {
	r.t.Helper()
	request := "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
	if _, err := conn.Write(append([]byte(request), extra...)); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = conn.Close() })
	p := &peer{t: r.t, conn: conn}
	answer := make([]byte, 0, 256)
	for one := make([]byte, 1); !bytes.HasSuffix(answer, []byte("\r\n\r\n")); answer = append(answer, one...) {
		if _, err := conn.Read(one); err != nil {
			r.t.Fatalf("upgrade: %v", err)
		}
	}
	if !bytes.HasPrefix(answer, []byte("HTTP/1.1 101")) {
		r.t.Fatalf("upgrade: %s", answer)
	}
	return p
}

// peer is a client that speaks raw frames.
type peer struct {
	t    testing.TB
	conn net.Conn
}

func masked(first byte, payload string) []byte {
	f := ws.NewFrame(ws.OpCode(first&0x0f), first&0x80 != 0, []byte(payload))
	f.Header.Rsv = first >> 4 & 7
	return ws.MustCompileFrame(ws.MaskFrameInPlace(f))
}

func (p *peer) write(b []byte) {
	p.t.Helper()
	if _, err := p.conn.Write(b); err != nil {
		p.t.Fatal(err)
	}
}

func (p *peer) say(text string) { p.write(masked(0x81, text)) }

// next returns what comes next: a text, "ping", "pong …", "close code reason"
// or "eof".
func (p *peer) next() string {
	p.t.Helper()
	_ = p.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	f, err := ws.ReadFrame(p.conn) //nolint:staticcheck // the peer is ours
	switch {
	case err != nil && strings.Contains(err.Error(), "timeout"):
		p.t.Fatal("nothing comes")
	case err != nil:
		return "eof"
	case f.Header.Masked || f.Header.Rsv != 0 || !f.Header.Fin:
		p.t.Fatalf("bad header %+v", f.Header)
	}
	switch f.Header.OpCode {
	case ws.OpPing:
		return "ping"
	case ws.OpPong:
		return "pong " + string(f.Payload)
	case ws.OpClose:
		code, reason := ws.ParseCloseFrameData(f.Payload)
		return fmt.Sprintf("close %d %s", code, reason)
	default:
		return string(f.Payload)
	}
}

func (p *peer) expect(want ...string) {
	p.t.Helper()
	for _, w := range want {
		if got := p.next(); got != w {
			p.t.Fatalf("got %.200q, want %.200q", got, w)
		}
	}
}

// collect reads frames of events until it has n of them.
func (p *peer) collect(n int) []string {
	p.t.Helper()
	var all []string
	for len(all) < n {
		var some []json.RawMessage
		text := p.next()
		if err := json.Unmarshal([]byte(text), &some); err != nil {
			p.t.Fatalf("%.200q after %d events: %v", text, len(all), err)
		}
		for _, e := range some {
			all = append(all, string(e))
		}
	}
	return all
}
