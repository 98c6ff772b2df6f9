package front

import (
	"bufio"
	"bytes"
	"crypto/sha1"
	"encoding/base64"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

// parse has net/http read a request.
func parse(t testing.TB, raw string) *http.Request {
	t.Helper()
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(raw)))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// hijacked is a ResponseWriter that gives a connection away which keeps what is
// written.
type hijacked struct {
	http.ResponseWriter
	conn    net.Conn
	written bytes.Buffer
}

func (h *hijacked) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return h.conn, bufio.NewReadWriter(bufio.NewReader(strings.NewReader("")), bufio.NewWriter(&h.written)), nil
}

// FuzzCheck holds that what net/http reads and we accept is a handshake which
// gobwas answers with the right 101, and that nothing makes us panic.
func FuzzCheck(f *testing.F) {
	for _, raw := range []string{
		request("/v1/ws/stocks/"),
		request("/stocks?api_key=x", "Upgrade: h2c, WebSocket", "Connection: keep-alive, upgrade"),
		request("/v1/ws/options", "Sec-WebSocket-Version: 8"),
		request("/v1/ws/options", "+Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="),
		request("/v1/ws/options", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25j\tQ=="),
		request("/v1/ws/options", "+Transfer-Encoding: chunked"),
		request("/v1/ws/options", "+Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"),
		request("/v1/ws/options", "+Sec-WebSocket-Extensions: permessage-deflate; \"=,;", "+Sec-WebSocket-Protocol: ,"),
		request("http://relay.test/v1/ws/stocks/", "Host:"),
		"PRI * HTTP/2.0\r\n\r\n",
	} {
		f.Add([]byte(raw))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(raw)))
		if err != nil {
			return
		}
		if no := checkRequest(r, route(r.URL.Path)); no != nil {
			return
		}
		if no := checkUpgrade(r); no != nil {
			return
		}
		keys := r.Header.Values("Sec-WebSocket-Key")
		if len(keys) != 1 || len(r.Header.Values("Sec-WebSocket-Version")) != 1 || r.Method != http.MethodGet ||
			r.ContentLength != 0 || len(r.TransferEncoding) != 0 || r.Host == "" || len(r.RequestURI) > maxURL {
			t.Fatalf("accepted: %q", raw)
		}
		client, server := net.Pipe()
		defer client.Close()
		w := &hijacked{conn: server}
		f := &Front{options: Options{Deflate: true}}
		extensions := f.negotiate(r)
		conn, _, err := upgrade(w, r, extensions)
		if err != nil {
			t.Fatalf("gobwas refuses what we accept: %v: %q", err, raw)
		}
		_ = conn.Close()
		sum := sha1.Sum([]byte(keys[0] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
		resp, err := http.ReadResponse(bufio.NewReader(&w.written), nil)
		fields := 3
		if extensions != "" {
			fields++
		}
		if err != nil || resp.StatusCode != http.StatusSwitchingProtocols || len(resp.Header) != fields ||
			resp.Header.Get("Sec-WebSocket-Extensions") != extensions ||
			resp.Header.Get("Sec-WebSocket-Accept") != base64.StdEncoding.EncodeToString(sum[:]) {
			t.Fatalf("answer %+v, error %v to %q", resp, err, raw)
		}
		if rest, _ := io.ReadAll(&w.written); len(rest) > 0 {
			t.Fatalf("%q after the 101", rest)
		}
	})
}

func TestRoute(t *testing.T) {
	for path, want := range map[string]kind{
		"/v1/ws/stocks/": kindStream, "/v1/ws/options": kindStream, "/v1/ws/x y": kindStream, "/v1/ws/...": kindStream,
		"/stocks": kindStream, "/options": kindStream,
		"/v1/status": kindStatus, "/v1/status/": kindStatus,
		"": kindNone, "*": kindNone, "/": kindNone, "/v1/ws": kindNone, "/v1/ws/": kindNone, "/v1/ws//": kindNone,
		"/v1/ws/./": kindNone, "/v1/ws/..": kindNone, "/v1/ws/a/b": kindNone, "/crypto": kindNone, "/v1/status//": kindNone,
	} {
		if got := route(path); got != want {
			t.Errorf("%q: %v, want %v", path, got, want)
		}
	}
}
