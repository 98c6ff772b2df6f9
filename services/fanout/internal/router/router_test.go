package router

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	feedv1 "github.com/cutemarkets/relay/proto/feed/v1"
	"github.com/cutemarkets/relay/services/fanout/internal/leader"
)

var (
	t0     = time.Date(2026, 11, 20, 14, 30, 0, 0, time.UTC)
	epoch1 = leader.Epoch{Generation: 7, Term: 1}
)

const testQueue = 1 << 20

func topic1(id uint32, name string) []*feedv1.Topic { return []*feedv1.Topic{{Id: id, Name: name}} }

// event makes an event whose bytes tell it apart.
func event(kind, symbol string, n int) Event {
	raw := fmt.Sprintf(`{"ev":%q,"sym":%q,"n":%d}`, kind, symbol, n)
	return Event{Raw: []byte(raw), Kind: []byte(kind), Symbol: []byte(symbol)}
}

// attach makes an edge with interest in topics, by ids 1, 2, ..., and takes its
// first heartbeat.
func attach(t testing.TB, r *Router, id string, topics ...string) *Edge {
	t.Helper()
	e := r.Attach(id)
	for i, name := range topics {
		if err := e.Change(nil, topic1(uint32(i+1), name)); err != nil {
			t.Fatal(err)
		}
	}
	e.Start(t0)
	if e.Next(t0).GetHeartbeat() == nil {
		t.Fatal("the first message is no heartbeat")
	}
	return e
}

// show writes a message down.
func show(m *feedv1.SubscribeResponse) string {
	switch {
	case m == nil:
		return "nothing"
	case m.GetHeartbeat() != nil:
		h := m.GetHeartbeat()
		return fmt.Sprintf("heartbeat %v %d %v", h.GetRole(), h.GetSequence(), h.GetUpstream())
	case m.GetGap() != nil:
		g := m.GetGap()
		return fmt.Sprintf("gap %d %v", g.GetSequence(), g.GetTo().AsTime().Sub(g.GetFrom().AsTime()))
	case m.GetTopicNotice() != nil:
		return fmt.Sprintf("notice %v %v", m.GetTopicNotice().GetTopicIds(), m.GetTopicNotice().GetProblem())
	}
	b := m.GetBatch()
	s := fmt.Sprintf("batch %d-%d", b.GetFirstSequence(), b.GetLastSequence())
	begin := uint32(0)
	for i, end := range b.GetEnds() {
		raw := string(b.GetPayload()[begin:end])
		n := raw[strings.LastIndex(raw, ":")+1 : len(raw)-1]
		s += fmt.Sprintf(" #%d=%s(%d,%d)", b.GetFirstSequence()+uint64(b.GetSequenceOffsets()[i]), n, b.GetTopicIds()[2*i], b.GetTopicIds()[2*i+1])
		begin = end
	}
	return s
}

func expect(t *testing.T, e *Edge, want ...string) {
	t.Helper()
	for _, w := range append(want, "nothing") {
		if got := show(e.Next(t0)); got != w {
			t.Fatalf("got %q, want %q", got, w)
		}
	}
}

func TestRoute(t *testing.T) {
	r := New("stocks", testQueue, RingBounds{})
	r.Lead(epoch1, t0)
	exact := attach(t, r, "exact", "T.A", "Q.A")
	wild := attach(t, r, "wild", "T.*")
	both := attach(t, r, "both", "T.A", "T.*", "LULD.B")
	none := attach(t, r, "none")

	r.Route([]Event{event("T", "A", 1), event("Q", "A", 2), event("T", "B", 3)})
	r.Route([]Event{event("LULD", "B", 4), event("ZZ", "A", 5), event("T", "", 6)})
	expect(t, exact, "batch 1-6 #1=1(1,0) #2=2(2,0)")
	expect(t, wild, "batch 1-6 #1=1(0,1) #3=3(0,1) #6=6(0,1)")
	expect(t, both, "batch 1-6 #1=1(1,2) #3=3(0,2) #4=4(3,0) #6=6(0,2)")
	expect(t, none)

	r.Route([]Event{event("T", "B", 7)})
	r.Route([]Event{event("T", "A", 8)})
	expect(t, exact, "batch 7-8 #8=8(1,0)")
	none.Heartbeat(t0)
	expect(t, none, "heartbeat ROLE_LEADER 8 UPSTREAM_STATE_DOWN")
	if got := r.Stats(); got.Events["T"] != 5 || got.Events["Q"] != 1 || got.Events["LULD"] != 1 || got.Events["other"] != 1 || got.Edges != 4 || got.Topics != 4 {
		t.Errorf("stats %+v", got)
	}
}

func TestOrderOfMessages(t *testing.T) {
	r := New("stocks", testQueue, RingBounds{})
	r.Lead(epoch1, t0)
	e, idle := attach(t, r, "e", "T.A"), attach(t, r, "idle")
	r.Upstream(true, time.Time{}, t0)
	r.Route([]Event{event("T", "A", 1), event("T", "B", 2)})
	r.Gap(t0, t0.Add(time.Second))
	r.Route([]Event{event("T", "A", 3)})
	r.Upstream(false, t0, t0)
	r.Route([]Event{event("T", "A", 4)})
	e.Heartbeat(t0) // one is queued
	expect(t, e,
		"heartbeat ROLE_LEADER 0 UPSTREAM_STATE_LIVE",
		"batch 1-2 #1=1(1,0)", "gap 3 1s", "batch 4-4 #4=3(1,0)",
		"heartbeat ROLE_LEADER 4 UPSTREAM_STATE_DOWN", "batch 5-5 #5=4(1,0)")
	expect(t, idle, "heartbeat ROLE_LEADER 0 UPSTREAM_STATE_LIVE", "batch 1-2", "gap 3 1s",
		"heartbeat ROLE_LEADER 4 UPSTREAM_STATE_DOWN")
}

func TestEpochs(t *testing.T) {
	r := New("stocks", testQueue, RingBounds{})
	e := attach(t, r, "e", "T.A", "Q.*")
	expect(t, e)
	if got := r.Lead(epoch1, t0); !slices.Equal(got, []string{"Q.*", "T.A"}) {
		t.Errorf("interest %v", got)
	}
	r.Route([]Event{event("T", "A", 1)})
	r.Follow(t0)
	r.Lead(leader.Epoch{Generation: 7, Term: 2}, t0)
	r.Route([]Event{event("T", "A", 2)})
	expect(t, e, "heartbeat ROLE_LEADER 0 UPSTREAM_STATE_DOWN", "batch 1-1 #1=1(1,0)",
		"heartbeat ROLE_STANDBY 0 UPSTREAM_STATE_UNSPECIFIED", "heartbeat ROLE_LEADER 0 UPSTREAM_STATE_DOWN", "batch 1-1 #1=2(1,0)")
	r.Follow(t0)
	defer func() {
		if recover() == nil {
			t.Error("a standby routed events")
		}
	}()
	r.Route([]Event{event("T", "A", 3)})
}

func TestHeartbeatFields(t *testing.T) {
	r := New("stocks", testQueue, RingBounds{})
	r.Lead(epoch1, t0)
	e := attach(t, r, "e")
	r.FrameSeen(t0)
	r.Late(100 * time.Millisecond)
	r.Upstream(false, t0.Add(-time.Second), t0.Add(time.Second))
	h := e.Next(t0).GetHeartbeat()
	if h.GetEpoch().GetGeneration() != 7 || h.GetEpoch().GetTerm() != 1 || !h.GetDownSince().AsTime().Equal(t0.Add(-time.Second)) || h.GetUpstreamAgeNs() != uint64(time.Second) ||
		!time.Unix(0, h.GetBuiltUnixNs()).Equal(t0.Add(900*time.Millisecond)) {
		t.Errorf("heartbeat %v", h)
	}
}

func TestChanges(t *testing.T) {
	r := New("stocks", testQueue, RingBounds{})
	one := attach(t, r, "one", "T.A")
	expectChanges := func(added, removed string) {
		t.Helper()
		a, d := r.Changes()
		if strings.Join(a, " ") != added || strings.Join(d, " ") != removed {
			t.Fatalf("got +%v -%v, want +%s -%s", a, d, added, removed)
		}
	}
	expectChanges("", "") // a standby's interest is not followed
	r.Lead(epoch1, t0)
	expectChanges("", "")
	two := attach(t, r, "two", "T.A", "Q.*", "T.B")
	<-r.Changed()
	expectChanges("Q.* T.B", "")
	if err := two.Change([]uint32{1, 3}, topic1(4, "T.C")); err != nil {
		t.Fatal(err)
	}
	if err := two.Change([]uint32{4}, topic1(5, "T.C")); err != nil {
		t.Fatal(err)
	}
	expectChanges("T.C", "T.B")
	two.Detach()
	expectChanges("", "Q.* T.C")
	one.Detach()
	expectChanges("", "T.A")
	if s := r.Stats(); s.Topics != 0 || s.Edges != 0 || s.QueueBytes != 0 {
		t.Errorf("stats %+v", s)
	}
}

func TestBadInterest(t *testing.T) {
	r := New("stocks", testQueue, RingBounds{})
	e := attach(t, r, "e", "T.A")
	for _, tt := range []struct {
		name   string
		remove []uint32
		add    []*feedv1.Topic
	}{
		{"unknown id", []uint32{9}, nil},
		{"id 0", nil, topic1(0, "T.B")},
		{"id twice", nil, topic1(1, "T.B")},
		{"topic twice", nil, topic1(2, "T.A")},
		{"empty", nil, topic1(2, "")},
		{"no dot", nil, topic1(2, "T")},
		{"no ticker", nil, topic1(2, "T.")},
		{"no prefix", nil, topic1(2, ".A")},
		{"comma", nil, topic1(2, "T.A,T.B")},
		{"quote", nil, topic1(2, `T."`)},
		{"space", nil, topic1(2, "T. ")},
		{"not ASCII", nil, topic1(2, "T.é")},
		{"long", nil, topic1(2, "T."+strings.Repeat("A", maxTopic-1))},
	} {
		if err := e.Change(tt.remove, tt.add); !errors.Is(err, ErrInterest) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	if err := e.Change(nil, topic1(2, "T."+strings.Repeat("A", maxTopic-2))); err != nil {
		t.Errorf("longest topic: %v", err)
	}
	many := make([]*feedv1.Topic, maxTopics-1)
	for i := range many {
		many[i] = &feedv1.Topic{Id: uint32(i + 3), Name: fmt.Sprintf("Q.%d", i)}
	}
	if err := e.Change(nil, many[:maxTopics-2]); err != nil {
		t.Errorf("most topics: %v", err)
	}
	if err := e.Change(nil, many[maxTopics-2:]); !errors.Is(err, ErrInterest) {
		t.Errorf("too many topics: %v", err)
	}
	e.Detach()
	if got := r.Stats().Topics; got != 0 {
		t.Errorf("%d topics left", got)
	}
}

func TestOverflowCutsOneEdge(t *testing.T) {
	r := New("stocks", testQueue, RingBounds{})
	r.Lead(epoch1, t0)
	slow, well := attach(t, r, "slow", "T.A", "T.*"), attach(t, r, "well", "T.*")
	events := []Event{event("T", "A", 1)}
	for range 100 << 10 {
		r.Route(events)
		well.Next(t0)
		if s := r.Stats(); s.QueueBytes > 2*testQueue {
			t.Fatalf("%d bytes queued", s.QueueBytes)
		}
	}
	select {
	case <-slow.Gone():
	default:
		t.Fatal("the slow edge is still there")
	}
	if slow.Ended() != EndedOverflow || slow.Next(t0) != nil {
		t.Errorf("ended as %d", slow.Ended())
	}
	if well.Ended() != NotEnded {
		t.Error("the other edge was ended too")
	}
	slow.Heartbeat(t0)
	r.Gap(t0, t0)
	expect(t, slow)
	slow.Detach()
	well.Next(t0)
	expect(t, well)
	if got := r.Stats().QueueBytes; got != 0 {
		t.Errorf("%d bytes left", got)
	}
}

// TestAwaitServed: coverage of new topics begins when the vendor serves them.
func TestAwaitServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New("stocks", testQueue, RingBounds{})
		served := func() bool {
			began := time.Now()
			r.AwaitServed(t.Context(), time.Second)
			return time.Since(began) == 0
		}
		step := func(what string, want bool) {
			t.Helper()
			if served() != want {
				t.Fatalf("%s: served %v", what, !want)
			}
		}
		step("a standby", true)
		r.Lead(epoch1, t0)
		e := r.Attach("e")
		defer e.Detach()
		_ = e.Change(nil, topic1(1, "T.A"))
		step("the upstream is down", true)
		r.Upstream(true, time.Time{}, t0)
		step("the change has not been told", false)
		r.Changes()
		step("the change has not been acted upon", false)
		r.Unacknowledged(1)
		step("the vendor has not answered", false)
		r.Unacknowledged(0)
		step("acknowledged", true)
		_ = e.Change(nil, topic1(2, "T.B"))
		woken := make(chan bool)
		go func() { woken <- served() }()
		synctest.Wait()
		r.Changes()
		r.Unacknowledged(0)
		if !<-woken {
			t.Fatal("not woken by the acknowledgement")
		}
	})
}

// TestGapEndsTheOutage: no heartbeat behind a gap says that the upstream is down.
func TestGapEndsTheOutage(t *testing.T) {
	r := New("stocks", testQueue, RingBounds{})
	r.Lead(epoch1, t0)
	e := attach(t, r, "e", "T.A")
	r.Upstream(false, t0, t0)
	r.Gap(t0, t0.Add(time.Second))
	expect(t, e, "heartbeat ROLE_LEADER 0 UPSTREAM_STATE_DOWN", "gap 1 1s")
	e.Heartbeat(t0)
	expect(t, e, "heartbeat ROLE_LEADER 1 UPSTREAM_STATE_LIVE")
}

func TestReplaced(t *testing.T) {
	r := New("stocks", testQueue, RingBounds{})
	r.Lead(epoch1, t0)
	old := attach(t, r, "e", "T.A")
	r.Changes()
	e := attach(t, r, "e", "T.A")
	<-old.Gone()
	if old.Ended() != EndedReplaced {
		t.Errorf("ended as %d", old.Ended())
	}
	old.Detach()
	r.Route([]Event{event("T", "A", 1)})
	expect(t, old)
	expect(t, e, "batch 1-1 #1=1(1,0)")
	if added, removed := r.Changes(); len(added)+len(removed) > 0 {
		t.Errorf("the topic came or went: +%v -%v", added, removed)
	}
}

func TestMessagesAreBounded(t *testing.T) {
	r := New("stocks", 16<<20, RingBounds{})
	r.Lead(epoch1, t0)
	e := attach(t, r, "e", "T.*")
	big := Event{Raw: make([]byte, maxEvent), Kind: []byte("T"), Symbol: []byte("A")}
	small := Event{Raw: make([]byte, 1), Kind: []byte("T"), Symbol: []byte("A")}
	r.Route([]Event{big, small, small, big})
	var got []string
	for m := e.Next(t0); m != nil; m = e.Next(t0) {
		b := m.GetBatch()
		if len(b.GetPayload()) > maxPayload {
			t.Errorf("%d bytes", len(b.GetPayload()))
		}
		got = append(got, fmt.Sprintf("%d-%d", b.GetFirstSequence(), b.GetLastSequence()))
	}
	if want := []string{"1-1", "2-3", "4-4"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
