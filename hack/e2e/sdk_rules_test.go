package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gobwas/ws"

	"github.com/cutemarkets/relay/hack/cluster"
)

// TestSDKRules is what a relay must answer so that the vendor's SDKs work with
// nothing changed but their URL. Topics of tickers that begin with ZZ stay silent:
// feedsim has none.
func TestSDKRules(t *testing.T) {
	t.Parallel()
	address, stopRedis, _ := startRedis(t)
	c := startCluster(t, cluster.Options{
		Redis: address, Edges: 6, Rate: 8000, LogLevel: "info",
		Args: map[string][]string{
			"edge-2": {"--queue-bytes=33554432", "--queue-age=1m"},
			"edge-3": {"--queue-bytes=33554432", "--queue-age=1m"},
			"edge-4": {"--handshake-rate-per-ip=1", "--handshake-burst-per-ip=5"},
		},
	})
	r := rules{c: c, edges: c.Info().Edges}
	t.Run("rules", func(t *testing.T) {
		for _, row := range []struct {
			name string
			test func(t *testing.T)
		}{
			{"01 every path is upgraded, without a redirect", r.paths},
			{"02 no key in the request: one in band, or auth_timeout and 4401", r.inBand},
			{"03 greeting first and at once; one answer to each auth; the user never changes", r.answers},
			{"04 no data before the answer to the first auth; early subscribes wait", r.early},
			{"05 one acknowledgement per param, in one frame; idempotent", r.acknowledgements},
			{"06 connected, auth_failed, 100 ms and more, 4401", r.refusals},
			{"07 second connection: connected, max_connections, a second and more, 4409", r.second},
			{"07 the connection of a killed edge comes free", r.killed},
			{"08 no close when the upstream is lost; 1012 on drain is in TestSDKHabits", r.outage},
			{"09 frames hold at most 64 KiB however slow the client", r.frames},
			{"10 pong at once, ahead of queued data; quiet clients are pinged", r.pong},
			{"11 compression that is offered is declined", r.compression},
			{"12 too many handshakes: 429 with Retry-After before the upgrade", r.limit},
		} {
			t.Run(row.name, func(t *testing.T) {
				t.Parallel()
				row.test(t)
			})
		}
	})
	t.Run("08 a failure of the gateway ends with 1011", func(t *testing.T) {
		key := expert(t, c, "stocks")
		stopRedis()
		expectUnavailable(t, r.edges[0], key)
	})
}

type rules struct {
	c     *cluster.Cluster
	edges []string
}

func (r rules) paths(t *testing.T) {
	for target, market := range map[string]string{
		"/v1/ws/stocks/": "stocks", "/v1/ws/stocks": "stocks", "/stocks": "stocks",
		"/v1/ws/options/": "options", "/v1/ws/options": "options", "/options": "options",
	} {
		key := expert(t, r.c, market)
		s := open(t, r.edges[0], target)
		s.raw(message("auth", key))
		s.expect(connected)
		s.expect(authenticated)
		s.leave()
	}
	s := open(t, r.edges[0], "/v1/ws/stocks?api_key="+expert(t, r.c, "stocks"))
	s.expect(connected)
	s.expect(authenticated)
}

func (r rules) inBand(t *testing.T) {
	late := open(t, r.edges[0], "/v1/ws/stocks")
	late.expect(connected)
	s := open(t, r.edges[0], "/v1/ws/stocks")
	s.expect(connected)
	s.raw(message("auth", expert(t, r.c, "stocks")))
	s.expect(authenticated)
	late.expect(`[{"ev":"status","status":"auth_timeout","message":"No authentication request received."}]`)
	late.expectClose(4401)
}

func (r rules) answers(t *testing.T) {
	user, key := newUser(t, r.c, "stocks", "expert")
	second := keyOf(t, r.c, user, "stocks", "expert")
	_, foreign := newUser(t, r.c, "stocks", "expert")
	s := open(t, r.edges[0], "/v1/ws/stocks", bearer(key))
	s.expect(connected)
	s.expect(authenticated)
	for _, again := range []string{key, second, foreign, "cm_nobodyskey", key} {
		s.raw(message("auth", again))
	}
	s.raw(message("subscribe", "NOI.ZZA"))
	for _, want := range []string{"auth_success", "auth_success", "auth_failed", "auth_failed", "auth_success", "success"} {
		batch, err := s.events(patience)
		if err != nil || len(batch) != 1 || batch[0].Status != want {
			t.Fatalf("got %v, %v; want %s alone in its frame", batch, err, want)
		}
	}
	join(t, r.edges[1], "stocks", foreign).leave()
	stop := s.attend()
	expectSecond(t, open(t, r.edges[1], "/v1/ws/stocks", bearer(second)))
	stop()
}

func (r rules) early(t *testing.T) {
	key := expert(t, r.c, "stocks")
	s := open(t, r.edges[0], "/v1/ws/stocks")
	s.expect(connected)
	s.raw(message("subscribe", "T.*"))
	s.frame(ws.OpPing, []byte("taken"))
	s.expect("pong:taken") // and neither an acknowledgement nor data before it
	s.raw(message("auth", key))
	s.expect(authenticated)
	s.expect(acknowledged("T.*"))
	s.await("an event", func(e event) bool { return e.Ev == "T" })
	s.frame(ws.OpClose, nil)
	s.expectClose(1005)

	s = openWith(t, r.edges[0], "/v1/ws/stocks", message("subscribe", "T.*"), bearer(key))
	s.expect(connected)
	s.expect(authenticated)
	s.expect(acknowledged("T.*"))
}

func (r rules) acknowledgements(t *testing.T) {
	s := join(t, r.edges[0], "stocks", expert(t, r.c, "stocks"))
	for range 3 {
		s.subscribe(" NOI.ZZA, LULD.ZZ.A ,NOI.ZZA,")
		s.expect(acknowledged("NOI.ZZA", "LULD.ZZ.A", "NOI.ZZA"))
	}
	for range 2 {
		s.raw(message("unsubscribe", "NOI.ZZA, LULD.ZZ.A"))
		s.expect(strings.ReplaceAll(acknowledged("NOI.ZZA", "LULD.ZZ.A"), "subscribed to", "unsubscribed to"))
	}
}

func (r rules) refusals(t *testing.T) {
	for cause, key := range (habits{c: r.c}).refused(t) {
		for _, header := range []bool{false, true} {
			s := open(t, r.edges[0], "/v1/ws/stocks", map[bool][]string{true: {bearer(key)}}[header]...)
			s.expect(connected)
			if !header {
				s.raw(message("auth", key))
			}
			expectAuthFailed(t, s, cause)
		}
	}
}

func (r rules) second(t *testing.T) {
	key := expert(t, r.c, "stocks")
	first := join(t, r.edges[0], "stocks", key)
	stop := first.attend()
	for _, edge := range r.edges[:2] {
		s := open(t, edge, "/v1/ws/stocks")
		s.raw(append(message("auth", key), message("subscribe", "T.*")...))
		expectSecond(t, s)
	}
	stop()
	first.subscribe("T.*")
	first.await("an event: the first connection is undisturbed", func(e event) bool { return e.Ev == "T" })
}

// killed ends the sixth edge, which only this test uses, without a farewell.
func (r rules) killed(t *testing.T) {
	const most = 25 * time.Second // the vendor's likes take 90 s
	s := newGoSDK(t, r.edges[5], expert(t, r.c, "stocks"), "T.*")
	s.moved = r.edges[1]
	var killed time.Time
	before := 0
	err := s.run(func() bool {
		if killed.IsZero() && s.data > 0 {
			killed = time.Now()
			if err := r.c.Kill("edge-5", syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
		if len(s.closes) == 0 {
			before = s.data
		}
		return s.data > before && len(s.closes) > 0
	})
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(killed); took > most {
		t.Errorf("events again after %s and %d dials, want at most %s", took, len(s.dials), most)
	}
}

func (r rules) outage(t *testing.T) {
	s := join(t, r.edges[0], "options", expert(t, r.c, "options"))
	s.subscribe("T.*")
	s.await("an event", func(e event) bool { return e.Ev == "T" })
	post(t, r.c.Info().Feedsim+"/outage?market=options&for=1s")
	s.await("the gap", func(e event) bool { return e.Status == "gap" && e.Market == "options" })
	s.await("an event after it", func(e event) bool { return e.Ev == "T" })
}

// stalled opens a socket that takes everything and reads nothing until its edge
// holds that many bytes for it. No other socket may use the edge.
func (r rules) stalled(t *testing.T, number, size int) *client {
	t.Helper()
	s := join(t, r.edges[number], "stocks", expert(t, r.c, "stocks"))
	if err := s.conn.(*net.TCPConn).SetReadBuffer(64 << 10); err != nil {
		t.Fatal(err)
	}
	s.subscribe("T.*,Q.*,A.*")
	metrics := r.c.Info().Operations[fmt.Sprint("edge-", number)] + "/metrics"
	eventually(t, "the edge holds data for a socket that does not read", func() bool {
		return gauge(t, metrics, "relay_edge_send_queue_bytes") >= float64(size)
	})
	return s
}

// gauge returns a metric, added up over its labels.
func gauge(t *testing.T, url, name string) float64 {
	t.Helper()
	sum := 0.0
	for line := range strings.Lines(get(t, url)) {
		labelled, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if bare, _, _ := strings.Cut(labelled, "{"); bare != name {
			continue
		}
		n, err := strconv.ParseFloat(value, 64)
		if err != nil {
			t.Fatal(err)
		}
		sum += n
	}
	return sum
}

// generated is the time that an event of a frame carries.
func generated(t *testing.T, frame string) time.Time {
	t.Helper()
	var events []struct {
		T, E int64 // trades and quotes; bars
	}
	if err := json.Unmarshal([]byte(frame), &events); err != nil {
		t.Fatalf("%v in %.200s", err, frame)
	}
	if len(events) == 0 {
		t.Fatal("an empty frame")
	}
	last := events[len(events)-1]
	return time.UnixMilli(max(last.T, last.E))
}

// frames reads what was held back: it comes in batches, none too big.
func (r rules) frames(t *testing.T) {
	const held, least, most = 4 << 20, 8 << 10, 64 << 10
	s := r.stalled(t, 2, held)
	resumed := time.Now()
	s.expect(acknowledged("T.*", "Q.*", "A.*"))
	biggest := 0
	for {
		frame, err := s.next(patience)
		if err != nil {
			t.Fatal(err)
		}
		biggest = max(biggest, len(frame))
		if generated(t, frame).After(resumed) {
			break
		}
	}
	if biggest < least || biggest > most {
		t.Errorf("the biggest frame had %d bytes, want %d to %d", biggest, least, most)
	}
}

// pong asks for a pong behind data that is not read.
func (r rules) pong(t *testing.T) {
	const held = 4 << 20
	quiet := join(t, r.edges[1], "stocks", expert(t, r.c, "stocks"))
	opened := time.Now()
	s := r.stalled(t, 3, held)
	s.frame(ws.OpPing, []byte("now"))
	asked := time.Now()
	s.expect(acknowledged("T.*", "Q.*", "A.*"))
	before := 0
	for {
		frame, err := s.next(patience)
		if err != nil {
			t.Fatal(err)
		}
		if frame == "pong:now" {
			break
		}
		before += len(frame)
	}
	frame, err := s.next(patience)
	if err != nil {
		t.Fatal(err)
	}
	if before > held/2 || !generated(t, frame).Before(asked) {
		t.Errorf("%d bytes came before the pong, want it ahead of what the edge held", before)
	}

	if err := quiet.conn.SetReadDeadline(opened.Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	f, err := readFrame(quiet.in)
	if waited := time.Since(opened); err != nil || f.Header.OpCode != ws.OpPing || waited < 15*time.Second {
		t.Errorf("%v, %v after %s, want a ping after 20 s", f.Header, err, waited)
	}
}

func (r rules) compression(t *testing.T) {
	for _, offer := range []string{
		"permessage-deflate",
		"permessage-deflate; client_max_window_bits",
		"permessage-deflate; server_no_context_takeover; client_no_context_takeover",
		"permessage-deflate; client_max_window_bits, x-webkit-deflate-frame",
	} {
		raw := request("/v1/ws/stocks", host(r.edges[0]), bearer(expert(t, r.c, "stocks")), "Sec-WebSocket-Extensions: "+offer)
		conn, in, res := exchange(t, r.edges[0], raw)
		if got := res.Header.Values("Sec-WebSocket-Extensions"); res.StatusCode != http.StatusSwitchingProtocols || len(got) != 0 {
			t.Errorf("%s: status %d, accepted %q", offer, res.StatusCode, got)
		}
		f, err := readFrame(in)
		if err != nil || f.Header.Rsv != 0 || !bytes.Equal(f.Payload, []byte(connected)) {
			t.Errorf("%s: %v, %v", offer, f, err)
		}
		_ = conn.Close()
	}
}

// limit lets an SDK meet the limit of the fifth edge, which only this test uses.
func (r rules) limit(t *testing.T) {
	s := newGoSDK(t, r.edges[4], expert(t, r.c, "stocks"), "T.*")
	for n := 0; ; n++ {
		_, in, res := exchange(t, r.edges[4], request("/v1/ws/stocks", host(r.edges[4])))
		if res.StatusCode == http.StatusTooManyRequests {
			if seconds, err := strconv.Atoi(res.Header.Get("Retry-After")); err != nil || seconds < 1 {
				t.Errorf("Retry-After is %q", res.Header.Get("Retry-After"))
			}
			if body, err := io.ReadAll(io.MultiReader(res.Body, in)); err != nil || !bytes.Contains(body, []byte("rate_limit_exceeded")) {
				t.Errorf("%s, %v; want the envelope and then the end", body, err)
			}
			break
		}
		if n == 20 {
			t.Fatal("20 handshakes from one address were not limited")
		}
	}
	if err := s.run(func() bool { return s.data > 0 }); err != nil {
		t.Fatal(err)
	}
	if len(s.refused) == 0 || len(s.closes) != 0 || s.between() < 500*time.Millisecond {
		t.Errorf("%d refusals, %d connections lost, %s between dials; want it to back off and get in", len(s.refused), len(s.closes), s.between())
	}
}
