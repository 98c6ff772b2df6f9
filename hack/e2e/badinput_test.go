package e2e

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gobwas/ws"

	"github.com/cutemarkets/relay/hack/cluster"
)

// TestBadInput is the table of bad inputs: a clear answer, a counter, and life
// goes on. Row 54 (a compressed bomb) has no test here: the edge declines
// compression, so a compressed frame is row 56.
func TestBadInput(t *testing.T) {
	t.Parallel()
	address, _, _ := startRedis(t)
	c := startCluster(t, cluster.Options{
		Redis: address, Edges: 5,
		Args: map[string][]string{
			"edge-2": {"--markets=stocks", "--no-in-band-auth", "--allowed-origins=https://app.example"},
			"edge-3": {"--max-connections=1"},
			"edge-4": {"--handshake-rate-per-ip=1", "--handshake-burst-per-ip=5"},
		},
	})
	b := badInput{contract{c: c, edges: c.Info().Edges}}

	good := join(t, b.edge(), "stocks", expert(t, c, "stocks"))
	good.subscribe("T.*")
	t.Run("rows", func(t *testing.T) {
		for i, row := range b.rows() {
			if row.test == nil {
				continue
			}
			t.Run(fmt.Sprintf("%02d %s", i+1, row.name), func(t *testing.T) {
				t.Parallel()
				row.test(t)
			})
		}
	})
	good.await("an event: life went on beside the bad ones", func(e event) bool { return e.Ev == "T" })
	metrics := get(t, c.Info().Operations["edge-0"]+"/metrics")
	for _, reason := range []string{"protocol_error", "message_too_big", "unsupported_data", "invalid_utf8", "too_many_fragments", "control_rate", "command_rate", "bad_commands"} {
		if !counted(metrics, "relay_edge_closes_total", reason) {
			t.Errorf("no close was counted for %s", reason)
		}
	}
}

// counted tells whether a counter with a reason label is above zero.
func counted(metrics, name, reason string) bool {
	for line := range strings.Lines(metrics) {
		if strings.HasPrefix(line, name+"{") && strings.Contains(line, `reason="`+reason+`"`) && !strings.HasSuffix(strings.TrimSpace(line), " 0") {
			return true
		}
	}
	return false
}

type badInput struct{ contract }

type badRow struct {
	name string
	test func(t *testing.T)
}

func (b badInput) edge() string { return b.edges[0] }

// session opens an accepted socket of a new user.
func (b badInput) session(t *testing.T) *client {
	t.Helper()
	return join(t, b.edge(), "stocks", expert(t, b.c, "stocks"))
}

// closes makes a test that sends raw bytes on an accepted socket and expects a
// close code.
func (b badInput) closes(code uint16, raw ...[]byte) func(t *testing.T) {
	return func(t *testing.T) {
		s := b.session(t)
		// The server may close before all is written.
		_, _ = s.conn.Write(bytes.Join(raw, nil))
		s.expectClose(code)
	}
}

// answers makes a test that sends a text and expects a status frame, after
// which the socket lives on.
func (b badInput) answers(text, status, part string) func(t *testing.T) {
	return func(t *testing.T) {
		s := b.session(t)
		s.send(text)
		batch, err := s.events(patience)
		if err != nil || len(batch) == 0 || batch[0].Ev != "status" || batch[0].Status != status || !strings.Contains(batch[0].Message, part) {
			t.Fatalf("answer %v %v, want %s with %q", batch, err, status, part)
		}
		s.subscribe("NOI.ZZA")
		s.await("the acknowledgement: the socket lives on", func(e event) bool { return e.Message == "subscribed to: NOI.ZZA" })
	}
}

func (b badInput) refuses(raw []byte, status int, code string) func(t *testing.T) {
	return func(t *testing.T) { expectRefusal(t, b.edge(), raw, status, code) }
}

func (b badInput) failsAuth(cause, target string, header ...string) func(t *testing.T) {
	return func(t *testing.T) {
		s := open(t, b.edge(), target, header...)
		s.expect(connected)
		expectAuthFailed(t, s, cause)
	}
}

// masked is one frame of a client.
func masked(fin bool, op ws.OpCode, payload []byte) []byte {
	return ws.MustCompileFrame(ws.MaskFrame(ws.NewFrame(op, fin, payload)))
}

// headed is a frame with its first byte replaced.
func headed(first byte, payload string) []byte {
	f := masked(true, ws.OpText, []byte(payload))
	f[0] = first
	return f
}

func closeBody(code uint16, text string) []byte {
	return append(binary.BigEndian.AppendUint16(nil, code), text...)
}

// length64 is the header of a masked text frame with an 8-byte length.
func length64(n uint64) []byte {
	h := []byte{0x81, 0x80 | 127}
	return append(binary.BigEndian.AppendUint64(h, n), 1, 2, 3, 4)
}

func (b badInput) rows() []badRow {
	return append(append(b.handshakeRows(), b.frameRows()...), b.messageRows()...)
}

func (b badInput) handshakeRows() []badRow {
	h := host(b.edge())
	upgrade := func(header ...string) []byte { return request("/v1/ws/stocks/", h, header...) }
	change := func(from, to string) []byte { return bytes.Replace(upgrade(), []byte(from), []byte(to), 1) }
	long := strings.Repeat("x", 300)
	const stocks = "/v1/ws/stocks/"
	return []badRow{
		{"no key", b.inBandOffEdge},
		{"unknown or revoked key", func(t *testing.T) {
			b.failsAuth("invalid", stocks, bearer("cm_unknown"))(t)
			b.failsAuth("invalid", stocks, bearer(b.revoked(t)))(t)
		}},
		{"stocks key on options", func(t *testing.T) {
			b.failsAuth("product", "/v1/ws/options/", bearer(expert(t, b.c, "stocks")))(t)
		}},
		{"plan free or developer", func(t *testing.T) {
			for _, plan := range []string{"free", "developer"} {
				_, key := newUser(t, b.c, "stocks", plan)
				b.failsAuth("plan", stocks, bearer(key))(t)
			}
		}},
		{"unsupported market", b.failsAuth("market", "/v1/ws/crypto/", bearer("cm_x"))},
		{"stream not configured", func(t *testing.T) {
			s := open(t, b.variant(), "/v1/ws/options/", bearer("cm_x"))
			s.expect(connected)
			expectAuthFailed(t, s, "configured")
		}},
		{"second connection of the user", b.second},
		{"path without the slash", func(t *testing.T) {
			s := open(t, b.edge(), "/v1/ws/options", bearer(expert(t, b.c, "options")))
			s.expect(connected)
			s.expect(authenticated)
		}},
		{"other path", b.refuses(request("/v1/other", h), http.StatusNotFound, "not_found")},
		{"plain GET", b.refuses([]byte("GET "+stocks+" HTTP/1.1\r\nHost: "+h+"\r\n\r\n"), http.StatusUpgradeRequired, "upgrade_required")},
		{"POST, PUT, OPTIONS", func(t *testing.T) {
			for _, method := range []string{"POST", "PUT", "OPTIONS"} {
				expectRefusal(t, b.edge(), []byte(method+" "+stocks+" HTTP/1.1\r\nHost: "+h+"\r\n\r\n"), http.StatusMethodNotAllowed, "method_not_allowed")
			}
		}},
		{"HTTP/1.0, HTTP/2 preface", func(t *testing.T) {
			expectRefusal(t, b.edge(), change("HTTP/1.1", "HTTP/1.0"), http.StatusHTTPVersionNotSupported, "")
			expectRefusal(t, b.edge(), []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), http.StatusHTTPVersionNotSupported, "")
		}},
		{"Sec-WebSocket-Version 8", func(t *testing.T) {
			res := expectRefusal(t, b.edge(), change("Version: 13", "Version: 8"), http.StatusUpgradeRequired, "upgrade_required")
			if res.Header.Get("Sec-WebSocket-Version") != "13" {
				t.Errorf("426 without the version: %v", res.Header)
			}
		}},
		{"Sec-WebSocket-Key missing, not 16 bytes, twice", func(t *testing.T) {
			expectRefusal(t, b.edge(), change("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", ""), http.StatusBadRequest, "bad_request")
			expectRefusal(t, b.edge(), change("dGhlIHNhbXBsZSBub25jZQ==", "c2hvcnQ="), http.StatusBadRequest, "bad_request")
			expectRefusal(t, b.edge(), change("dGhlIHNhbXBsZSBub25jZQ==", strings.Repeat("!", 24)), http.StatusBadRequest, "bad_request")
			expectRefusal(t, b.edge(), upgrade("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="), http.StatusBadRequest, "bad_request")
		}},
		{"Upgrade or Connection missing or wrong", func(t *testing.T) {
			expectRefusal(t, b.edge(), change("Connection: Upgrade\r\n", ""), http.StatusBadRequest, "bad_request")
			expectRefusal(t, b.edge(), change("Connection: Upgrade", "Connection: close"), http.StatusBadRequest, "bad_request")
			expectRefusal(t, b.edge(), change("Upgrade: websocket", "Upgrade: h2c"), http.StatusBadRequest, "bad_request")
		}},
		{"no Host, two Hosts", func(t *testing.T) {
			expectRefusal(t, b.edge(), change("Host: "+h+"\r\n", ""), http.StatusBadRequest, "")
			expectRefusal(t, b.edge(), upgrade("Host: other"), http.StatusBadRequest, "")
		}},
		{"a body", func(t *testing.T) {
			expectRefusal(t, b.edge(), append(upgrade("Content-Length: 5"), "hello"...), http.StatusBadRequest, "bad_request")
			expectRefusal(t, b.edge(), append(upgrade("Transfer-Encoding: chunked"), "0\r\n\r\n"...), http.StatusBadRequest, "bad_request")
		}},
		{"NUL, space before the colon", func(t *testing.T) {
			expectRefusal(t, b.edge(), upgrade("X-Bad: a\x00b"), http.StatusBadRequest, "")
			expectRefusal(t, b.edge(), upgrade("X-Bad : x"), http.StatusBadRequest, "")
		}},
		{"URL over 2 KiB", b.refuses(request(stocks+"?api_key="+strings.Repeat("k", 2100), h), http.StatusRequestURITooLong, "uri_too_long")},
		{"headers over 8 KiB or over 64", func(t *testing.T) {
			expectRefusal(t, b.edge(), upgrade("X-Long: "+strings.Repeat("x", 20_000)), http.StatusRequestHeaderFieldsTooLarge, "")
			expectRefusal(t, b.edge(), upgrade(strings.Split(strings.TrimSpace(strings.Repeat("X-Many: y\n", 70)), "\n")...), http.StatusRequestHeaderFieldsTooLarge, "")
		}},
		{"one byte a second", b.slowHandshake},
		{"TLS hello, random bytes", func(t *testing.T) {
			for _, raw := range []string{"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "\x00\xff\x13random\r\n\r\n"} {
				conn := dial(t, b.edge())
				_, _ = io.WriteString(conn, raw+"\r\n\r\n")
				answer, _ := io.ReadAll(conn)
				if len(answer) != 0 && !bytes.HasPrefix(answer, []byte("HTTP/1.1 400")) {
					t.Errorf("%q: answered %q", raw, answer)
				}
			}
		}},
		{"pipelined second request", b.refuses(request("/v1/other", h), http.StatusNotFound, "not_found")},
		{"Origin not on the list", func(t *testing.T) {
			expectRefusal(t, b.variant(), request(stocks, host(b.variant()), "Origin: https://evil.example"), http.StatusForbidden, "forbidden")
		}},
		{"too many handshakes from an address", func(t *testing.T) { b.limited(t, b.edges[4]) }},
		{"pod full", func(t *testing.T) {
			join(t, b.edges[3], "stocks", expert(t, b.c, "stocks"))
			expectRefusal(t, b.edges[3], request(stocks, host(b.edges[3])), http.StatusServiceUnavailable, "service_unavailable")
		}},
		{"api_key twice, empty, long, garbage, non-ASCII", func(t *testing.T) {
			for _, query := range []string{"api_key=a&api_key=b", "api_key=", "api_key=" + long, "api_key=%zz", "api_key=%C3%A9%F0", "api_key=a%00b"} {
				b.failsAuth("", stocks+"?"+query)(t)
			}
		}},
		{"header and query keys differ", func(t *testing.T) {
			b.failsAuth("", stocks+"?api_key=cm_other", bearer(expert(t, b.c, "stocks")))(t)
		}},
		{"Authorization in other forms", func(t *testing.T) {
			key := expert(t, b.c, "stocks")
			b.failsAuth("", stocks, "Authorization: Basic "+key)(t)
			b.failsAuth("", stocks, bearer(key), bearer(key))(t)
			s := open(t, b.edge(), stocks, "Authorization: bearer  "+key)
			s.expect(connected)
			s.expect(authenticated)
		}},
		{"spoofed X-Forwarded-For", func(t *testing.T) {
			// Another address in each request does not escape the limit.
			b.limited(t, b.edges[4], "X-Forwarded-For: 203.0.113.%d")
		}},
	}
}

// limited expects a 429 within twenty handshakes; a %d in header lines is the
// number of the handshake.
func (b badInput) limited(t *testing.T, edge string, header ...string) {
	t.Helper()
	for i := range 20 {
		lines := make([]string, len(header))
		for j, h := range header {
			lines[j] = fmt.Sprintf(h, i)
		}
		_, _, res := exchange(t, edge, request("/v1/ws/stocks/", host(edge), lines...))
		if res.StatusCode == http.StatusTooManyRequests {
			return
		}
	}
	t.Fatal("20 handshakes from one address were not limited")
}

func (b badInput) inBandOffEdge(t *testing.T) {
	s := open(t, b.variant(), "/v1/ws/stocks/")
	s.expect(connected)
	expectAuthFailed(t, s, "key")
}

// slowHandshake sends a byte now and then: the server ends it at its deadline.
func (b badInput) slowHandshake(t *testing.T) {
	conn := dial(t, b.edge())
	began := time.Now()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for _, c := range request("/v1/ws/stocks/", host(b.edge())) {
			if _, err := conn.Write([]byte{c}); err != nil {
				return
			}
			time.Sleep(500 * time.Millisecond)
		}
	}()
	answer, _ := io.ReadAll(conn)
	if took := time.Since(began); took > 12*time.Second {
		t.Errorf("ended after %s", took)
	}
	if len(answer) != 0 && !bytes.HasPrefix(answer, []byte("HTTP/1.1 408")) {
		t.Errorf("answered %q", answer)
	}
	_ = conn.Close()
	<-done
}

func (b badInput) frameRows() []badRow {
	text := masked(true, ws.OpText, []byte("x"))
	start := masked(false, ws.OpText, []byte("x"))
	return []badRow{
		{"unmasked frame", b.closes(1002, ws.MustCompileFrame(ws.NewTextFrame([]byte("x"))))},
		{"RSV bits, reserved opcodes", func(t *testing.T) {
			for _, first := range []byte{0xc1, 0xa1, 0x91, 0x83, 0x87, 0x8b, 0x8f} {
				b.closes(1002, headed(first, "x"))(t)
			}
		}},
		{"long ping, fragmented ping", func(t *testing.T) {
			b.closes(1002, masked(true, ws.OpPing, bytes.Repeat([]byte("x"), 126)))(t)
			b.closes(1002, masked(false, ws.OpPing, nil))(t)
		}},
		{"continuation without start, text inside a fragmented message", func(t *testing.T) {
			b.closes(1002, masked(true, ws.OpContinuation, nil))(t)
			b.closes(1002, start, text)(t)
		}},
		{"huge length", func(t *testing.T) {
			b.closes(1009, length64(1<<63-1))(t)
			b.closes(1002, length64(1<<63))(t)
		}},
		{"length not in its shortest form", b.closes(1002, length64(5), []byte("hello"))},
		{"message over the limit", func(t *testing.T) {
			b.closes(1009, masked(true, ws.OpText, bytes.Repeat([]byte(" "), 70_000)))(t)
			part := bytes.Repeat([]byte(" "), 40_000)
			b.closes(1009, masked(false, ws.OpText, part), masked(true, ws.OpContinuation, part))(t)
		}},
		{"empty continuation frames, a fragment never finished", func(t *testing.T) {
			b.closes(1008, start, bytes.Repeat(masked(false, ws.OpContinuation, nil), 10_000))(t)
			b.closes(1008, start)(t)
		}},
		{"binary message", b.closes(1003, masked(true, ws.OpBinary, []byte("x")))},
		{"invalid UTF-8", b.closes(1007, masked(true, ws.OpText, []byte("\xff\xfe")))},
		{"bad close frames", func(t *testing.T) {
			b.closes(1002, masked(true, ws.OpClose, []byte{3}))(t)
			for _, code := range []uint16{999, 1004, 1005, 1006, 1016, 5000} {
				b.closes(1002, masked(true, ws.OpClose, closeBody(code, "")))(t)
			}
			b.closes(1007, masked(true, ws.OpClose, closeBody(1000, "\xff")))(t)
		}},
		{"close is echoed once", func(t *testing.T) {
			b.closes(1000, masked(true, ws.OpClose, closeBody(1000, "bye")))(t)
			b.closes(4000, masked(true, ws.OpClose, closeBody(4000, "")))(t)
			b.closes(1005, masked(true, ws.OpClose, nil))(t)
		}},
		{"data after close", b.closes(1000, masked(true, ws.OpClose, closeBody(1000, "")), bytes.Repeat(text, 100))},
		{"a thousand pings a second", b.closes(1008, bytes.Repeat(masked(true, ws.OpPing, []byte("p")), 1000))},
		{"never answers pings", b.silent},
	}
}

// silent never answers a ping: the server ends the socket after the pong wait.
func (b badInput) silent(t *testing.T) {
	s := b.session(t)
	began := time.Now()
	if err := s.conn.SetReadDeadline(began.Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	for {
		f, err := readFrame(s.in)
		if errors.Is(err, io.EOF) || (err == nil && f.Header.OpCode == ws.OpClose) {
			break
		}
		if err != nil {
			t.Fatalf("after %s: %v", time.Since(began), err)
		}
	}
	if took := time.Since(began); took < 20*time.Second || took > 45*time.Second {
		t.Errorf("ended after %s, want 20 s until the ping and 10 s for the pong", took)
	}
}

func (b badInput) messageRows() []badRow {
	const success = "success"
	subscribe := func(params string) string { return `{"action":"subscribe","params":` + params + `}` }
	return []badRow{
		{"not a command", func(t *testing.T) {
			for _, text := range []string{"hello", "[]", "7", "{}", `"x"`, "null", "", strings.Repeat("[", 10_000), strings.Repeat(`{"a":`, 5_000)} {
				b.answers(text, "error", "")(t)
			}
			s := b.session(t)
			for range 5 {
				s.send("hello")
			}
			s.expectClose(1008)
		}},
		{"unknown action, auth", func(t *testing.T) {
			b.answers(`{"action":"dance","params":"x"}`, "error", "")(t)
			key := expert(t, b.c, "stocks")
			s := join(t, b.edge(), "stocks", key)
			s.send(fmt.Sprintf(`{"action":"auth","params":%q}`, key))
			s.expect(authenticated)
		}},
		{"params missing, not a string, empty, too many", func(t *testing.T) {
			for _, text := range []string{`{"action":"subscribe"}`, subscribe("7"), subscribe(`["T.A"]`), subscribe(`""`), subscribe(`","`)} {
				b.answers(text, "error", "")(t)
			}
			b.answers(subscribe(`"`+strings.Repeat("T.A,", 1001)+`"`), "error", "")(t)
			b.closes(1009, masked(true, ws.OpText, []byte(subscribe(`"`+strings.Repeat("T.A,", 100_000)+`"`))))(t)
		}},
		{"wildcards and topics of the other product", func(t *testing.T) {
			b.answers(subscribe(`"T.*"`), success, "subscribed to: T.*")(t)
			b.answers(subscribe(`"*"`), "error", "*")(t)
			b.answers(subscribe(`"T.O:SPY991217C00500000"`), "error", "T.O:SPY991217C00500000")(t)
		}},
		{"topics with control characters, quotes, 10 KiB, lower case", func(t *testing.T) {
			for _, topic := range []string{`T.A\r\nB`, `T.\"A`, "T." + strings.Repeat("A", 10_240), "T.aapl", "T.\u00e9"} {
				b.answers(subscribe(`"`+topic+`"`), "error", "")(t)
			}
		}},
		{"duplicate subscribe, unsubscribe of an unknown topic", func(t *testing.T) {
			b.answers(subscribe(`"NOI.ZZ,NOI.ZZ"`), success, "subscribed to: NOI.ZZ")(t)
			b.answers(`{"action":"unsubscribe","params":"NOI.ZZB"}`, success, "unsubscribed to: NOI.ZZB")(t)
		}},
		{"subscribe and unsubscribe a thousand times a second", func(t *testing.T) {
			on, off := []byte(subscribe(`"NOI.ZZ"`)), []byte(`{"action":"unsubscribe","params":"NOI.ZZ"}`)
			b.closes(1008, bytes.Repeat(append(masked(true, ws.OpText, on), masked(true, ws.OpText, off)...), 500))(t)
		}},
		{"duplicate JSON keys, NUL, huge numbers", func(t *testing.T) {
			b.answers(`{"action":"dance","action":"subscribe","params":"x","params":"NOI.ZZ"}`, success, "subscribed to: NOI.ZZ")(t)
			b.answers(subscribe(`"T.\u0000"`), "error", "")(t)
			b.answers(`{"action":"subscribe","params":`+strings.Repeat("9", 400)+`}`, "error", "")(t)
		}},
		{"compressed bomb", nil},
		{"compression offers with unknown parameters", func(t *testing.T) {
			for _, offer := range []string{"permessage-deflate; nonsense=1", "permessage-deflate; server_max_window_bits=99; server_max_window_bits=8", "x;;;,"} {
				s := open(t, b.edge(), "/v1/ws/stocks/", bearer(expert(t, b.c, "stocks")), "Sec-WebSocket-Extensions: "+offer)
				s.expect(connected)
				s.expect(authenticated)
			}
		}},
		{"RSV1 without compression", b.closes(1002, headed(0xc1, `{"action":"subscribe","params":"T.A"}`))},
	}
}
