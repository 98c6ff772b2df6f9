// Package router takes the events of a market from its upstream to the edges
// that have interest in them. A Router owns the market's interest, its sequence
// and epoch, and one queue per edge. It starts no goroutine: routing runs on the
// goroutine that reads the upstream socket and never waits for an edge; what an
// edge's stream sends next, it takes from its queue by itself (Edge.Next).
//
// Each edge has one open batch that grows until it is taken or is full, so that
// an idle edge gets every event at once and a busy one gets fuller batches. A
// queue is bounded in bytes; its policy is cut: an edge that lets it overflow is
// ended (EndedOverflow) and loses its queue, and nobody else notices. The edge
// sees the hole in the sequence when it comes back.
package router

import (
	"context"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	feedv1 "github.com/cutemarkets/relay/proto/feed/v1"
	"github.com/cutemarkets/relay/services/fanout/internal/leader"
)

// changeChunk is how many topics are added or removed under one hold of the
// lock, which routing waits for: about 0.5 ms.
const changeChunk = 1024

// Router is the routing of one market. Safe for concurrent use.
type Router struct {
	// Static after construction.
	market     string
	queueBytes int
	changed    chan struct{} // holds a token while the interest may have changed; never closed

	lastFrame atomic.Int64 // unix nanoseconds of the last upstream frame; 0: none yet
	lateness  atomic.Int64 // nanoseconds for which the last event was under way

	mu sync.Mutex
	// Guarded by mu.
	prefixes    map[string]*prefix
	topics      int              // with interest
	dirty       map[string]bool  // topics whose interest changed since Changes; nil: nobody follows
	byID        map[string]*Edge // the newest of each edge id
	edges       map[*Edge]bool   // attached
	touched     []*Edge          // with new events, to be woken
	role        feedv1.Role
	epoch       *feedv1.Epoch // immutable; leader only
	sequence    uint64        // last one given in epoch
	upstream    feedv1.UpstreamState
	downSince   time.Time
	otherEvents uint64 // of kinds without a prefix
	gaps        uint64
	applying    bool          // what Changes told has not been acted upon yet
	unacked     int           // topics the vendor has yet to acknowledge
	served      chan struct{} // closed unless AwaitServed has to wait
	ring        ring          // leader only
	resumed     uint64
	refused     uint64 // resumes
}

// prefix is what is before the first dot of a topic, the "ev" of its events.
type prefix struct {
	name     string
	wildcard topic
	exact    map[string]*topic // by ticker
	known    bool              // of the vendor: a metric label, never dropped
	events   uint64
}

// topic is the interest in one topic.
type topic struct {
	name    string
	prefix  *prefix
	subs    []subscription
	problem feedv1.TopicProblem
}

type subscription struct {
	edge *Edge
	id   uint32
}

// New makes the router of a market as a standby without edges. queueBytes
// bounds the queue of each edge.
func New(market string, queueBytes int, bounds RingBounds) *Router {
	r := &Router{
		market:     market,
		queueBytes: queueBytes,
		changed:    make(chan struct{}, 1),
		served:     make(chan struct{}),
		prefixes:   make(map[string]*prefix),
		byID:       make(map[string]*Edge),
		edges:      make(map[*Edge]bool),
		role:       feedv1.Role_ROLE_STANDBY,
		ring:       ring{bounds: bounds},
	}
	for _, kind := range Kinds() {
		r.prefixLocked(kind).known = true
	}
	return r
}

// Market returns the market's name.
func (r *Router) Market() string { return r.market }

// Kinds are the kinds of events that the vendor documents, for metric labels.
func Kinds() []string { return []string{"T", "Q", "A", "AM", "LULD", "NOI", "FMV", "LV"} }

// Lead begins an epoch: the sequence starts anew and the upstream is down. It
// returns the whole interest, in order; what changes in it from then on is told
// by Changes.
func (r *Router) Lead(epoch leader.Epoch, now time.Time) (interest []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sealAllLocked()
	r.role = feedv1.Role_ROLE_LEADER
	r.epoch = &feedv1.Epoch{Generation: epoch.Generation, Term: epoch.Term}
	r.sequence = 0
	r.ring.reset(1)
	r.upstream, r.downSince = feedv1.UpstreamState_UPSTREAM_STATE_DOWN, time.Time{}
	r.lastFrame.Store(0)
	r.lateness.Store(0)
	r.dirty = make(map[string]bool)
	r.applying, r.unacked = false, 0
	for _, p := range r.prefixes {
		if len(p.wildcard.subs) > 0 {
			p.wildcard.problem = 0
			interest = append(interest, p.wildcard.name)
		}
		for _, t := range p.exact {
			t.problem = 0
			interest = append(interest, t.name)
		}
	}
	slices.Sort(interest)
	r.announceLocked(now)
	return interest
}

// Follow ends the epoch: from now on the process is a standby.
func (r *Router) Follow(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sealAllLocked()
	r.role = feedv1.Role_ROLE_STANDBY
	r.ring.reset(0)
	r.upstream, r.downSince = feedv1.UpstreamState_UPSTREAM_STATE_UNSPECIFIED, time.Time{}
	r.dirty = nil
	r.settleLocked()
	r.announceLocked(now)
}

// Upstream notes that the leader's upstream is live, or down since a moment
// (zero: it has not been live in this epoch), and tells all edges.
func (r *Router) Upstream(live bool, downSince, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.upstream = feedv1.UpstreamState_UPSTREAM_STATE_DOWN
	if live {
		r.upstream = feedv1.UpstreamState_UPSTREAM_STATE_LIVE
	}
	r.downSince = downSince
	r.settleLocked()
	r.announceLocked(now)
}

// FrameSeen notes when the last frame of the upstream came.
func (r *Router) FrameSeen(now time.Time) { r.lastFrame.Store(now.UnixNano()) }

// Late notes for how long the last event had been under way. What is behind it is
// as late, so messages to edges say that they were built by that much earlier.
func (r *Router) Late(by time.Duration) { r.lateness.Store(int64(by)) }

// Route gives each event its sequence number and appends it to the queue of
// every edge with interest. It copies what it keeps. The process must lead.
func (r *Router) Route(events []Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mustLeadLocked()
	at := r.lastFrame.Load()
	for i := range events {
		r.ring.event(&events[i], at)
		r.routeLocked(&events[i])
	}
	r.wakeTouchedLocked()
}

func (r *Router) routeLocked(e *Event) {
	r.sequence++
	p := r.prefixes[string(e.Kind)]
	if p == nil {
		r.otherEvents++
		return
	}
	p.events++
	if len(e.Symbol) > 0 {
		if t := p.exact[string(e.Symbol)]; t != nil {
			for _, s := range t.subs {
				s.edge.appendLocked(e.Raw, s.id, 0)
			}
		}
	}
	for _, s := range p.wildcard.subs {
		if s.edge.stamp == r.sequence {
			ids := s.edge.open.TopicIds
			ids[len(ids)-1] = s.id
		} else {
			s.edge.appendLocked(e.Raw, 0, s.id)
		}
	}
}

// Gap tells all edges that events between two moments may be missing. It takes
// one sequence number. The process must lead.
func (r *Router) Gap(from, to time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mustLeadLocked()
	r.sequence++
	r.gaps++
	// A heartbeat that comes in between must not say that the outage goes on.
	r.upstream, r.downSince = feedv1.UpstreamState_UPSTREAM_STATE_LIVE, time.Time{}
	r.ring.gap(from, to, r.lastFrame.Load())
	for e := range r.edges {
		if e.live {
			e.gapLocked(r.sequence, from, to)
		}
	}
}

// Problem notes what the vendor said of topics, or did not say, and tells the
// edges that want them, now and later. TOPIC_PROBLEM_UNSPECIFIED takes an
// earlier problem back; edges are not told of that.
func (r *Router) Problem(topics []string, problem feedv1.TopicProblem) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, name := range topics {
		t := r.findLocked(name)
		if t == nil {
			continue
		}
		t.problem = problem
		if problem == feedv1.TopicProblem_TOPIC_PROBLEM_UNSPECIFIED {
			continue
		}
		for _, s := range t.subs {
			s.edge.problemLocked(s.id)
		}
	}
}

// Changed receives when Changes may have something to tell.
func (r *Router) Changed() <-chan struct{} { return r.changed }

// Changes returns, in order, the topics that got or lost all interest since the
// last call or Lead. A topic that did both is told of once, as it is now.
func (r *Router) Changes() (added, removed []string) {
	added, removed = r.takeChanges()
	slices.Sort(added)
	slices.Sort(removed)
	return added, removed
}

func (r *Router) takeChanges() (added, removed []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name := range r.dirty {
		if r.findLocked(name) != nil {
			added = append(added, name)
		} else {
			removed = append(removed, name)
		}
	}
	clear(r.dirty)
	r.applying = true
	return added, removed
}

// Unacknowledged notes how many topics the vendor has yet to acknowledge; what
// Changes told has been acted upon.
func (r *Router) Unacknowledged(topics int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.applying, r.unacked = false, topics
	r.settleLocked()
}

// AwaitServed returns when the vendor serves all interest, or at once while
// there is no live upstream, or after a wait. A coverage that begins before
// would leave out events of topics that are just being subscribed.
func (r *Router) AwaitServed(ctx context.Context, wait time.Duration) {
	r.mu.Lock()
	r.settleLocked()
	served := r.served
	r.mu.Unlock()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-served:
	case <-timer.C:
	case <-ctx.Done():
	}
}

// settleLocked opens or closes the way for AwaitServed.
func (r *Router) settleLocked() {
	waiting := r.upstream == feedv1.UpstreamState_UPSTREAM_STATE_LIVE && (len(r.dirty) > 0 || r.applying || r.unacked > 0)
	select {
	case <-r.served:
		if waiting {
			r.served = make(chan struct{})
		}
	default:
		if !waiting {
			close(r.served)
		}
	}
}

func (r *Router) mustLeadLocked() {
	if r.role != feedv1.Role_ROLE_LEADER {
		panic("router: events of " + r.market + " routed by a process that does not lead")
	}
}

// sealAllLocked ends all open batches and all reading of the ring, for the epoch
// is about to change.
func (r *Router) sealAllLocked() {
	for e := range r.edges {
		e.sealLocked(r.sequence)
		e.live, e.behind = e.live || e.behind, false
	}
}

// announceLocked sends all edges a heartbeat.
func (r *Router) announceLocked(now time.Time) {
	for e := range r.edges {
		e.heartbeatLocked(now)
	}
}

func (r *Router) wakeTouchedLocked() {
	for _, e := range r.touched {
		e.touched = false
		e.signal()
	}
	clear(r.touched)
	r.touched = r.touched[:0]
}

// markLocked notes that a topic got its first, or lost its last, interest.
func (r *Router) markLocked(name string) {
	if r.dirty == nil {
		return
	}
	r.dirty[name] = true
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

// findLocked returns a topic that has interest, or nil.
func (r *Router) findLocked(name string) *topic {
	kind, ticker, _ := strings.Cut(name, ".")
	p := r.prefixes[kind]
	if p == nil {
		return nil
	}
	if ticker != "*" {
		return p.exact[ticker]
	}
	if len(p.wildcard.subs) == 0 {
		return nil
	}
	return &p.wildcard
}

func (r *Router) prefixLocked(kind string) *prefix {
	p := r.prefixes[kind]
	if p == nil {
		p = &prefix{name: kind, exact: make(map[string]*topic)}
		p.wildcard = topic{name: kind + ".*", prefix: p}
		r.prefixes[kind] = p
	}
	return p
}

// topicLocked returns a topic, made if it has no interest yet.
func (r *Router) topicLocked(name string) *topic {
	kind, ticker, _ := strings.Cut(name, ".")
	p := r.prefixLocked(kind)
	if ticker == "*" {
		return &p.wildcard
	}
	t := p.exact[ticker]
	if t == nil {
		t = &topic{name: name, prefix: p}
		p.exact[ticker] = t
	}
	return t
}

func (r *Router) subscribeLocked(t *topic, s subscription) {
	t.subs = append(t.subs, s)
	if len(t.subs) == 1 {
		r.topics++
		r.markLocked(t.name)
	}
}

func (r *Router) unsubscribeLocked(t *topic, e *Edge) {
	i := t.indexOf(e)
	last := len(t.subs) - 1
	t.subs[i] = t.subs[last]
	t.subs[last] = subscription{}
	t.subs = t.subs[:last]
	if last > 0 {
		return
	}
	r.topics--
	r.markLocked(t.name)
	t.problem = 0
	p := t.prefix
	if t != &p.wildcard {
		_, ticker, _ := strings.Cut(t.name, ".")
		delete(p.exact, ticker)
	}
	if !p.known && len(p.exact) == 0 && len(p.wildcard.subs) == 0 {
		r.otherEvents += p.events
		delete(r.prefixes, p.name)
	}
}

// indexOf returns where an edge is among the subscriptions, or -1.
func (t *topic) indexOf(e *Edge) int {
	return slices.IndexFunc(t.subs, func(s subscription) bool { return s.edge == e })
}
