package feedserver

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	feedv1 "github.com/cutemarkets/relay/proto/feed/v1"
	"github.com/cutemarkets/relay/services/fanout/internal/router"
)

// resumes opens a stream that goes on behind a sequence and returns where its
// coverage begins.
func (f *fixture) resumes(sequence uint64, topics ...string) (*edge, uint64) {
	f.Helper()
	e := f.open()
	hello := &feedv1.Hello{EdgeId: "edge", Market: "stocks", ResumeEpoch: &feedv1.Epoch{Generation: 3, Term: 4}, ResumeSequence: sequence}
	for i, name := range topics {
		hello.Topics = append(hello.Topics, &feedv1.Topic{Id: uint32(i + 1), Name: name})
	}
	e.hello(hello)
	h := e.next().GetHeartbeat()
	if h == nil {
		f.Fatal("the first message is no heartbeat")
	}
	return e, h.GetSequence()
}

func (f *fixture) route(from, to int) {
	for n := from; n <= to; n++ {
		f.router.FrameSeen(time.Now())
		f.router.Route(trades("A", n))
	}
}

// TestResume cuts a stream while events flow: the next one goes on where the
// edge stopped to read, without a hole or a repetition, and then lives on.
func TestResume(t *testing.T) {
	f := serveRing(t, router.RingBounds{Age: time.Minute, Bytes: 8 << 20})
	f.lead()
	first := f.connect("edge", "T.A")
	const events = 5000
	routed := make(chan struct{})
	go func() {
		defer close(routed)
		f.route(1, events)
	}()
	next, covered := 1, uint64(0)
	take := func(e *edge, until int) {
		for next <= until {
			b := e.next().GetBatch()
			if b == nil {
				continue
			}
			if b.GetFirstSequence() != covered+1 {
				t.Fatalf("batch from %d behind %d", b.GetFirstSequence(), covered)
			}
			covered = b.GetLastSequence()
			begin := uint32(0)
			for _, end := range b.GetEnds() {
				if got, want := string(b.GetPayload()[begin:end]), fmt.Sprintf(`{"ev":"T","sym":"A","n":%d}`, next); got != want {
					t.Fatalf("got %s, want %s", got, want)
				}
				begin = end
				next++
			}
		}
	}
	take(first, 100)
	for until := 1000; until <= events; until += 1000 {
		e, from := f.resumes(covered, "T.A")
		if from != covered {
			t.Fatalf("resumed at %d, want %d", from, covered)
		}
		take(e, until)
	}
	<-routed
	e, _ := f.resumes(covered, "T.A")
	f.route(events+1, events+10)
	take(e, events+10)
	if s := f.router.Stats(); s.Resumed != 6 || s.Refused != 0 || s.Edges > 2 {
		t.Errorf("stats %+v", s)
	}
}

// TestResumeBeyondTheRing: what the ring has forgotten is a hole.
func TestResumeBeyondTheRing(t *testing.T) {
	f := serveRing(t, router.RingBounds{Age: time.Minute, Bytes: 1 << 20})
	f.lead()
	first := f.connect("edge", "T.A")
	f.route(1, 1)
	first.events(1)
	const events = 20_000
	f.route(2, events)
	if e, from := f.resumes(1, "T.A"); from != events+1 { // one is left out
		t.Errorf("resumed at %d of %d", from, events)
	} else {
		f.route(events+1, events+1)
		e.events(1)
	}
}

// TestResumeAddsTopics: a topic that is new is served from its acknowledgement
// on, the others go on without a hole, and it holds nobody up.
func TestResumeAddsTopics(t *testing.T) {
	f := serveRing(t, router.RingBounds{Age: time.Minute, Bytes: 8 << 20})
	f.lead()
	f.connect("edge", "T.A")
	f.router.Unacknowledged(0)
	f.router.Upstream(true, time.Time{}, time.Now())
	f.route(1, 3)
	began := time.Now()
	opened := make(chan struct{})
	go func() {
		defer close(opened)
		<-f.router.Changed()
		f.router.Changes()
		f.route(4, 6) // before the acknowledgement
		f.router.Unacknowledged(0)
	}()
	e, from := f.resumes(1, "T.A", "T.B")
	<-opened
	if took := time.Since(began); from != 1 || took > 2*servedWait {
		t.Errorf("resumed at %d after %v", from, took)
	}
	want := ""
	for n := 2; n <= 6; n++ {
		want += fmt.Sprintf(`{"ev":"T","sym":"A","n":%d}`, n)
	}
	if got := e.events(5); got != want {
		t.Errorf("got %s", got)
	}
}

// TestCleanEnd: an edge that closes its side has no interest any more; what one
// whose stream broke wanted is kept.
func TestCleanEnd(t *testing.T) {
	f := serveRing(t, router.RingBounds{Age: time.Minute, Bytes: 8 << 20})
	f.lead()
	stays, leaves := f.connect("stays", "T.A"), f.connect("leaves", "T.B")
	f.until("served", func(s router.Stats) bool { return s.Topics == 2 })
	if err := leaves.CloseSend(); err != nil {
		t.Fatal(err)
	}
	leaves.expectEnd(codes.OK)
	f.until("dropped", func(s router.Stats) bool { return s.Edges == 1 && s.Topics == 1 })
	stays.hangUp()
	f.until("kept", func(s router.Stats) bool { return s.Edges == 0 })
	if s := f.router.Stats(); s.Topics != 1 {
		t.Errorf("%d topics kept", s.Topics)
	}
}

// TestBreakWhileWaiting: a stream that breaks while it waits for the vendor is
// not answered, so that nothing is decided which nobody hears of.
func TestBreakWhileWaiting(t *testing.T) {
	f := serveRing(t, router.RingBounds{Age: time.Minute, Bytes: 8 << 20})
	f.lead()
	f.router.Upstream(true, time.Time{}, time.Now())
	for began, before := time.Now(), f.router.Stats().Refused; ; began, before = time.Now(), f.router.Stats().Refused {
		e := f.open()
		e.hello(&feedv1.Hello{
			EdgeId: "edge", Market: "stocks", ResumeEpoch: &feedv1.Epoch{Generation: 3, Term: 4},
			Topics: []*feedv1.Topic{{Id: 1, Name: "T.A"}},
		})
		f.until("waiting", func(s router.Stats) bool { return s.Topics == 1 })
		e.hangUp()
		f.until("gone", func(s router.Stats) bool { return s.Edges == 0 && s.Topics == 0 || s.Refused > before })
		if s := f.router.Stats(); s.Refused == before {
			return
		} else if took := time.Since(began); took < servedWait {
			t.Fatalf("after %v: %+v", took, s)
		}
		f.router.Follow(time.Now()) // the machine was too slow: once more, with nothing kept
		f.lead()
		f.router.Upstream(true, time.Time{}, time.Now())
	}
}
