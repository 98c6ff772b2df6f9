package feedserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	feedv1 "github.com/cutemarkets/relay/proto/feed/v1"
	"github.com/cutemarkets/relay/services/fanout/internal/leader"
	"github.com/cutemarkets/relay/services/fanout/internal/router"
	"github.com/cutemarkets/relay/services/internal/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const queueBytes = 4 << 20

// fixture is a server on loopback.
type fixture struct {
	*testing.T
	router  *router.Router
	server  *Server
	address string
	stop    func() // tells the edges, and waits for their streams
}

func serve(t *testing.T) *fixture { return serveRing(t, router.RingBounds{}) }

func serveRing(t *testing.T, ring router.RingBounds) *fixture {
	r := router.New("stocks", queueBytes, ring)
	f := &fixture{T: t, router: r, server: New([]*router.Router{r}, telemetry.Discard().Logger)}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f.address = listener.Addr().String()
	g := grpc.NewServer()
	feedv1.RegisterFeedServiceServer(g, f.server)
	served := make(chan error, 1)
	go func() { served <- g.Serve(listener) }()
	ctx, cancel := context.WithCancel(context.Background())
	f.stop = func() {
		cancel()
		if err := f.server.Run(ctx); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(func() {
		f.stop()
		g.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
		if s := f.router.Stats(); s.Edges != 0 || s.Topics != 0 && ring.Bytes == 0 || s.QueueBytes != 0 {
			t.Errorf("left behind: %+v", s)
		}
	})
	return f
}

// edge is the other side of a stream.
type edge struct {
	*fixture
	feedv1.FeedService_SubscribeClient
	hangUp func() // ends it as a lost connection does
}

// open opens a stream.
func (f *fixture) open() *edge {
	f.Helper()
	conn, err := grpc.NewClient(f.address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { conn.Close() })
	ctx, cancel := context.WithTimeout(f.Context(), 30*time.Second)
	f.Cleanup(cancel)
	stream, err := feedv1.NewFeedServiceClient(conn).Subscribe(ctx)
	if err != nil {
		f.Fatal(err)
	}
	return &edge{f, stream, cancel}
}

// connect says hello with topics of ids 1, 2, ... and takes the first heartbeat.
func (f *fixture) connect(id string, topics ...string) *edge {
	f.Helper()
	e := f.open()
	hello := &feedv1.Hello{EdgeId: id, Market: "stocks"}
	for i, name := range topics {
		hello.Topics = append(hello.Topics, &feedv1.Topic{Id: uint32(i + 1), Name: name})
	}
	e.hello(hello)
	if m := e.next(); m.GetHeartbeat() == nil {
		f.Fatalf("the first message is %v", m)
	}
	return e
}

func (e *edge) hello(h *feedv1.Hello) {
	e.Helper()
	if err := e.Send(&feedv1.SubscribeRequest{Message: &feedv1.SubscribeRequest_Hello{Hello: h}}); err != nil {
		e.Fatal(err)
	}
}

func (e *edge) change(c *feedv1.InterestChange) {
	e.Helper()
	if err := e.Send(&feedv1.SubscribeRequest{Message: &feedv1.SubscribeRequest_InterestChange{InterestChange: c}}); err != nil {
		e.Fatal(err)
	}
}

func (e *edge) next() *feedv1.SubscribeResponse {
	e.Helper()
	m, err := e.Recv()
	if err != nil {
		e.Fatal(err)
	}
	return m
}

// events takes batches until n events have come; heartbeats may come between.
func (e *edge) events(n int) string {
	e.Helper()
	var got strings.Builder
	for count := 0; count < n; {
		if b := e.next().GetBatch(); b != nil {
			got.Write(b.GetPayload())
			count += len(b.GetEnds())
		}
	}
	return got.String()
}

// expectEnd waits for the stream's end.
func (e *edge) expectEnd(code codes.Code) {
	e.Helper()
	for {
		if _, err := e.Recv(); err != nil {
			if clean := code == codes.OK && errors.Is(err, io.EOF); status.Code(err) != code && !clean {
				e.Errorf("ended by %v, want %v", err, code)
			}
			return
		}
	}
}

// until waits for a change of the router's figures.
func (f *fixture) until(what string, ok func(router.Stats) bool) {
	f.Helper()
	late := time.After(10 * time.Second)
	for !ok(f.router.Stats()) {
		select {
		case <-late:
			f.Fatalf("not %s: %+v", what, f.router.Stats())
		case <-time.After(time.Millisecond):
		}
	}
}

func trades(ticker string, n int) []router.Event {
	raw := fmt.Sprintf(`[{"ev":"T","sym":%q,"n":%d}]`, ticker, n)
	events, _ := router.Split([]byte(raw), nil)
	return events
}

func (f *fixture) lead() {
	f.router.Lead(leader.Epoch{Generation: 3, Term: 4}, time.Now())
}

func TestStream(t *testing.T) {
	f := serve(t)
	e := f.connect("edge", "T.A")
	f.lead()
	if h := e.next().GetHeartbeat(); h.GetRole() != feedv1.Role_ROLE_LEADER || h.GetEpoch().GetGeneration() != 3 {
		t.Errorf("heartbeat %v", h)
	}
	f.router.Route(trades("A", 1))
	f.router.Route(trades("B", 2))
	if got := e.events(1); got != `{"ev":"T","sym":"A","n":1}` {
		t.Errorf("got %s", got)
	}
	e.change(&feedv1.InterestChange{Remove: []uint32{1}, Add: []*feedv1.Topic{{Id: 2, Name: "T.B"}, {Id: 3, Name: "Q.*"}}})
	f.until("changed", func(s router.Stats) bool { return s.Topics == 2 })
	f.router.Route(trades("A", 3))
	f.router.Route(trades("B", 4))
	if got := e.events(1); got != `{"ev":"T","sym":"B","n":4}` {
		t.Errorf("got %s", got)
	}
	f.router.Problem([]string{"Q.*"}, feedv1.TopicProblem_TOPIC_PROBLEM_NOT_AUTHORIZED)
	for {
		if n := e.next().GetTopicNotice(); n != nil {
			if len(n.GetTopicIds()) != 1 || n.GetTopicIds()[0] != 3 {
				t.Errorf("notice %v", n)
			}
			break
		}
	}
	begin := time.Now()
	for range 2 {
		if e.next().GetHeartbeat() == nil {
			t.Error("no heartbeat")
		}
	}
	if took := time.Since(begin); took > 3*heartbeatEvery {
		t.Errorf("two heartbeats in %v", took)
	}
	if err := e.CloseSend(); err != nil {
		t.Fatal(err)
	}
	e.expectEnd(codes.OK)
}

func TestReplaced(t *testing.T) {
	f := serve(t)
	first := f.connect("edge", "T.A")
	f.connect("other", "T.A")
	f.connect("edge", "T.A")
	first.expectEnd(codes.Aborted)
	f.until("replaced", func(s router.Stats) bool { return s.Edges == 2 && s.Topics == 1 })
}

func TestBadInput(t *testing.T) {
	hello := func(h *feedv1.Hello) *feedv1.SubscribeRequest {
		return &feedv1.SubscribeRequest{Message: &feedv1.SubscribeRequest_Hello{Hello: h}}
	}
	change := func(c *feedv1.InterestChange) *feedv1.SubscribeRequest {
		return &feedv1.SubscribeRequest{Message: &feedv1.SubscribeRequest_InterestChange{InterestChange: c}}
	}
	good := hello(&feedv1.Hello{EdgeId: "e", Market: "stocks", Topics: []*feedv1.Topic{{Id: 1, Name: "T.A"}}})
	f := serve(t)
	for name, requests := range map[string][]*feedv1.SubscribeRequest{
		"empty":             {{}},
		"no hello":          {change(&feedv1.InterestChange{})},
		"unknown market":    {hello(&feedv1.Hello{EdgeId: "e", Market: "forex"})},
		"no edge id":        {hello(&feedv1.Hello{Market: "stocks"})},
		"long edge id":      {hello(&feedv1.Hello{EdgeId: strings.Repeat("e", maxEdgeID+1), Market: "stocks"})},
		"id 0":              {hello(&feedv1.Hello{EdgeId: "e", Market: "stocks", Topics: []*feedv1.Topic{{Name: "T.A"}}})},
		"two hellos":        {good, good},
		"id twice":          {good, change(&feedv1.InterestChange{Add: []*feedv1.Topic{{Id: 1, Name: "T.B"}}})},
		"topic twice":       {good, change(&feedv1.InterestChange{Add: []*feedv1.Topic{{Id: 2, Name: "T.A"}}})},
		"unknown id":        {good, change(&feedv1.InterestChange{Remove: []uint32{7}})},
		"long topic":        {good, change(&feedv1.InterestChange{Add: []*feedv1.Topic{{Id: 2, Name: "T." + strings.Repeat("A", 68)}}})},
		"message of no use": {good, {}},
	} {
		t.Run(name, func(t *testing.T) {
			before := f.badInputs()
			e := f.open()
			for _, request := range requests {
				if err := e.Send(request); err != nil && !errors.Is(err, io.EOF) {
					t.Fatal(err)
				}
			}
			e.expectEnd(codes.InvalidArgument)
			if got := f.badInputs(); got != before+1 {
				t.Errorf("%d counted", got-before)
			}
		})
	}
}

func (f *fixture) badInputs() uint64 {
	return f.server.ended["stocks"][ReasonBadInput].Load() + f.server.ended[marketUnknown][ReasonBadInput].Load()
}

// TestDeafEdge: an edge that never reads is cut, and nobody waits for it.
func TestDeafEdge(t *testing.T) {
	f := serve(t)
	f.lead()
	deaf, well := f.connect("deaf", "T.*"), f.connect("well", "T.A")
	events := trades("A", 1)
	events[0].Raw = []byte(`{"ev":"T","sym":"A","x":"` + strings.Repeat("x", 100<<10) + `"}`)
	sent := 0
	for f.server.ended["stocks"][ReasonCut].Load() == 0 {
		f.router.Route(events)
		sent++
		if sent > 10_000 {
			t.Fatal("never cut")
		}
		well.events(1)
		if s := f.router.Stats(); s.QueueBytes > 2*queueBytes {
			t.Fatalf("%d bytes queued", s.QueueBytes)
		}
	}
	f.until("cut", func(s router.Stats) bool { return s.Edges == 1 })
	f.router.Route(events)
	well.events(1)
	deaf.expectEnd(codes.ResourceExhausted)
	t.Logf("cut after %d events of 100 KiB", sent)
}

func TestDrain(t *testing.T) {
	f := serve(t)
	f.lead()
	e := f.connect("edge", "T.*")
	silent := f.open() // says no hello
	f.router.Route(trades("A", 1))
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.stop()
	}()
	e.events(1)
	for e.next().GetDraining() == nil {
	}
	e.expectEnd(codes.Unavailable)
	silent.expectEnd(codes.Unavailable)
	<-done
	f.open().expectEnd(codes.Unavailable)
}

func TestReasons(t *testing.T) {
	seen := map[string]bool{}
	for r := range reasonEnd {
		if r.String() == "" || seen[r.String()] {
			t.Errorf("reason %d has no label of its own", r)
		}
		seen[r.String()] = true
	}
}
