package router

import (
	"fmt"
	"testing"
	"time"

	feedv1 "github.com/cutemarkets/relay/proto/feed/v1"
	"github.com/cutemarkets/relay/services/fanout/internal/leader"
)

const (
	unserved     = feedv1.TopicProblem_TOPIC_PROBLEM_NOT_ACKNOWLEDGED
	unauthorized = feedv1.TopicProblem_TOPIC_PROBLEM_NOT_AUTHORIZED
	noSlot       = feedv1.TopicProblem_TOPIC_PROBLEM_NO_SLOT
	solved       = feedv1.TopicProblem_TOPIC_PROBLEM_UNSPECIFIED
)

func TestProblems(t *testing.T) {
	r := New("stocks", testQueue, RingBounds{})
	r.Lead(epoch1, t0)
	e := attach(t, r, "e", "T.A", "NOI.*")
	other := attach(t, r, "other", "Q.A")
	r.Problem([]string{"NOI.*", "T.unknown", "ZZ.*"}, unauthorized)
	expect(t, e, "notice [2] TOPIC_PROBLEM_NOT_AUTHORIZED")
	expect(t, other)
	if err := other.Change(nil, topic1(5, "NOI.*")); err != nil {
		t.Fatal(err)
	}
	expect(t, other, "notice [5] TOPIC_PROBLEM_NOT_AUTHORIZED")
	late := attach(t, r, "late", "NOI.*")
	expect(t, late, "notice [1] TOPIC_PROBLEM_NOT_AUTHORIZED")
	r.Problem([]string{"T.A"}, unserved)
	expect(t, e, "notice [1] TOPIC_PROBLEM_NOT_ACKNOWLEDGED")
	r.Problem([]string{"T.A"}, solved)
	expect(t, e)
	expect(t, attach(t, r, "later", "T.A"))

	r.Problem([]string{"T.A"}, unserved)
	if err := e.Change([]uint32{1}, nil); err != nil {
		t.Fatal(err)
	}
	expect(t, e) // no longer wanted
	r.Problem([]string{"NOI.*"}, unserved)
	r.Problem([]string{"NOI.*"}, solved)
	r.Route([]Event{event("NOI", "A", 1)})
	expect(t, e, "batch 1-1 #1=1(0,2)")
}

// TestProblemsWake: a problem, and a topic that has one, wake the sender.
func TestProblemsWake(t *testing.T) {
	r := New("stocks", testQueue, RingBounds{})
	r.Lead(epoch1, t0)
	e := attach(t, r, "e", "T.A")
	<-e.Ready()
	r.Problem([]string{"T.A"}, unserved)
	<-e.Ready()
	expect(t, e, "notice [1] TOPIC_PROBLEM_NOT_ACKNOWLEDGED")
	other := attach(t, r, "other")
	<-other.Ready()
	if err := other.Change(nil, topic1(3, "T.A")); err != nil {
		t.Fatal(err)
	}
	<-other.Ready()
	expect(t, other, "notice [3] TOPIC_PROBLEM_NOT_ACKNOWLEDGED")
}

// TestNoSlot: who wants a topic for which there was no slot has it tried anew,
// whoever else wants it still.
func TestNoSlot(t *testing.T) {
	r := New("options", testQueue, testRing)
	r.Lead(epoch1, t0)
	changes := func(want string) {
		t.Helper()
		if added, removed := r.Changes(); fmt.Sprint(added, removed) != want {
			t.Fatalf("changes %v %v, want %s", added, removed, want)
		}
	}
	away := attach(t, r, "away", "Q.A")
	changes("[Q.A] []")
	away.Detach()
	r.Problem([]string{"Q.A"}, noSlot)
	e := attach(t, r, "e", "Q.A")
	expect(t, e) // not before it has been tried
	changes("[Q.A] []")
	r.Problem([]string{"Q.A"}, noSlot)
	expect(t, e, "notice [1] TOPIC_PROBLEM_NO_SLOT")
	e.Leave()
	changes("[] []")

	e = attach(t, r, "e", "Q.A")
	changes("[Q.A] []")
	expect(t, e) // there was one
}

// TestManyProblems: an edge all of whose topics have problems is told in
// messages of bounded size, and its queue stays small.
func TestManyProblems(t *testing.T) {
	r := New("stocks", testQueue, RingBounds{})
	r.Lead(epoch1, t0)
	first := attach(t, r, "first")
	topics := make([]*feedv1.Topic, maxTopics)
	names := make([]string, maxTopics)
	for i := range topics {
		names[i] = fmt.Sprintf("Q.%d", i)
		topics[i] = &feedv1.Topic{Id: uint32(i + 1), Name: names[i]}
	}
	all := func(e *Edge, problem feedv1.TopicProblem) {
		t.Helper()
		told := make(map[uint32]bool)
		for m := e.Next(t0); m != nil; m = e.Next(t0) {
			n := m.GetTopicNotice()
			if n == nil {
				continue
			}
			if len(n.GetTopicIds()) > changeChunk || n.GetProblem() != problem {
				t.Fatalf("%d topics in a notice of %v", len(n.GetTopicIds()), n.GetProblem())
			}
			for _, id := range n.GetTopicIds() {
				told[id] = true
			}
			if s := r.Stats(); s.QueueBytes > 64<<10 {
				t.Fatalf("%d bytes queued", s.QueueBytes)
			}
		}
		if len(told) != maxTopics || e.Ended() != NotEnded {
			t.Errorf("%d topics told, ended %d", len(told), e.Ended())
		}
	}
	if err := first.Change(nil, topics); err != nil {
		t.Fatal(err)
	}
	r.Problem(names, unauthorized)
	all(first, unauthorized)

	second := r.Attach("second")
	if err := second.Change(nil, topics); err != nil {
		t.Fatal(err)
	}
	second.Start(t0)
	all(second, unauthorized)

	third := attach(t, r, "third")
	if err := third.Change(nil, topics); err != nil {
		t.Fatal(err)
	}
	all(third, unauthorized)
}

// TestResumeProblems: a stream that is resumed tells again what the edge may not
// have heard, and nothing else.
func TestResumeProblems(t *testing.T) {
	a := func(n int) Event { return event("T", "A", n) }
	const again = "notice [2] TOPIC_PROBLEM_NOT_AUTHORIZED"
	for name, c := range map[string]struct {
		during func(t *testing.T, r *Router, e *Edge)
		from   uint64
		topics []string
		want   []string
	}{
		"heard":        {func(*testing.T, *Router, *Edge) {}, 2, nil, nil},
		"not surely":   {func(*testing.T, *Router, *Edge) {}, 1, nil, []string{again}},
		"another id":   {func(*testing.T, *Router, *Edge) {}, 2, []string{"Q.A", "T.A"}, []string{"notice [1] TOPIC_PROBLEM_NOT_AUTHORIZED"}},
		"another word": {func(_ *testing.T, r *Router, _ *Edge) { r.Problem([]string{"Q.A"}, unserved) }, 2, nil, []string{"notice [2] TOPIC_PROBLEM_NOT_ACKNOWLEDGED"}},
		"solved":       {func(_ *testing.T, r *Router, _ *Edge) { r.Problem([]string{"Q.A"}, solved) }, 2, nil, nil},
		"a new topic": {func(t *testing.T, r *Router, _ *Edge) {
			other := attach(t, r, "other", "Q.B")
			r.Problem([]string{"Q.B"}, unauthorized)
			other.Detach()
		}, 2, []string{"T.A", "Q.A", "Q.B"}, []string{"notice [3] TOPIC_PROBLEM_NOT_AUTHORIZED"}},
		"two breaks": {func(t *testing.T, r *Router, e *Edge) {
			e.Detach()
			e = resumeOf(t, r, "e", 2, "T.A", "Q.A")
			for e.Next(t0) != nil {
			}
			e.Detach()
		}, 2, nil, nil},
		"told again by the stream": {func(t *testing.T, r *Router, e *Edge) {
			e.Detach()
			e = resumeOf(t, r, "e", 2, "T.A", "Q.A")
			for e.Next(t0) != nil {
			}
			r.Problem([]string{"Q.A"}, unauthorized)
			expect(t, e, again)
			e.Detach()
		}, 2, nil, []string{again}},
		"not resumed": {func(t *testing.T, r *Router, e *Edge) { e.Leave() }, 2, nil, []string{again}},
	} {
		t.Run(name, func(t *testing.T) {
			r := New("stocks", testQueue, testRing)
			r.Lead(epoch1, t0)
			r.FrameSeen(t0)
			holder := attach(t, r, "holder", "Q.A")
			defer holder.Leave()
			e := attach(t, r, "e", "T.A", "Q.A")
			r.Route([]Event{a(1)})
			expect(t, e, "batch 1-1 #1=1(1,0)")
			r.Problem([]string{"Q.A"}, unauthorized)
			expect(t, e, again)
			r.Route([]Event{a(2)})
			expect(t, e, "batch 2-2 #2=2(1,0)")
			c.during(t, r, e)
			e.Detach()
			if c.topics == nil {
				c.topics = []string{"T.A", "Q.A"}
			}
			e = resumeOf(t, r, "e", c.from, c.topics...)
			defer e.Leave()
			var got []string
			for m := e.Next(t0); m != nil; m = e.Next(t0) {
				if m.GetTopicNotice() != nil {
					got = append(got, show(m))
				}
			}
			if fmt.Sprint(got) != fmt.Sprint(c.want) {
				t.Errorf("told %q, want %q", got, c.want)
			}
		})
	}
}

// TestProblemsAndEpochs: a new leadership knows of no problem yet.
func TestProblemsAndEpochs(t *testing.T) {
	r := New("stocks", testQueue, testRing)
	r.Lead(epoch1, t0)
	e := attach(t, r, "e", "T.A")
	r.Problem([]string{"T.A"}, unserved)
	r.Follow(t0)
	r.Lead(leader.Epoch{Generation: 7, Term: 2}, t0.Add(time.Second))
	expect(t, e, "heartbeat ROLE_STANDBY 0 UPSTREAM_STATE_UNSPECIFIED", "heartbeat ROLE_LEADER 0 UPSTREAM_STATE_DOWN")
}
