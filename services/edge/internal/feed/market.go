package feed

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	feedv1 "github.com/cutemarkets/relay/proto/feed/v1"
)

// inboxMessages bounds what waits between the streams and the arbiter; a
// message has at most grpcx.MaxMessageBytes. The streams wait when it is full.
const inboxMessages = 8

// market is one market's side of the client.
type market struct {
	// Static after construction.
	name     string
	interest *Interest
	stats    stats
	inbox    chan input // never closed

	lastStream atomic.Uint64

	mu sync.Mutex
	// Guarded by mu.
	shared shared
}

// shared is what other goroutines may know of the arbiter.
type shared struct {
	epoch     epoch
	covered   uint64
	coveredAt time.Time
	live      bool
	since     time.Time
}

// input is what a stream tells the market's goroutine; at most one of message
// and ended is set. A stream's first input has neither.
type input struct {
	stream  uint64
	message *feedv1.SubscribeResponse
	reject  func() // ends the stream when it breaks the protocol
	ended   bool
}

func newMarket(name string) *market {
	return &market{name: name, interest: newInterest(), inbox: make(chan input, inboxMessages)}
}

// run drives the arbiter until ctx is done.
func (m *market) run(ctx context.Context, sink Sink) {
	a := newArbiter(retiring{sink, m.interest}, &m.stats)
	a.start(time.Now())
	m.share(a, time.Now())
	timer := time.NewTimer(grace)
	defer timer.Stop()
	for {
		select {
		case in := <-m.inbox:
			m.take(a, in)
		case <-timer.C:
			now := time.Now()
			if len(m.inbox) == 0 { // else coverage may only have waited
				a.tick(now)
			}
			m.share(a, now)
			timer.Reset(max(a.deadline().Sub(now), grace/10))
		case <-ctx.Done():
			return
		}
	}
}

// retiring retires the topics that have no slot before the Sink hears of it: some
// of their holders let go of them only later.
type retiring struct {
	Sink
	interest *Interest
}

// TopicNotice implements Sink.
func (r retiring) TopicNotice(ids []uint32, problem feedv1.TopicProblem) {
	if problem == feedv1.TopicProblem_TOPIC_PROBLEM_NO_SLOT {
		r.interest.retire(ids)
	}
	r.Sink.TopicNotice(ids, problem)
}

func (m *market) take(a *arbiter, in input) {
	now := time.Now()
	switch {
	case in.ended:
		a.broken(in.stream)
	case in.message == nil:
		a.opened(in.stream)
	case !a.message(now, in.stream, in.message):
		in.reject()
	}
	m.share(a, now)
}

func (m *market) share(a *arbiter, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := shared{epoch: a.epoch, covered: a.covered, coveredAt: a.coveredAt, live: !a.down, since: m.shared.since}
	switch {
	case a.down:
		s.since = a.since
	case !m.shared.live:
		s.since = now
	}
	m.shared = s
}

// put hands an input to the market's goroutine; false: ctx is done.
func (m *market) put(ctx context.Context, in input) bool {
	select {
	case m.inbox <- in:
		return true
	case <-ctx.Done():
		return false
	}
}

// position is where a new stream resumes.
func (m *market) position() (epoch, uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.shared.epoch, m.shared.covered
}

func (m *market) status(now time.Time) Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := Status{Live: m.shared.live, Since: m.shared.since, Streams: int(m.stats.streams.Load())}
	if !m.shared.coveredAt.IsZero() {
		s.Lag = now.Sub(m.shared.coveredAt)
	}
	return s
}
