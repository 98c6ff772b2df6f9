package upstream

import (
	"slices"
	"time"
)

// edge adopts epochs as the edge's arbiter does: it drops what is older than the
// adopted one, and adopts a newer one at its first live message: a heartbeat with a
// live upstream, a gap, or an event of a stream that is live.
type edge struct {
	w         *world
	epoch     uint64
	covered   uint64
	coveredAt time.Duration
	builtAt   time.Duration
	live      map[*fanout]uint64 // the epoch in which it is
	down      bool
	since     time.Duration
	gaps      []span
	got       []delivery
	missed    map[int]bool  // events that were lost on the way from a fanout, or their gap
	server    *wire         // serves it as far as one can tell
	servedBy  time.Duration // since when
}

// delivery is an event at an edge.
type delivery struct {
	event int
	epoch uint64
	at    time.Duration
}

func (e *edge) take(f *fanout, m message) {
	if m.kind == beatMessage {
		e.live[f] = 0
		if m.live {
			e.live[f] = m.epoch
		}
	}
	if m.epoch < e.epoch && e.w.mutant != noFence {
		return
	}
	live := e.live[f] == m.epoch
	switch m.kind {
	case beatMessage:
		switch {
		case live, e.w.mutant == earlyAdoption && m.epoch > e.epoch:
			e.cover(m, m.sequence+1, live)
		case m.epoch == e.epoch:
			since := e.lastCoverage()
			if m.sequence <= e.covered {
				since = m.downSince
				e.coveredAt, e.builtAt = e.w.now, m.built
			}
			e.covered = max(e.covered, m.sequence)
			if e.down {
				since = min(since, e.since)
			}
			e.down, e.since = true, since
		}
	case eventMessage:
		if m.epoch == e.epoch && m.sequence <= e.covered || m.epoch > e.epoch && !live {
			return
		}
		e.cover(m, m.sequence, live)
		e.got = append(e.got, delivery{m.event, m.epoch, e.w.now})
	case gapMessage:
		if m.epoch == e.epoch && m.sequence <= e.covered {
			return
		}
		from, to := m.from, m.to
		if m.epoch != e.epoch || m.sequence > e.covered+1 {
			from, to = min(from, e.lastCoverage()), max(to, e.w.now)
		}
		e.live[f] = m.epoch
		e.lose(m, from, to, true)
	}
}

// miss notes what a message that is lost on its way would have told.
func (e *edge) miss(m message) {
	switch m.kind {
	case eventMessage:
		e.missed[m.event] = true
	case gapMessage:
		for event := int(max(0, m.from) / eventEvery); event <= int(m.to/eventEvery); event++ {
			e.missed[event] = true
		}
	}
}

func (e *edge) lastCoverage() time.Duration { return min(e.coveredAt-edgeTransit, e.builtAt) }

// cover extends the coverage from a sequence to that of the message.
func (e *edge) cover(m message, first uint64, live bool) {
	switch {
	case m.epoch != e.epoch, first > e.covered+1:
		e.lose(m, e.lastCoverage(), e.w.now, live)
	case e.down && live:
		e.lose(m, e.since, e.w.now, live)
	default:
		e.covered, e.coveredAt, e.builtAt = max(e.covered, m.sequence), e.w.now, m.built
	}
}

func (e *edge) lose(m message, from, to time.Duration, live bool) {
	if m.epoch != e.epoch {
		e.covered = 0
	}
	e.epoch, e.covered, e.coveredAt, e.builtAt = m.epoch, max(e.covered, m.sequence), e.w.now, e.w.now
	if e.down {
		from, to = min(from, e.since), max(to, e.w.now)
		if !live {
			e.since = from
			return
		}
	}
	e.down = false
	e.gaps = append(e.gaps, span{from, to})
}

// serviceWait is how long an edge may be without events while a fanout has the
// feed and the ways are free.
const serviceWait = 8 * time.Second

// expectService fails when a feed that is there does not reach the edge: a newer
// epoch must not cost an older one's feed before it has one; but for a leader whose
// refusal was held up on its way, so that it took itself for admitted.
func (e *edge) expectService() {
	w := e.w
	at := slices.IndexFunc(w.vendor.active, func(k *wire) bool {
		f := k.owner
		return f != nil && !k.dead && !k.closing && k.subscribed && !f.dead && max(f.paused, f.vendorCut, f.edgeCut) < w.now
	})
	if at < 0 || w.misled[e.epoch] {
		e.server = nil
		return
	}
	if k := w.vendor.active[at]; k != e.server {
		e.server, e.servedBy = k, w.now
	}
	last := e.servedBy
	if n := len(e.got); n > 0 {
		last = max(last, e.got[n-1].at)
	}
	if w.now-last > serviceWait {
		w.fail("an edge has no events for %v, though a fanout has them", w.now-last)
	}
}
