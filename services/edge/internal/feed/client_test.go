package feed

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	peerof "google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	feedv1 "github.com/cutemarkets/relay/proto/feed/v1"
	"github.com/cutemarkets/relay/services/internal/grpcx"
	"github.com/cutemarkets/relay/services/internal/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fanoutPod is a scripted fanout pod: a test takes its streams and speaks for it.
type fanoutPod struct {
	feedv1.UnimplementedFeedServiceServer
	address string
	server  *grpc.Server
	streams chan *podStream
}

// podStream is one stream as the pod sees it.
type podStream struct {
	hello *feedv1.Hello
	from  string // address of the edge
	wire  feedv1.FeedService_SubscribeServer
	end   chan error // one value ends the stream

	mu   sync.Mutex
	beat *feedv1.SubscribeResponse // sent each half second, once it is set
}

func (f *fanoutPod) Subscribe(wire feedv1.FeedService_SubscribeServer) error {
	first, err := wire.Recv()
	if err != nil {
		return err
	}
	s := &podStream{hello: first.GetHello(), wire: wire, end: make(chan error, 1)}
	if from, ok := peerof.FromContext(wire.Context()); ok {
		s.from = from.Addr.String()
	}
	select {
	case f.streams <- s:
	case <-wire.Context().Done():
		return wire.Context().Err()
	}
	for {
		select {
		case err := <-s.end:
			return err
		case <-wire.Context().Done():
			return wire.Context().Err()
		case <-time.After(500 * time.Millisecond):
			s.mu.Lock()
			if s.beat != nil {
				_ = wire.Send(s.beat)
			}
			s.mu.Unlock()
		}
	}
}

func newPod(t *testing.T, address string) *fanoutPod {
	t.Helper()
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	f := &fanoutPod{address: listener.Addr().String(), server: grpc.NewServer(grpc.MaxRecvMsgSize(grpcx.MaxMessageBytes)), streams: make(chan *podStream)}
	feedv1.RegisterFeedServiceServer(f.server, f)
	served := make(chan error, 1)
	go func() { served <- f.server.Serve(listener) }()
	t.Cleanup(func() {
		f.server.Stop()
		<-served
	})
	return f
}

// next waits for the pod's next stream.
func (f *fanoutPod) next(t *testing.T) *podStream {
	t.Helper()
	select {
	case s := <-f.streams:
		if s.hello == nil {
			t.Fatal("the first message is no Hello")
		}
		return s
	case <-time.After(20 * time.Second): // with many topics the hello takes long
		t.Fatal("no stream was opened")
		return nil
	}
}

func (s *podStream) say(t *testing.T, messages ...*feedv1.SubscribeResponse) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range messages {
		if err := s.wire.Send(m); err != nil {
			t.Fatal(err)
		}
	}
}

// stay makes the pod send a heartbeat as long as the stream lasts.
func (s *podStream) stay(m *feedv1.SubscribeResponse) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.beat = m
}

func (s *podStream) change(t *testing.T) *feedv1.InterestChange {
	t.Helper()
	m, err := s.wire.Recv()
	if err != nil {
		t.Fatal(err)
	}
	return m.GetInterestChange()
}

// channelSink hands over what it gets as text.
type channelSink struct{ lines chan string }

func newSink() *channelSink { return &channelSink{lines: make(chan string, 1000)} }

func (s *channelSink) Batch(b *feedv1.Batch) {
	for n := range b.GetEnds() {
		s.lines <- eventOf(b, n)
	}
}
func (s *channelSink) Gap(time.Time, time.Time) { s.lines <- "gap" }
func (s *channelSink) Down(time.Time)           { s.lines <- "down" }
func (s *channelSink) Up(time.Time, time.Time)  { s.lines <- "up" }
func (s *channelSink) TopicNotice(ids []uint32, _ feedv1.TopicProblem) {
	s.lines <- "notice"
}

func (s *channelSink) want(t *testing.T, lines ...string) {
	t.Helper()
	for _, want := range lines {
		select {
		case got := <-s.lines:
			if got != want {
				t.Fatalf("the Sink got %q, want %q", got, want)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("the Sink did not get %q", want)
		}
	}
}

func newClient(t *testing.T, target string, markets ...string) *Client {
	t.Helper()
	c, err := New(Config{Target: target, Markets: markets, EdgeID: "edge-1"}, telemetry.Discard())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func run(t *testing.T, c *Client) map[string]*channelSink {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	own, sinks := make(map[string]*channelSink), make(map[string]Sink)
	for name := range c.markets {
		own[name] = newSink()
		sinks[name] = own[name]
	}
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx, sinks) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return own
}

func TestStreamAndResume(t *testing.T) {
	pod := newPod(t, "127.0.0.1:0")
	c := newClient(t, pod.address, "stocks")
	aapl := c.Interest("stocks").Acquire("T.AAPL")
	sink := run(t, c)["stocks"]
	sink.want(t, "down")
	s := pod.next(t)
	if h := s.hello; h.GetEdgeId() != "edge-1" || h.GetMarket() != "stocks" || h.GetResumeEpoch() != nil ||
		len(h.GetTopics()) != 1 || h.GetTopics()[0].GetId() != aapl || h.GetTopics()[0].GetName() != "T.AAPL" {
		t.Fatalf("Hello = %v", h)
	}
	if c.Status("stocks").Live {
		t.Fatal("live before anything came")
	}
	s.say(t, live(1, 0), allOf(1, 1, 3), notice(aapl))
	sink.want(t, "gap", "1:1", "1:2", "1:3", "notice")
	if st := c.Status("stocks"); !st.Live || st.Streams != 1 || st.Since.IsZero() || st.Lag > time.Second {
		t.Fatalf("Status = %+v", st)
	}

	msft := c.Interest("stocks").Acquire("T.MSFT")
	if change := s.change(t); len(change.GetAdd()) != 1 || change.GetAdd()[0].GetId() != msft || len(change.GetRemove()) != 0 {
		t.Fatalf("change = %v", change)
	}
	c.Interest("stocks").Release(aapl)
	if change := s.change(t); !slices.Equal(change.GetRemove(), []uint32{aapl}) || len(change.GetAdd()) != 0 {
		t.Fatalf("change = %v", change)
	}

	// A break that resumes without a hole is silent; the repeated part is dropped.
	s.end <- status.Error(codes.Unavailable, "going")
	s = pod.next(t)
	if h := s.hello; h.GetResumeEpoch().GetTerm() != 1 || h.GetResumeSequence() != 3 || len(h.GetTopics()) != 1 || h.GetTopics()[0].GetId() != msft {
		t.Fatalf("Hello = %v", h)
	}
	s.say(t, live(1, 2), allOf(1, 3, 5))
	sink.want(t, "1:4", "1:5")

	// A cut is followed by a new stream at once; what was dropped is a gap.
	s.end <- status.Error(codes.ResourceExhausted, "slow")
	s = pod.next(t)
	s.say(t, live(1, 9), allOf(1, 10, 10))
	sink.want(t, "gap", "1:10")
	if n := c.markets["stocks"].stats.endings[endingCut].Load(); n != 1 {
		t.Fatalf("%d cuts counted", n)
	}

	// A pod that breaks the protocol is left and asked again.
	s.say(t, allOf(1, 10, 10))
	s = pod.next(t)
	s.say(t, live(1, 10), allOf(1, 11, 11))
	sink.want(t, "1:11")
	if n := c.markets["stocks"].stats.endings[endingBroken].Load(); n != 1 {
		t.Fatalf("%d broken streams counted", n)
	}
}

// TestNoSlot: when the Sink hears of a topic without a slot, who asks for it gets
// another id, and the pod is asked anew, though the old id is still held.
func TestNoSlot(t *testing.T) {
	pod := newPod(t, "127.0.0.1:0")
	c := newClient(t, pod.address, "options")
	interest := c.Interest("options")
	old := interest.Acquire("Q.O:A")
	sink := run(t, c)["options"]
	s := pod.next(t)
	s.say(t, live(1, 0), notice(old))
	sink.want(t, "down", "gap", "notice")
	if again := interest.Acquire("Q.O:A"); again != old {
		t.Fatalf("id %d after a notice that refuses nothing, want %d", again, old)
	}
	refused := notice(old)
	refused.GetTopicNotice().Problem = feedv1.TopicProblem_TOPIC_PROBLEM_NO_SLOT
	s.say(t, refused)
	sink.want(t, "notice")
	again := interest.Acquire("Q.O:A")
	var added, removed []uint32
	for len(added) == 0 {
		change := s.change(t)
		for _, topic := range change.GetAdd() {
			added = append(added, topic.GetId())
		}
		removed = append(removed, change.GetRemove()...)
	}
	if !slices.Equal(removed, []uint32{old}) || !slices.Equal(added, []uint32{again}) {
		t.Fatalf("added %d, removed %d; want %d, %d", added, removed, again, old)
	}
}

func TestFailover(t *testing.T) {
	one, two := newPod(t, "127.0.0.1:0"), newPod(t, "127.0.0.1:0")
	c := newClient(t, one.address+","+two.address, "stocks", "options")
	sinks := run(t, c)
	streams := make(map[string]*podStream)
	for range 2 {
		for name, pod := range map[string]*fanoutPod{"one ": one, "two ": two} {
			s := pod.next(t)
			streams[name+s.hello.GetMarket()] = s
		}
	}
	if len(streams) != 4 {
		t.Fatalf("streams: %v", streams)
	}
	sink := sinks["stocks"]
	streams["two stocks"].say(t, standby())
	streams["one stocks"].say(t, live(1, 0), allOf(1, 1, 1))
	sink.want(t, "down", "gap", "1:1")
	one.server.Stop()
	streams["two stocks"].say(t, dead(2, 0, nil), live(2, 0), allOf(2, 1, 1))
	sink.want(t, "gap", "2:1")
	streams["two options"].say(t, live(7, 0), allOf(7, 1, 1))
	sinks["options"].want(t, "down", "gap", "7:1")
}

func TestSilentStream(t *testing.T) {
	pod := newPod(t, "127.0.0.1:0")
	c := newClient(t, pod.address, "stocks")
	sink := run(t, c)["stocks"]
	s := pod.next(t)
	s.say(t, live(1, 0))
	sink.want(t, "down", "gap")
	from := s.from
	s = pod.next(t) // after 3 s without a message
	sink.want(t, "down")
	if n := c.markets["stocks"].stats.endings[endingSilent].Load(); n != 1 {
		t.Fatalf("%d silent streams counted", n)
	}
	waitFor(t, func() bool { return !c.Status("stocks").Live }) // it is told just after the sink
	if st := c.Status("stocks"); st.Lag < grace {
		t.Fatalf("Status = %+v", st)
	}
	s.say(t, live(1, 0), live(1, 0))
	sink.want(t, "up")
	if s.from == from {
		t.Fatal("opened on the connection that is silent")
	}
}

// The Sink blocks for longer than a stream may be silent: nothing breaks.
func TestSlowSink(t *testing.T) {
	pod := newPod(t, "127.0.0.1:0")
	c := newClient(t, pod.address, "stocks")
	sink := run(t, c)["stocks"]
	sink.want(t, "down")
	s := pod.next(t)
	for range cap(sink.lines) {
		sink.lines <- "full"
	}
	s.say(t, live(1, 0))
	for n := range uint64(20) {
		s.say(t, allOf(1, n+1, n+1))
	}
	time.Sleep(silence + 500*time.Millisecond) // longer than the watchdog
	for range cap(sink.lines) {
		<-sink.lines
	}
	sink.want(t, "gap", "1:1", "1:2", "1:3")
	for n := range c.markets["stocks"].stats.endings {
		if ended := c.markets["stocks"].stats.endings[n].Load(); ended != 0 {
			t.Fatalf("%d streams ended: %s", ended, endingNames[n])
		}
	}
}

func TestLookup(t *testing.T) {
	one := newPod(t, "127.0.0.1:0")
	_, port, _ := net.SplitHostPort(one.address)
	two := newPod(t, "127.0.0.2:"+port)
	var hosts atomic.Pointer[[]string]
	var asked atomic.Int64
	set := func(all ...string) { hosts.Store(&all) }
	set("::1", "127.0.0.1") // the IPv6 address of a dual-stack pod is passed over
	c := newClient(t, "fanout.relay.svc:"+port, "stocks")
	c.lookup = func(_ context.Context, host string) ([]string, error) {
		asked.Add(1)
		if host != "fanout.relay.svc" {
			return nil, errors.New("asked for " + host)
		}
		if all := *hosts.Load(); all[0] != "" {
			return all, nil
		}
		return nil, &net.DNSError{Err: "no such host", IsNotFound: true}
	}
	sink := run(t, c)["stocks"]
	first := one.next(t)
	first.say(t, live(1, 0), allOf(1, 1, 1))
	first.stay(live(1, 1))
	sink.want(t, "down", "gap", "1:1")

	set("127.0.0.1", "127.0.0.2")
	second := two.next(t)
	second.say(t, standby())
	second.stay(standby())

	set("") // the name fails: all goes on
	waitFor(t, func() bool { return c.lookupFailures.Load() >= 2 })
	first.stay(nil)
	first.say(t, allOf(1, 2, 2))
	first.stay(live(1, 2))
	sink.want(t, "1:2")

	set("127.0.0.2") // gone from DNS: the stream goes on until it breaks
	lookups := asked.Load()
	waitFor(t, func() bool { return asked.Load() >= lookups+2 })
	first.stay(nil)
	first.say(t, allOf(1, 3, 3))
	first.stay(live(1, 3))
	sink.want(t, "1:3")
	first.end <- status.Error(codes.Unavailable, "stopped")
	waitFor(t, func() bool { return c.Status("stocks").Streams == 1 })
	second.stay(live(2, 0))
	second.say(t, live(2, 0))
	sink.want(t, "gap")

	set("127.0.0.1", "127.0.0.2") // and back
	one.next(t)
}

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(15 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never happened")
		}
	}
}

func TestReconnect(t *testing.T) {
	pod := newPod(t, "127.0.0.1:0")
	c := newClient(t, pod.address, "stocks")
	sink := run(t, c)["stocks"]
	pod.next(t).say(t, live(1, 0))
	sink.want(t, "down", "gap")
	pod.server.Stop()
	waitFor(t, func() bool { return c.Status("stocks").Streams == 0 })
	again := newPod(t, pod.address)
	s := again.next(t)
	if s.hello.GetResumeEpoch() == nil {
		t.Fatal("no resume after a reconnect")
	}
}

func TestManyTopics(t *testing.T) {
	pod := newPod(t, "127.0.0.1:0")
	c := newClient(t, pod.address, "options")
	for n := range maxTopics {
		c.Interest("options").Acquire("LULD." + strings.Repeat("Q", 57) + fmt.Sprintf("%07d", n))
	}
	if most := patience(maxTopics); most < 9*time.Second || most > 10*time.Second || patience(0) != silence {
		t.Errorf("the first message may take %v", most)
	}
	run(t, c)
	if got := len(pod.next(t).hello.GetTopics()); got != maxTopics {
		t.Fatalf("the hello has %d topics", got)
	}
}

func TestConfig(t *testing.T) {
	for _, target := range []string{"", "fanout", "fanout:", ":9000", "a:1,b"} {
		if _, err := New(Config{Target: target, Markets: []string{"stocks"}, EdgeID: "e"}, telemetry.Discard()); err == nil {
			t.Errorf("target %q is accepted", target)
		}
	}
	c := newClient(t, "127.0.0.1:1", "stocks")
	if c.Interest("crypto") != nil || c.Status("crypto") != (Status{}) {
		t.Error("an unknown market has an interest or a status")
	}
	if err := c.Run(t.Context(), nil); err == nil {
		t.Error("Run without sinks")
	}
	if err := c.Run(t.Context(), nil); err == nil {
		t.Error("a second Run")
	}
}
