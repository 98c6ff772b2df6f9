package feed

import (
	"time"

	feedv1 "github.com/cutemarkets/relay/proto/feed/v1"
)

const (
	// grace is how long coverage may stand still (streams break and resume,
	// leaders change) before Down is told; heartbeats come each second.
	grace = 3 * time.Second
	// transit is how long before its arrival a message may have been built where
	// the leader does not say when: a gap begins that much before the last
	// coverage arrived.
	transit = 500 * time.Millisecond
)

// arbiter merges the streams of one market, one per fanout pod, into the one
// order its Sink sees. It does no I/O and has no clock.
//
// Coverage is the sequence up to which everything that concerns this edge has
// reached the Sink. It must stay contiguous inside an epoch. What breaks it, or
// lets it stand still, is an outage, and each outage ends in exactly one Gap,
// however many causes it had, or in Up if silence was the only one and coverage
// proves contiguous afterwards:
//
//   - a message of the adopted epoch that leaves out sequences (cause hole),
//   - a Gap of the leader (fanout), a batch nobody can read (malformed),
//   - the first live message of a newer epoch (epoch),
//   - the leader saying that its upstream is down (upstream): Down at once,
//   - no coverage for 3 s, be it that no leader's stream is alive or that its
//     messages stopped (silence): Down then,
//   - the start of the process (start): Down at once.
//
// A stream that breaks and resumes without a hole within those 3 s is no outage;
// Up tells of it as well, for who asked for topics meanwhile.
// A newer epoch is adopted at its first live message: a heartbeat with a live
// upstream, a Gap, or a batch while the upstream is live; until then the older one goes on. Everything
// of an epoch older than the adopted one is dropped.
//
// After a change of epoch what both leaders sent is delivered once (handover).
//
// A leader that lost its upstream may, after a resume, still send batches from
// before the loss; they reach the Sink between Down and Gap.
type arbiter struct {
	// Static after construction.
	sink  Sink
	stats *stats

	// Owned by the market's goroutine; not thread-safe.
	streams   map[uint64]*position
	epoch     epoch // adopted; zero: none
	covered   uint64
	coveredAt time.Time // arrival of the last coverage
	// From when events may be missing if they are from now on, by the last
	// coverage that was no repetition.
	served time.Time
	down   bool      // the Sink was told Down
	since  time.Time // down: when events may have begun to be missing
	cause  cause     // down: its first cause
	lost   bool      // down: events are missing for certain, or may be
	// The last gaps told, as far as they follow each other without a break; at
	// first all up to the start: nobody asked for what was before.
	gapFrom, gapTo time.Time
	handover       handover
}

// position is what is known of a stream that is alive.
type position struct {
	leader   bool
	live     bool // its upstream, by its last heartbeat
	epoch    epoch
	sequence uint64    // end of the stream's own coverage in epoch
	begun    bool      // sequence is meaningful
	built    time.Time // when the leader built the last message
	// current: a resume is through. Until the second heartbeat what comes may
	// be a repetition, which says nothing of the present.
	current bool
	through bool // the message that is being taken has made it current
}

type epoch struct{ generation, term uint64 }

func (e epoch) before(o epoch) bool {
	return e.generation < o.generation || e.generation == o.generation && e.term < o.term
}

func (e epoch) proto() *feedv1.Epoch {
	if e == (epoch{}) {
		return nil
	}
	return &feedv1.Epoch{Generation: e.generation, Term: e.term}
}

func epochOf(e *feedv1.Epoch) epoch {
	return epoch{generation: e.GetGeneration(), term: e.GetTerm()}
}

func newArbiter(sink Sink, s *stats) *arbiter {
	return &arbiter{sink: sink, stats: s, streams: make(map[uint64]*position), handover: newHandover()}
}

// start is the first input: nothing is covered yet.
func (a *arbiter) start(now time.Time) {
	a.coveredAt, a.served, a.gapTo = now, now, now
	a.fall(causeStart, now)
}

// tick tells that time has passed.
func (a *arbiter) tick(now time.Time) {
	a.handover.expire(now)
	if !a.down && !now.Before(a.deadline()) {
		a.fall(causeSilence, a.lastCoverage())
	}
}

// deadline is when tick has something to do, unless coverage goes on.
func (a *arbiter) deadline() time.Time { return a.coveredAt.Add(grace) }

// opened tells of a new stream; its number is never used again.
func (a *arbiter) opened(stream uint64) { a.streams[stream] = &position{} }

// broken tells that a stream has ended.
func (a *arbiter) broken(stream uint64) { delete(a.streams, stream) }

// message takes a message of a stream. It reports false when the stream breaks
// the protocol in a way that cannot be passed over; the caller ends it.
func (a *arbiter) message(now time.Time, stream uint64, m *feedv1.SubscribeResponse) bool {
	p := a.streams[stream]
	switch m := m.GetMessage().(type) {
	case *feedv1.SubscribeResponse_Heartbeat:
		return a.heartbeat(now, p, m.Heartbeat)
	case *feedv1.SubscribeResponse_Batch:
		return a.batch(now, p, m.Batch)
	case *feedv1.SubscribeResponse_Gap:
		return a.gap(now, p, m.Gap)
	case *feedv1.SubscribeResponse_TopicNotice:
		if p.leader && !p.epoch.before(a.epoch) {
			a.sink.TopicNotice(m.TopicNotice.GetTopicIds(), m.TopicNotice.GetProblem())
		}
	}
	return true // Draining and what newer pods may send need no answer
}

func (a *arbiter) heartbeat(now time.Time, p *position, h *feedv1.Heartbeat) bool {
	p.leader = h.GetRole() == feedv1.Role_ROLE_LEADER
	if !p.leader {
		p.live, p.begun, p.current = false, false, false
		return true
	}
	e := epochOf(h.GetEpoch())
	if e == (epoch{}) {
		return false
	}
	p.built = builtAt(h.GetBuiltUnixNs(), now)
	// The first heartbeat of an epoch says where the stream's coverage begins;
	// a later one that nothing concerned this edge up to its sequence.
	first, through := h.GetSequence()+1, false
	if p.begun && p.epoch == e {
		if h.GetSequence() < p.sequence {
			return false
		}
		first = p.sequence + 1
		through, p.current = !p.current, true
	} else {
		p.current = e != a.epoch || h.GetSequence() > a.covered
	}
	p.live = h.GetUpstream() == feedv1.UpstreamState_UPSTREAM_STATE_LIVE
	p.epoch, p.sequence, p.begun = e, h.GetSequence(), true
	if e.before(a.epoch) {
		a.stats.stale.Add(1)
		return true
	}
	if p.live {
		p.through = through
		a.cover(now, p, first, h.GetSequence())
		p.through = false
		return true
	}
	if e != a.epoch {
		return true // not yet adopted, and no news of the adopted one
	}
	since := a.lastCoverage()
	if a.contiguous(first) {
		if h.GetDownSince() != nil {
			since = h.GetDownSince().AsTime()
			if through { // the interruption has to be told, too
				since = earlier(since, a.lastCoverage())
			}
		}
		if p.current {
			a.arrived(now, p, p.built)
		}
	}
	a.covered = max(a.covered, h.GetSequence())
	a.fall(causeUpstream, since)
	return true
}

func (a *arbiter) batch(now time.Time, p *position, b *feedv1.Batch) bool {
	e, first, last := epochOf(b.GetEpoch()), b.GetFirstSequence(), b.GetLastSequence()
	if !p.advance(e, first, last) {
		return false
	}
	if e.before(a.epoch) {
		a.stats.stale.Add(1)
		return true
	}
	if e != a.epoch && !p.live {
		return true // not yet adopted: part of the gap that its first live message ends
	}
	p.built = builtAt(b.GetBuiltUnixNs(), now)
	covered := uint64(0)
	if e == a.epoch {
		covered = a.covered
	}
	if last <= covered {
		a.stats.repeated.Add(1)
		return true
	}
	if !wellFormed(b) {
		a.stats.malformed.Add(1)
		a.lose(now, p, last, loss{causeMalformed, a.lastCoverage(), now})
		return true
	}
	a.cover(now, p, first, last)
	b, dropped := a.handover.filter(now, after(b, covered))
	a.stats.duplicates.Add(int64(dropped))
	if len(b.GetEnds()) > 0 {
		a.handover.keep(now, b)
		a.sink.Batch(b)
	}
	return true
}

func (a *arbiter) gap(now time.Time, p *position, g *feedv1.Gap) bool {
	e, n := epochOf(g.GetEpoch()), g.GetSequence()
	if !p.advance(e, n, n) {
		return false
	}
	if e.before(a.epoch) {
		a.stats.stale.Add(1)
		return true
	}
	if e == a.epoch && n <= a.covered {
		a.stats.repeated.Add(1)
		return true
	}
	l := loss{causeFanout, g.GetFrom().AsTime(), g.GetTo().AsTime()}
	if g.GetFrom() == nil || g.GetTo() == nil || l.to.Before(l.from) {
		l.from, l.to = a.lastCoverage(), now
	}
	if e != a.epoch || !a.contiguous(n) {
		l.from, l.to = earlier(l.from, a.lastCoverage()), later(l.to, now)
	} else if !a.down && !l.from.Before(a.gapFrom) && !l.to.After(a.gapTo) {
		a.covered = n // the outage whose end a heartbeat told first
		a.arrived(now, p, now)
		return true
	}
	// A gap that reaches into the outage is its end; one from before it is
	// part of what a resume repeats.
	p.live = p.live || !a.down || !l.to.Before(a.since)
	a.lose(now, p, n, l)
	return true
}

// advance moves a stream's own coverage over [first, last]; false: it cannot be.
func (p *position) advance(e epoch, first, last uint64) bool {
	if e == (epoch{}) || first == 0 || last < first {
		return false
	}
	if p.epoch.before(e) { // a batch may be the first word of an epoch
		*p = position{leader: true, live: true, epoch: e, sequence: last, begun: true, current: true}
		return true
	}
	if !p.leader || e != p.epoch || first <= p.sequence {
		return false
	}
	p.sequence = last
	return true
}

func (a *arbiter) contiguous(first uint64) bool { return first <= a.covered+1 }

// arrived notes that coverage has arrived. A message may have waited long on its
// way: what is lost behind it is as old. What may be a repetition says nothing of
// who has asked for topics since the stream broke.
func (a *arbiter) arrived(now time.Time, p *position, built time.Time) {
	a.coveredAt = now
	if p.current {
		a.served = later(earlier(now.Add(-transit), built), a.gapTo)
	}
}

// lastCoverage is from when events may be missing if they are from now on, also
// for who asked for topics; what a gap has told of is left out.
func (a *arbiter) lastCoverage() time.Time {
	if a.served.Before(a.gapFrom) {
		return a.served
	}
	return later(a.served, a.gapTo)
}

// builtAt is when the leader built a message, if it says so.
func builtAt(unixNs int64, now time.Time) time.Time {
	if unixNs == 0 {
		return now
	}
	return time.Unix(0, unixNs)
}

// loss is a span of time in which events may be missing, and why.
type loss struct {
	cause    cause
	from, to time.Time
}

// cover extends the coverage over [first, last], telling of a gap where there is one.
func (a *arbiter) cover(now time.Time, p *position, first, last uint64) {
	switch {
	case p.epoch != a.epoch:
		a.lose(now, p, last, loss{causeEpoch, a.lastCoverage(), now})
	case !a.contiguous(first):
		a.lose(now, p, last, loss{causeHole, a.lastCoverage(), now})
	case a.down && a.lost && p.live:
		since := a.since
		if p.through {
			since = earlier(since, a.lastCoverage())
		}
		a.lose(now, p, last, loss{a.cause, since, now})
	default:
		a.covered = max(a.covered, last)
		if p.current {
			a.goOn(now, p)
		}
	}
}

// goOn notes coverage of now; after an interruption it tells that nothing was lost.
func (a *arbiter) goOn(now time.Time, p *position) {
	since := a.lastCoverage()
	a.arrived(now, p, p.built)
	switch {
	case a.down && !a.lost && p.live:
		a.down = false
		since = earlier(since, a.since)
	case a.down || !p.through:
		return
	}
	a.stats.recovered.Add(1)
	a.sink.Up(since, now)
}

// lose extends the coverage to last over a loss and tells it as one Gap,
// together with what was told as Down; not yet while the upstream is down.
func (a *arbiter) lose(now time.Time, p *position, last uint64, l loss) {
	if p.epoch == a.epoch {
		last = max(last, a.covered)
	} else if a.epoch != (epoch{}) {
		a.stats.epochChanges.Add(1)
		a.handover.begin(now)
	}
	a.epoch, a.covered = p.epoch, last
	if a.down {
		l = loss{a.cause, earlier(l.from, a.since), later(l.to, now)}
		if !p.live {
			a.since, a.lost = l.from, true
			a.arrived(now, p, now)
			return
		}
	}
	a.down = false
	if l.from.After(a.gapTo) {
		a.gapFrom = l.from
	} else {
		a.gapFrom = earlier(a.gapFrom, l.from)
	}
	a.gapTo = later(a.gapTo, l.to)
	a.arrived(now, p, now)
	a.stats.gaps[l.cause].Add(1)
	a.sink.Gap(l.from, l.to)
}

// fall begins an outage that lasts.
func (a *arbiter) fall(c cause, since time.Time) {
	if a.down {
		a.since = earlier(a.since, since)
		a.lost = a.lost || c != causeSilence
		return
	}
	a.down, a.since, a.cause, a.lost = true, since, c, c != causeSilence
	a.sink.Down(since)
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
