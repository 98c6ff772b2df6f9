package fanout

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	feedv1 "github.com/cutemarkets/relay/proto/feed/v1"
	"github.com/cutemarkets/relay/services/fanout/internal/calendar"
	"github.com/cutemarkets/relay/services/fanout/internal/leader"
	"github.com/cutemarkets/relay/services/fanout/internal/upstream"
	"github.com/cutemarkets/relay/services/internal/lease"
	"github.com/cutemarkets/relay/services/internal/ops"
	"github.com/cutemarkets/relay/services/internal/redisx"
	"github.com/cutemarkets/relay/services/internal/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func options(t *testing.T) Options {
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, []byte("canary"), 0o600); err != nil {
		t.Fatal(err)
	}
	return Options{
		Listen:               "127.0.0.1:0",
		Markets:              []string{"stocks", "options"},
		UpstreamURL:          "ws://127.0.0.1:1",
		UpstreamKeyFile:      key,
		TradingHours:         hoursNever,
		CanaryTopics:         []string{"stocks:A.SPY", "options:T.O:SPY291221C00500000"},
		TopicSlots:           []string{"options:Q:1000"},
		Leader:               leaderStatic,
		EdgeQueueBytes:       16 << 20,
		RingAge:              10 * time.Second,
		RingBytes:            16 << 20,
		Operations:           ops.Options{Listen: "127.0.0.1:0"},
		Telemetry:            telemetry.Options{LogOutput: io.Discard, OTLPSampleRatio: 1},
		UpstreamOnLimit:      []string{"kick-oldest", "options:reject-newest"},
		UpstreamGhostTimeout: 90 * time.Second,
	}
}

func TestValidate(t *testing.T) {
	good := options(t)
	good.Firehose = []string{"stocks:T", "options:T"}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(o *Options){
		"--markets is empty":                 func(o *Options) { o.Markets = nil },
		"must be lower-case":                 func(o *Options) { o.Markets = []string{"a/b"} },
		"twice":                              func(o *Options) { o.Markets = []string{"stocks", "stocks"} },
		"--upstream-url":                     func(o *Options) { o.UpstreamURL = "https://socket.massive.com" },
		"--upstream-url must":                func(o *Options) { o.UpstreamURL = "wss://socket.massive.com?key=1" },
		"--trading-hours is":                 func(o *Options) { o.TradingHours = "eu" },
		"--canary-topics has \"A":            func(o *Options) { o.CanaryTopics = []string{"A.SPY"} },
		"--canary-topics has \"s":            func(o *Options) { o.CanaryTopics = []string{"stocks:A.*"} },
		"--topic-slots has \"o":              func(o *Options) { o.TopicSlots = []string{"options:Q"} },
		"--topic-slots has \"options:Q:0":    func(o *Options) { o.TopicSlots = []string{"options:Q:0"} },
		"--topic-slots has options:Q twice":  func(o *Options) { o.TopicSlots = []string{"options:Q:1", "options:Q:2"} },
		"option is no market":                func(o *Options) { o.TopicSlots = []string{"option:Q:5"} },
		"stock is no market":                 func(o *Options) { o.Firehose = []string{"stock:T"} },
		"--firehose has \"T":                 func(o *Options) { o.Firehose = []string{"T"} },
		"by the ticker":                      func(o *Options) { o.Firehose = []string{"options:Q"} },
		"--leader is":                        func(o *Options) { o.Leader = "me" },
		"--upstream-key-file":                func(o *Options) { o.UpstreamKeyFile = "" },
		"--edge-queue-bytes":                 func(o *Options) { o.EdgeQueueBytes = 1 },
		"listen address":                     func(o *Options) { o.Listen = "9100" },
		"--operations-listen":                func(o *Options) { o.Operations.Listen = "" },
		"--log-level":                        func(o *Options) { o.Telemetry.LogLevel = "loud" },
		"certificate file and key ":          func(o *Options) { o.TLSKeyFile = "key" },
		"--ring-age is":                      func(o *Options) { o.RingAge = time.Hour },
		"--ring-bytes is":                    func(o *Options) { o.RingBytes = 1 },
		"--upstream-on-limit has \"kick":     func(o *Options) { o.UpstreamOnLimit = []string{"kick-newest"} },
		"--upstream-on-limit has \":":        func(o *Options) { o.UpstreamOnLimit = []string{":kick-oldest"} },
		"--upstream-on-limit has \"O":        func(o *Options) { o.UpstreamOnLimit = []string{"kick-oldest", "O:kick-oldest"} },
		"but an earlier rule":                func(o *Options) { o.UpstreamOnLimit = []string{"kick-oldest", "reject-newest"} },
		"no rule for options: add options:k": func(o *Options) { o.UpstreamOnLimit = []string{"stocks:kick-oldest"} },
		"--upstream-ghost-timeout":           func(o *Options) { o.UpstreamGhostTimeout = 0 },
	} {
		o := options(t)
		change(&o)
		if err := o.Validate(); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := New(o); err == nil {
			t.Errorf("%s: made", name)
		}
	}
	o := options(t)
	o.Leader, o.UpstreamKeyFile = leaderStandby, ""
	if err := o.Validate(); err != nil {
		t.Errorf("a standby needs a key: %v", err)
	}
}

func leaseOptions(t *testing.T) Options {
	o := options(t)
	o.Leader, o.LeaseName = leaderKubernetes, "relay-fanout"
	o.LeaseDuration, o.LeaseRenewDeadline, o.LeaseRetryPeriod = 6*time.Second, 3*time.Second, time.Second
	return o
}

func TestValidateLease(t *testing.T) {
	if err := leaseOptions(t).Validate(); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		want   string
		change func(o *Options)
	}{
		{"--upstream-key-file", func(o *Options) { o.UpstreamKeyFile = "" }},
		{"--lease-namespace is", func(o *Options) { o.LeaseNamespace = "a.b" }},
		{`--lease-name makes the lease "-stocks"`, func(o *Options) { o.LeaseName = "" }},
		{"--lease-name makes", func(o *Options) { o.LeaseName = "Relay" }},
		{"--lease-name makes", func(o *Options) { o.LeaseName = strings.Repeat("a", 57) }},
		{"--lease-duration is 6.5s, must be whole seconds", func(o *Options) { o.LeaseDuration += time.Second / 2 }},
		{"--lease-duration is 0s", func(o *Options) { o.LeaseDuration = 0 }},
		{"--lease-duration is 4s, must be at least 4.5s", func(o *Options) { o.LeaseDuration = 4 * time.Second }},
		{"--lease-duration is 6s, must be more than --lease-renew-deadline", func(o *Options) { o.LeaseRenewDeadline = 6 * time.Second }},
		{"--lease-renew-deadline is 1.2s", func(o *Options) { o.LeaseRenewDeadline = 1200 * time.Millisecond }},
		{"--lease-retry-period is 0s", func(o *Options) { o.LeaseRetryPeriod = 0 }},
	} {
		o := leaseOptions(t)
		tt.change(&o)
		if err := o.Validate(); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", tt.want, err)
		}
	}
	o := leaseOptions(t)
	o.LeaseDuration, o.LeaseRenewDeadline, o.LeaseRetryPeriod = 4*time.Second, 2*time.Second, time.Second/2
	o.LeaseName = strings.Repeat("a", 55) // with "-options" 63
	if err := o.Validate(); err != nil {
		t.Error(err)
	}
}

// TestValidateRedis: its flags count only for the leader that uses it.
func TestValidateRedis(t *testing.T) {
	o := options(t)
	o.Leader, o.LeaseName = leaderRedis, "relay-fanout"
	for want, change := range map[string]func(o *Options){
		"a Redis address is needed": func(*Options) {},
		"--redis-username needs":    func(o *Options) { o.Redis = redisx.Options{Address: []string{"a:1"}, Username: "u"} },
		"--lease-name makes":        func(o *Options) { o.LeaseName = "Relay" },
	} {
		o := o
		change(&o)
		if _, err := New(o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
		o.Leader = leaderStatic
		if err := o.Validate(); err != nil {
			t.Errorf("%s, static: %v", want, err)
		}
	}
	o.Redis.Address = []string{"localhost:1"}
	if _, err := New(o); err != nil {
		t.Error(err)
	}
}

// TestNotInCluster: the error says what to do.
func TestNotInCluster(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	if _, err := New(leaseOptions(t)); err == nil || !strings.Contains(err.Error(), "elsewhere use redis, static or standby") {
		t.Errorf("New: %v", err)
	}
}

// trade sends trades until the connection ends.
func trade(ctx context.Context, conn *websocket.Conn, symbol string) {
	for ticker := time.NewTicker(20 * time.Millisecond); ; {
		if conn.Write(ctx, websocket.MessageText, fmt.Appendf(nil, `[{"ev":"T","sym":%q,"p":1.50}]`, symbol)) != nil {
			return
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// sockets counts the connections of a vendor.
type sockets struct {
	mu sync.Mutex
	// Guarded by mu.
	open, most, all int
}

func (s *sockets) add(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open += n
	s.most = max(s.most, s.open)
	s.all += max(n, 0)
}

// vendor answers as the vendor does, and sends trades for each subscribed topic.
func vendor(t *testing.T) (url string, count *sockets) {
	count = &sockets{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		count.add(1)
		defer count.add(-1)
		defer conn.CloseNow()
		status := func(status, message string) {
			_ = conn.Write(r.Context(), websocket.MessageText, fmt.Appendf(nil, `[{"ev":"status","status":%q,"message":%q}]`, status, message))
		}
		status("connected", "Connected Successfully")
		for {
			_, message, err := conn.Read(r.Context())
			if err != nil {
				return
			}
			var command struct{ Action, Params string }
			if err := json.Unmarshal(message, &command); err != nil {
				t.Error(err)
			}
			switch command.Action {
			case "auth":
				if command.Params != "canary" {
					t.Errorf("key %q", command.Params)
				}
				status("auth_success", "authenticated")
			case "subscribe":
				for topic := range strings.SplitSeq(command.Params, ",") {
					status("success", "subscribed to: "+topic)
					go trade(r.Context(), conn, topic[2:])
				}
			}
		}
	}))
	t.Cleanup(server.Close)
	return "ws" + strings.TrimPrefix(server.URL, "http"), count
}

func run(t *testing.T, o Options) (s *Service, grpcAddress, operations string, stop func()) {
	t.Helper()
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	grpcAddress, operations, stop = runService(t, s)
	return s, grpcAddress, operations, stop
}

func runService(t *testing.T, s *Service) (grpcAddress, operations string, stop func()) {
	t.Helper()
	address := func(listen func() (net.Addr, error)) string {
		a, err := listen()
		if err != nil {
			t.Fatal(err)
		}
		return a.String()
	}
	grpcAddress, operations = address(s.grpc.Listen), address(s.operations.Listen)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	return grpcAddress, operations, func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
}

func subscribe(t *testing.T, address, market string) feedv1.FeedService_SubscribeClient {
	t.Helper()
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	stream, err := feedv1.NewFeedServiceClient(conn).Subscribe(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&feedv1.SubscribeRequest{Message: &feedv1.SubscribeRequest_Hello{Hello: &feedv1.Hello{
		EdgeId: "edge", Market: market, Topics: []*feedv1.Topic{{Id: 9, Name: "T.A"}},
	}}}); err != nil {
		t.Fatal(err)
	}
	return stream
}

func await(t *testing.T, stream feedv1.FeedService_SubscribeClient, ok func(*feedv1.SubscribeResponse) bool) {
	t.Helper()
	for {
		m, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if ok(m) {
			return
		}
	}
}

func TestService(t *testing.T) {
	o := options(t)
	o.UpstreamURL, _ = vendor(t)
	s, address, operations, stop := run(t, o)
	for _, market := range o.Markets {
		stream := subscribe(t, address, market)
		await(t, stream, func(m *feedv1.SubscribeResponse) bool {
			return strings.HasPrefix(string(m.GetBatch().GetPayload()), `{"ev":"T","sym":"A","p":1.50}`)
		})
	}
	for path, want := range map[string]string{
		"/readyz":  "ok\n",
		"/metrics": `relay_fanout_upstream_state{market="options"} 2`,
	} {
		response, err := http.Get("http://" + operations + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil || !strings.Contains(string(body), want) {
			t.Errorf("%s: %v: no %s in %s", path, err, want, body)
		}
	}
	http.DefaultClient.CloseIdleConnections()
	stream := subscribe(t, address, "stocks")
	await(t, stream, func(m *feedv1.SubscribeResponse) bool { return m.GetHeartbeat() != nil })
	stop()
	await(t, stream, func(m *feedv1.SubscribeResponse) bool { return m.GetDraining() != nil })
	if err := s.Run(t.Context()); err == nil {
		t.Error("ran twice")
	}
}

func TestStandby(t *testing.T) {
	o := options(t)
	o.Leader, o.UpstreamKeyFile = leaderStandby, ""
	_, address, _, stop := run(t, o)
	stream := subscribe(t, address, "stocks")
	await(t, stream, func(m *feedv1.SubscribeResponse) bool {
		return m.GetHeartbeat().GetRole() == feedv1.Role_ROLE_STANDBY
	})
	stop()
}

// turn leads once, when it is its turn, and then gives the next one its turn.
type turn struct{ mine, next chan uint64 } // terms

func (e turn) Run(ctx context.Context, _ string, work leader.Work) error {
	select {
	case term := <-e.mine:
		err := work(ctx, leader.Leadership{Epoch: leader.Epoch{Generation: 1, Term: term}, Proof: lease.NewProof()})
		e.next <- term + 1
		return err
	case <-ctx.Done():
		return nil
	}
}

// TestPromotion: an edge with a stream to a leader and one to a standby is told
// of the end of the leadership by the one and of its begin by the other, which
// serves the edge's interest without being told of it again. The vendor sees one
// connection at a time.
func TestPromotion(t *testing.T) {
	o := options(t)
	o.Markets, o.Leader = []string{"stocks"}, leaderStandby
	var count *sockets
	o.UpstreamURL, count = vendor(t)
	begin := func(elector leader.Elector) (stream feedv1.FeedService_SubscribeClient, stop func()) {
		s, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		s.elector = elector
		address, _, stop := runService(t, s)
		return subscribe(t, address, "stocks"), stop
	}
	begun, passed := make(chan uint64), make(chan uint64, 1)
	first, stopFirst := begin(turn{begun, passed})
	second, stopSecond := begin(turn{passed, make(chan uint64, 1)})
	role := func(role feedv1.Role) func(*feedv1.SubscribeResponse) bool {
		return func(m *feedv1.SubscribeResponse) bool { return m.GetHeartbeat().GetRole() == role }
	}
	await(t, first, role(feedv1.Role_ROLE_STANDBY))
	await(t, second, role(feedv1.Role_ROLE_STANDBY))
	begun <- 7

	var terms []uint64
	batch := func(m *feedv1.SubscribeResponse) bool {
		if b := m.GetBatch(); b != nil {
			terms = append(terms, b.GetEpoch().GetTerm())
		}
		return m.GetBatch() != nil
	}
	await(t, first, batch)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		stopFirst()
	}()
	await(t, first, func(m *feedv1.SubscribeResponse) bool {
		return m.GetHeartbeat().GetUpstream() == feedv1.UpstreamState_UPSTREAM_STATE_DOWN && m.GetHeartbeat().GetDownSince() != nil
	})
	await(t, first, role(feedv1.Role_ROLE_STANDBY))
	await(t, first, func(m *feedv1.SubscribeResponse) bool { return m.GetDraining() != nil })
	await(t, second, batch)
	if len(terms) != 2 || terms[0] != 7 || terms[1] != 8 {
		t.Errorf("terms %v", terms)
	}
	<-stopped
	stopSecond()
	count.mu.Lock()
	defer count.mu.Unlock()
	if count.most != 1 || count.all != 2 {
		t.Errorf("%d connections, %d at a time", count.all, count.most)
	}
}

// TestUpstreamConfig: which hours and canaries a market has.
// TestLimit: a market's own rule wins over that for all others, wherever it stands.
func TestLimit(t *testing.T) {
	for _, tt := range []struct {
		rules           []string
		stocks, options upstream.LimitRule
	}{
		{[]string{"reject-newest"}, upstream.RejectNewest, upstream.RejectNewest},
		{[]string{"kick-oldest", "options:reject-newest"}, upstream.KickOldest, upstream.RejectNewest},
		{[]string{"options:reject-newest", "kick-oldest"}, upstream.KickOldest, upstream.RejectNewest},
		{[]string{"stocks:reject-newest", "options:kick-oldest"}, upstream.RejectNewest, upstream.KickOldest},
	} {
		o := options(t)
		o.UpstreamOnLimit = tt.rules
		if err := o.Validate(); err != nil {
			t.Error(err)
		}
		for market, want := range map[string]upstream.LimitRule{"stocks": tt.stocks, "options": tt.options} {
			if got := o.upstream(market).Limit; got != (upstream.Limit{Rule: want, GhostTimeout: 90 * time.Second}) {
				t.Errorf("%q, %s: %v, want %s", tt.rules, market, got, want)
			}
		}
	}
}

func TestUpstreamConfig(t *testing.T) {
	noon := time.Date(2026, 11, 20, 17, 0, 0, 0, time.UTC) // of New York, a trading day
	night := noon.Add(12 * time.Hour)
	for _, tt := range []struct {
		hours, market string
		noon, night   calendar.Part
		canaries      int
	}{
		{hoursUS, "stocks", calendar.Regular, calendar.Closed, 1},
		{hoursUS, "options", calendar.Regular, calendar.Closed, 1},
		{hoursUS, "crypto", calendar.Closed, calendar.Closed, 0},
		{hoursAlways, "stocks", calendar.Regular, calendar.Regular, 1},
		{hoursNever, "stocks", calendar.Closed, calendar.Closed, 0},
	} {
		o := options(t)
		o.TradingHours = tt.hours
		c := o.upstream(tt.market)
		part1, _ := c.Hours(noon)
		part2, _ := c.Hours(night)
		if part1 != tt.noon || part2 != tt.night || len(c.Canaries) != tt.canaries {
			t.Errorf("%s %s: %v at noon, %v at night, canaries %q", tt.hours, tt.market, part1, part2, c.Canaries)
		}
	}
}
