package upstream

import (
	"encoding/json"
	"time"

	feedv1 "github.com/cutemarkets/relay/proto/feed/v1"
	"github.com/cutemarkets/relay/services/fanout/internal/calendar"
)

// fanout is a process that wants to lead: a Host of the real Session, and what is
// left of an elector and a router. It holds its leadership when the store is away.
type fanout struct {
	w     *world
	place int

	dead, retiring                       bool
	paused, storeCut, vendorCut, edgeCut time.Duration // until when
	streams                              [worldEdges]*line

	token      int // of the lease; 0: does not lead
	asked      int // that of the next one; 0: not asked for yet
	session    *Session
	proofUntil time.Duration
	tickAt     time.Time

	wire                  *wire
	dialing, closing      bool
	holding, live, silent bool // silent: frames are ignored
	held                  []int
	downSince             time.Time
	sequence              uint64
	epoch                 uint64
}

func (w *world) startFanout(place int) {
	f := &fanout{w: w, place: place}
	for n := range f.streams {
		f.streams[n] = &line{w: w}
	}
	w.fanouts[place] = f
	f.every(leaseAsk, f.ask)
	f.every(beatEvery, f.beat)
	f.every(pingEach, f.ping)
}

func (w *world) clock() time.Time { return t0.Add(w.now) }

// after is a timer of the process.
func (f *fanout) after(d time.Duration, do func()) {
	f.w.in(d, func() {
		switch {
		case f.dead:
		case f.paused > f.w.now:
			f.after(f.paused-f.w.now+f.w.upTo(5*time.Millisecond), do)
		default:
			do()
		}
	})
}

func (f *fanout) every(d time.Duration, do func()) {
	f.after(f.w.upTo(d), func() {
		do()
		f.every(d, do)
	})
}

func (f *fanout) proven() bool { return f.token != 0 && f.w.now < f.proofUntil }

// input gives the session an input as run does: the proof comes first.
func (f *fanout) input(do func(now time.Time)) {
	if f.session == nil {
		return
	}
	f.session.Proof(f.w.clock(), f.proven() || f.w.mutant == noProof)
	do(f.w.clock())
	if f.w.mutant == noBackoff && f.session.phase == phaseWaiting && f.session.cause == CauseStolen {
		f.session.until = f.w.clock()
	}
	f.attend()
}

// attend does what the session asked for.
func (f *fanout) attend() {
	if f.dialing {
		f.dialing = false
		f.after(1+f.w.upTo(worldDelay), f.dial)
	}
	if f.closing {
		f.closing = false
		f.hangUp()
	}
	if f.session.Stopped() {
		f.release()
		return
	}
	if at := f.session.Deadline(); !at.IsZero() && !at.Equal(f.tickAt) {
		f.tickAt = at
		f.after(max(0, at.Sub(f.w.clock())), func() {
			if f.tickAt.Equal(at) {
				f.tickAt = time.Time{}
				f.input(func(now time.Time) { f.session.Tick(now) })
			}
		})
	}
}

// call asks the store and takes its answer, either of which may be lost.
func (f *fanout) call(exec func() leaseAnswer, take func(a leaseAnswer)) {
	reached := func() bool { return f.storeCut <= f.w.now && f.w.lease.down <= f.w.now && !f.w.chance(20) }
	f.w.in(1+f.w.upTo(worldDelay), func() {
		if !reached() {
			return
		}
		a := exec()
		f.after(1+f.w.upTo(worldDelay), func() {
			if reached() {
				take(a)
			}
		})
	})
}

// ask wants the lease, or wants to keep it.
func (f *fanout) ask() {
	sent := f.w.now
	switch token := f.token; {
	case token != 0:
		f.call(func() leaseAnswer { return f.w.lease.renew(f.w.now, token) }, func(a leaseAnswer) {
			switch {
			case f.token != token:
			case a.refused:
				f.input(func(now time.Time) { f.session.Stop(now) })
			default:
				f.prove(sent)
			}
		})
	case !f.retiring:
		if f.asked == 0 {
			f.w.order++
			f.asked = f.w.order
		}
		token := f.asked
		f.call(func() leaseAnswer { return f.w.lease.acquire(f.w.now, token) }, func(a leaseAnswer) {
			if a.granted && f.asked == token && !f.retiring && f.w.now < sent+leaseTTL-leaseMargin {
				f.lead(token, a.epoch, sent)
			}
		})
	}
}

// prove takes the store's word for a lease that was asked for at a moment.
func (f *fanout) prove(sent time.Duration) {
	f.proofUntil = max(f.proofUntil, sent+leaseTTL-leaseMargin)
	look := func(time.Time) {}
	f.input(look)
	if until := f.proofUntil; until > f.w.now {
		f.after(until-f.w.now, func() { f.input(look) })
	}
}

func (f *fanout) lead(token int, epoch uint64, sent time.Duration) {
	f.token, f.asked, f.epoch, f.sequence = token, 0, epoch, 0
	f.holding, f.live, f.held, f.downSince, f.proofUntil = true, false, nil, time.Time{}, 0
	limit := Limit{f.w.rule, 90 * time.Second}
	f.session = NewSession(f, f.w.random.Float64, calendar.Never, nil, limit)
	f.proofUntil = sent + leaseTTL - leaseMargin
	f.input(func(now time.Time) { f.session.Start(now, []string{"T.A"}) })
	f.prove(sent)
}

// release gives the lease back when all is closed.
func (f *fanout) release() {
	token := f.token
	f.session, f.token, f.live = nil, 0, false
	f.call(func() leaseAnswer { f.w.lease.release(token); return leaseAnswer{} }, func(leaseAnswer) {})
	if f.retiring {
		f.replace(3 * time.Second)
	}
}

// replace ends the process; another takes its place.
func (f *fanout) replace(within time.Duration) {
	f.dead = true
	f.w.in(f.w.upTo(within), func() { f.w.startFanout(f.place) })
}

// stop is SIGTERM.
func (f *fanout) stop() {
	f.retiring = true
	if f.session == nil {
		f.replace(3 * time.Second)
		return
	}
	f.input(func(now time.Time) { f.session.Stop(now) })
}

// kill ends the process; with its host, the vendor is not told.
func (f *fanout) kill(host bool) {
	if k := f.wire; k != nil && !host {
		k.in.send(k.hangUp)
	}
	f.replace(5 * time.Second)
}

// The way to the vendor.

func (f *fanout) dial() {
	if f.vendorCut > f.w.now {
		f.after(2*time.Second, func() { f.input(func(now time.Time) { f.session.DialFailed(now, CauseDial) }) })
		return
	}
	f.wire, f.silent = f.w.connect(f), false
	f.input(func(now time.Time) { f.session.Dialed(now) })
}

// hangUp is the end from our side: a close frame, and the vendor's end or CloseWait.
func (f *fanout) hangUp() {
	k := f.wire
	k.closing = true
	k.in.send(k.hangUp)
	f.after(CloseWait, func() { f.ended(k, CauseNone) })
}

// ended is the end of a connection on both sides, or its being cut off.
func (f *fanout) ended(k *wire, cause Cause) {
	if k.dead || f.dead {
		return
	}
	k.dead, f.wire = true, nil
	f.input(func(now time.Time) { f.session.Closed(now, cause) })
}

func (f *fanout) ping() {
	k := f.wire
	if k == nil || k.closing {
		return
	}
	if f.w.now-k.heard > pingMost {
		k.in.send(k.hangUp)
		f.ended(k, CauseTimeout)
		return
	}
	k.in.send(func() {
		if !k.gone {
			k.out.send(func() {
				if k.heard = f.w.now; !k.dead && !f.dead {
					f.input(func(now time.Time) { f.session.Alive(now) })
				}
			})
		}
	})
}

func (f *fanout) status(k *wire, status, message string) {
	if k.dead || f.dead || f.silent {
		return
	}
	k.heard = f.w.now
	f.input(func(now time.Time) {
		f.session.Frame(now, false, 0)
		f.session.Status(now, status, message)
		if f.w.mutant == ackAdmits && status == "success" {
			f.session.lastData = now
			f.session.goLive(now, false)
		}
	})
}

func (f *fanout) event(k *wire, n int) {
	if k.dead || f.dead || f.silent {
		return
	}
	k.heard = f.w.now
	f.input(func(now time.Time) {
		f.session.Frame(now, true, f.w.now-f.w.vendor.events[n])
		if f.holding {
			f.held = append(f.held, n)
			return
		}
		f.session.Events(now)
		f.publish(n)
	})
}

// The methods of Host.

func (f *fanout) Dial() {
	if !f.proven() {
		f.w.fail("dials without proof")
	}
	f.dialing = true
}

func (f *fanout) Auth() {
	if !f.proven() {
		f.w.fail("sends the key without proof")
	}
	sent := f.w.now
	f.w.keys = append(f.w.keys, sent)
	k := f.wire
	k.in.send(func() { k.authenticate(sent) })
}

func (f *fanout) Send(message []byte) {
	var command struct{ Action, Params string }
	if err := json.Unmarshal(message, &command); err != nil {
		panic(err)
	}
	k := f.wire
	k.in.send(func() { k.command(command.Params) })
}

func (f *fanout) Close() { f.closing, f.silent = true, true }
func (f *fanout) Hold()  { f.holding, f.held = true, nil }

func (f *fanout) Gap(from, to time.Time) {
	f.sequence++
	f.tell(message{kind: gapMessage, from: from.Sub(t0), to: to.Sub(t0)})
}

func (f *fanout) Release() {
	f.holding = false
	for _, n := range f.held {
		f.publish(n)
	}
	f.held = nil
}

func (f *fanout) State(state State, downSince time.Time) {
	f.live, f.downSince = state == StateLive, downSince
	if f.live && f.vendorCut > f.w.now {
		f.w.misled[f.epoch] = true
	}
	f.beat()
}

func (f *fanout) Stalled(time.Duration, time.Duration) {}
func (f *fanout) Lost(Cause)                           {}

// Problem is told to clients in place of a gap.
func (f *fanout) Problem([]string, feedv1.TopicProblem) {
	asked := (ackRetries + 1) * ackWait
	f.w.unheard = append(f.w.unheard, span{f.w.now - asked - settleWait, max(f.w.now, f.vendorCut)})
}

// The way to the edges.

type messageKind uint8

const (
	beatMessage messageKind = iota
	eventMessage
	gapMessage
)

// message is one of feed.v1.
type message struct {
	kind      messageKind
	epoch     uint64
	sequence  uint64
	live      bool
	downSince time.Duration
	built     time.Duration
	from, to  time.Duration
	event     int
}

func (f *fanout) publish(n int) {
	f.sequence++
	f.tell(message{kind: eventMessage, event: n})
}

func (f *fanout) beat() {
	if f.session == nil {
		return
	}
	m := message{kind: beatMessage, live: f.live, downSince: f.w.now}
	if !f.downSince.IsZero() {
		m.downSince = f.downSince.Sub(t0)
	}
	f.tell(m)
}

func (f *fanout) tell(m message) {
	m.epoch, m.sequence, m.built = f.epoch, f.sequence, f.w.now
	for n, p := range f.streams {
		if f.edgeCut > f.w.now || f.w.chance(2) { // the stream breaks, and resumes behind it
			f.w.edges[n].miss(m)
			continue
		}
		p.send(func() { f.w.edges[n].take(f, m) })
	}
}
