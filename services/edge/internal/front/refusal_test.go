package front

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/cutemarkets/relay/services/edge/internal/dialect"
)

// many makes n header fields.
func many(n int) (fields []string) {
	for i := range n {
		fields = append(fields, fmt.Sprintf("+X-Field-%d: 1", i))
	}
	return fields
}

// TestRefused sends each bad request over a socket of its own.
func TestRefused(t *testing.T) {
	g := start(t, func() Options {
		o := defaults()
		o.AllowedOrigins = []string{"https://app.example.com"}
		return o
	}())
	const stocks = "/v1/ws/stocks/"
	for _, tt := range []struct {
		name   string
		raw    string
		status int
		code   string
		header string // "Name: value" that must be there
	}{
		{"root", request("/"), 404, "not_found", ""},
		{"rest path", request("/v1/stocks/"), 404, "not_found", ""},
		{"no market", request("/v1/ws/"), 404, "not_found", ""},
		{"empty market", request("/v1/ws//"), 404, "not_found", ""},
		{"deeper", request("/v1/ws/stocks/x"), 404, "not_found", ""},
		{"two slashes at the end", request("/v1/ws/stocks//"), 404, "not_found", ""},
		{"two slashes at the start", request("//v1/ws/stocks/"), 404, "not_found", ""},
		{"two slashes inside", request("/v1//ws/stocks/"), 404, "not_found", ""},
		{"dots", request("/v1/x/../ws/stocks/"), 404, "not_found", ""},
		{"dot market", request("/v1/ws/./"), 404, "not_found", ""},
		{"dots market", request("/v1/ws/.."), 404, "not_found", ""},
		{"escaped slash", request("/v1/ws/stocks%2fx/"), 404, "not_found", ""},
		{"alias with a slash", request("/stocks/"), 404, "not_found", ""},
		{"other case", request("/V1/WS/stocks/"), 404, "not_found", ""},
		{"asterisk", "OPTIONS * HTTP/1.1\r\nHost: relay.test\r\n\r\n", 404, "not_found", ""},
		{"authority", "CONNECT relay.test:443 HTTP/1.1\r\nHost: relay.test\r\n\r\n", 404, "not_found", ""},

		{"post", request(stocks, "POST "+stocks+" HTTP/1.1"), 405, "method_not_allowed", "Allow: GET"},
		{"lower case", request(stocks, "get "+stocks+" HTTP/1.1"), 405, "method_not_allowed", "Allow: GET"},
		{"put with a body", request(stocks, "PUT "+stocks+" HTTP/1.1", "+Content-Length: 2") + "ab", 405, "method_not_allowed", "Allow: GET"},
		{"options", request(stocks, "OPTIONS "+stocks+" HTTP/1.1"), 405, "method_not_allowed", "Allow: GET"},
		{"post status", request("", "POST /v1/status/ HTTP/1.1"), 405, "method_not_allowed", "Allow: GET"},

		{"long url", request(stocks + "?api_key=" + strings.Repeat("x", 2048)), 414, "uri_too_long", ""},
		{"10 KiB url", request("/?" + strings.Repeat("x", 10240)), 414, "uri_too_long", ""},
		{"65 fields", request(stocks, many(65-4)...), 431, "headers_too_large", ""},
		{"9 KiB field", request(stocks, "+Cookie: "+strings.Repeat("x", 9<<10)), 431, "headers_too_large", ""},

		{"HTTP/1.0", request(stocks, "GET "+stocks+" HTTP/1.0"), 505, "http_version_not_supported", ""},
		{"HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\n", 505, "http_version_not_supported", ""},

		{"other origin", request(stocks, "+Origin: https://evil.example.com"), 403, "forbidden", ""},
		{"origin as part", request(stocks, "+Origin: https://app.example.com.evil.com"), 403, "forbidden", ""},
		{"null origin", request(stocks, "+Origin: null"), 403, "forbidden", ""},
		{"empty origin", request(stocks, "+Origin: "), 403, "forbidden", ""},
		{"second origin", request(stocks, "+Origin: https://app.example.com", "+Origin: https://evil.example.com"), 403, "forbidden", ""},

		{"plain get", "GET " + stocks + " HTTP/1.1\r\nHost: relay.test\r\n\r\n", 426, "upgrade_required", "Upgrade: websocket"},
		{"version 8", request(stocks, "Sec-WebSocket-Version: 8"), 426, "upgrade_required", "Sec-Websocket-Version: 13"},
		{"version list", request(stocks, "Sec-WebSocket-Version: 13, 8"), 426, "upgrade_required", "Sec-Websocket-Version: 13"},
		{"no version", request(stocks, "-Sec-WebSocket-Version"), 400, "bad_request", ""},
		{"empty version", request(stocks, "Sec-WebSocket-Version:"), 400, "bad_request", ""},
		{"two versions", request(stocks, "+Sec-WebSocket-Version: 13"), 400, "bad_request", ""},
		{"no upgrade", request(stocks, "-Upgrade"), 400, "bad_request", ""},
		{"h2c", request(stocks, "Upgrade: h2c"), 400, "bad_request", ""},
		{"no connection", request(stocks, "-Connection"), 400, "bad_request", ""},
		{"keep-alive", request(stocks, "Connection: keep-alive"), 400, "bad_request", ""},
		{"connection as part", request(stocks, "Connection: upgraded"), 400, "bad_request", ""},
		{"no key", request(stocks, "-Sec-WebSocket-Key"), 400, "bad_request", ""},
		{"two keys", request(stocks, "+Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="), 400, "bad_request", ""},
		{"short key", request(stocks, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25j"), 400, "bad_request", ""},
		{"18 byte key", request(stocks, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZTEy"), 400, "bad_request", ""},
		{"no base64", request(stocks, "Sec-WebSocket-Key: !!!!!!!!!!!!!!!!!!!!!!!!"), 400, "bad_request", ""},
		{"empty host", request(stocks, "Host:"), 400, "bad_request", ""},
		{"body", request(stocks, "+Content-Length: 5") + "hello", 400, "bad_request", ""},
		{"body that never comes", request(stocks, "+Content-Length: 5"), 400, "bad_request", ""},
		{"chunked", request(stocks, "+Transfer-Encoding: chunked") + "0\r\n\r\n", 400, "bad_request", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := *g
			g.t = t
			answer := g.exchange(tt.raw)
			if err := refused(answer, tt.status, tt.code); err != nil {
				t.Error(err)
			}
			if !strings.Contains(answer, tt.header) {
				t.Errorf("no %s in %q", tt.header, answer)
			}
		})
	}
	if len(g.engine.sockets) != 0 {
		t.Error("the engine got a socket")
	}
}

// TestRefusedByHTTP holds what net/http refuses before we see it. Its plain text
// is not ours to choose; that it refuses, closes and is counted, is.
func TestRefusedByHTTP(t *testing.T) {
	g := start(t, defaults())
	const stocks = "/v1/ws/stocks/"
	rows := []struct {
		name, raw string
		status    int
	}{
		{"no host", request(stocks, "-Host"), 400},
		{"two hosts", request(stocks, "+Host: relay.test"), 400},
		{"space before colon", request(stocks, "+X : y"), 400},
		{"NUL", request(stocks, "+X: a\x00b"), 400},
		{"empty name", request(stocks, "+: y"), 400},
		{"random bytes", "\x07\xf1\x00\x9c\r\n\r\n", 400},
		{"TLS hello", "\x16\x03\x01\x00\x05hello\r\n\r\n", 400},
		{"four parts", "GET / x HTTP/1.1\r\n\r\n", 400},
		{"HTTP/3", "GET / HTTP/3.0\r\nHost: relay.test\r\n\r\n", 505},
		{"percent garbage in the path", request("/v1/ws/%zz"), 400},
		{"bad length", request(stocks, "+Content-Length: -1"), 400},
		{"two lengths", request(stocks, "+Content-Length: 0", "+Content-Length: 1"), 400},
		{"unknown coding", request(stocks, "+Transfer-Encoding: gzip"), 501},
		{"64 KiB url", request("/?" + strings.Repeat("x", 64<<10)), 431},
		{"2000 fields", request(stocks, many(2000)...), 431},
	}
	for _, tt := range rows {
		t.Run(tt.name, func(t *testing.T) {
			c := g.dial()
			go func() { _, _ = io.WriteString(c, tt.raw) }()
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Fatal(err)
			}
			if !resp.Close || resp.StatusCode != tt.status {
				t.Errorf("status %d, close %v; want %d and closed", resp.StatusCode, resp.Close, tt.status)
			}
			if _, err = io.ReadAll(resp.Body); errors.Is(err, os.ErrDeadlineExceeded) { // a reset is as good as a close
				t.Error("not closed")
			}
		})
	}
	g.eventually("each is counted", func() bool {
		return g.counts("relay_edge_upgrades")["bad_request"] == int64(len(rows))
	})
}

// TestPipelined sends a good handshake behind each kind of answer: it must never
// be answered.
func TestPipelined(t *testing.T) {
	g := start(t, defaults())
	good := request("/v1/ws/stocks/")
	for name, first := range map[string]string{
		"refusal":   request("/v1/ws/stocks/", "Sec-WebSocket-Version: 8"),
		"not found": "GET /x HTTP/1.1\r\nHost: relay.test\r\nConnection: keep-alive\r\n\r\n",
		"body":      request("/v1/ws/stocks/", fmt.Sprintf("+Content-Length: %d", len(good))),
		"status":    "GET /v1/status/ HTTP/1.1\r\nHost: relay.test\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			g := *g
			g.t = t
			answer := g.exchange(first + good + good)
			if n := strings.Count(answer, "HTTP/1.1 "); n != 1 {
				t.Errorf("%d answers: %q", n, answer)
			}
		})
	}
	if len(g.engine.sockets) != 0 {
		t.Error("the engine got a socket")
	}
}

// TestResultsAreKnown makes sure that no refusal is missing in the metrics.
func TestResultsAreKnown(t *testing.T) {
	for _, no := range []*refusal{
		uriTooLong, headersTooLarge, versionUnsupported, notFound, methodNotAllowed, podDraining, tooManyHandshakes,
		podFull, originForbidden, upgradeRequired, versionNot13, badUpgrade, badVersion, badKey, badHost, bodyForbidden,
		tooManyRequests(dialect.HandshakeRate, 1, ""), tooManyRequests(dialect.KeyRate, 1, ""), tooManyRequests(dialect.FailureRate, 1, ""),
	} {
		if !slices.Contains(results, no.reason) {
			t.Errorf("%v is not in results", no.reason)
		}
	}
	g := start(t, defaults())
	got := g.counts("relay_edge_upgrades")
	for _, r := range results {
		if n, ok := got[r.String()]; !ok || n != 0 {
			t.Errorf("%v: %d, %v; want it there at 0", r, n, ok)
		}
	}
}
