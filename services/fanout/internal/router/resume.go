package router

import (
	"time"

	"google.golang.org/protobuf/proto"

	feedv1 "github.com/cutemarkets/relay/proto/feed/v1"
)

// replayChunk is how many records of the ring are looked at under one hold of
// the lock, which routing waits for: about 0.05 ms.
const replayChunk = 256

// resume is what a later stream of the same edge needs to know of an edge, and
// what this one needs of the one before it. Guarded by Router.mu.
//
// An edge whose stream broke is away: its interest stays for the age of the
// ring, because only then does the ring lack nothing of its topics.
type resume struct {
	epoch    *feedv1.Epoch // in which it was started, or the one before if by a standby
	since    uint64        // sequence in epoch up to which its topics may not have been served
	started  bool
	former   *Edge           // holds the interest from before until this one is started
	kept     bool            // it is a former, or away: Detach leaves the interest
	detached bool            // Detach has been called
	position uint64          // behind: end of what was read of the ring
	said     map[uint32]said // by the former: what the edge has heard if it was before a sequence
	heard    uint64          // that sequence
	expiry   *time.Timer     // away: ends the interest
}

// Attach adds an edge without interest. The edge attached before by the same id,
// if it still is, is ended as EndedReplaced. The caller must Detach it.
func (r *Router) Attach(id string) *Edge {
	e := &Edge{
		router: r,
		id:     id,
		wake:   make(chan struct{}, 1),
		gone:   make(chan struct{}),
		topics: make(map[uint32]*topic),
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if old := r.byID[id]; old != nil {
		old.endLocked(EndedReplaced)
		if old.resume.started {
			old.resume.kept = true
			old.resume.stopLocked()
			e.resume.former = old
		} else {
			e.resume.former, old.resume.former = old.resume.former, nil
		}
	}
	r.byID[id] = e
	r.edges[e] = true
	return e
}

// stopLocked stops the expiry of an edge that is away.
func (s *resume) stopLocked() {
	if s.expiry != nil {
		s.expiry.Stop()
		s.expiry = nil
	}
}

// Detach drops the edge's queue, and its interest: at once, or for a leader's
// edge when the ring no longer goes back to now.
func (e *Edge) Detach() { e.end(false) }

// Leave does as Detach for an edge that will not come back: its interest is
// dropped at once.
func (e *Edge) Leave() { e.end(true) }

func (e *Edge) end(left bool) {
	former := e.detach(left)
	e.dropInterest()
	if former != nil {
		former.dropInterest()
	}
}

// detach returns the former edge if it is no longer needed.
func (e *Edge) detach(left bool) *Edge {
	r := e.router
	r.mu.Lock()
	defer r.mu.Unlock()
	e.live, e.behind = false, false
	e.dropLocked()
	delete(r.edges, e)
	e.resume.detached = true
	if e.resume.kept || r.byID[e.id] != e {
		return nil
	}
	away := e
	if !e.resume.started {
		away, e.resume.former = e.resume.former, nil
	}
	if away == nil || left || r.ring.off() || r.role != feedv1.Role_ROLE_LEADER {
		delete(r.byID, e.id)
		if away != nil {
			away.resume.kept = false
		}
		return away
	}
	r.byID[e.id] = away
	away.resume.kept = true
	away.resume.expiry = time.AfterFunc(r.ring.bounds.Age, away.expire)
	return nil
}

// expire ends the interest of an edge that stayed away.
func (e *Edge) expire() {
	r := e.router
	r.mu.Lock()
	if r.byID[e.id] != e || e.resume.expiry == nil {
		r.mu.Unlock()
		return
	}
	delete(r.byID, e.id)
	e.resume.kept = false
	r.mu.Unlock()
	e.dropInterest()
}

// dropInterest drops the topics, unless they are kept or still to be changed.
func (e *Edge) dropInterest() {
	for e.dropSome() {
	}
}

// dropSome drops up to changeChunk topics and reports whether some are left.
func (e *Edge) dropSome() bool {
	e.router.mu.Lock()
	defer e.router.mu.Unlock()
	if e.resume.kept || !e.resume.detached {
		return false
	}
	n := 0
	for id, t := range e.topics {
		if n == changeChunk {
			return true
		}
		n++
		delete(e.topics, id)
		e.router.unsubscribeLocked(t, e)
	}
	return false
}

// Start begins the edge's coverage behind the present sequence; the first
// message is a heartbeat.
func (e *Edge) Start(now time.Time) { e.Resume(nil, 0, now) }

// Resume begins the edge's coverage behind a sequence of the present epoch, if
// the edge was here when it was given and the ring goes back that far; else it
// does as Start.
func (e *Edge) Resume(epoch *feedv1.Epoch, sequence uint64, now time.Time) {
	if former := e.start(epoch, sequence, now); former != nil {
		former.dropInterest()
	}
}

// start returns the former edge, which is no longer needed.
func (e *Edge) start(epoch *feedv1.Epoch, sequence uint64, now time.Time) *Edge {
	r := e.router
	r.mu.Lock()
	defer r.mu.Unlock()
	if e.ended != NotEnded {
		return nil // the former is with the edge that replaced this one
	}
	former := e.resume.former
	e.resume.former, e.resume.started = nil, true
	e.resume.epoch, e.resume.since = r.epoch, r.sequence
	if former != nil {
		former.resume.kept = false
	}
	if r.role == feedv1.Role_ROLE_LEADER && proto.Equal(epoch, r.epoch) {
		if e.resumeLocked(former, sequence, now) {
			return former
		}
		if !r.ring.off() {
			r.refused++
		}
		r.skipLocked()
		e.resume.since = r.sequence
	}
	e.live = true
	e.heartbeatLocked(now)
	return former
}

// resumeLocked begins the coverage behind a sequence; false: it cannot be.
func (e *Edge) resumeLocked(former *Edge, sequence uint64, now time.Time) bool {
	r := e.router
	if former == nil || r.ring.off() || sequence > r.sequence ||
		former.resume.epoch == r.epoch && sequence < former.resume.since {
		return false
	}
	r.ring.trim(now.UnixNano())
	if sequence+1 < r.ring.first() {
		return false
	}
	r.resumed++
	e.resume.epoch, e.resume.since = former.resume.epoch, former.resume.since
	e.resume.said, e.resume.heard = former.said, sequence
	e.behind = true
	e.covered, e.resume.position = sequence, sequence
	e.stateLocked(now)
	return true
}

// nothing is an event that no edge can have interest in.
var nothing = Event{Kind: []byte{0}}

// skipLocked gives a sequence number to nothing. An edge that asked to resume and
// cannot must see a hole, also when it has all that was routed: its topics may not
// have been served meanwhile. (Another epoch than the one it had is a hole by itself.)
func (r *Router) skipLocked() {
	r.sequence++
	r.ring.event(&nothing, r.lastFrame.Load())
}

// replayLocked queues the next part of the ring. Behind its end, what is routed
// follows, after a heartbeat. An edge that reads more slowly than the ring
// forgets is ended as if its queue were full.
func (e *Edge) replayLocked(now time.Time) {
	r := e.router
	if e.resume.position+1 < r.ring.first() {
		e.endLocked(EndedOverflow)
		return
	}
	if e.resume.position < r.sequence {
		at := r.ring.from(e.resume.position + 1)
		for n := 0; n < replayChunk && e.resume.position < r.sequence && e.head == len(e.queue) && e.ended == NotEnded; n++ {
			e.resume.position++
			arrival := at.arrival()
			event, from, to := at.read()
			if len(event.Kind) == 0 {
				e.gapLocked(e.resume.position, from, to)
				continue
			}
			if exact, wildcard := e.idsLocked(&event); exact != 0 || wildcard != 0 {
				e.addLocked(e.resume.position, arrival, event.Raw, exact, wildcard)
			}
		}
	}
	if e.ended != NotEnded {
		return
	}
	e.sealLocked(e.resume.position)
	if e.resume.position == r.sequence {
		e.behind, e.live = false, true
		e.heartbeatLocked(now)
	}
}

// idsLocked returns the ids of an event's topics; 0: no interest.
func (e *Edge) idsLocked(event *Event) (exact, wildcard uint32) {
	p := e.router.prefixes[string(event.Kind)]
	if p == nil {
		return 0, 0
	}
	if len(event.Symbol) > 0 {
		if t := p.exact[string(event.Symbol)]; t != nil {
			exact = t.idOf(e)
		}
	}
	return exact, p.wildcard.idOf(e)
}

// idOf returns the edge's id of the topic; 0: no interest.
func (t *topic) idOf(e *Edge) uint32 {
	if i := t.indexOf(e); i >= 0 {
		return t.subs[i].id
	}
	return 0
}
