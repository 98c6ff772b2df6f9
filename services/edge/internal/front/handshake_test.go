package front

import (
	"bufio"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cutemarkets/relay/services/edge/internal/dialect"
	"github.com/cutemarkets/relay/services/edge/internal/frame"
)

// TestUpgraded sends each good handshake over a socket of its own.
func TestUpgraded(t *testing.T) {
	o := defaults()
	o.AllowedOrigins = []string{"https://app.example.com"}
	g := start(t, o)
	const stocks = "/v1/ws/stocks/"
	for name, raw := range map[string]string{
		"slash":                request(stocks),
		"no slash":             request("/v1/ws/options"),
		"unknown market":       request("/v1/ws/crypto/"),
		"market not ASCII":     request("/v1/ws/%c3%a9/"),
		"alias stocks":         request("/stocks"),
		"alias options":        request("/options?api_key=x"),
		"absolute form":        request("http://relay.test" + stocks),
		"2 KiB url":            request(stocks + "?" + strings.Repeat("x", 2048-len(stocks)-1)),
		"64 fields":            request(stocks, many(64-4)...),
		"origin":               request(stocks, "+Origin: https://app.example.com"),
		"no host name":         request(stocks, "Host: 127.0.0.1:1"),
		"HTTP/1.2":             request(stocks, "GET "+stocks+" HTTP/1.2"),
		"lists":                request(stocks, "Upgrade: h2c, WebSocket", "Connection: keep-alive , upGRADE"),
		"fields repeated":      request(stocks, "Connection: keep-alive", "+Connection: Upgrade"),
		"length 0":             request(stocks, "+Content-Length: 0"),
		"subprotocols":         request(stocks, "+Sec-WebSocket-Protocol: a, b"),
		"malformed protocol":   request(stocks, "+Sec-WebSocket-Protocol: ,;;\""),
		"deflate":              request(stocks, "+Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"),
		"deflate unknown":      request(stocks, "+Sec-WebSocket-Extensions: permessage-deflate; x; x=1; x=1"),
		"deflate malformed":    request(stocks, "+Sec-WebSocket-Extensions: permessage-deflate; \"=,;"),
		"key percent garbage":  request(stocks + "?api_key=%zz"),
		"two keys":             request(stocks+"?api_key=a&api_key=b", "+Authorization: Bearer c"),
		"two authorizations":   request(stocks, "+Authorization: Bearer c", "+Authorization: Basic d"),
		"query is not decoded": request(stocks + "?;;;&&&===%00"),
	} {
		t.Run(name, func(t *testing.T) {
			g := *g
			g.t = t
			_, s := g.open(raw)
			if len(s.early) != 0 {
				t.Errorf("early bytes %q", s.early)
			}
			if _, ok := s.conn.(*net.TCPConn); !ok {
				t.Errorf("the engine got a %T, want a *net.TCPConn", s.conn)
			}
			if want := netip.MustParseAddr("127.0.0.1"); s.client != want {
				t.Errorf("client %v, want %v", s.client, want)
			}
		})
	}
	g.eventually("all are counted, and no connection is being opened", func() bool {
		ok := g.counts("relay_edge_upgrades")["ok"]
		return ok == 24 && g.counts("relay_edge_handshake_duration")[""] == ok && g.front.opening() == 0
	})
}

// TestDeflate offers compression to an edge that has it. Whatever is wrong with
// an offer, the upgrade goes on.
func TestDeflate(t *testing.T) {
	o := defaults()
	o.Deflate = true
	g := start(t, o)
	const accepted = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
	for name, row := range map[string]struct {
		offers []string
		want   string
	}{
		"none":              {nil, ""},
		"empty":             {[]string{""}, ""},
		"another":           {[]string{"x-webkit-deflate-frame"}, ""},
		"plain":             {[]string{"permessage-deflate"}, accepted},
		"of a browser":      {[]string{"permessage-deflate; client_max_window_bits"}, accepted},
		"window":            {[]string{"permessage-deflate; server_max_window_bits=15"}, accepted + "; server_max_window_bits=15"},
		"small window":      {[]string{"permessage-deflate; server_max_window_bits=10"}, ""},
		"unknown":           {[]string{"permessage-deflate; nonsense=1"}, ""},
		"repeated":          {[]string{"permessage-deflate; server_no_context_takeover; server_no_context_takeover"}, ""},
		"malformed":         {[]string{"permessage-deflate; \"=,;"}, ""},
		"fallback":          {[]string{"permessage-deflate; nonsense=1, permessage-deflate"}, accepted},
		"fallback by lines": {[]string{"permessage-deflate; nonsense=1", "permessage-deflate"}, accepted},
	} {
		t.Run(name, func(t *testing.T) {
			g := *g
			g.t = t
			var changes []string
			for _, offer := range row.offers {
				changes = append(changes, "+Sec-WebSocket-Extensions: "+offer)
			}
			c := g.dial()
			if _, err := io.WriteString(c, request("/v1/ws/stocks/", changes...)); err != nil {
				t.Fatal(err)
			}
			if got := g.expect101(bufio.NewReader(c)); got != row.want {
				t.Errorf("Sec-WebSocket-Extensions: %q, want %q", got, row.want)
			}
			if s := g.attached(); s.deflate != (row.want != "") {
				t.Errorf("the engine was told %v", s.deflate)
			}
		})
	}
}

// TestEarlyBytes sends frames with the handshake, in one segment and more of
// them than net/http reads at once.
func TestEarlyBytes(t *testing.T) {
	g := start(t, defaults())
	for name, n := range map[string]int{"none": 0, "byte": 1, "frame": 40, "buffer": 4096, "more": 70000} {
		t.Run(name, func(t *testing.T) {
			g := *g
			g.t = t
			sent := strings.Repeat("0123456789", n/10+1)[:n]
			c := g.dial()
			go func() {
				_, _ = io.WriteString(c, request("/v1/ws/stocks/")+sent)
				_ = c.(*net.TCPConn).CloseWrite()
			}()
			g.expect101(bufio.NewReader(c))
			s := g.attached()
			rest, err := io.ReadAll(s.conn)
			if err != nil {
				t.Fatal(err)
			}
			if got := string(s.early) + string(rest); got != sent {
				t.Errorf("%d early and %d further bytes, want %d, the same", len(s.early), len(rest), n)
			}
		})
	}
}

// TestNoDeadline holds that a socket outlives the deadlines of its handshake.
func TestNoDeadline(t *testing.T) {
	t.Parallel()
	g := start(t, defaults())
	c, s := g.open(request("/v1/ws/stocks/"))
	time.Sleep(requestTimeout + 200*time.Millisecond) // the deadline itself is what is tested
	if _, err := io.WriteString(s.conn, "x"); err != nil {
		t.Errorf("write: %v", err)
	}
	if _, err := io.WriteString(c, "y"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(s.conn, make([]byte, 1)); err != nil {
		t.Errorf("read: %v", err)
	}
}

// TestSlow sends handshakes that never end, all at the same time.
func TestSlow(t *testing.T) {
	t.Parallel()
	g := start(t, defaults())
	stop := make(chan struct{})
	var clients sync.WaitGroup
	for name, raw := range map[string]string{
		"nothing": "",
		"line":    "GET /v1/ws/sto",
		"headers": strings.TrimSuffix(request("/v1/ws/stocks/"), "\r\n"),
		"trickle": "G",
	} {
		c := g.dial()
		_, _ = io.WriteString(c, raw)
		if name == "trickle" { // one byte after the other
			go func() {
				for tick := time.NewTicker(500 * time.Millisecond); ; {
					select {
					case <-tick.C:
						_, _ = io.WriteString(c, "E")
					case <-stop:
						return
					}
				}
			}()
		}
		began := time.Now()
		clients.Go(func() {
			answer, _ := io.ReadAll(c) // a reset is as good as a close
			if d := time.Since(began); d < requestTimeout-time.Second || d > requestTimeout+2*time.Second {
				t.Errorf("%s: closed after %v, want about %v", name, d, requestTimeout)
			}
			if name == "nothing" {
				if len(answer) > 0 {
					t.Errorf("nothing was sent, the answer is %q", answer)
				}
			} else if err := refused(string(answer), 408, "request_timeout"); err != nil {
				t.Errorf("%s: %v in %q", name, err, answer)
			}
		})
	}
	clients.Wait()
	close(stop)
}

// TestEngineRefuses offers sockets to an engine that has begun to drain, or is
// full, since their requests were looked at. The clients send more than anybody
// reads of them.
func TestEngineRefuses(t *testing.T) {
	g := start(t, defaults())
	for _, row := range []struct {
		refuses func()
		code    uint16
		reason  string
	}{
		{func() {}, 1013, "pod_full"},
		{func() { g.front.SetDraining(true) }, 1012, "draining"},
	} {
		g.engine.set(func(e *catcher) { e.refuses = row.refuses })
		c := g.dial()
		if _, err := io.WriteString(c, request("/v1/ws/stocks/")+strings.Repeat("x", 70000)); err != nil {
			t.Fatal(err)
		}
		r := bufio.NewReader(c)
		g.expect101(r)
		var want []byte
		for _, text := range []string{"hello", "bye", row.reason} {
			want = frame.AppendText(want, []byte(text))
		}
		want = frame.AppendClose(want, row.code, row.reason)
		if got, err := io.ReadAll(r); err != nil || string(got) != string(want) {
			t.Errorf("after the 101: %q, error %v; want %q and EOF", got, err, want)
		}
		_ = c.Close()
		g.eventually("counted", func() bool { return g.counts("relay_edge_upgrades")[row.reason] == 1 })
	}
}

// counted counts what is read of a connection.
type counted struct {
	net.Conn
	read int
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.read += n
	return n, err
}

func (c *counted) CloseWrite() error { return c.Conn.(*net.TCPConn).CloseWrite() }

// TestGoodbyeIsNotTakenBack holds that nothing of the client is left unread,
// which would turn the close into a reset.
func TestGoodbyeIsNotTakenBack(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	sent := strings.Repeat("x", 70000)
	if _, err := io.WriteString(client, sent); err != nil {
		t.Fatal(err)
	}
	_ = client.(*net.TCPConn).CloseWrite()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c := &counted{Conn: conn}
	sayGoodbye(c, nil, dialect.Bye{Code: 1012, Text: "bye"})
	if c.read != len(sent) {
		t.Errorf("%d bytes read of %d", c.read, len(sent))
	}
}

// TestFull offers a socket to a full engine.
func TestFull(t *testing.T) {
	g := start(t, defaults())
	g.engine.set(func(e *catcher) { e.full = true })
	answer := g.exchange(request("/v1/ws/stocks/"))
	if err := refused(answer, 503, "service_unavailable"); err != nil || !strings.Contains(answer, "Retry-After: 5\r\n") {
		t.Errorf("%v in %q", err, answer)
	}
	g.engine.set(func(e *catcher) { e.full = false })
	g.open(request("/v1/ws/stocks/"))
	g.eventually("counted", func() bool {
		got := g.counts("relay_edge_upgrades")
		return got["pod_full"] == 1 && got["ok"] == 1
	})
}

// TestDraining refuses streams and nothing else.
func TestDraining(t *testing.T) {
	g := start(t, defaults())
	g.front.SetDraining(true)
	answer := g.exchange(request("/v1/ws/stocks/", "-Upgrade"))
	if err := refused(answer, 503, "service_unavailable"); err != nil || !strings.Contains(answer, "Retry-After: 1\r\n") {
		t.Errorf("%v in %q", err, answer)
	}
	if answer := g.exchange("GET /v1/status HTTP/1.0\r\n\r\n"); !strings.HasPrefix(answer, "HTTP/1.0 200 OK\r\n") || !strings.HasSuffix(answer, `{"status":"ok"}`) {
		t.Errorf("status: %q", answer)
	}
	g.front.SetDraining(false)
	g.open(request("/v1/ws/stocks/"))
}

// TestHandshakeSlots keeps connections in the state of being opened.
func TestHandshakeSlots(t *testing.T) {
	o := defaults()
	o.MaxHandshakes = 2
	g := start(t, o)
	slow := []net.Conn{g.dial(), g.dial()}
	g.eventually("two are being opened", func() bool { return g.counts("relay_edge_handshakes")[""] == 2 })
	answer := g.exchange(request("/v1/ws/stocks/"))
	if err := refused(answer, 503, "service_unavailable"); err != nil || !strings.Contains(answer, "Retry-After: 2\r\n") {
		t.Errorf("%v in %q", err, answer)
	}
	slow = append(slow, g.dial(), g.dial())
	g.eventually("all slots are taken", func() bool { return g.front.opening() == 4 })
	waiting := g.dial()
	_, _ = io.WriteString(waiting, request("/v1/ws/stocks/"))
	for _, c := range slow {
		_ = c.Close()
	}
	g.eventually("the slots are free again", func() bool { return g.front.opening() <= 1 })
	r := bufio.NewReader(waiting)
	if _, err := r.Peek(1); err != nil { // accepted at last; 101 or 503, as others closed before or after
		t.Fatal(err)
	}
	g.open(request("/v1/ws/stocks/"))
	if n := g.counts("relay_edge_handshakes_limit")[""]; n != 2 {
		t.Errorf("limit %d, want 2", n)
	}
}

// TestFailures lets clients fail, by the handshake and by the credential.
func TestFailures(t *testing.T) {
	o := defaults()
	o.FailureRate, o.FailureBurst = 0.01, 3
	o.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	g := start(t, o)
	from := func(addr string, changes ...string) string {
		return request("/v1/ws/stocks/", append(changes, "+X-Forwarded-For: "+addr)...)
	}
	for range 2 {
		if err := refused(g.exchange(from("192.0.2.1", "-Upgrade")), 400, "bad_request"); err != nil {
			t.Fatal(err)
		}
	}
	_, s := g.open(from("192.0.2.1"))
	g.front.Failed(s.client)
	answer := g.exchange(from("192.0.2.1"))
	if err := refused(answer, 429, "rate_limit_exceeded"); err != nil || !strings.Contains(answer, "Retry-After: 100\r\n") {
		t.Errorf("%v in %q", err, answer)
	}
	g.eventually("counted", func() bool {
		got := g.counts("relay_edge_upgrades")
		return got["failure_rate"] == 1 && got["ok"] == 1 && got["bad_request"] == 2
	})
	g.open(from("192.0.2.2"))

	for range 3 {
		g.front.Failed(netip.MustParseAddr("2001:db8::1"))
	}
	if err := refused(g.exchange(from("2001:db8::2")), 429, "rate_limit_exceeded"); err != nil {
		t.Errorf("same /64: %v", err)
	}
	g.open(from("2001:db8:0:1::1"))
}

// TestHandshakeRate is the limit that is off by default.
func TestHandshakeRate(t *testing.T) {
	o := defaults()
	o.HandshakeRate, o.HandshakeBurst = 0.5, 2
	g := start(t, o)
	g.open(request("/v1/ws/stocks/"))
	g.open(request("/v1/ws/stocks/"))
	// What an untrusted peer says of itself changes nothing.
	answer := g.exchange(request("/v1/ws/stocks/", "+X-Forwarded-For: 192.0.2.1"))
	if err := refused(answer, 429, "rate_limit_exceeded"); err != nil || !strings.Contains(answer, "Retry-After: 2\r\n") {
		t.Errorf("%v in %q", err, answer)
	}
	g.eventually("counted", func() bool {
		got := g.counts("relay_edge_upgrades")
		return got["handshake_rate"] == 1 && got["ok"] == 2
	})
}

// TestKeyRate: the handshakes of a key count together, wherever it is and wherever
// they come from.
func TestKeyRate(t *testing.T) {
	o := defaults()
	o.KeyRate, o.KeyBurst = 0.5, 2
	o.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	g := start(t, o)
	with := func(market, key, from string) string {
		return request("/v1/ws/"+market+"/?api_key="+key, "+X-Forwarded-For: "+from)
	}
	g.open(with("stocks", canary, "192.0.2.1"))
	g.open(with("options", canary, "192.0.2.2"))
	answer := g.exchange(with("stocks", canary, "192.0.2.3"))
	if err := refused(answer, 429, "rate_limit_exceeded"); err != nil || !strings.Contains(answer, "Retry-After: 2\r\n") {
		t.Errorf("%v in %q", err, answer)
	}
	g.open(with("stocks", "cm_another", "192.0.2.3"))
	for range 3 {
		g.open(request("/v1/ws/stocks/")) // none: it comes in band
	}
	g.eventually("counted", func() bool {
		got := g.counts("relay_edge_upgrades")
		return got["key_rate"] == 1 && got["ok"] == 6
	})
}
