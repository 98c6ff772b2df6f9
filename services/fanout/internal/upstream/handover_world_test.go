package upstream

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// The times of the model's world.
const (
	leaseTTL    = 5700 * time.Millisecond // of the store's clock
	leaseMargin = CloseWait               // from the end of the proof to that of the lease, at least
	leaseAsk    = 500 * time.Millisecond  // between two questions to the store
	beatEvery   = time.Second
	pingEach    = 10 * time.Second
	pingMost    = 25 * time.Second // without a sign of the vendor
	eventEvery  = 250 * time.Millisecond
	worldDelay  = 200 * time.Millisecond // of a message, at most
	edgeTransit = 500 * time.Millisecond // as the edge allows for
	worldEdges  = 2
)

// world is a discrete-event model of a hand-over: fanouts with the real Session, a
// store of leases, a vendor with a limit of one connection, a thief, edges that
// adopt epochs as theirs do, and networks between them.
type world struct {
	class
	mutant mutant
	random *rand.Rand
	now    time.Duration
	queue  modelEvents
	order  int
	faults []string
	ahead  int           // faults to come
	until  time.Duration // the last one is over

	lease   leaseStore
	fanouts []*fanout
	edges   [worldEdges]*edge
	vendor  exchange

	keys    []time.Duration // when one of ours was sent
	murky   []span          // events stood still in a socket
	unheard []span          // the vendor's word, or one to it, stood still
	hidden  int             // events lost in murky times outside of a gap
	misled  map[uint64]bool // epochs that went live without a way to the vendor
	again   time.Duration   // from the last fault until all was well
	problem string
}

// span is a span of time.
type span struct{ from, to time.Duration }

func (s span) has(t time.Duration) bool { return s.from <= t && t <= s.to }

type modelEvent struct {
	at    time.Duration
	order int
	do    func()
}

type modelEvents []modelEvent

func (e modelEvents) Len() int { return len(e) }
func (e modelEvents) Less(a, b int) bool {
	return e[a].at < e[b].at || e[a].at == e[b].at && e[a].order < e[b].order
}
func (e modelEvents) Swap(a, b int) { e[a], e[b] = e[b], e[a] }
func (e *modelEvents) Push(x any)   { *e = append(*e, x.(modelEvent)) }
func (e *modelEvents) Pop() any {
	last := (*e)[len(*e)-1]
	*e = (*e)[:len(*e)-1]
	return last
}

func (w *world) in(d time.Duration, do func()) {
	w.order++
	heap.Push(&w.queue, modelEvent{at: w.now + d, order: w.order, do: do})
}

func (w *world) upTo(limit time.Duration) time.Duration {
	return time.Duration(w.random.Int64N(int64(limit)))
}

func (w *world) between(least, most time.Duration) time.Duration {
	return least + w.upTo(most-least)
}

func (w *world) calm() bool { return w.ahead == 0 && w.now >= w.until }

func (w *world) chance(permille int) bool { return !w.calm() && w.random.IntN(1000) < permille }

func (w *world) fail(format string, args ...any) {
	if w.problem == "" {
		w.problem = fmt.Sprintf("%v: ", w.now) + fmt.Sprintf(format, args...)
	}
}

// line delivers what is sent in order. What arrives while it is held waits.
type line struct {
	w       *world
	held    func() time.Duration // until when; nil: never
	waiting []func()
}

func (p *line) send(do func()) {
	p.waiting = append(p.waiting, do)
	p.w.in(1+p.w.upTo(worldDelay), p.deliver)
}

func (p *line) deliver() {
	if p.held != nil {
		if until := p.held(); until > p.w.now {
			p.w.in(until-p.w.now+p.w.upTo(5*time.Millisecond), p.deliver)
			return
		}
	}
	do := p.waiting[0]
	p.waiting = p.waiting[1:]
	do()
}

// leaseStore is where the lease is. What it grants has an epoch, and ends by its
// clock.
type leaseStore struct {
	holder  int // token; 0: free
	epoch   uint64
	expires time.Duration
	down    time.Duration // until when it is
	strict  bool          // a lease that has run out is gone; else its last holder may renew it
}

type leaseAnswer struct {
	granted, refused bool
	epoch            uint64
}

func (s *leaseStore) acquire(now time.Duration, token int) leaseAnswer {
	switch {
	case now >= s.expires, s.holder == 0:
		s.epoch++
	case s.holder != token:
		return leaseAnswer{refused: true}
	}
	s.holder, s.expires = token, now+leaseTTL
	return leaseAnswer{granted: true, epoch: s.epoch}
}

func (s *leaseStore) renew(now time.Duration, token int) leaseAnswer {
	if s.holder != token || s.strict && now >= s.expires {
		return leaseAnswer{refused: true}
	}
	s.expires = now + leaseTTL
	return leaseAnswer{granted: true, epoch: s.epoch}
}

func (s *leaseStore) release(token int) {
	if s.holder == token {
		s.holder = 0
	}
}

// exchange is the vendor, who has one place.
type exchange struct {
	active []*wire // authenticated and admitted, with those that have ended without notice
	ghosts time.Duration
	events []time.Duration
	thief  *wire
	theft  time.Duration // until when the thief comes back
}

// wire is a connection to the vendor.
type wire struct {
	w       *world
	owner   *fanout // nil: the thief
	in, out *line   // to the vendor, and from it

	// What the vendor knows.
	gone, rejected, subscribed bool
	dropAt                     time.Duration // when the vendor notices that it is dead; 0: not yet dead

	// What the owner knows.
	dead    bool
	closing bool
	heard   time.Duration
}

// connect makes a wire and greets.
func (w *world) connect(owner *fanout) *wire {
	k := &wire{w: w, owner: owner, heard: w.now}
	k.in, k.out = &line{w: w}, &line{w: w}
	if owner != nil {
		k.in.held = func() time.Duration { return owner.vendorCut }
		k.out.held = func() time.Duration { return max(owner.vendorCut, owner.paused) }
	}
	k.tell("connected", "")
	return k
}

// tell sends a status.
func (k *wire) tell(status, message string) {
	k.out.send(func() {
		if k.owner != nil {
			k.owner.status(k, status, message)
		} else if status == "connected" {
			k.in.send(func() { k.authenticate(k.w.now) })
		}
	})
}

// authenticate takes a key that was sent at a moment.
func (k *wire) authenticate(sent time.Duration) {
	w := k.w
	if k.gone || k.owner == nil && w.now >= w.vendor.theft {
		return
	}
	k.tell("auth_success", "")
	for _, other := range w.vendor.active {
		if o := other.owner; k.owner != nil && o != nil && o != k.owner && o.proven() && w.now-sent < leaseMargin {
			w.fail("another of ours connected beside a leader with proof")
		}
	}
	if w.rule == RejectNewest && len(w.vendor.active) > 0 {
		k.rejected = true
		w.in(time.Second, k.reject)
		return
	}
	for _, other := range slices.Clone(w.vendor.active) {
		other.tell("max_connections", "")
		other.hangUp()
	}
	w.vendor.active = append(w.vendor.active, k)
	if k.owner == nil {
		w.vendor.thief = k
	}
}

// reject ends a newcomer over the limit.
func (k *wire) reject() {
	if !k.gone {
		k.tell("max_connections", "")
		k.hangUp()
	}
}

// command takes a subscribe.
func (k *wire) command(topics string) {
	if k.gone {
		return
	}
	k.tell("success", "subscribed to: "+topics)
	k.subscribed = true
	if k.rejected {
		k.reject()
	}
}

// hangUp ends the connection on the vendor's side, and tells the other one.
func (k *wire) hangUp() {
	if k.gone {
		return
	}
	k.gone = true
	k.w.vendor.active = slices.DeleteFunc(k.w.vendor.active, func(o *wire) bool { return o == k })
	gone := k.w.now
	k.out.send(func() {
		if k.w.now-gone > worldDelay {
			k.w.unheard = append(k.w.unheard, span{gone, k.w.now})
		}
		if k.owner != nil {
			k.owner.ended(k, CauseSlow)
		}
	})
	if k.owner == nil {
		k.w.in(k.w.between(2*time.Second, 6*time.Second), k.w.steal)
	}
}

// steal lets the thief connect, unless it is connected or has given up.
func (w *world) steal() {
	if w.now < w.vendor.theft && (w.vendor.thief == nil || w.vendor.thief.gone) {
		w.connect(nil)
	}
}

// giveUp ends the visit of the thief.
func (w *world) giveUp() {
	if k := w.vendor.thief; k != nil && w.now >= w.vendor.theft {
		k.in.send(k.hangUp)
	}
}

// trade sends an event to whom it is for, and looks for dead connections.
func (w *world) trade() {
	n := len(w.vendor.events)
	w.vendor.events = append(w.vendor.events, w.now)
	for _, k := range slices.Clone(w.vendor.active) {
		if k.owner == nil {
			continue
		}
		if k.owner.dead || k.owner.vendorCut > w.now {
			if k.dropAt == 0 {
				k.dropAt = w.now + w.vendor.ghosts
			}
			if w.now >= k.dropAt {
				k.hangUp()
				continue
			}
		} else {
			k.dropAt = 0
		}
		if k.subscribed {
			k.out.send(func() { k.owner.event(k, n) })
		}
	}
	for _, e := range w.edges {
		e.expectService()
	}
	w.in(eventEvery, w.trade)
}
