package engine

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gobwas/ws"
	"pgregory.net/rapid"

	feedv1 "github.com/cutemarkets/relay/proto/feed/v1"
	"github.com/cutemarkets/relay/services/edge/internal/dialect"
	"github.com/cutemarkets/relay/services/edge/internal/frame"
)

// recorder is a transport that keeps what it is given.
type recorder struct {
	shard  *shard
	ref    ref
	seen   []string
	writes int
	queued int       // bytes that wait, as it says
	begun  int       // of them, that discard does not drop
	since  time.Time // of them
	stir   bool
}

func (r *recorder) start(to ref)              { r.ref = to }
func (r *recorder) abandon()                  {}
func (r *recorder) discard()                  { r.queued = r.begun }
func (r *recorder) backlog() (int, time.Time) { return r.queued, r.since }
func (r *recorder) stirred() bool             { return r.stir }
func (r *recorder) deadline() time.Time       { return time.Time{} }
func (r *recorder) expire(*connection)        {}
func (r *recorder) pong(payload []byte)       { r.seen = append(r.seen, "pong "+string(payload)) }
func (r *recorder) hasten(frames []byte)      { r.record(frames) }

func (r *recorder) send(frames []byte) {
	r.writes++
	r.record(frames)
}

func (r *recorder) record(frames []byte) {
	for in := bytes.NewReader(frames); in.Len() > 0; {
		f := ws.MustReadFrame(in) //nolint:staticcheck // the frames are ours
		if f.Header.OpCode == ws.OpPing {
			r.seen = append(r.seen, "ping")
			continue
		}
		r.seen = append(r.seen, string(f.Payload))
	}
}

func (r *recorder) close(final []byte) {
	what := "closed"
	if final != nil {
		code, reason := ws.ParseCloseFrameData(final[2:])
		what = fmt.Sprintf("close %d %s", code, reason)
	}
	r.seen = append(r.seen, what)
	r.shard.clients.force(input{kind: inputDone, ref: r.ref})
}

// take returns what was sent since the last time.
func (r *recorder) take() []string {
	seen := r.seen
	r.seen = nil
	return seen
}

// bench is one shard whose rounds the test runs itself.
type bench struct {
	t       testing.TB
	shard   *shard
	dialect *plain
	topics  *table
}

func newBench(t testing.TB, change func(c *Config)) *bench {
	b := &bench{t: t, dialect: newPlain(), topics: newTable()}
	b.shard = newEngine(t, &anyone{}, b.topics, change).shards[0]
	return b
}

// round lets the answers of the backend come in and runs rounds until there is
// nothing to do.
func (b *bench) round() {
	b.t.Helper()
	for {
		synctest.Wait()
		select {
		case <-b.shard.wake:
			b.shard.round()
		default:
			b.shard.round()
			synctest.Wait()
			if len(b.shard.wake) == 0 {
				return
			}
		}
	}
}

// open connects a client with an opening of its own.
func (b *bench) open(o dialect.Opening) *recorder {
	b.t.Helper()
	r := &recorder{shard: b.shard}
	b.shard.engine.connections.Add(1)
	b.shard.clients.force(input{kind: inputAttach, body: &attachment{
		carrier: r, dialect: b.dialect, opening: o, client: netip.MustParseAddr("192.0.2.1"),
	}})
	b.round()
	return r
}

func (b *bench) connect(topics ...string) *recorder {
	b.t.Helper()
	r := b.open(opening())
	if len(topics) > 0 {
		b.say(r, "sub "+strings.Join(topics, " "))
		b.round()
		r.take()
	}
	return r
}

func (b *bench) say(r *recorder, text string) {
	b.shard.clients.post(input{kind: inputFrame, frame: frame.Text, ref: r.ref}, []byte(text))
}

func (b *bench) tell(k inputKind, body any) {
	b.shard.feed.post(input{kind: k, body: body}, nil)
}

func (b *bench) batch(events ...event) { b.tell(inputBatch, batchOf(b.topics, events...)) }

func (b *bench) expect(r *recorder, want ...string) {
	b.t.Helper()
	if got := r.take(); !slices.Equal(got, want) {
		b.t.Fatalf("got %.300q, want %.300q", got, want)
	}
}

func bubble(t *testing.T, f func(t *testing.T, b *bench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(t, newBench(t, func(c *Config) { c.UpstreamGrace = time.Hour })) })
}

func TestEventReachesEachSubscriberOnceInOneWrite(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, b *bench) {
		exact, wild, both, none := b.connect("T.A"), b.connect("T.*"), b.connect("T.*", "T.A"), b.connect()
		none.take()
		writes := both.writes
		b.batch(event{"1", "T.A", "T.*"}, event{"2", "", "T.*"})
		b.batch(event{"3", "T.A", "T.*"})
		b.round()
		b.expect(exact, "[1,3]")
		b.expect(wild, "[1,2,3]")
		b.expect(both, "[1,2,3]")
		b.expect(none)
		if both.writes != writes+1 {
			t.Errorf("%d writes for one round", both.writes-writes)
		}
		if b.dialect.encoded != 3 {
			t.Errorf("encoded %d times, want once per event", b.dialect.encoded)
		}
	})
}

func TestBatchForATopicThatLeftChangesNothing(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, b *bench) {
		r := b.connect("T.A")
		stale := batchOf(b.topics, event{"1", "T.A", ""})
		stale.TopicIds[0] += 1 << 24 // another generation of the slot
		b.tell(inputBatch, stale)
		far := batchOf(b.topics, event{"1", "T.A", ""})
		far.TopicIds[0] = 1<<24 - 1
		b.tell(inputBatch, far)
		b.round()
		b.expect(r)
	})
}

func TestMessagesKeepTheirOrderAmongEvents(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, b *bench) {
		r := b.connect("T.A")
		b.batch(event{"1", "T.A", ""})
		b.tell(inputNotice, &notice{ids: []uint32{b.topics.id("T.A"), 99}, problem: feedv1.TopicProblem_TOPIC_PROBLEM_NOT_AUTHORIZED})
		b.batch(event{"2", "T.A", ""})
		b.say(r, "sub T.B")
		b.round()
		b.expect(r, "[1]", "problem T.A: "+dialect.NotAuthorized, "[2]", "ok T.B")
	})
}

// TestNoSlot: a topic for which the vendor has no slot is gone, and can be asked
// for again.
func TestNoSlot(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, b *bench) {
		r, s := b.connect("T.A T.B"), b.connect("T.A")
		first := b.topics.id("T.A")
		b.batch(event{"1", "T.A", ""})
		b.tell(inputNotice, &notice{ids: []uint32{first}, problem: feedv1.TopicProblem_TOPIC_PROBLEM_NO_SLOT})
		b.batch(event{"2", "T.B", ""})
		b.round()
		b.expect(r, "[1]", "problem T.A: "+dialect.NoSlot, "[2]")
		b.expect(s, "[1]", "problem T.A: "+dialect.NoSlot)
		b.say(s, "sub T.A")
		b.round()
		b.expect(s, "ok T.A")
		if id := b.topics.id("T.A"); id == first {
			t.Error("the topic has kept its id")
		}
		b.batch(event{"3", "T.A", ""})
		b.round()
		b.expect(r)
		b.expect(s, "[3]")
	})
}

func TestLargeRoundsAreSplit(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, b *bench) {
		r := b.connect("T.A")
		var events []event
		for i := range 7 {
			events = append(events, event{strings.Repeat(fmt.Sprint(i), 25<<10), "T.A", ""})
		}
		events = append(events, event{strings.Repeat("8", 75<<10), "T.A", ""}, event{strings.Repeat("9", maxMessage), "T.A", ""}, event{"x", "T.A", ""})
		b.batch(events...)
		b.round()
		var sizes []int
		var all strings.Builder
		for _, text := range r.take() {
			sizes = append(sizes, len(text))
			all.WriteString(text)
		}
		k := 25 << 10
		if want := []int{2*k + 3, 2*k + 3, 2*k + 3, k + 2, 3*k + 2, 3}; !slices.Equal(sizes, want) {
			t.Errorf("sizes %v, want %v", sizes, want)
		}
		for i, size := range sizes[:4] {
			if size+frame.HeaderSize(size) > maxFrame+10 {
				t.Errorf("frame %d of %d bytes", i, size)
			}
		}
		if n := b.shard.stats.oversized.Load(); n != 1 {
			t.Errorf("%d events counted as too large", n)
		}
	})
}

func TestGapIsToldOnceBeforeTheFirstEventAfterIt(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, b *bench) {
		early := b.connect("T.A")
		since, to := time.Now(), time.Now().Add(9*time.Second)
		b.batch(event{"1", "T.A", ""})
		b.tell(inputDown, &since)
		b.round()
		b.expect(early, "[1]")
		late := b.connect()
		b.expect(late, "hello", "welcome", fmt.Sprintf("gap stocks %d-", since.Unix()))
		b.say(late, "sub T.A")
		b.round()
		b.expect(late, "ok T.A")
		b.batch(event{"2", "T.A", ""})
		b.tell(inputGap, &dialect.Gap{From: since, To: to})
		b.batch(event{"3", "T.A", ""}, event{"4", "T.A", ""})
		b.round()
		told := fmt.Sprintf("gap stocks %d-%d", since.Unix(), to.Unix())
		b.expect(early, "[2]", told, "[3,4]")
		b.expect(late, "[2]", told, "[3,4]")
		b.expect(b.connect(), "hello", "welcome")
		b.batch(event{"5", "T.A", ""})
		b.round()
		b.expect(early, "[5]")
	})
}

// TestUpIsToldToThoseItConcerns: who came, or asked for a topic, while the market
// was down, or from when its stream broke.
func TestUpIsToldToThoseItConcerns(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, b *bench) {
		steady, asks := b.connect("T.A"), b.connect("T.A")
		time.Sleep(time.Second)
		since := time.Now()
		time.Sleep(time.Second)
		b.say(asks, "sub T.B")
		b.round()
		b.expect(asks, "ok T.B")
		time.Sleep(time.Second)
		b.tell(inputDown, &since)
		b.round()
		late := b.connect()
		b.expect(late, "hello", "welcome", fmt.Sprintf("gap stocks %d-", since.Unix()))
		time.Sleep(2 * time.Second)
		to := time.Now()
		b.batch(event{"1", "T.A", ""})
		b.tell(inputUp, &dialect.Gap{From: since, To: to})
		b.batch(event{"2", "T.A", ""})
		b.round()
		told := fmt.Sprintf("gap stocks %d-%d", since.Unix(), to.Unix())
		b.expect(steady, "[1,2]")
		b.expect(asks, "[1]", told, "[2]")
		b.expect(late, told)
		b.expect(b.connect(), "hello", "welcome")

		time.Sleep(time.Second)
		b.tell(inputUp, &dialect.Gap{From: time.Now().Add(-500 * time.Millisecond), To: time.Now()}) // it was not down
		b.round()
		for _, r := range []*recorder{steady, asks, late} {
			b.expect(r)
		}
	})
}

func TestMarketDownForTooLongEndsItsSockets(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, b *bench) {
		r := b.connect("T.A")
		since := time.Now()
		b.tell(inputDown, &since)
		b.round()
		if at := b.shard.nextDeadline(); at == 0 || at > b.shard.since(since.Add(time.Hour)) {
			t.Fatalf("next round at %v", time.Duration(at))
		}
		for range 3600 { // the client stays alive
			time.Sleep(time.Second)
			b.shard.clients.post(input{kind: inputFrame, frame: frame.Pong, ref: r.ref}, nil)
			b.round()
		}
		b.expect(r, "bye upstream_gone", "close 1011 upstream_gone")
		late := b.connect()
		b.expect(late, "hello", "welcome", "bye upstream_gone", "close 1011 upstream_gone")
		b.tell(inputGap, &dialect.Gap{From: since, To: time.Now()})
		b.round()
		b.expect(b.connect(), "hello", "welcome")
	})
}

func TestSilentClientIsPingedAndCut(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, b *bench) {
		r := b.connect("T.A")
		step := func(d time.Duration, want ...string) {
			t.Helper()
			time.Sleep(d)
			b.round()
			b.expect(r, want...)
		}
		step(pingAfter - time.Second)
		step(time.Second, "ping")
		step(pongWait - time.Second)
		b.shard.clients.post(input{kind: inputFrame, frame: frame.Pong, ref: r.ref}, nil)
		step(0)
		step(pingAfter-time.Second, []string{}...)
		step(time.Second, "ping")
		step(pongWait, "bye pong_timeout", "close 1008 pong_timeout")
	})
}

func TestStaleReferencesChangeNothing(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, b *bench) {
		first := b.connect("T.A")
		b.shard.clients.post(input{kind: inputFrame, frame: frame.Close, ref: first.ref, code: 1000}, nil)
		b.round()
		b.expect(first, "close 1000 ")
		second := b.connect("T.A")
		if first.ref.slot != second.ref.slot || first.ref == second.ref {
			t.Fatalf("refs %v and %v", first.ref, second.ref)
		}
		released, gone := 0, false
		for _, in := range []input{
			{kind: inputFrame, frame: frame.Text}, {kind: inputFrame, frame: frame.Ping}, {kind: inputFrame, frame: frame.Pong},
			{kind: inputFrame, frame: frame.Close, code: 1000}, {kind: inputGone}, {kind: inputRelieved},
			{kind: inputBroken, reason: dialect.ProtocolError}, {kind: inputLost, reason: dialect.LockLost}, {kind: inputReleased}, {kind: inputProbe, body: func(alive bool) { gone = gone || !alive }},
			{kind: inputAuthenticated, body: &authenticated{}}, {kind: inputAcquired, reason: dialect.LockUnavailable},
			{kind: inputAcquired, body: lock{release: func() { released++ }}},
		} {
			in.ref = first.ref
			b.shard.clients.force(in)
		}
		b.round()
		b.expect(second)
		if released != 1 {
			t.Errorf("a lock that came too late was given back %d times", released)
		}
		if !gone {
			t.Error("a connection that has gone must not be alive")
		}
	})
}

func TestFullQueueEndsTheClientWithTheLastWord(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, b *bench) {
		r, other := b.connect("T.A"), b.connect("T.A")
		b.stall(r, DefaultBurstBytes-100)
		b.batch(event{strings.Repeat("1", 200), "T.A", ""})
		b.round()
		b.expect(r, "slow", "bye slow_consumer", "close 1008 slow_consumer")
		b.expect(other, "["+strings.Repeat("1", 200)+"]")
	})
}

func TestDrainIsSpreadOverTheWindow(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, b *bench) {
		var all []*recorder
		for range 10 {
			all = append(all, b.connect("T.A"))
		}
		window := 10 * time.Second
		b.shard.clients.force(input{kind: inputDrain, body: &window})
		for i := range 10 {
			b.round()
			closed := 0
			for _, r := range all {
				if slices.Contains(r.seen, "close 1012 draining") {
					closed++
				}
			}
			if closed != i+1 {
				t.Errorf("after %d s %d are closed", i, closed)
			}
			time.Sleep(time.Second)
		}
		if n := b.shard.engine.Connections(); n != 0 {
			t.Errorf("%d connections left", n)
		}
		b.expect(b.connect(), "hello", "bye draining", "close 1012 draining")
	})
}

// TestSubscriptionsFollowAModel subscribes, unsubscribes and closes at random
// and compares what each client gets with a model, and the topics that are held.
func TestSubscriptionsFollowAModel(t *testing.T) {
	names := []string{"T.A", "T.B", "T.C", "T.*"}
	type client struct {
		*recorder
		topics map[string]bool
	}
	rapid.Check(t, func(rt *rapid.T) {
		steps := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) [3]int {
			return [3]int{rapid.IntRange(0, 5).Draw(t, "what"), rapid.IntRange(0, 7).Draw(t, "who"), rapid.IntRange(0, 3).Draw(t, "topic")}
		}), 1, 60).Draw(rt, "steps")
		var failure error
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t, nil)
			clients := make([]*client, 8)
			for _, step := range steps {
				c, topic := clients[step[1]], names[step[2]]
				switch {
				case c == nil:
					c = &client{b.connect(), map[string]bool{}}
					clients[step[1]] = c
				case step[0] < 3:
					b.say(c.recorder, "sub "+topic)
					c.topics[topic] = true
				case step[0] < 5:
					b.say(c.recorder, "unsub "+topic)
					delete(c.topics, topic)
				default:
					b.shard.clients.post(input{kind: inputGone, ref: c.ref}, nil)
					clients[step[1]] = nil
				}
				time.Sleep(time.Second) // within the rate of commands
				b.round()
				held := map[string]bool{}
				for _, c := range clients {
					if c != nil {
						c.take()
						b.shard.clients.post(input{kind: inputFrame, frame: frame.Pong, ref: c.ref}, nil) // the client stays alive
						for topic := range c.topics {
							held[topic] = true
						}
					}
				}
				if b.topics.held() != len(held) {
					failure = fmt.Errorf("%d topics held, want %d", b.topics.held(), len(held))
				}
				b.batch(event{"a", "T.A", "T.*"}, event{"b", "T.B", "T.*"}, event{"c", "T.C", "T.*"})
				b.round()
				for i, c := range clients {
					if c != nil {
						failure = errors.Join(failure, compare(i, c.take(), c.topics))
					}
				}
				if failure != nil {
					return
				}
			}
			zero := time.Duration(0)
			b.shard.clients.force(input{kind: inputDrain, body: &zero})
			b.round()
			if b.topics.held() != 0 || b.shard.live != 0 {
				failure = fmt.Errorf("%d topics, %d connections in the end", b.topics.held(), b.shard.live)
			}
		})
		if failure != nil {
			rt.Fatal(failure)
		}
	})
}

func compare(who int, got []string, topics map[string]bool) error {
	var want []string
	for _, name := range []string{"A", "B", "C"} {
		if topics["T."+name] || topics["T.*"] {
			want = append(want, strings.ToLower(name))
		}
	}
	text := "[" + strings.Join(want, ",") + "]"
	if len(want) == 0 && len(got) == 0 || len(got) == 1 && got[0] == text {
		return nil
	}
	return fmt.Errorf("client %d got %q, want %s", who, got, text)
}

// sinkhole is a transport that takes everything.
type sinkhole struct{ recorder }

func (s *sinkhole) send([]byte) {}

// fill connects n clients that take one topic.
func (b *bench) fill(n int) {
	for range n {
		s := &sinkhole{recorder{shard: b.shard}}
		b.shard.clients.force(input{kind: inputAttach, body: &attachment{carrier: s, dialect: b.dialect, opening: opening()}})
		b.shard.round()
		for !b.shard.slots[len(b.shard.slots)-1].connection.live {
			<-b.shard.wake
			b.shard.round()
		}
		b.say(&s.recorder, "sub T.A T.*")
		b.shard.round()
	}
}

func TestDeliveryAllocatesNothing(t *testing.T) {
	b := newBench(t, nil)
	b.fill(100)
	batch := batchOf(b.topics, event{strings.Repeat("1", 135), "T.A", "T.*"}, event{strings.Repeat("2", 135), "T.A", ""})
	deliver := func() {
		b.shard.feed.post(input{kind: inputBatch, size: len(batch.Payload), body: batch}, nil)
		<-b.shard.wake
		b.shard.round()
	}
	before := b.shard.stats.events.Load()
	if n := testing.AllocsPerRun(100, deliver); n > poolLoss {
		t.Errorf("%v allocations for 200 deliveries", n)
	}
	if n := b.shard.stats.events.Load() - before; n != 101*200 {
		t.Errorf("%d deliveries", n)
	}
}

func BenchmarkShardDelivery(b *testing.B) {
	for _, n := range []int{1, 100, 1000, 10_000} {
		b.Run(fmt.Sprintf("subscribers=%d", n), func(b *testing.B) {
			rig := newBench(b, nil)
			rig.fill(n)
			batch := batchOf(rig.topics, event{strings.Repeat("1", 135), "T.A", "T.*"})
			b.ReportAllocs()
			for b.Loop() {
				rig.shard.feed.post(input{kind: inputBatch, size: 135, body: batch}, nil)
				<-rig.shard.wake
				rig.shard.round()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/delivery")
		})
	}
}
