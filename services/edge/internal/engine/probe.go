package engine

import "time"

const (
	// probeWait is how long a client has to show that it lives when its user connects
	// once more. A client that is asked has probeRest before it is asked again: its
	// pongs count towards the control frames that it may send.
	probeWait = 2 * time.Second
	probeRest = time.Second
	// stuckAfter is how long something has waited that the kernel has no room for;
	// when it takes it after all, the client has taken what came before.
	stuckAfter = 50 * time.Millisecond
)

// probe is the question whether a client lives. While it is open, others who ask
// wait for the same answer.
type probe struct {
	answers []func(alive bool) // of those who ask; none: it lives
	begun   time.Time
	until   int64 // ns of the shard's clock; 0: it does not, and the connection ends
}

// due is when the time of a probe ends; 0: never.
func (p *probe) due() int64 {
	if p == nil {
		return 0
	}
	return p.until
}

// Probe asks whether the client of a connection that took a lock lives: it is
// pinged at once, and lives if anything comes of it within 2 s, or if it takes of
// what waits for it; else it is ended with PongTimeout. answer is called once: true
// says that it lives, or that nobody can tell yet; false that the connection has
// gone, and its lock been given back unless the backend takes more than a second
// for that. It may be called before Probe returns and must not block.
func (e *Engine) Probe(o Owner, answer func(alive bool)) {
	shard, to := o.split()
	if shard >= len(e.shards) || !e.shards[shard].clients.force(input{kind: inputProbe, ref: to, body: answer}) {
		answer(false)
	}
}

// probe passes a question on to the connection it is about.
func (s *shard) probe(r ref, answer func(alive bool)) {
	var c *connection
	if int(r.slot) < len(s.slots) { // what others ask may be about anything
		c = s.lookup(r)
	}
	if c == nil || c.closed {
		answer(false)
		return
	}
	c.probe(answer)
	c.settle()
}

// probe asks whether the client lives.
func (c *connection) probe(answer func(alive bool)) {
	a := c.keep()
	if p := a.probe; p == nil || len(p.answers) == 0 {
		if p != nil && c.live {
			answer(true)
			return
		}
		a.probe = &probe{begun: c.shard.now, until: c.shard.clock() + int64(probeWait)}
		c.transport().stirred() // what counts comes from here on
		c.ping()
	}
	a.probe.answers = append(a.probe.answers, answer)
}

// alive answers a probe: the client lives.
func (c *connection) alive() {
	if p := c.meanwhile().probe; p != nil && len(p.answers) > 0 {
		p.answer(true)
		p.until = c.shard.clock() + int64(probeRest)
	}
}

// gone answers a probe: the connection is closed.
func (c *connection) gone() {
	if p := c.meanwhile().probe; p != nil {
		c.aside.probe = nil
		p.answer(false)
	}
}

func (p *probe) answer(alive bool) {
	for _, answer := range p.answers {
		answer(alive)
	}
	p.answers = nil
}

// probed follows the end of a probe's time. A client that is far behind cannot
// answer a ping that arrives behind what it has still to read: that it takes of
// what waits is enough. One that is ending already is told so in any case, and
// most often has gone by now.
func (c *connection) probed() {
	p := c.aside.probe
	switch {
	case len(p.answers) == 0:
		c.aside.probe = nil
	case c.transport().stirred():
		c.alive()
	case c.shard.resumed.After(p.begun): // this process stood still: the pong may be unread
		p.begun, p.until = c.shard.now, c.shard.clock()+int64(probeWait)
	default:
		p.until = 0
		c.unanswered()
	}
}
