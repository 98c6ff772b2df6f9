package engine

import (
	"time"

	"github.com/cutemarkets/relay/services/edge/internal/dialect"
	"github.com/cutemarkets/relay/services/edge/internal/frame"
)

const (
	// warnAfter is how long the oldest byte may wait for a client before it is
	// told that it is slow, and crowdAfter how long when more than half of the
	// queue waits.
	warnAfter  = time.Second
	crowdAfter = 500 * time.Millisecond
	// burstTime is how long more than the queue may wait: far away, a window that
	// opens, a lost packet, or a look at the round trip (0.3 s of BBR) take their
	// time at any rate.
	burstTime = 750 * time.Millisecond
	// conflateAfter is how long it may wait before quotes are conflated, if the
	// client asked for that.
	conflateAfter = 50 * time.Millisecond
)

// patience is how much may wait for a client, and for how long. What waits is
// bounded by queue, or if that is more, by what comes in burstTime, of which burst
// is the most.
type patience struct {
	queue, burst int           // bytes
	age          time.Duration // of the oldest
}

// verdict on a client by what waits for it.
type verdict uint8

const (
	keepsUp verdict = iota
	lags
	tooSlow
)

func (p patience) judge(bytes int, age time.Duration) verdict {
	switch {
	case bytes == 0:
	case bytes > p.burst, age >= p.age, age >= burstTime && bytes > p.queue:
		return tooSlow
	case bytes > p.burst/2, age >= warnAfter, age >= crowdAfter && bytes > p.queue/2:
		return lags
	}
	return keepsUp
}

// next is the next age at which the verdict may change by itself.
func (p patience) next(age time.Duration) time.Duration {
	next := p.age
	for _, at := range [...]time.Duration{crowdAfter, burstTime, warnAfter} {
		if age < at {
			next = min(next, at)
		}
	}
	return next
}

// slow is what the shard remembers of a client that does not keep up. An episode
// ends when nothing waits any more.
type slow struct {
	warned bool
	latest map[string]int // place in kept, by the dialect's key
	kept   [][]byte       // events, the oldest topic first
	bytes  int            // of kept
}

// waiting is what waits for a live client, and for how long that has been the
// client's fault: a shard that stood still has to write first.
func (c *connection) waiting() (bytes int, age time.Duration) {
	if !c.live {
		return 0, 0
	}
	bytes, since := c.transport().backlog()
	if bytes == 0 {
		return 0, 0
	}
	if since.Before(c.shard.resumed) {
		since = c.shard.resumed
	}
	return bytes + c.kept(), c.shard.now.Sub(since)
}

// full reports whether a client is too slow for so many bytes more.
func (c *connection) full(more int) bool {
	bytes, age := c.waiting()
	return bytes > 0 && c.shard.engine.patience.judge(bytes+more, age) == tooSlow
}

// lagging is when look has something to do; 0: nothing waits.
func (c *connection) lagging() int64 {
	bytes, age := c.waiting()
	if bytes == 0 {
		return 0
	}
	return c.shard.clock() + int64(c.shard.engine.patience.next(age)-age)
}

// lookAfter follows a delivery that was not taken at once.
func (c *connection) lookAfter() {
	c.look()
	c.settle()
}

// look judges a client by what waits for it: warn once, then end it.
func (c *connection) look() {
	switch c.shard.engine.patience.judge(c.waiting()) {
	case tooSlow:
		c.tooSlow()
	case lags:
		c.warn()
	}
}

// discard drops what waits for the client, and what this round has for it.
func (c *connection) discard() {
	c.shard.slots[c.ref.slot].pending = 0
	c.transport().discard()
}

// tooSlow ends a client that does not keep up. What waits for it is discarded, so
// that it finds the reason when it reads on.
func (c *connection) tooSlow() {
	c.discard()
	c.session.End(c.shard.now, dialect.SlowConsumer)
}

// warn tells a client that it is slow, once in an episode.
func (c *connection) warn() {
	state := c.behind()
	if state.warned {
		return
	}
	state.warned = true
	c.shard.stats.warned.Add(1)
	if notice := c.encoding().dialect.Slow(); len(notice) > 0 {
		c.transport().hasten(frame.AppendText(nil, notice))
	}
}

func (c *connection) behind() *slow {
	a := c.keep()
	if a.slow == nil {
		a.slow = new(slow)
	}
	return a.slow
}

func (c *connection) kept() int {
	if state := c.meanwhile().slow; state != nil {
		return state.bytes
	}
	return 0
}

// conflating reports whether only the latest quotes are to be kept now.
func (c *connection) conflating() bool {
	if !c.conflate {
		return false
	}
	bytes, since := c.transport().backlog()
	return c.kept() > 0 || bytes > 0 && c.shard.now.Sub(since) >= conflateAfter
}

// conflated keeps those events of a round of which the latest is enough, in place
// of the earlier ones of their key, and returns the others.
func (c *connection) conflated(pending []int32) []int32 {
	s, state := c.shard, c.behind()
	others := s.others[:0]
	for _, index := range pending {
		event := s.events[index]
		key := c.encoding().dialect.Conflatable(event)
		if len(key) == 0 {
			others = append(others, index)
			continue
		}
		if state.latest == nil {
			state.latest = make(map[string]int)
		}
		place, known := state.latest[string(key)]
		if !known {
			place = len(state.kept)
			state.latest[string(key)] = place
			state.kept = append(state.kept, nil)
			state.bytes += keptCost
		}
		if known {
			s.counts.conflated++
		}
		state.bytes += len(event) - len(state.kept[place])
		state.kept[place] = append(state.kept[place][:0], event...)
	}
	s.others = others
	c.overflow = c.overflow || c.full(0)
	return others
}

// keptCost is what a kept event costs beside its bytes: its key, its place and
// the room behind it.
const keptCost = 128

// relieved follows the writing of what waited.
func (c *connection) relieved() {
	if c.meanwhile().slow == nil {
		return
	}
	if bytes, _ := c.transport().backlog(); bytes > 0 {
		return
	}
	kept := c.takeKept()
	c.aside.slow = nil
	c.shard.pendFirst(c.ref.slot, kept)
}

// takeKept makes the kept events part of this round.
func (c *connection) takeKept() (events []int32) {
	state := c.aside.slow
	for _, event := range state.kept {
		events = append(events, c.shard.event(event))
	}
	state.latest, state.kept, state.bytes = nil, nil, 0
	return events
}

// sendKept sends the kept events, before the answer to a command that may be
// about their topics.
func (c *connection) sendKept() {
	if c.kept() == 0 {
		return
	}
	s := c.shard
	s.deliver(c.ref.slot)
	c.carry(s.join(c.encoding(), c.takeKept()).data)
}
