package fleet

import (
	"bytes"
	"compress/flate"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/gobwas/ws"

	"github.com/cutemarkets/relay/hack/loadtest/fleet/wire"
	"github.com/cutemarkets/relay/hack/loadtest/scripted"
)

// TestEnds holds what servers say against how the connection is told to end.
func TestEnds(t *testing.T) {
	t.Parallel()
	greeted := switching + text(connected)
	for name, c := range map[string]struct {
		says      string
		want      End
		misframed []wire.Fault
	}{
		"429":            {"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 3\r\nContent-Length: 2\r\n\r\n{}", End{Stage: StageUpgrade, HTTP: 429, RetryAfter: 3 * time.Second, Reason: "http_429", By: ByServer}, nil},
		"503":            {"HTTP/1.1 503 Service Unavailable\r\n\r\n", End{Stage: StageUpgrade, HTTP: 503, Reason: "http_503", By: ByServer}, nil},
		"no HTTP":        {"220 mail.example ESMTP\r\n\r\n", End{Stage: StageUpgrade, Reason: ReasonMisframed, By: ByUs}, []wire.Fault{wire.BadAnswer}},
		"key":            {greeted + text(`[{"ev":"status","status":"auth_failed","message":"authentication failed: invalid API key"}]`) + closeFrame(4401, "invalid API key"), End{Stage: StageAuth, Code: 4401, Reason: "credential_invalid", By: ByServer}, nil},
		"key, other":     {greeted + text(`[{"ev":"status","status":"auth_failed","message":"no"}]`) + closeFrame(1008, ""), End{Stage: StageAuth, Code: 1008, Reason: "auth_failed", By: ByServer}, nil},
		"second":         {greeted + closeFrame(4409, "this user already has an active connection"), End{Stage: StageAuth, Code: 4409, Reason: "duplicate_connection", By: ByServer}, nil},
		"drain":          {accepted + text(`[{"ev":"status","status":"draining","message":"soon"}]`) + closeFrame(1012, "service restart"), End{Stage: StageLive, Code: 1012, Reason: "draining", By: ByServer}, nil},
		"1013":           {accepted + closeFrame(1013, "busy"), End{Stage: StageLive, Code: 1013, Reason: "try_again_later", By: ByServer}, nil},
		"1014":           {accepted + closeFrame(1014, ""), End{Stage: StageLive, Code: 1014, Reason: "bad_gateway", By: ByServer}, nil},
		"slow":           {accepted + closeFrame(1008, "slow consumer"), End{Stage: StageLive, Code: 1008, Reason: "slow_consumer", By: ByServer}, nil},
		"unknown code":   {accepted + closeFrame(4999, "whatever"), End{Stage: StageLive, Code: 4999, Reason: ReasonOther, By: ByServer}, nil},
		"empty close":    {accepted + "\x88\x00", End{Stage: StageLive, Reason: "no_status", By: ByServer}, nil},
		"bad close":      {accepted + "\x88\x01x", End{Stage: StageLive, Code: 1002, Reason: ReasonMisframed, By: ByUs}, []wire.Fault{wire.FrameClose}},
		"masked":         {accepted + "\x81\x80abcd", End{Stage: StageLive, Code: 1002, Reason: ReasonMisframed, By: ByUs}, []wire.Fault{wire.FrameMasked}},
		"opcode":         {accepted + "\x83\x00", End{Stage: StageLive, Code: 1002, Reason: ReasonMisframed, By: ByUs}, []wire.Fault{wire.FrameOpcode}},
		"continuation":   {accepted + "\x80\x00", End{Stage: StageLive, Code: 1002, Reason: ReasonMisframed, By: ByUs}, []wire.Fault{wire.FrameContinuation}},
		"interleaved":    {accepted + "\x01\x01[\x81\x02[]", End{Stage: StageLive, Code: 1002, Reason: ReasonMisframed, By: ByUs}, []wire.Fault{wire.FrameContinuation}},
		"too big":        {accepted + "\x81\x7f\x00\x00\x00\x00\x7f\xff\xff\xff", End{Stage: StageLive, Code: 1002, Reason: ReasonMisframed, By: ByUs}, []wire.Fault{wire.MessageTooBig}},
		"too big in all": {accepted + "\x01\x7e\xff\xff" + strings.Repeat("x", 65535) + "\x80\x7f\x00\x00\x00\x00\x00\x3f\xff\xff", End{Stage: StageLive, Code: 1002, Reason: ReasonMisframed, By: ByUs}, []wire.Fault{wire.MessageTooBig}},
		"event too soon": {greeted + text(`[{"ev":"T"}]`) + closeFrame(1000, ""), End{Stage: StageAuth, Code: 1000, Reason: "normal", By: ByServer}, []wire.Fault{wire.Early}},
		"odd messages": {accepted + text(`{"ev":"T"}`) + text(`[{"ev":"T"},7]`) + text(`[{"ev":"status"}]`) + text("") + frame(ws.NewBinaryFrame([]byte("[]"))) + closeFrame(1000, ""),
			End{Stage: StageLive, Code: 1000, Reason: "normal", By: ByServer}, []wire.Fault{wire.NotArray, wire.NotObject, wire.NotStatus, wire.NotArray, wire.Binary}},
		"no topic": {switching + text(connected) + text(authSuccess) + text(`[{"ev":"status","status":"error","message":"cannot subscribe to: T.A: no"}]`), End{Stage: StageSubscribe, Code: 1000, Reason: ReasonNoTopic, By: ByUs}, nil},
		"silence":  {greeted, End{Stage: StageAuth, Reason: ReasonTimeout, By: ByUs}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRecorder()
			o := Options{}
			if c.want.Reason == ReasonTimeout {
				o.HandshakeTimeout = 300 * time.Millisecond
			}
			f := start(t, r, o)
			open(t, f, Plan{Target: target(t, says(t, c.says)), Key: "k", Topics: "T.A"})
			got := r.awaitEnd(t, 0)
			if *got.end != c.want || !reflect.DeepEqual(got.misframed, c.misframed) {
				t.Errorf("%+v, misframed %v", *got.end, got.misframed)
			}
			if got.ready != (c.want.Stage == StageLive) {
				t.Errorf("ready: %v", got.ready)
			}
		})
	}
}

// TestNetworkEnds is about TCP.
func TestNetworkEnds(t *testing.T) {
	t.Parallel()
	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = nobody.Close()
	live := func(then func(net.Conn)) string {
		return rawServer(t, func(conn net.Conn) {
			_, _ = io.WriteString(conn, accepted)
			then(conn)
		})
	}
	for name, c := range map[string]struct {
		url    string
		source string
		want   End
	}{
		"refused":    {url: "ws://" + nobody.Addr().String(), want: End{Stage: StageConnect, Reason: ReasonRefused, By: ByNetwork}},
		"lost":       {url: live(func(conn net.Conn) { _, _, _ = scripted.ReadFrame(conn) }), want: End{Stage: StageLive, Reason: ReasonLost, By: ByNetwork}},
		"reset":      {url: live(func(conn net.Conn) { _ = conn.(*net.TCPConn).SetLinger(0) }), want: End{Stage: StageLive, Reason: ReasonReset, By: ByNetwork}},
		"no upgrade": {url: rawServer(t, func(net.Conn) {}), want: End{Stage: StageUpgrade, Reason: ReasonLost, By: ByNetwork}},
		"the vendor's way": {url: rawServer(t, func(conn net.Conn) {
			_, _ = io.WriteString(conn, switching+text(connected)+text(`[{"ev":"status","status":"auth_timeout","message":"x"}]`))
		}), want: End{Stage: StageAuth, Reason: "auth_timeout", By: ByServer}},
		"source":        {url: live(func(net.Conn) {}), source: "192.0.2.1", want: End{Stage: StageConnect, Reason: ReasonBadSource, By: ByUs}},
		"source family": {url: live(func(net.Conn) {}), source: "::1", want: End{Stage: StageConnect, Reason: ReasonBadSource, By: ByUs}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRecorder()
			f := start(t, r, Options{})
			p := Plan{Target: target(t, c.url), Topics: "T.A"}
			if c.source != "" {
				p.Source = netip.MustParseAddr(c.source)
			}
			open(t, f, p)
			got := r.awaitEnd(t, 0)
			// A reset may take the bytes before it along.
			if name == "reset" && got.end.Reason == ReasonReset {
				return
			}
			if *got.end != c.want {
				t.Errorf("%+v", *got.end)
			}
		})
	}
}

// TestCloses has each way in which the fleet ends a connection.
func TestCloses(t *testing.T) {
	t.Parallel()
	for _, code := range []int{1000, 4000, 0} {
		got := make(chan string, 1)
		url := rawServer(t, func(conn net.Conn) {
			_, _ = io.WriteString(conn, switching+text(connected)+text(authSuccess))
			h, payload, err := scripted.ReadFrame(conn)
			if err != nil {
				got <- err.Error()
				return
			}
			closeCode, _ := ws.ParseCloseFrameData(payload)
			got <- fmt.Sprint(h.OpCode == ws.OpClose, h.Masked, int(closeCode))
			_, _ = io.WriteString(conn, text(`[{"ev":"T"}]`)+closeFrame(closeCode, ""))
		})
		r := newRecorder()
		f := start(t, r, Options{})
		open(t, f, Plan{Target: target(t, url)})
		r.awaitReady(t, 0)
		f.Close(r.live[0], code)
		f.Close(r.live[0], code)
		if end := *r.awaitEnd(t, 0).end; end != (End{Stage: StageLive, Code: code, Reason: ReasonClosed, By: ByUs}) {
			t.Errorf("%+v", end)
		}
		if said := <-got; said != fmt.Sprint("true true ", code) && (code != 0 || !strings.Contains(said, "reset")) {
			t.Error(said)
		}
	}
}

// numbered is a stream of frames with events 0 to count-1, in all the forms that
// frames may have.
func numbered(random *rand.Rand, count int) string {
	var b strings.Builder
	for n := 0; n < count; {
		var events []string
		for range 1 + random.IntN(30) {
			if n < count {
				events = append(events, fmt.Sprintf(`{"ev":"T","n":%d,"pad":"%s"}`, n, strings.Repeat("x", random.IntN(100))))
				n++
			}
		}
		message := "[" + strings.Join(events, ",") + "]"
		if n%500 < 20 {
			message = "[" + strings.Repeat(" ", 100_000) + message[1:]
		}
		if random.IntN(3) == 0 {
			cut := random.IntN(len(message))
			b.WriteString(frame(ws.NewFrame(ws.OpText, false, []byte(message[:cut]))))
			b.WriteString(frame(ws.NewPingFrame([]byte("between"))))
			b.WriteString(frame(ws.NewFrame(ws.OpContinuation, false, nil)))
			b.WriteString(frame(ws.NewFrame(ws.OpContinuation, true, []byte(message[cut:]))))
			continue
		}
		b.WriteString(text(message))
	}
	return b.String()
}

// TestParts sends frames in pieces of all lengths.
func TestParts(t *testing.T) {
	t.Parallel()
	const count = 5000
	for _, most := range []int{50, 3000, 1 << 20} {
		random := rand.New(rand.NewPCG(1, uint64(most)))
		stream := accepted + numbered(random, count) + closeFrame(1000, "")
		pongs := make(chan int, 1)
		url := rawServer(t, func(conn net.Conn) {
			go func(rest string) {
				for len(rest) > 0 {
					n := min(1+random.IntN(most), len(rest))
					if most < 3000 && len(rest) > 200_000 {
						n = min(n*200, len(rest)) // not all day long
					}
					if _, err := io.WriteString(conn, rest[:n]); err != nil {
						return
					}
					rest = rest[n:]
				}
			}(stream)
			n := 0
			for {
				h, payload, err := scripted.ReadFrame(conn)
				if err != nil || h.OpCode == ws.OpClose {
					pongs <- n
					return
				}
				if h.OpCode == ws.OpPong && string(payload) == "between" {
					n++
				}
			}
		})
		r := newRecorder()
		f := start(t, r, Options{})
		open(t, f, Plan{Target: target(t, url), Topics: "T.A"})
		got := r.awaitEnd(t, 0)
		if len(got.events) != count || len(got.misframed) > 0 || got.end.Code != 1000 {
			t.Fatalf("%d events, %v, %+v", len(got.events), got.misframed, got.end)
		}
		for n, raw := range got.events {
			if value, ok := wire.Stamp([]byte(raw), wire.NewField("n")); !ok || value != int64(n) {
				t.Fatalf("event %d: %s", n, raw)
			}
		}
		if n := <-pongs; n != strings.Count(stream, "\x89\x07between") {
			t.Errorf("%d pongs", n)
		}
	}
}

// TestTimes has a plan that is due later, and the order of its times.
func TestTimes(t *testing.T) {
	t.Parallel()
	server := scripted.New(&scripted.Script{Key: "good", Topics: []string{"T.A", "T.B"}})
	url := serve(t, server)
	r := newRecorder()
	f := start(t, r, Options{})
	due := time.Now().Add(150 * time.Millisecond)
	open(t, f, Plan{Target: target(t, url), Key: "good", Topics: "T.A, T.B", Scheduled: due, Tag: 7})
	open(t, f, Plan{Target: target(t, url+"/x?y=z"), Key: "good", InQuery: true, Topics: "T.A", Tag: 8})
	open(t, f, Plan{Target: target(t, url), Key: "bad", Tag: 9})
	got := r.awaitReady(t, 7).times
	if time.Now().Before(due) {
		t.Error("too soon")
	}
	if got.Begun < 0 || got.Connected < got.Begun || got.Upgraded <= got.Connected || got.Authenticated < got.Upgraded || got.Subscribed <= got.Authenticated || got.Subscribed > patience {
		t.Errorf("%+v", got)
	}
	r.awaitReady(t, 8)
	if end := r.awaitEnd(t, 9).end; end.Reason != "credential_invalid" {
		t.Errorf("%+v", end)
	}
}

// TestStatuses are those that come on a connection that is open, and a topic
// that is refused beside one that is granted.
func TestStatuses(t *testing.T) {
	t.Parallel()
	stream := switching + text(connected) + text(authSuccess) +
		text(`[{"ev":"status","status":"success","message":"subscribed to: T.A"},{"ev":"status","status":"error","message":"cannot subscribe to: X: no"}]`) +
		text(`[{"ev":"status","status":"gap","message":"events may be missing","market":"stocks"},{"ev":"T"}]`) + closeFrame(1000, "")
	r := newRecorder()
	f := start(t, r, Options{})
	open(t, f, Plan{Target: target(t, says(t, stream)), Topics: "T.A,X,"})
	got := r.awaitEnd(t, 0)
	if want := []string{"error: cannot subscribe to: X: no", "gap: events may be missing"}; !got.ready || !reflect.DeepEqual(got.statuses, want) || len(got.events) != 1 {
		t.Errorf("%+v", got)
	}
}

func deflated(t testing.TB, message string) string {
	var out bytes.Buffer
	w, err := flate.NewWriter(&out, 6)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(w, message)
	_ = w.Flush()
	f := ws.NewTextFrame(bytes.TrimSuffix(out.Bytes(), []byte{0, 0, 0xff, 0xff}))
	f.Header.Rsv = ws.Rsv(true, false, false)
	return frame(f)
}

func TestDeflate(t *testing.T) {
	t.Parallel()
	yes := strings.Replace(switching, "\r\n\r\n", "\r\nSec-WebSocket-Extensions: "+wire.Offer+"\r\n\r\n", 1)
	bomb := "[" + strings.Repeat(" ", 5<<20) + "]"
	for _, c := range []struct {
		says   string
		events int
		reason string
	}{
		{yes + text(connected) + deflated(t, authSuccess) + deflated(t, `[{"ev":"T"},{"ev":"T"}]`) + text(`[{"ev":"T"}]`) + closeFrame(1000, ""), 3, "normal"},
		{switching + text(connected) + text(authSuccess) + text(`[{"ev":"T"}]`) + closeFrame(1000, ""), 1, "normal"},
		{yes + text(authSuccess) + deflated(t, bomb), 0, ReasonMisframed},
		{yes + text(authSuccess) + "\xc1\x02\xff\xff", 0, ReasonMisframed},
	} {
		r := newRecorder()
		f := start(t, r, Options{})
		open(t, f, Plan{Target: target(t, says(t, c.says)), Deflate: true})
		if got := r.awaitEnd(t, 0); len(got.events) != c.events || got.end.Reason != c.reason {
			t.Errorf("%d events, %+v, %v", len(got.events), got.end, got.misframed)
		}
	}
}

func TestTLS(t *testing.T) {
	t.Parallel()
	script := &scripted.Script{Topics: []string{"T.A"}, Events: 3000, PerFrame: 7, Pings: true, Code: 1012, Fault: func(uint64) scripted.Fault { return scripted.None }}
	played := scripted.New(script)
	server := httptest.NewUnstartedServer(played)
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	t.Cleanup(server.Close)
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	r := newRecorder()
	f := start(t, r, Options{TLS: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}})
	strict := start(t, r, Options{})
	url := target(t, server.URL)
	source := netip.MustParseAddr("127.0.0.5")
	open(t, f, Plan{Target: url, Topics: "T.A", Source: source})
	open(t, strict, Plan{Target: url, Tag: 1})
	open(t, f, Plan{Target: target(t, strings.Replace(serve(t, played), "http", "wss", 1)), Tag: 2})
	if got := r.awaitEnd(t, 0); len(got.events) != 3000 || got.end.Code != 1012 || got.end.By != ByServer || got.times.Connected == 0 {
		t.Errorf("%d events, %+v", len(got.events), got.end)
	}
	if end := *r.awaitEnd(t, 1).end; end != (End{Stage: StageTLS, Reason: ReasonCertificate, By: ByUs}) {
		t.Errorf("%+v", end)
	}
	if end := r.awaitEnd(t, 2).end; end.Stage != StageTLS {
		t.Errorf("%+v", end)
	}
	open(t, f, Plan{Target: url, Tag: 3}) // open when the fleet stops
	r.awaitReady(t, 3)
	open(t, f, Plan{Target: url, Tag: 4, ReadLimit: 1000})
	r.awaitReady(t, 4)
	f.Close(r.live[4], 1000)
	if end := r.awaitEnd(t, 4).end; end.Reason != ReasonClosed {
		t.Errorf("%+v", end)
	}
}

// TestReadLimit has readers at 100 kB/s, at none and at any rate, with and
// without TLS. The server floods them.
func TestReadLimit(t *testing.T) {
	t.Parallel()
	flood := func(conn io.Writer) {
		_, _ = io.WriteString(conn, switching+text(connected)+text(authSuccess))
		page := text("[" + strings.Repeat(`{"ev":"T","pad":"`+strings.Repeat("x", 980)+`"},`, 9) + `{"ev":"T"}]`)
		for {
			if _, err := io.WriteString(conn, page); err != nil {
				return
			}
		}
	}
	plain := rawServer(t, func(conn net.Conn) { flood(conn) })
	secure := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := w.(http.Hijacker).Hijack()
		if err == nil {
			defer conn.Close()
			flood(conn)
		}
	}))
	t.Cleanup(secure.Close)
	for _, url := range []string{plain, secure.URL} {
		r := newRecorder()
		f := start(t, r, Options{TLS: &tls.Config{InsecureSkipVerify: true}})
		for tag, limit := range []int{100_000, -1} {
			open(t, f, Plan{Target: target(t, url), ReadLimit: limit, Tag: tag})
			r.awaitReady(t, tag)
		}
		r.mu.Lock()
		events := len(r.conns[0].events)
		r.mu.Unlock()
		before, began := f.Stats().Bytes, time.Now()
		r.await(t, 0, "200 kB", func(o *told) bool { return len(o.events) > events+200 })
		bytes, took := f.Stats().Bytes-before, time.Since(began)
		if rate := float64(bytes) / took.Seconds(); took < time.Second || rate > 200_000 {
			t.Errorf("%s: %d bytes in %s", url, bytes, took)
		}
		r.mu.Lock()
		if n := len(r.conns[1].events); n > 1200 { // the read that brought the last status may have been a full one
			t.Errorf("%s: %d events came to a reader that does not read", url, n)
		}
		r.mu.Unlock()
	}
}

// TestSlowReaderSeesTheEnd: what the server sent last is read as soon as it has
// ended TCP.
func TestSlowReaderSeesTheEnd(t *testing.T) {
	t.Parallel()
	url := rawServer(t, func(conn net.Conn) {
		_, _ = io.WriteString(conn, switching+text(connected)+text(authSuccess))
		var page strings.Builder
		for range 100 {
			page.WriteString(text(`[{"ev":"T","pad":"` + strings.Repeat("x", 100) + `"}]`))
		}
		_, _ = io.WriteString(conn, page.String()+closeFrame(1008, "slow consumer"))
	})
	for _, limit := range []int{10, -1} {
		r := newRecorder()
		f := start(t, r, Options{})
		open(t, f, Plan{Target: target(t, url), ReadLimit: limit})
		if got := r.awaitEnd(t, 0); got.end.Reason != "slow_consumer" || len(got.events) != 100 {
			t.Errorf("%d events, %+v", len(got.events), got.end)
		}
	}
}

// TestInFlight: a handshake that does not end holds the others up, until its
// time is over.
func TestInFlight(t *testing.T) {
	t.Parallel()
	silent, quick := says(t, ""), says(t, switching+text(authSuccess))
	r := newRecorder()
	f := start(t, r, Options{InFlight: 1, HandshakeTimeout: 200 * time.Millisecond})
	now := time.Now()
	open(t, f, Plan{Target: target(t, silent), Scheduled: now, Tag: 0})
	open(t, f, Plan{Target: target(t, quick), Scheduled: now.Add(time.Millisecond), Tag: 1})
	if end := r.awaitEnd(t, 0).end; end.Reason != ReasonTimeout {
		t.Errorf("%+v", end)
	}
	if got := r.awaitReady(t, 1).times; got.Begun < 150*time.Millisecond {
		t.Errorf("%+v", got)
	}
}

// TestStop: every plan is told to have ended when Run returns.
func TestStop(t *testing.T) {
	t.Parallel()
	r := newRecorder()
	f, err := New(r, Options{Queue: 3})
	if err != nil {
		t.Fatal(err)
	}
	url := target(t, says(t, switching+text(authSuccess)))
	open(t, f, Plan{Target: url, Tag: 0})
	open(t, f, Plan{Target: target(t, says(t, "")), Tag: 1})
	open(t, f, Plan{Target: url, Tag: 2, Scheduled: time.Now().Add(time.Hour)})
	if err := f.Open(Plan{Target: url}); !errors.Is(err, ErrFull) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- f.Run(ctx) }()
	r.awaitReady(t, 0)
	if s := f.Stats(); s.Waiting > 2 {
		t.Errorf("%+v", s)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for tag := range 3 {
		if end := r.awaitEnd(t, tag).end; end.Reason != ReasonStopped || end.By != ByUs {
			t.Errorf("%d: %+v", tag, end)
		}
	}
	if s := f.Stats(); s.Open != 0 || s.Opening != 0 || s.Waiting != 0 || s.Closed != 3 || s.Ready != 1 {
		t.Errorf("%+v", s)
	}
	if err := f.Open(Plan{Target: url}); !errors.Is(err, ErrStopped) {
		t.Error(err)
	}
	f.Close(r.live[0], 1000)
}

func TestSources(t *testing.T) {
	t.Parallel()
	from := make(chan string, 2)
	url := rawServer(t, func(conn net.Conn) {
		from <- conn.RemoteAddr().(*net.TCPAddr).IP.String()
		_, _ = io.WriteString(conn, switching+text(authSuccess))
		_, _ = io.Copy(io.Discard, conn)
	})
	r := newRecorder()
	f := start(t, r, Options{BusyPoll: true})
	for tag, source := range []string{"127.0.0.2", "::ffff:127.0.3.4"} {
		open(t, f, Plan{Target: target(t, url), Source: netip.MustParseAddr(source), Tag: tag})
		r.awaitReady(t, tag)
		if got := <-from; got != strings.TrimPrefix(source, "::ffff:") {
			t.Errorf("from %s, want %s", got, source)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	if _, err := New(newRecorder(), Options{InFlight: -1}); err == nil {
		t.Error("made")
	}
	for _, url := range []string{"", "http://a/", "ws:///x", "ws://a:x/", "ws://127.0.0.1:70000/", "ws://u:p@127.0.0.1/"} {
		if _, err := NewTarget(context.Background(), url); !errors.Is(err, ErrTarget) {
			t.Errorf("%q: %v", url, err)
		}
	}
	for url, port := range map[string]uint16{"ws://127.0.0.1": 80, "wss://127.0.0.1/x": 443, "ws://[::1]:8080/": 8080} {
		target, err := NewTarget(context.Background(), url)
		if err != nil || target.address(netip.Addr{}).Port() != port {
			t.Errorf("%s: %v", url, err)
		}
	}
}

// TestGarbage feeds random bytes behind the upgrade: no panic, and one end.
func TestGarbage(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(3, 4))
	url := rawServer(t, func(conn net.Conn) {
		garbage := binary.LittleEndian.AppendUint64(nil, random.Uint64())
		for range 200 {
			garbage = binary.LittleEndian.AppendUint64(garbage, random.Uint64())
		}
		_, _ = conn.Write(append([]byte(switching+text(authSuccess)), garbage...))
	})
	r := newRecorder()
	f := start(t, r, Options{InFlight: 1})
	for tag := range 100 {
		open(t, f, Plan{Target: target(t, url), Tag: tag})
	}
	for tag := range 100 {
		r.awaitEnd(t, tag)
	}
}

const churned = 900

// churner opens a connection for each one that has ended, and closes each that
// is ready: every third with a reset.
type churner struct {
	counter

	fleet *Fleet
	plan  Plan
	left  int // connections to open
	ended int
	codes map[int]int
	done  chan struct{}
}

func (c *churner) Ready(conn *Conn, _ Times) {
	c.fleet.Close(conn, []int{1000, 1000, 0}[conn.Tag()%3])
}

func (c *churner) Closed(_ *Conn, e End) {
	if e.Reason != ReasonClosed {
		panic(e.Reason)
	}
	c.codes[e.Code]++
	if c.ended++; c.ended == churned {
		close(c.done)
	}
	if c.left == 0 {
		return
	}
	c.left--
	c.plan.Tag++
	c.plan.Scheduled = time.Now()
	if err := c.fleet.Open(c.plan); err != nil {
		panic(err)
	}
}

// TestChurn calls the fleet from its Handler, thousands of times.
func TestChurn(t *testing.T) {
	t.Parallel()
	const together = 30
	c := &churner{left: churned - together, codes: map[int]int{}, done: make(chan struct{})}
	c.plan = Plan{Target: target(t, writer(t, 0)), Topics: "T.A", Source: netip.MustParseAddr("127.0.2.1")}
	f, err := New(c, Options{})
	if err != nil {
		t.Fatal(err)
	}
	c.fleet = f
	for tag := range together {
		p := c.plan
		p.Tag = tag
		open(t, f, p)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	failed := make(chan error, 1)
	go func() { failed <- f.Run(ctx) }()
	select {
	case <-c.done:
	case <-time.After(patience):
		t.Fatalf("%+v", f.Stats())
	}
	cancel()
	if err := <-failed; err != nil || c.codes[0] != churned/3 || c.codes[1000] != 2*churned/3 {
		t.Errorf("%v, %v", c.codes, err)
	}
}
