package fleet

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/gobwas/ws"

	"github.com/cutemarkets/relay/hack/loadtest/fleet/wire"
)

const patience = 60 * time.Second

// told is what a fleet told of one connection.
type told struct {
	ready     bool
	times     Times
	events    []string
	received  []int64
	statuses  []string
	misframed []wire.Fault
	end       *End
}

// recorder is a Handler that keeps all it is told.
type recorder struct {
	mu      sync.Mutex
	changed sync.Cond
	conns   map[int]*told
	live    map[int]*Conn
	rounds  int
}

func newRecorder() *recorder {
	r := &recorder{conns: map[int]*told{}, live: map[int]*Conn{}}
	r.changed.L = &r.mu
	return r
}

func (r *recorder) note(c *Conn, do func(*told)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conns[c.Tag()] == nil {
		r.conns[c.Tag()] = &told{}
	}
	do(r.conns[c.Tag()])
	r.changed.Broadcast()
}

func (r *recorder) Ready(c *Conn, t Times) {
	r.note(c, func(o *told) { o.ready, o.times = true, t; r.live[c.Tag()] = c })
}

func (r *recorder) Event(c *Conn, raw []byte, received int64) {
	r.note(c, func(o *told) {
		if o.end != nil {
			panic("an event behind the end")
		}
		o.events, o.received = append(o.events, string(raw)), append(o.received, received)
	})
}

func (r *recorder) Status(c *Conn, status, message string, _ []byte) {
	r.note(c, func(o *told) { o.statuses = append(o.statuses, status+": "+message) })
}

func (r *recorder) Misframed(c *Conn, fault wire.Fault, _ []byte) {
	r.note(c, func(o *told) { o.misframed = append(o.misframed, fault) })
}

func (r *recorder) Closed(c *Conn, e End) {
	r.note(c, func(o *told) {
		if o.end != nil {
			panic("ended twice")
		}
		o.end = &e
	})
}

func (r *recorder) Round(time.Duration) { r.rounds++ }

// await waits until the connection is as wanted and returns it.
func (r *recorder) await(t testing.TB, tag int, what string, done func(*told) bool) *told {
	t.Helper()
	timer := time.AfterFunc(patience, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.changed.Broadcast()
	})
	defer timer.Stop()
	began := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		if o := r.conns[tag]; o != nil && done(o) {
			return o
		}
		if time.Since(began) >= patience {
			t.Fatalf("connection %d: no %s, but %+v", tag, what, r.conns[tag])
		}
		r.changed.Wait()
	}
}

func (r *recorder) awaitEnd(t testing.TB, tag int) *told {
	t.Helper()
	return r.await(t, tag, "end", func(o *told) bool { return o.end != nil })
}

func (r *recorder) awaitReady(t testing.TB, tag int) *told {
	t.Helper()
	return r.await(t, tag, "ready", func(o *told) bool { return o.ready })
}

// start runs a fleet until the test ends.
func start(t testing.TB, h Handler, o Options) *Fleet {
	t.Helper()
	f, err := New(h, o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return f
}

func target(t testing.TB, url string) *Target {
	t.Helper()
	target, err := NewTarget(context.Background(), strings.Replace(url, "http", "ws", 1))
	if err != nil {
		t.Fatal(err)
	}
	return target
}

func open(t testing.TB, f *Fleet, p Plan) {
	t.Helper()
	if p.Scheduled.IsZero() {
		p.Scheduled = time.Now()
	}
	if err := f.Open(p); err != nil {
		t.Fatal(err)
	}
}

const (
	connected   = `[{"ev":"status","status":"connected","message":"Connected Successfully"}]`
	authSuccess = `[{"ev":"status","status":"auth_success","message":"authenticated"}]`
	ackTA       = `[{"ev":"status","status":"success","message":"subscribed to: T.A"}]`
	switching   = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + wire.Accept + "\r\n\r\n"
)

func text(s string) string { return frame(ws.NewTextFrame([]byte(s))) }

func frame(f ws.Frame) string {
	var b strings.Builder
	if err := ws.WriteFrame(&b, f); err != nil {
		panic(err)
	}
	return b.String()
}

// closeFrame is a close frame of a server.
func closeFrame(code ws.StatusCode, reason string) string {
	return frame(ws.NewCloseFrame(ws.NewCloseFrameBody(code, reason)))
}

// accepted are the bytes of a server up to the acknowledgement of T.A.
var accepted = switching + text(connected) + text(authSuccess) + text(ackTA)

// rawServer answers each connection by do, once it has sent its request.
func rawServer(t testing.TB, do func(conn net.Conn)) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var served sync.WaitGroup
	served.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			served.Go(func() {
				defer conn.Close()
				if err := readRequest(conn); err == nil {
					do(conn)
				}
			})
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		served.Wait()
	})
	return "ws://" + listener.Addr().String() + "/v1/ws/stocks/"
}

func readRequest(conn io.Reader) error {
	var request []byte
	one := make([]byte, 1)
	for !strings.HasSuffix(string(request), "\r\n\r\n") {
		if _, err := conn.Read(one); err != nil {
			return err
		}
		request = append(request, one[0])
	}
	return nil
}

// says is a server that says this and waits for the client to end TCP.
func says(t testing.TB, bytes string) string {
	return rawServer(t, func(conn net.Conn) {
		_, _ = io.WriteString(conn, bytes)
		_, _ = io.Copy(io.Discard, conn)
	})
}

// serve serves a handler over HTTP.
func serve(t testing.TB, h http.Handler) string {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	server := httptest.NewUnstartedServer(h)
	server.Config.BaseContext = func(net.Listener) context.Context { return ctx }
	server.Start()
	t.Cleanup(func() {
		cancel()
		server.Close()
	})
	return server.URL
}

func TestMain(m *testing.M) {
	if writerWanted() {
		if err := writeForever(); err != nil {
			panic(fmt.Sprint("writer: ", err))
		}
		return
	}
	goleak.VerifyTestMain(m)
}
