package feed

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	feedv1 "github.com/cutemarkets/relay/proto/feed/v1"
)

// ringSize is how many sequences a pod of the model can repeat by default.
const ringSize = 12

// model is a fanout service of some pods and one edge. Everything the vendor
// sends is either in the ring of an epoch or was lost on the way to fanout.
type model struct {
	t     *rapid.T
	now   time.Time
	sink  *recorder2
	a     *arbiter
	pods  []*pod
	lead  *pod
	term  uint64
	links []*link

	events  []happening // the vendor's events that concern the edge
	trouble []span      // when something may be lost, or was interrupted
	asked   []span      // who asked for a topic, and from when its events came
	streams uint64
	silent  bool
	rings   int    // what a pod can repeat
	behind  uint64 // by which resumes lag
	beaten  time.Time
}

type happening struct {
	at   time.Time
	name string // as delivered; empty: no pod had it
}

type span struct{ from, to time.Time }

// pod is a fanout pod; links are the edge's streams to it.
type pod struct {
	leader    bool
	term      uint64
	up        bool
	downSince time.Time
	sequence  uint64
	ring      []entry // of term, contiguous, ending at sequence
}

// entry is what took a sequence number.
type entry struct {
	name     string // of an event; empty: one that does not concern the edge
	gap      bool
	from, to time.Time
}

type link struct {
	pod    *pod
	stream uint64 // 0: broken
	sent   uint64 // end of the coverage sent in the pod's term
	queue  []queued
}

type queued struct {
	at time.Time
	m  *feedv1.SubscribeResponse
}

// recorder2 keeps what the Sink got for the checks.
type recorder2 struct {
	events []string
	gaps   []span
	ups    []span
	down   bool
	t      *rapid.T
}

func (r *recorder2) Batch(b *feedv1.Batch) {
	if len(b.GetEnds()) == 0 || !wellFormed(b) {
		r.t.Fatal("an empty or malformed batch reached the Sink")
	}
	for n := range b.GetEnds() {
		r.events = append(r.events, eventOf(b, n))
	}
}

func (r *recorder2) Gap(from, to time.Time) {
	if to.Before(from) {
		r.t.Fatalf("gap from %v to %v", from, to)
	}
	r.gaps = append(r.gaps, span{from, to})
	r.down = false
}

func (r *recorder2) Down(time.Time) {
	if r.down {
		r.t.Fatal("Down was told twice in an outage")
	}
	r.down = true
}
func (r *recorder2) Up(from, to time.Time) {
	if to.Before(from) {
		r.t.Fatalf("up from %v to %v", from, to)
	}
	r.ups = append(r.ups, span{from, to})
	r.down = false
}
func (r *recorder2) TopicNotice([]uint32, feedv1.TopicProblem) {}

// pass lets time pass. The pods send a heartbeat each second, unless they are
// silent; nothing is on its way for longer than transit allows.
func (m *model) pass(d time.Duration) {
	for d > 0 {
		step := min(d, 100*time.Millisecond)
		d -= step
		m.now = m.now.Add(step)
		if !m.silent && m.now.Sub(m.beaten) >= time.Second {
			m.beatAll()
		}
		for _, l := range m.links {
			for len(l.queue) > 0 && m.now.Sub(l.queue[0].at) > transit-200*time.Millisecond {
				m.deliver(l)
			}
		}
		m.a.tick(m.now)
	}
}

func (m *model) deliver(l *link) {
	if len(l.queue) == 0 {
		return
	}
	next := l.queue[0]
	l.queue = l.queue[1:]
	if !m.a.message(m.now, l.stream, next.m) {
		m.t.Fatalf("the arbiter rejects %v", next.m)
	}
}

// flush sends what the pod has, as one batch per stretch between gaps.
func (m *model) flush(l *link) {
	p := l.pod
	if l.stream == 0 || !p.leader {
		return
	}
	for l.sent < p.sequence {
		first := l.sent + 1
		if e := p.at(first); e.gap {
			l.push(m, gapOf(p.term, first, e.from, e.to))
			l.sent = first
			continue
		}
		last := first
		var names []uint64
		for n := first; n <= p.sequence && !p.at(n).gap; n++ {
			last = n
			if p.at(n).name != "" {
				names = append(names, n)
			}
		}
		l.push(m, batchOf(p.term, first, last, names...))
		l.sent = last
	}
}

func (p *pod) at(sequence uint64) entry {
	return p.ring[len(p.ring)-1-int(p.sequence-sequence)]
}

// add gives an entry a sequence; what is about to leave the ring is sent first.
func (m *model) add(p *pod, e entry) {
	for _, l := range m.links {
		if l.pod == p && p.sequence-l.sent >= uint64(m.rings) {
			m.flush(l)
		}
	}
	p.sequence++
	p.ring = append(p.ring, e)
	if len(p.ring) > m.rings {
		p.ring = p.ring[1:]
	}
}

func (l *link) push(m *model, r *feedv1.SubscribeResponse) {
	l.queue = append(l.queue, queued{m.now, r})
}

func (m *model) beat(l *link) {
	if l.stream == 0 {
		return
	}
	m.flush(l)
	p := l.pod
	switch {
	case !p.leader:
		l.push(m, standby())
	case p.up:
		l.push(m, live(p.term, l.sent))
	case p.downSince.IsZero():
		l.push(m, dead(p.term, l.sent, nil))
	default:
		l.push(m, dead(p.term, l.sent, timestamppb.New(p.downSince)))
	}
}

func (m *model) beatAll() {
	m.beaten = m.now
	for _, l := range m.links {
		m.beat(l)
	}
}

// event is one of the vendor.
func (m *model) event(concerns bool) {
	m.pass(time.Millisecond)
	p := m.lead
	name := ""
	if p != nil && p.up {
		if concerns {
			name = fmt.Sprintf("%d:%d", p.term, p.sequence+1)
		}
		m.add(p, entry{name: name})
	}
	if concerns {
		m.events = append(m.events, happening{m.now, name})
	}
}

func (m *model) upstreamDown() {
	if m.lead == nil || !m.lead.up {
		return
	}
	m.lead.up, m.lead.downSince = false, m.now
	m.trouble = append(m.trouble, span{from: m.now})
	m.beatAll()
}

func (m *model) upstreamUp(heartbeatFirst bool) {
	p := m.lead
	if p == nil || p.up {
		return
	}
	p.up = true
	if heartbeatFirst {
		m.beatAll()
	}
	if !p.downSince.IsZero() {
		m.add(p, entry{gap: true, from: p.downSince, to: m.now})
	}
	p.downSince = time.Time{}
	m.beatAll()
	m.closeTrouble()
}

// fail ends the leadership: the pod dies (its streams break), or stands down.
func (m *model) fail(dies bool) {
	p := m.lead
	if p == nil {
		return
	}
	m.trouble = append(m.trouble, span{from: m.now})
	m.lead = nil
	if !dies {
		for _, l := range m.links {
			if l.pod == p {
				m.flush(l)
			}
		}
	}
	*p = pod{}
	for _, l := range m.links {
		if l.pod == p && dies {
			m.sever(l)
		}
		l.sent = 0
	}
	m.beatAll()
}

// promote makes a pod the leader of a new term, its upstream still down.
func (m *model) promote(p *pod) {
	if m.lead != nil {
		return
	}
	m.term++
	*p = pod{leader: true, term: m.term}
	m.lead = p
	m.serve()
	m.beatAll()
}

func (m *model) sever(l *link) {
	if l.stream == 0 {
		return
	}
	m.a.broken(l.stream)
	m.trouble = append(m.trouble, span{from: m.now})
	l.stream, l.queue = 0, nil
}

func (m *model) connect(l *link) {
	if l.stream != 0 {
		return
	}
	m.streams++
	l.stream = m.streams
	m.a.opened(l.stream)
	p := l.pod
	l.sent = p.sequence
	resume := m.a.covered - min(m.a.covered, m.behind) // what is known may still be in the inbox
	if p.leader && m.a.epoch.term == p.term && resume <= p.sequence && p.sequence-resume <= uint64(len(p.ring)) {
		l.sent = resume
	}
	// The first message is a heartbeat, what is repeated comes after it.
	sequence, ring := p.sequence, p.ring
	p.sequence, p.ring = l.sent, nil
	m.beat(l)
	p.sequence, p.ring = sequence, ring
	m.closeTrouble()
	m.serve()
}

// ask is a client that asks for a topic that nobody wanted. It is served from when
// the edge has a stream to the leader.
func (m *model) ask() {
	m.asked = append(m.asked, span{from: m.now})
	m.serve()
}

func (m *model) serve() {
	for _, l := range m.links {
		if m.lead == nil || l.pod != m.lead || l.stream == 0 {
			continue
		}
		for n := range m.asked {
			if m.asked[n].to.IsZero() {
				m.asked[n].to = m.now
			}
		}
	}
}

// told reports whether someone who asked for a topic was told of all that it missed
// before it was served.
func (r *recorder2) told(asked span) bool {
	spans := slices.Clone(r.gaps)
	for _, up := range r.ups {
		if !up.from.After(asked.from) {
			spans = append(spans, up)
		}
	}
	slices.SortFunc(spans, func(a, b span) int { return a.from.Compare(b.from) })
	for at := asked.from; at.Before(asked.to); {
		next := at
		for _, s := range spans {
			if !s.from.After(at) {
				next = later(next, s.to)
			}
		}
		if !next.After(at) {
			return false
		}
		at = next
	}
	return true
}

// closeTrouble ends the open spans once all is well; the next heartbeats may
// take as long as the grace to say so.
func (m *model) closeTrouble() {
	for n := range m.trouble {
		if m.trouble[n].to.IsZero() && m.well() {
			m.trouble[n].to = m.now
		}
	}
}

func (m *model) well() bool {
	if m.lead == nil || !m.lead.up {
		return false
	}
	return !slices.ContainsFunc(m.links, func(l *link) bool { return l.stream == 0 })
}

// settle brings everything up and lets it reach the edge.
func (m *model) settle() {
	if m.lead == nil {
		m.promote(m.pods[0])
	}
	m.upstreamUp(false)
	for _, l := range m.links {
		m.connect(l)
	}
	for range 3 {
		m.beatAll()
		m.pass(time.Second)
	}
}

func (m *model) check() {
	t := m.t
	if m.sink.down {
		t.Fatal("still down after everything came back")
	}
	delivered := make(map[string]bool)
	var order []string
	for _, e := range m.events {
		if slices.Contains(m.sink.events, e.name) && e.name != "" {
			order = append(order, e.name)
			delivered[e.name] = true
		}
	}
	if !slices.Equal(order, m.sink.events) {
		t.Fatalf("delivered %v, not each once and in order: %v", m.sink.events, order)
	}
	for _, e := range m.events {
		if delivered[e.name] {
			continue
		}
		if !slices.ContainsFunc(m.sink.gaps, func(g span) bool { return !e.at.Before(g.from) && !e.at.After(g.to) }) {
			t.Fatalf("event %q of %v is lost without a gap: %v", e.name, e.at, m.sink.gaps)
		}
	}
	for _, asked := range m.asked {
		if !m.sink.told(asked) {
			t.Fatalf("who asked at %v and was served from %v was told of %v and %v", asked.from, asked.to, m.sink.gaps, m.sink.ups)
		}
	}
	for _, g := range m.sink.gaps {
		if !slices.ContainsFunc(m.trouble, func(s span) bool {
			return !g.to.Before(s.from) && (s.to.IsZero() || !g.from.After(s.to.Add(time.Second)))
		}) {
			t.Fatalf("gap %v without a loss or an outage: %v", g, m.trouble)
		}
	}
	if limit := len(m.trouble); len(m.sink.gaps) > limit {
		t.Fatalf("%d gaps for %d outages", len(m.sink.gaps), limit)
	}
}

func newModel(t *rapid.T, start time.Time, rings int) *model {
	m := &model{t: t, now: start, sink: &recorder2{t: t}, pods: []*pod{{}, {}, {}}, rings: rings}
	m.trouble = []span{{from: start}} // the start is one
	m.a = newArbiter(m.sink, &stats{})
	m.a.start(start)
	for _, p := range m.pods {
		m.links = append(m.links, &link{pod: p})
	}
	return m
}

// Streams that break, however long, cost nothing while the ring goes back far
// enough: each event is delivered, once and in order, and no gap is told.
func TestResumeModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newModel(t, time.Date(2026, 11, 20, 15, 0, 0, 0, time.UTC), 1<<20)
		m.settle()
		if len(m.sink.gaps) != 1 {
			t.Fatalf("gaps %v, want that of the start", m.sink.gaps)
		}
		anyLink := rapid.SampledFrom(m.links)
		actions := map[string]func(*rapid.T){
			"":        func(t *rapid.T) { m.t, m.sink.t = t, t },
			"event":   func(t *rapid.T) { m.event(rapid.Bool().Draw(t, "concerns")) },
			"flush":   func(t *rapid.T) { m.flush(anyLink.Draw(t, "link")) },
			"beat":    func(*rapid.T) { m.beatAll() },
			"deliver": func(t *rapid.T) { m.deliver(anyLink.Draw(t, "link")) },
			"pass":    func(t *rapid.T) { m.pass(time.Duration(rapid.IntRange(1, 5000).Draw(t, "ms")) * time.Millisecond) },
			"silence": func(*rapid.T) {
				m.silent = true
				m.pass(4 * time.Second)
				m.silent = false
			},
			"sever": func(t *rapid.T) { m.sever(anyLink.Draw(t, "link")) },
			"connect": func(t *rapid.T) {
				m.behind = rapid.Uint64Range(0, 4).Draw(t, "behind")
				m.connect(anyLink.Draw(t, "link"))
			},
		}
		for range 3 {
			t.Repeat(actions)
		}
		m.settle()
		var want []string
		for _, e := range m.events {
			want = append(want, e.name)
		}
		if !slices.Equal(m.sink.events, want) || len(m.sink.gaps) != 1 || m.sink.down {
			t.Fatalf("delivered %v of %v, gaps %v, down %v", m.sink.events, want, m.sink.gaps, m.sink.down)
		}
	})
}

// No event is delivered twice or out of order, every lost one is spanned by a
// gap, no gap is told without an outage, and none twice for one.
func TestArbiterModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		start := time.Date(2026, 11, 20, 15, 0, 0, 0, time.UTC)
		m := newModel(t, start, ringSize)
		if rapid.Bool().Draw(t, "warm") {
			m.settle()
		}
		anyLink := rapid.SampledFrom(m.links)
		actions := map[string]func(*rapid.T){
			"":        func(t *rapid.T) { m.t, m.sink.t = t, t },
			"event":   func(t *rapid.T) { m.event(rapid.Bool().Draw(t, "concerns")) },
			"events":  func(t *rapid.T) { m.event(true); m.event(false); m.event(true) },
			"flush":   func(t *rapid.T) { m.flush(anyLink.Draw(t, "link")) },
			"beat":    func(*rapid.T) { m.beatAll(); m.pass(100 * time.Millisecond) },
			"deliver": func(t *rapid.T) { m.deliver(anyLink.Draw(t, "link")) },
			"pass":    func(t *rapid.T) { m.pass(time.Duration(rapid.IntRange(1, 2000).Draw(t, "ms")) * time.Millisecond) },
			"silence": func(*rapid.T) {
				m.trouble = append(m.trouble, span{m.now, m.now.Add(4 * time.Second)})
				m.silent = true
				m.pass(4 * time.Second)
				m.silent = false
			},
			"ask":     func(*rapid.T) { m.ask() },
			"down":    func(*rapid.T) { m.upstreamDown() },
			"up":      func(t *rapid.T) { m.upstreamUp(rapid.Bool().Draw(t, "heartbeat first")) },
			"fail":    func(t *rapid.T) { m.fail(rapid.Bool().Draw(t, "dies")) },
			"promote": func(t *rapid.T) { m.promote(rapid.SampledFrom(m.pods).Draw(t, "pod")) },
			"sever":   func(t *rapid.T) { m.sever(anyLink.Draw(t, "link")) },
			"connect": func(t *rapid.T) {
				m.behind = rapid.Uint64Range(0, 4).Draw(t, "behind")
				m.connect(anyLink.Draw(t, "link"))
			},
		}
		for range 4 { // of 30 actions on average
			t.Repeat(actions)
		}
		m.settle()
		m.check()
	})
}
