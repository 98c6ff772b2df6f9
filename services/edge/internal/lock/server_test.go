package lock

import "time"

// server is the world's Redis.
type server struct {
	keys   [worldUsers]key
	writes []write // of late, which a failover may lose

	down    time.Duration // it does not run until then
	silent  bool          // while it is down nobody is told so
	stalled time.Duration // it stands still until then and keeps what arrives
	waiting []*message    // meanwhile
	run     int           // its run id
	epoch   int           // connections end with it
}

// key is a lock in Redis; no owner: none.
type key struct {
	owner   *socket
	expires time.Duration
	revived bool // its deletion was lost
	late    bool // made by a command that Redis had kept for longer than a TTL while it stood still
}

type write struct {
	at     time.Duration
	user   int
	before key
}

// key returns the user's key.
func (r *server) key(now time.Duration, user int) *key {
	k := &r.keys[user]
	if now >= k.expires {
		*k = key{}
	}
	return k
}

// exec carries out an operation in Redis.
func (w *world) exec(q *message) outcome {
	s, o := q.socket, q.op
	r := &w.server
	k := r.key(w.now, s.user)
	owner, before := k.owner, *k
	got := mine
	sets := o == opAcquire || o == opReacquire || w.mutant == oneStepRefresh && o == opRefresh
	switch {
	case owner == nil && sets:
		*k = key{owner: s, expires: w.now + testTiming.ttl, late: w.now >= q.until}
	case owner == nil:
		return absent
	case owner != s:
		if o == opAcquire && !q.answered {
			w.refusedBy(s.user, *k)
		}
		return other
	case o == opRelease:
		*k = key{}
	default:
		k.expires = w.now + testTiming.ttl
	}
	if w.class.failover {
		for len(r.writes) > 0 && r.writes[0].at < w.now-lostByFailover {
			r.writes = r.writes[1:]
		}
		r.writes = append(r.writes, write{w.now, s.user, before})
	}
	return got
}

// message is a command on its way to Redis.
type message struct {
	socket   *socket
	op       op
	run      int           // that its connection was made to
	epoch    int           // when it was sent
	until    time.Duration // it reaches the machine of Redis by then or not at all
	arrived  bool          // there
	answered bool
}

// travel brings a request to Redis if the network lets it.
func (w *world) travel(q *message) {
	e := q.socket.edge
	switch {
	case w.now < e.cut:
		w.late(q)
	case w.now < w.server.down:
		if !w.server.silent {
			w.in(w.way(), func() { w.answer(q, refused) })
		}
	default:
		w.in(w.way(), func() { w.arrive(q) })
	}
}

// late is a request that the network may still carry when it is whole again.
func (w *world) late(q *message) {
	if at := q.socket.edge.cut + w.way(); at < q.until && w.chance(50) {
		w.in(at-w.now, func() { w.arrive(q) })
	}
}

func (w *world) arrive(q *message) {
	r, e := &w.server, q.socket.edge
	switch {
	case w.now >= q.until && !q.arrived:
	case w.now < e.cut && !q.arrived:
		w.late(q)
	case w.now < r.down || q.epoch != r.epoch: // its connection has ended
		if !r.silent {
			w.in(w.way(), func() { w.answer(q, unknown) })
		}
	case w.now < r.stalled:
		q.arrived = true
		r.waiting = append(r.waiting, q)
	case q.run != r.run:
		w.in(w.way(), func() { w.introduce(q, r.run) })
	default:
		got := w.exec(q)
		if w.class.replies && w.chance(2) {
			return
		}
		w.in(w.way(), func() {
			if w.now >= e.cut {
				w.answer(q, got)
			}
		})
	}
}

// introduce is redisx.Client: the request waits for a new connection.
func (w *world) introduce(q *message, run int) {
	w.awake(q.socket.edge, func() {
		if q.answered { // given up before it was sent
			return
		}
		if !w.met(q.socket.edge, run) || q.op == opAcquire && q.run != 0 && !w.class.noInfo {
			w.answer(q, refused)
			return
		}
		q.run = run
		w.travel(q)
	})
}

// stall has Redis stand still for a while; then it carries out what came
// meanwhile, in that order.
func (w *world) stall(d time.Duration) {
	r := &w.server
	r.stalled = max(r.stalled, w.now+d)
	w.in(r.stalled-w.now, func() {
		if w.now < r.stalled {
			return
		}
		waiting := r.waiting
		r.waiting = nil
		for _, q := range waiting {
			w.arrive(q)
		}
	})
}

// crash ends Redis for a while; then it runs anew with what restore leaves.
func (w *world) crash(d time.Duration, restore func()) {
	r := &w.server
	r.down, r.silent = max(r.down, w.now+d), w.chance(50)
	r.stalled = 0
	r.epoch++
	for _, e := range w.edges {
		w.beat(e)
	}
	epoch := r.epoch
	w.in(r.down-w.now, func() {
		restore()
		if epoch == r.epoch {
			r.run++
		}
	})
}

// rollBack loses the last writes.
func (w *world) rollBack(since time.Duration) {
	r := &w.server
	for n := len(r.writes) - 1; n >= 0 && r.writes[n].at >= since; n-- {
		k := r.writes[n].before
		k.revived = true
		r.keys[r.writes[n].user] = k
	}
	r.writes = nil
}
