package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gobwas/ws"

	"github.com/cutemarkets/relay/hack/cluster"
)

// TestContract is the client contract, row by row: two edges as they come by
// default and a third with the other settings that rows speak of.
func TestContract(t *testing.T) {
	t.Parallel()
	address, _, _ := startRedis(t)
	c := startCluster(t, cluster.Options{
		Redis: address, Edges: 5, Rate: 1000,
		Args: map[string][]string{
			"edge-2": {"--markets=stocks", "--no-in-band-auth", "--allowed-origins=https://app.example"},
			"edge-3": {"--max-connections=3"},
			"edge-4": {"--handshake-rate-per-ip=1", "--handshake-burst-per-ip=5"},
		},
	})
	x := contract{c: c, edges: c.Info().Edges}
	for _, row := range []struct {
		name string
		test func(t *testing.T)
	}{
		{"upgrade on every path, no redirect, greeting first", x.paths},
		{"every other path is 404", x.otherPaths},
		{"key by header or api_key", x.credentials},
		{"no key: in-band auth", x.inBand},
		{"no key: auth_timeout and 4401 after 10 s", x.inBandTimeout},
		{"no key with in-band auth off: 4401 at once", x.inBandOff},
		{"auth on an authenticated socket", x.authAgain},
		{"refused credential: connected, auth_failed with the cause, 4401", x.refused},
		{"second connection: connected, max_connections, hold, 4409", x.second},
		{"subscribe and unsubscribe", x.subscribe},
		{"subscribe before auth_success is queued", x.early},
		{"malformed, unknown or not entitled topics", x.badTopics},
		{"events: vendor bytes, once, with exact and wildcard topics", x.events},
		{"refusals by HTTP status", x.refusals},
		{"origin not on the list", x.origin},
		{"pod full", x.full},
		{"per-IP handshake limit", x.perIP},
		{"status page", x.status},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			row.test(t)
		})
	}
}

type contract struct {
	c     *cluster.Cluster
	edges []string
}

// variant is the edge with the other settings.
func (x contract) variant() string { return x.edges[2] }

func (x contract) paths(t *testing.T) {
	for _, path := range []string{"/v1/ws/stocks/", "/v1/ws/stocks", "/stocks"} {
		s := open(t, x.edges[0], path, bearer(expert(t, x.c, "stocks")))
		s.expect(connected)
		s.expect(authenticated)
	}
	for _, path := range []string{"/v1/ws/options/", "/v1/ws/options", "/options"} {
		s := open(t, x.edges[1], path, bearer(expert(t, x.c, "options")))
		s.expect(connected)
		s.expect(authenticated)
	}
}

func (x contract) otherPaths(t *testing.T) {
	for _, path := range []string{"/", "/v1", "/v1/ws", "/v1/ws/", "/v1/ws/stocks/x", "/stocks/", "/crypto", "/v2/ws/stocks/", "//v1/ws/stocks/", "/v1/../v1/ws/stocks/", "/metrics", "/v1/status/x"} {
		expectRefusal(t, x.edges[0], request(path, host(x.edges[0])), http.StatusNotFound, "not_found")
	}
}

func (x contract) credentials(t *testing.T) {
	key := expert(t, x.c, "stocks")
	for name, header := range map[string][]string{
		"header":                       {bearer(key)},
		"scheme in lower case":         {"Authorization: bearer " + key},
		"two spaces":                   {"Authorization: Bearer  " + key},
		"same key by header and query": {bearer(key)},
	} {
		t.Run(name, func(t *testing.T) {
			target := "/v1/ws/stocks/"
			if strings.HasPrefix(name, "same") {
				target += "?api_key=" + key
			}
			s := open(t, x.edges[0], target, header...)
			s.expect(connected)
			s.expect(authenticated)
			s.leave()
		})
	}
	t.Run("api_key", func(t *testing.T) {
		s := open(t, x.edges[0], "/v1/ws/stocks/?api_key="+key)
		s.expect(connected)
		s.expect(authenticated)
		s.leave()
	})
}

func (x contract) inBand(t *testing.T) {
	key := expert(t, x.c, "stocks")
	s := open(t, x.edges[0], "/v1/ws/stocks/")
	s.expect(connected)
	s.send(fmt.Sprintf(`{"action":"auth","params":%q}`, key))
	s.expect(authenticated)
	s.subscribe("T.AAPL")
	s.expect(`[{"ev":"status","status":"success","message":"subscribed to: T.AAPL"}]`)
	s.leave()

	t.Run("bad key", func(t *testing.T) {
		s := open(t, x.edges[0], "/v1/ws/stocks/")
		s.expect(connected)
		s.send(`{"action":"auth","params":"cm_nobodyskey"}`)
		expectAuthFailed(t, s, "invalid")
	})
}

func (x contract) inBandTimeout(t *testing.T) {
	s := open(t, x.edges[0], "/v1/ws/stocks/")
	s.expect(connected)
	began := time.Now()
	s.expect(`[{"ev":"status","status":"auth_timeout","message":"No authentication request received."}]`)
	if waited := time.Since(began); waited < 9*time.Second {
		t.Errorf("waited only %s", waited)
	}
	s.expectClose(4401)
}

func (x contract) inBandOff(t *testing.T) {
	s := open(t, x.variant(), "/v1/ws/stocks/")
	s.expect(connected)
	began := time.Now()
	expectAuthFailed(t, s, "key")
	if waited := time.Since(began); waited > 5*time.Second {
		t.Errorf("waited %s", waited)
	}
}

// expectAuthFailed expects auth_failed naming a cause, and 4401 at least 100 ms later.
func expectAuthFailed(t *testing.T, s *client, cause string) {
	t.Helper()
	batch, err := s.events(patience)
	if err != nil {
		t.Fatalf("waiting for auth_failed: %v", err)
	}
	if len(batch) != 1 || batch[0].Status != "auth_failed" || !strings.Contains(strings.ToLower(batch[0].Message), cause) {
		t.Fatalf("got %v, want auth_failed naming %q", batch, cause)
	}
	began := time.Now()
	s.expectClose(4401)
	if held := time.Since(began); held < 90*time.Millisecond {
		t.Errorf("closed %s after auth_failed, want at least 100 ms", held)
	}
}

func (x contract) authAgain(t *testing.T) {
	user, key := newUser(t, x.c, "stocks", "expert")
	second := keyOf(t, x.c, user, "stocks", "expert")
	_, foreign := newUser(t, x.c, "stocks", "expert")
	s := join(t, x.edges[0], "stocks", key)
	auth := func(key string) { s.send(fmt.Sprintf(`{"action":"auth","params":%q}`, key)) }

	auth(key)
	s.expect(authenticated)
	auth(second)
	s.expect(authenticated)
	auth(foreign)
	batch, err := s.events(patience)
	if err != nil || len(batch) != 1 || batch[0].Status != "auth_failed" {
		t.Fatalf("another user's key: %v %v, want auth_failed", batch, err)
	}
	auth("cm_nobodyskey")
	batch, err = s.events(patience)
	if err != nil || len(batch) != 1 || batch[0].Status != "auth_failed" {
		t.Fatalf("a bad key: %v %v, want auth_failed", batch, err)
	}
	s.subscribe("T.AAPL")
	s.expect(`[{"ev":"status","status":"success","message":"subscribed to: T.AAPL"}]`)

	// The user never changed: its lock is held, the other user's is free.
	join(t, x.edges[1], "stocks", foreign).leave()
	stop := s.attend()
	expectSecond(t, open(t, x.edges[1], "/v1/ws/stocks/", bearer(second)))
	stop()
	s.leave()
}

func (x contract) refused(t *testing.T) {
	stocks := expert(t, x.c, "stocks")
	_, free := newUser(t, x.c, "stocks", "free")
	_, developer := newUser(t, x.c, "options", "developer")
	paper, err := x.c.Key(t.Context(), "stocks-expert", "paper")
	if err != nil {
		t.Fatal(err)
	}
	revoked := x.revoked(t)
	for name, row := range map[string]struct{ edge, target, key, cause string }{
		"unknown key":           {x.edges[0], "/v1/ws/stocks/", "cm_nobodyskey", "invalid"},
		"revoked key":           {x.edges[0], "/v1/ws/stocks/", revoked, "invalid"},
		"stocks key on options": {x.edges[0], "/v1/ws/options/", stocks, "product"},
		"paper key on stocks":   {x.edges[0], "/v1/ws/stocks/", paper, "product"},
		"plan free":             {x.edges[0], "/v1/ws/stocks/", free, "plan"},
		"plan developer":        {x.edges[0], "/v1/ws/options/", developer, "plan"},
		"unknown market":        {x.edges[0], "/v1/ws/crypto/", stocks, "market"},
		"any other market":      {x.edges[0], "/v1/ws/%F0%9F%92%A9/", stocks, "market"},
		"stream not configured": {x.variant(), "/v1/ws/options/", stocks, "configured"},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, row.edge, row.target, bearer(row.key))
			s.expect(connected)
			expectAuthFailed(t, s, row.cause)
		})
	}
}

// revoked makes a key and revokes it.
func (x contract) revoked(t *testing.T) string {
	t.Helper()
	user, key := newUser(t, x.c, "stocks", "expert")
	out, err := x.c.Admin(t.Context(), "keys", "list", "--user="+user, "--format=json")
	if err != nil {
		t.Fatal(err)
	}
	var listed struct {
		KeyID string `json:"key_id"`
	}
	if err := json.Unmarshal([]byte(out), &listed); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	if _, err := x.c.Admin(t.Context(), "keys", "revoke", listed.KeyID); err != nil {
		t.Fatal(err)
	}
	return key
}

// expectSecond expects the refusal of a second connection.
func expectSecond(t *testing.T, s *client) {
	t.Helper()
	s.expect(connected)
	batch, err := s.events(patience)
	if err != nil || len(batch) != 1 || batch[0].Status != "max_connections" {
		t.Fatalf("second connection: %v %v, want max_connections", batch, err)
	}
	began := time.Now()
	s.expectClose(4409)
	if held := time.Since(began); held < 950*time.Millisecond {
		t.Errorf("held for %s, want at least 1 s", held)
	}
}

// holder expects each edge to tell operators that the first holds the user's lock.
func (x contract) holder(t *testing.T, user string) {
	operations := x.c.Info().Operations
	own, other := get(t, operations["edge-0"]+"/locks"), get(t, operations["edge-1"]+"/locks?user="+url.QueryEscape(user))
	var listed, asked struct {
		Locks []struct{ User, Edge, Connection, Since string }
	}
	if err := errors.Join(json.Unmarshal([]byte(own), &listed), json.Unmarshal([]byte(other), &asked)); err != nil {
		t.Fatalf("%v in %s or %s", err, own, other)
	}
	if len(asked.Locks) != 1 || asked.Locks[0].User != user || !slices.Contains(listed.Locks, asked.Locks[0]) {
		t.Fatalf("the other edge tells %s of %s, the edge itself %s", other, user, own)
	}
}

func (x contract) second(t *testing.T) {
	user, key := newUser(t, x.c, "stocks", "expert")
	other := keyOf(t, x.c, user, "stocks", "expert")
	options := keyOf(t, x.c, user, "options", "expert")
	first := join(t, x.edges[0], "stocks", key)
	first.subscribe("T.*")
	first.await("an event", func(e event) bool { return e.Ev == "T" })
	x.holder(t, user)
	stop := first.attend()
	for name, row := range map[string]struct{ edge, target, key string }{
		"same pod, same key": {x.edges[0], "/v1/ws/stocks/", key},
		"other pod":          {x.edges[1], "/v1/ws/stocks/", key},
		"other key":          {x.edges[1], "/v1/ws/stocks", other},
		"other market":       {x.edges[1], "/v1/ws/options/", options},
	} {
		t.Run(name, func(t *testing.T) {
			expectSecond(t, open(t, row.edge, row.target, bearer(row.key)))
		})
	}
	stop()
	first.await("an event: the first connection is undisturbed", func(e event) bool { return e.Ev == "T" })
	first.frame(ws.OpClose, ws.NewCloseFrameBody(ws.StatusNormalClosure, ""))
	first.expectClose(1000)
	join(t, x.edges[1], "options", options).leave()
}

func (x contract) subscribe(t *testing.T) {
	s := join(t, x.edges[0], "stocks", expert(t, x.c, "stocks"))
	success := func(texts ...string) string {
		var objects []string
		for _, text := range texts {
			objects = append(objects, fmt.Sprintf(`{"ev":"status","status":"success","message":%q}`, text))
		}
		return "[" + strings.Join(objects, ",") + "]"
	}
	s.subscribe("LULD.ZZA,NOI.ZZ.A, NOI.ZZB")
	s.expect(success("subscribed to: LULD.ZZA", "subscribed to: NOI.ZZ.A", "subscribed to: NOI.ZZB"))
	s.subscribe("LULD.ZZA")
	s.expect(success("subscribed to: LULD.ZZA"))
	s.send(`{"action":"unsubscribe","params":"LULD.ZZA, NOI.ZZ.A,NOI.ZZB,NOI.ZZC"}`)
	s.expect(success("unsubscribed to: LULD.ZZA", "unsubscribed to: NOI.ZZ.A", "unsubscribed to: NOI.ZZB", "unsubscribed to: NOI.ZZC"))

	options := join(t, x.edges[0], "options", expert(t, x.c, "options"))
	options.subscribe("Q.O:SPY991217C00500000")
	options.expect(success("subscribed to: Q.O:SPY991217C00500000"))
}

func (x contract) early(t *testing.T) {
	key := expert(t, x.c, "stocks")
	early := bytes.Join([][]byte{
		ws.MustCompileFrame(ws.MaskFrame(ws.NewTextFrame(fmt.Appendf(nil, `{"action":"auth","params":%q}`, key)))),
		ws.MustCompileFrame(ws.MaskFrame(ws.NewTextFrame([]byte(`{"action":"subscribe","params":"NOI.ZZA"}`)))),
	}, nil)
	s := openWith(t, x.edges[0], "/v1/ws/stocks", early)
	s.expect(connected)
	s.expect(authenticated)
	s.expect(`[{"ev":"status","status":"success","message":"subscribed to: NOI.ZZA"}]`)
}

func (x contract) badTopics(t *testing.T) {
	stocks := join(t, x.edges[0], "stocks", expert(t, x.c, "stocks"))
	options := join(t, x.edges[0], "options", expert(t, x.c, "options"))
	for _, row := range []struct {
		s     *client
		param string
	}{
		{stocks, "ZZ.AAPL"}, {stocks, "T"}, {stocks, "T."}, {stocks, "*"}, {stocks, "T.aapl"}, {stocks, "T.O:SPY991217C00500000"},
		{stocks, "T.AA*"}, {stocks, `T."A`}, {options, "Q.*"}, {options, "FMV.*"}, {options, "T.AAPL"}, {options, "LULD.O:SPY991217C00500000"},
	} {
		row.s.subscribe(row.param + ",AM.*")
		batch, err := row.s.events(patience)
		for err == nil && len(batch) > 0 && batch[0].Ev != "status" {
			batch, err = row.s.events(patience)
		}
		if err != nil || len(batch) != 2 {
			t.Fatalf("%s: %v %v, want one status per param", row.param, batch, err)
		}
		if batch[0].Status != "error" || !strings.Contains(batch[0].Message, row.param) {
			t.Errorf("%s: %s, want an error that names it", row.param, batch[0].raw)
		}
		if batch[1].Status != "success" || batch[1].Message != "subscribed to: AM.*" {
			t.Errorf("%s: the other of the list got %s", row.param, batch[1].raw)
		}
	}
}

func (x contract) events(t *testing.T) {
	s := join(t, x.edges[0], "stocks", expert(t, x.c, "stocks"))
	s.subscribe("T.*,T.AAPL,Q.AAPL,A.AAPL,AM.*")
	seen := map[string]int{}
	types := map[string]bool{}
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); {
		batch, err := s.events(patience)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range batch {
			if e.Ev == "status" {
				continue
			}
			types[e.Ev] = true
			if seen[e.raw]++; seen[e.raw] > 1 {
				t.Fatalf("came twice: %s", e.raw)
			}
			if bytes.ContainsAny([]byte(e.raw), " \n") || strings.Contains(e.raw, "epoch") {
				t.Fatalf("not the vendor's compact bytes: %s", e.raw)
			}
		}
	}
	if !types["T"] {
		t.Errorf("no trade was seen, only %v", types)
	}
}

// expectRefusal sends raw bytes and expects an HTTP refusal in the REST
// envelope, after which the connection ends without a second answer.
func expectRefusal(t *testing.T, edge string, raw []byte, status int, code string) *http.Response {
	t.Helper()
	pipelined := append(bytes.Clone(raw), request("/v1/status/", host(edge))...)
	_, in, res := exchange(t, edge, pipelined)
	body, err := io.ReadAll(res.Body)
	if err != nil && !errors.Is(err, syscall.ECONNRESET) { // what was left unread may end in a reset
		t.Fatalf("read the refusal: %v", err)
	}
	first, _, _ := bytes.Cut(raw, []byte("\r\n"))
	if len(first) > 60 {
		first = first[:60]
	}
	if res.StatusCode != status {
		t.Fatalf("%s: status %d, want %d: %s", first, res.StatusCode, status, body)
	}
	var envelope struct {
		Status    string `json:"status"`
		RequestID string `json:"request_id"`
		Error     struct{ Code, Message string }
	}
	if code != "" {
		if err := json.Unmarshal(body, &envelope); err != nil {
			t.Fatalf("%s: %v in %s", first, err, body)
		}
		if envelope.Status != "ERROR" || len(envelope.RequestID) != 35 || !strings.HasPrefix(envelope.RequestID, "cm_") ||
			envelope.Error.Code != code || envelope.Error.Message == "" {
			t.Errorf("%s: envelope %s, want code %q", first, body, code)
		}
	}
	if rest, err := io.ReadAll(in); len(rest) != 0 || (err != nil && !errors.Is(err, syscall.ECONNRESET)) {
		t.Errorf("%s: after the refusal came %q, %v", first, rest, err)
	}
	return res
}

func (x contract) refusals(t *testing.T) {
	edge := x.edges[0]
	h := host(edge)
	plain := func(method, target string, lines ...string) []byte {
		return []byte(method + " " + target + " HTTP/1.1\r\nHost: " + h + "\r\n" + strings.Join(lines, "") + "\r\n")
	}
	replace := func(from, to string) []byte {
		raw := request("/v1/ws/stocks/", h)
		if !bytes.Contains(raw, []byte(from)) {
			t.Fatalf("no %q in the handshake", from)
		}
		return bytes.Replace(raw, []byte(from), []byte(to), 1)
	}
	res := expectRefusal(t, edge, plain("GET", "/v1/ws/stocks/"), http.StatusUpgradeRequired, "upgrade_required")
	if res.Header.Get("Upgrade") != "websocket" {
		t.Errorf("426 without Upgrade: %v", res.Header)
	}
	for _, method := range []string{"POST", "PUT", "OPTIONS", "HEAD", "DELETE"} {
		code := "method_not_allowed"
		if method == "HEAD" {
			continue // a HEAD answer has no body to look at
		}
		if got := expectRefusal(t, edge, plain(method, "/v1/ws/stocks/"), http.StatusMethodNotAllowed, code).Header.Get("Allow"); got != "GET" {
			t.Errorf("%s: Allow is %q", method, got)
		}
	}
	expectRefusal(t, edge, request("/v1/ws/stocks/?api_key="+strings.Repeat("x", 2100), h), http.StatusRequestURITooLong, "uri_too_long")
	expectRefusal(t, edge, replace("Sec-WebSocket-Version: 13\r\n", "Sec-WebSocket-Version: 8\r\n"), http.StatusUpgradeRequired, "upgrade_required")
	expectRefusal(t, edge, replace("Sec-WebSocket-Version: 13\r\n", ""), http.StatusBadRequest, "bad_request")
	expectRefusal(t, edge, replace("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", ""), http.StatusBadRequest, "bad_request")
	expectRefusal(t, edge, replace("Connection: Upgrade\r\n", ""), http.StatusBadRequest, "bad_request")
	expectRefusal(t, edge, replace("GET /v1/ws/stocks/ HTTP/1.1", "GET /v1/ws/stocks/ HTTP/1.0"), http.StatusHTTPVersionNotSupported, "")
	expectRefusal(t, edge, request("/v1/ws/stocks/", h, "X-Long: "+strings.Repeat("x", 20_000)), http.StatusRequestHeaderFieldsTooLarge, "")
}

func (x contract) origin(t *testing.T) {
	edge := x.variant()
	expectRefusal(t, edge, request("/v1/ws/stocks/", host(edge), "Origin: https://evil.example"), http.StatusForbidden, "forbidden")
	s := open(t, edge, "/v1/ws/stocks/", "Origin: https://app.example", bearer("cm_nobodyskey"))
	s.expect(connected)
	s.expectClose(4401)
}

func (x contract) full(t *testing.T) {
	edge := x.edges[3]
	for range 3 {
		join(t, edge, "stocks", expert(t, x.c, "stocks"))
	}
	res := expectRefusal(t, edge, request("/v1/ws/stocks/", host(edge)), http.StatusServiceUnavailable, "service_unavailable")
	if res.Header.Get("Retry-After") == "" {
		t.Error("503 without Retry-After")
	}
}

func (x contract) perIP(t *testing.T) {
	edge := x.edges[4]
	for range 20 {
		_, _, res := exchange(t, edge, request("/v1/ws/stocks/", host(edge)))
		if res.StatusCode == http.StatusTooManyRequests {
			if res.Header.Get("Retry-After") == "" {
				t.Error("429 without Retry-After")
			}
			return
		}
	}
	t.Fatal("20 handshakes from one address were not limited")
}

func (x contract) status(t *testing.T) {
	for _, edge := range x.edges[:2] {
		page := status(t, edge)
		if page.Status != "ok" || !strings.HasPrefix(page.RequestID, "cm_") {
			t.Errorf("status page: %+v", page)
		}
		for _, name := range []string{"api", "database", "cache", "stream_stocks", "stream_options"} {
			s, there := page.Services[name]
			if !there || s.Status != "ok" {
				t.Errorf("service %s: %+v", name, s)
			}
			if latency := name == "database" || name == "cache"; latency != (s.LatencyMS != nil) {
				t.Errorf("service %s: latency %v", name, s.LatencyMS)
			}
		}
	}
	_, _, res := exchange(t, x.edges[0], []byte("GET /v1/status/ HTTP/1.1\r\nHost: x\r\n\r\n"))
	if res.StatusCode != http.StatusOK || !strings.HasPrefix(res.Header.Get("Content-Type"), "application/json") {
		t.Errorf("status page: %d %v", res.StatusCode, res.Header)
	}
}
