package upstream

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"go.uber.org/goleak"

	feedv1 "github.com/cutemarkets/relay/proto/feed/v1"
	"github.com/cutemarkets/relay/services/fanout/internal/calendar"
	"github.com/cutemarkets/relay/services/fanout/internal/leader"
	"github.com/cutemarkets/relay/services/fanout/internal/router"
	"github.com/cutemarkets/relay/services/internal/lease"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const canary = `canary-"key"`

// vendorServer is a WebSocket server whose connections a test scripts.
type vendorServer struct {
	*testing.T
	url   string
	peers chan *peer
	open  atomic.Int32 // connections
	most  atomic.Int32 // of them at a time
	paths sync.Map
}

// peer is one connection, seen from the vendor.
type peer struct {
	*vendorServer
	conn *websocket.Conn
	raw  net.Conn
	over chan struct{} // closed when the test has done with it
}

func newVendorServer(t *testing.T) *vendorServer {
	v := &vendorServer{T: t, peers: make(chan *peer, 16)}
	server := httptest.NewUnstartedServer(http.HandlerFunc(v.serve))
	server.Config.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		return context.WithValue(ctx, peerKey{}, c)
	}
	server.Start()
	t.Cleanup(server.Close)
	v.url = "ws" + strings.TrimPrefix(server.URL, "http")
	return v
}

type peerKey struct{}

func (v *vendorServer) serve(w http.ResponseWriter, r *http.Request) {
	v.paths.Store(r.URL.Path, true)
	conn, err := websocket.Accept(w, r, nil)
	if err != nil {
		return
	}
	defer conn.CloseNow()
	for n := v.open.Add(1); ; {
		if most := v.most.Load(); n <= most || v.most.CompareAndSwap(most, n) {
			break
		}
	}
	defer v.open.Add(-1)
	p := &peer{vendorServer: v, conn: conn, raw: r.Context().Value(peerKey{}).(net.Conn), over: make(chan struct{})}
	v.peers <- p
	<-p.over
}

// next is the next connection, not greeted yet.
func (v *vendorServer) next() *peer {
	v.Helper()
	select {
	case p := <-v.peers:
		return p
	case <-time.After(10 * time.Second):
		v.Fatal("no connection")
		return nil
	}
}

// login greets and authenticates.
func (v *vendorServer) login() *peer {
	v.Helper()
	p := v.next()
	p.status("connected", "Connected Successfully")
	p.expect("auth", canary)
	p.status("auth_success", "authenticated")
	return p
}

func (p *peer) status(status, message string) {
	p.Helper()
	p.send(fmt.Sprintf(`[{"ev":"status","status":%q,"message":%q}]`, status, message))
}

func (p *peer) send(text string) {
	p.Helper()
	if err := p.conn.Write(p.Context(), websocket.MessageText, []byte(text)); err != nil {
		p.Fatal(err)
	}
}

// expect takes a command; subscribes are acknowledged by the test.
func (p *peer) expect(action, params string) {
	p.Helper()
	ctx, cancel := context.WithTimeout(p.Context(), 10*time.Second)
	defer cancel()
	_, message, err := p.conn.Read(ctx)
	if err != nil {
		p.Fatalf("no %s %s: %v", action, params, err)
	}
	var command struct{ Action, Params string }
	if err := json.Unmarshal(message, &command); err != nil || command.Action != action || command.Params != params {
		p.Fatalf("got %s, want %s %s", message, action, params)
	}
}

func (p *peer) ack(topic string) { p.Helper(); p.status("success", "subscribed to: "+topic) }

// expectClose waits for the end of the connection, by a close frame of the code.
func (p *peer) expectClose(code websocket.StatusCode) {
	p.Helper()
	ctx, cancel := context.WithTimeout(p.Context(), 10*time.Second)
	defer cancel()
	for {
		if _, _, err := p.conn.Read(ctx); err != nil {
			if got := websocket.CloseStatus(err); got != code {
				p.Errorf("closed by %v, want %d", err, code)
			}
			break
		}
	}
	close(p.over)
}

// close ends the connection from the vendor's side.
func (p *peer) close(code websocket.StatusCode) {
	_ = p.conn.Close(code, "")
	close(p.over)
}

// abort ends the connection by a TCP reset.
func (p *peer) abort() {
	_ = p.raw.(*net.TCPConn).SetLinger(0)
	_ = p.raw.Close()
	close(p.over)
}

// fixture is an upstream that leads, and an edge with interest.
type fixture struct {
	*vendorServer
	router   *router.Router
	edge     *router.Edge
	upstream *Upstream
	log      *lockedBuffer
	proof    *lease.Proof
	keyFile  string
	cancel   context.CancelFunc
	returned chan struct{}
}

// lockedBuffer is a log that can be waited for.
type lockedBuffer struct {
	written chan struct{} // holds a token after a record

	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case l.written <- struct{}{}:
	default:
	}
	return l.b.Write(p)
}

func (l *lockedBuffer) await(t *testing.T, text string) {
	t.Helper()
	late := time.After(10 * time.Second)
	for !strings.Contains(l.String(), text) {
		select {
		case <-l.written:
		case <-late:
			t.Fatalf("no %q in the log:\n%s", text, l)
		}
	}
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func start(t *testing.T, adjust func(*times), topics ...string) *fixture {
	f := &fixture{
		vendorServer: newVendorServer(t),
		router:       router.New("stocks", 32<<20, router.RingBounds{}),
		log:          &lockedBuffer{written: make(chan struct{}, 1)},
		proof:        lease.NewProof(),
		keyFile:      filepath.Join(t.TempDir(), "key"),
		returned:     make(chan struct{}),
	}
	f.setKey(canary)
	f.edge = f.router.Attach("edge")
	f.want(topics...)
	f.edge.Start(time.Now())
	logger := slog.New(slog.NewTextHandler(f.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	f.upstream = New(Config{URL: f.url, KeyFile: f.keyFile, Hours: calendar.Never}, f.router, logger)
	if adjust != nil {
		adjust(&f.upstream.times)
	}
	ctx, cancel := context.WithCancel(t.Context())
	f.cancel = cancel
	go func() {
		defer close(f.returned)
		if err := f.upstream.Run(ctx, leader.Leadership{Epoch: leader.Epoch{Generation: 1, Term: 1}, Proof: f.proof}); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-f.returned
		if f.most.Load() > 1 {
			t.Errorf("%d connections at a time", f.most.Load())
		}
		if strings.Contains(f.log.String(), "canary") {
			t.Errorf("the key is in the log:\n%s", f.log)
		}
	})
	return f
}

func (f *fixture) setKey(key string) {
	if err := os.WriteFile(f.keyFile, []byte(key+"\n"), 0o600); err != nil {
		f.Fatal(err)
	}
}

var nextID atomic.Uint32

func (f *fixture) want(topics ...string) {
	f.Helper()
	for _, name := range topics {
		if err := f.edge.Change(nil, []*feedv1.Topic{{Id: nextID.Add(1), Name: name}}); err != nil {
			f.Fatal(err)
		}
	}
}

// take waits for the edge's next message that is no heartbeat.
func (f *fixture) take() *feedv1.SubscribeResponse {
	f.Helper()
	late := time.After(10 * time.Second)
	for {
		for m := f.edge.Next(time.Now()); m != nil; m = f.edge.Next(time.Now()) {
			if m.GetHeartbeat() == nil {
				return m
			}
		}
		select {
		case <-f.edge.Ready():
		case <-late:
			f.Fatalf("no message; log:\n%s", f.log)
		}
	}
}

// expectEvents waits for events, in one batch or many.
func (f *fixture) expectEvents(events ...string) {
	f.Helper()
	want := strings.Join(events, "")
	got := ""
	for len(got) < len(want) {
		m := f.take()
		if m.GetBatch() == nil {
			f.Fatalf("got %v, want events", m)
		}
		got += string(m.GetBatch().GetPayload())
	}
	if got != want {
		f.Fatalf("got %s, want %s", got, want)
	}
}

// expectState waits for a state of the upstream in the edge's heartbeats.
func (f *fixture) expectState(state feedv1.UpstreamState) *feedv1.Heartbeat {
	f.Helper()
	late := time.After(10 * time.Second)
	for {
		for m := f.edge.Next(time.Now()); m != nil; m = f.edge.Next(time.Now()) {
			if h := m.GetHeartbeat(); h != nil && h.GetUpstream() == state && h.GetRole() == feedv1.Role_ROLE_LEADER {
				return h
			}
		}
		select {
		case <-f.edge.Ready():
		case <-late:
			f.Fatalf("never %v; log:\n%s", state, f.log)
		}
	}
}

func trade(n int) string { return fmt.Sprintf(`{"ev":"T","sym":"A","q":%d}`, n) }

const (
	down = feedv1.UpstreamState_UPSTREAM_STATE_DOWN
	live = feedv1.UpstreamState_UPSTREAM_STATE_LIVE
)

func TestLead(t *testing.T) {
	f := start(t, nil, "T.A")
	p := f.login()
	p.expect("subscribe", "T.A")
	p.ack("T.A")
	f.expectState(live)
	f.want("Q.*")
	p.expect("subscribe", "Q.*")
	p.send("[" + trade(1) + "," + trade(2) + `,{"ev":"Q","sym":"A"}]`)
	f.expectEvents(trade(1), trade(2), `{"ev":"Q","sym":"A"}`)
	big := `{"ev":"T","sym":"A","x":"` + strings.Repeat("x", 200<<10) + `"}`
	p.send("[" + strings.Repeat(big+",", 9) + big + "]")
	f.expectEvents(big, big, big, big, big, big, big, big, big, big)
	p.send("[" + trade(3) + `,5,{"ev":"T"`)
	f.expectEvents(trade(3))
	if got := f.upstream.malformed[router.FaultSyntax].Load(); got != 1 {
		t.Errorf("%d malformed frames counted", got)
	}
	if _, ok := f.paths.Load("/stocks"); !ok {
		t.Error("the market is not in the path")
	}
	f.cancel()
	p.expectClose(websocket.StatusNormalClosure)
	<-f.returned
	if got := State(f.upstream.state.Load()); got != StateStandby {
		t.Errorf("state %v", got)
	}
}

func TestLoss(t *testing.T) {
	for name, lose := range map[string]func(p *peer){
		"close 1008":   func(p *peer) { p.close(websocket.StatusPolicyViolation) },
		"close 1001":   func(p *peer) { p.close(websocket.StatusGoingAway) },
		"reset":        func(p *peer) { p.abort() },
		"end":          func(p *peer) { _ = p.raw.Close(); close(p.over) },
		"broken frame": func(p *peer) { _, _ = p.raw.Write([]byte{0xff, 0x00}); p.expectClose(websocket.StatusProtocolError) },
	} {
		t.Run(name, func(t *testing.T) {
			f := start(t, nil, "T.A", "T.B")
			p := f.login()
			p.expect("subscribe", "T.A,T.B")
			p.ack("T.A")
			p.ack("T.B")
			p.send("[" + trade(1) + "]")
			f.expectEvents(trade(1))
			f.setKey(canary + "2")
			lose(p)
			since := f.expectState(down).GetDownSince().AsTime()

			p = f.next()
			p.status("connected", "Connected Successfully")
			p.expect("auth", canary+"2")
			p.status("auth_success", "authenticated")
			p.expect("subscribe", "T.A,T.B")
			// Events before the last ack come after the gap.
			p.ack("T.A")
			p.send("[" + trade(2) + "," + trade(3) + `,{"ev":"status","status":"success","message":"subscribed to: T.B"},` + trade(4) + "]")
			gap := f.take().GetGap()
			if gap == nil {
				t.Fatal("no gap")
			}
			from, to := gap.GetFrom().AsTime(), gap.GetTo().AsTime()
			if !from.Equal(since) || !to.After(from) || to.After(time.Now()) {
				t.Errorf("gap from %v to %v, down since %v", from, to, since)
			}
			f.expectEvents(trade(2), trade(3), trade(4))
			close(p.over)
		})
	}
}

// TestHoldIsBounded: more events than can be held end the hold.
func TestHoldIsBounded(t *testing.T) {
	f := start(t, nil, "T.A")
	p := f.login()
	p.expect("subscribe", "T.A")
	p.ack("T.A")
	f.expectState(live)
	p.close(websocket.StatusGoingAway)
	f.expectState(down)
	p = f.login()
	p.expect("subscribe", "T.A")
	event := `{"ev":"T","sym":"A","x":"` + strings.Repeat("x", 100<<10) + `"}`
	frame := strings.Repeat(event+",", 49) + event
	p.send("[" + frame + "]")
	if f.take().GetGap() == nil {
		t.Fatal("no gap first")
	}
	f.expectEvents(strings.Repeat(event, 50))
	close(p.over)
}

func TestStolen(t *testing.T) {
	f := start(t, nil)
	p := f.login()
	f.expectState(live)
	p.status("max_connections", "Maximum number of websocket connections exceeded. ")
	p.expectClose(websocket.StatusNormalClosure)
	f.expectState(down)
	f.log.await(t, "cause=stolen")
	f.log.await(t, `level=ERROR msg="upstream state" component=upstream market=stocks state=stolen`)
	f.log.await(t, "--upstream-on-limit")
	if got := State(f.upstream.state.Load()); got != StateStolen {
		t.Errorf("state %v", got)
	}
}

// TestDoubtKeepsTheSocket: without proof the socket that is there serves on; when it
// ends there is no other until proof is back, and then at once.
func TestDoubtKeepsTheSocket(t *testing.T) {
	f := start(t, nil, "T.A")
	p := f.login()
	p.expect("subscribe", "T.A")
	p.ack("T.A")
	f.expectState(live)
	f.proof.Set(false)
	p.send("[" + trade(1) + "]")
	f.expectEvents(trade(1))
	p.close(websocket.StatusGoingAway)
	f.expectState(down)
	f.log.await(t, "state=unproven")
	select {
	case <-f.peers:
		t.Fatal("dialed without proof")
	case <-time.After(2 * backoffFirst):
	}
	f.proof.Set(true)
	p = f.login()
	p.expect("subscribe", "T.A")
	close(p.over)
}

// TestNoKeyInDoubt: a connection whose greeting comes too late for the proof is
// closed, and the key not sent.
func TestNoKeyInDoubt(t *testing.T) {
	f := start(t, nil)
	p := f.next()
	f.proof.Set(false)
	f.log.await(t, "state=unproven")
	_ = p.conn.Write(t.Context(), websocket.MessageText, []byte(`[{"ev":"status","status":"connected","message":""}]`))
	p.expectClose(websocket.StatusNormalClosure)
	f.log.await(t, "cause=unproven")
	f.proof.Set(true)
	close(f.login().over)
}

// TestEventsAfterRefusal: what follows a refusal is not of a connection that is
// ours.
func TestEventsAfterRefusal(t *testing.T) {
	f := start(t, nil, "T.A")
	p := f.next()
	p.status("connected", "Connected Successfully")
	p.expect("auth", canary)
	p.send(`[{"ev":"status","status":"auth_failed","message":"authentication failed"},` + trade(1) + `]`)
	p.send("[" + trade(2) + "]")
	p.expectClose(websocket.StatusNormalClosure)
	f.log.await(t, "cause=rejected")
	if got := f.router.Stats().Events["T"]; got != 0 {
		t.Errorf("%d events routed", got)
	}
}

// TestSilence: without a pong, or anything else, the connection is lost; a busy
// vendor may leave pongs out.
func TestSilence(t *testing.T) {
	quick := func(ts *times) { ts.pingEvery, ts.pingWait = 20*time.Millisecond, 100*time.Millisecond }
	t.Run("silent", func(t *testing.T) {
		f := start(t, quick)
		p := f.login()
		f.expectState(live)
		f.expectState(down) // the test does not read, so nothing answers
		if got := f.upstream.lost[CauseTimeout].Load(); got > 1 {
			t.Errorf("%d timeouts", got)
		}
		close(p.over)
	})
	t.Run("busy", func(t *testing.T) {
		f := start(t, quick, "T.A")
		p := f.login()
		p.expect("subscribe", "T.A")
		p.ack("T.A")
		begin := time.Now()
		for n := 0; time.Since(begin) < 500*time.Millisecond; n++ {
			p.send("[" + trade(n) + "]")
			f.expectEvents(trade(n))
		}
		close(p.over)
	})
}

// TestDeafVendor: a vendor that does not answer the close frame is cut off.
func TestDeafVendor(t *testing.T) {
	for name, say := range map[string]func(raw net.Conn) error{
		"silent": func(net.Conn) error { return io.EOF },
		"goes on": func(raw net.Conn) error {
			_, err := raw.Write([]byte("\x81\x02[]"))
			return err
		},
		"stops inside a frame": func(raw net.Conn) error {
			_, err := raw.Write([]byte("\x81\x7e\x01\x00["))
			return errors.Join(err, io.EOF)
		},
	} {
		t.Run(name, func(t *testing.T) {
			const patience = 500 * time.Millisecond
			f := start(t, func(ts *times) { ts.hangUp = patience })
			p := f.login()
			f.expectState(live)
			said := make(chan struct{})
			go func() {
				defer close(said)
				for say(p.raw) == nil {
				}
			}()
			f.cancel()
			begun := time.Now()
			<-f.returned
			if took := time.Since(begun); took > 2*patience {
				t.Errorf("Run returned after %v", took)
			}
			close(p.over)
			<-said
		})
	}
}

func TestUnreachable(t *testing.T) {
	f := start(t, nil)
	f.login().close(websocket.StatusGoingAway)
	if err := os.Remove(f.keyFile); err != nil {
		t.Fatal(err)
	}
	f.log.await(t, "cause=key")
	if f.upstream.lost[CauseKey].Load() == 0 {
		t.Error("not counted")
	}
	f.setKey(canary)
	close(f.login().over)
}

// TestEndIsAwaited: Run returns when the vendor has ended the connection on its
// side too, or the wait for that is over; its close frame alone is no end.
func TestEndIsAwaited(t *testing.T) {
	for name, ends := range map[string]bool{"it ends": true, "it does not": false} {
		t.Run(name, func(t *testing.T) {
			const patience = 500 * time.Millisecond
			f := start(t, func(times *times) { times.hangUp = patience }, "T.A")
			p := f.login()
			p.expect("subscribe", "T.A")
			p.ack("T.A")
			f.expectState(live)
			defer close(p.over)
			f.cancel()
			begun := time.Now()
			frame := make([]byte, 64)
			if n, err := p.raw.Read(frame); err != nil || frame[0] != 0x88 {
				t.Fatalf("got % x, %v; want a close frame", frame[:n], err)
			}
			if _, err := p.raw.Write([]byte{0x88, 2, 1000 >> 8, 1000 & 0xff}); err != nil {
				t.Fatal(err)
			}
			if n, err := p.raw.Read(frame); !errors.Is(err, io.EOF) {
				t.Fatalf("got % x, %v; want the end", frame[:n], err)
			}
			select {
			case <-f.returned:
				t.Fatalf("Run returned after %v", time.Since(begun))
			case <-time.After(patience / 4):
			}
			if ends {
				_ = p.raw.Close()
			}
			<-f.returned
			if took := time.Since(begun); ends != (took < patience) || took > 2*patience {
				t.Errorf("Run returned after %v", took)
			}
		})
	}
}
