package engine

import (
	"slices"
	"strings"
	"time"

	feedv1 "github.com/cutemarkets/relay/proto/feed/v1"
	"github.com/cutemarkets/relay/services/edge/internal/dialect"
	"github.com/cutemarkets/relay/services/edge/internal/feed"
)

// market is what a shard knows of one market. Owned by the shard.
type market struct {
	shard    *shard
	index    int
	name     string
	interest Interest

	topics  []topic          // by feed.Slot
	slots   map[string]int32 // of the topics with subscribers
	down    time.Time        // since when events may be missing; zero: they flow
	expires time.Time        // when its sockets end with UpstreamGone; zero: never
	gone    bool             // that moment has passed
}

// topic is a topic and the slots of the connections that subscribed to it.
type topic struct {
	name        string
	id          uint32 // 0: nobody wants it
	subscribers []int32
}

func newMarket(s *shard, index int, name string, interest Interest) *market {
	return &market{shard: s, index: index, name: name, interest: interest, slots: make(map[string]int32)}
}

// add makes a topic's first subscription in this shard; false: there is no room.
func (m *market) add(name string) (int32, bool) {
	name = strings.Clone(name)
	id := m.interest.Acquire(name)
	if id == 0 {
		return 0, false
	}
	slot := int32(feed.Slot(id))
	for int(slot) >= len(m.topics) {
		m.topics = append(m.topics, topic{})
	}
	if m.topics[slot].id != 0 {
		panic("engine: two topics in one slot")
	}
	m.topics[slot].name, m.topics[slot].id = name, id
	m.slots[name] = slot
	return slot, true
}

// leave removes a subscriber from a topic. The last subscriber takes its place.
func (m *market) leave(s subscription) {
	t := &m.topics[s.topic]
	last := len(t.subscribers) - 1
	moved := t.subscribers[last]
	t.subscribers[s.position] = moved
	t.subscribers = t.subscribers[:last]
	if int(s.position) < last {
		c := m.shard.slots[moved].connection
		at, _ := c.find(s.topic)
		c.topics[at].position = s.position
	}
	if last == 0 {
		m.interest.Release(t.id)
		delete(m.slots, t.name)
		*t = topic{}
	}
}

// batch puts each event on the pending list of each of its subscribers.
func (m *market) batch(b *feedv1.Batch) {
	s := m.shard
	start := uint32(0)
	for i, end := range b.Ends {
		event := b.Payload[start:end:end]
		start = end
		index := int32(-1)
		for _, id := range b.TopicIds[2*i : 2*i+2] {
			slot := feed.Slot(id)
			if id == 0 || slot >= len(m.topics) || m.topics[slot].id != id {
				continue
			}
			if index < 0 {
				index = s.event(event)
			}
			for _, subscriber := range m.topics[slot].subscribers {
				s.pend(subscriber, index)
			}
		}
	}
}

// each calls f for every live connection of the market.
func (m *market) each(f func(c *connection)) {
	for i := range m.shard.slots {
		if c := m.shard.slots[i].connection; c != nil && c.live && c.market() == m {
			f(c)
			c.settle()
		}
	}
}

// gap tells every live connection of a gap, before what comes after it, and
// ends a down.
func (m *market) gap(g dialect.Gap) {
	m.over(g, func(*connection) bool { return true })
}

// goUp ends a down, or an interruption that was none, in which nothing was lost
// but for those who asked for topics in it.
func (m *market) goUp(g dialect.Gap) {
	lasted := uint32(max(int64(m.shard.now.Sub(g.From)), 0) / tick)
	m.over(g, func(c *connection) bool { return m.shard.ticks()-c.asked <= lasted+1 })
}

func (m *market) over(g dialect.Gap, concerns func(*connection) bool) {
	g.Market = m.name
	m.down, m.expires, m.gone = time.Time{}, time.Time{}, false
	for _, e := range m.shard.encodings {
		e.notice = e.dialect.Gap(g)
	}
	m.each(func(c *connection) {
		if concerns(c) {
			m.tell(c, c.encoding().notice)
		}
	})
}

// goDown notes that events may be missing from a moment on. Those who are live
// will be told when it is over, those to come at once.
func (m *market) goDown(since time.Time) {
	m.down = since
	if grace := m.shard.engine.grace; grace > 0 && !m.gone {
		m.expires = since.Add(grace)
	}
}

// expire ends the connections of a market that was down for too long.
func (m *market) expire() {
	if m.expires.IsZero() || m.shard.now.Before(m.expires) {
		return
	}
	m.expires, m.gone = time.Time{}, true
	m.each(func(c *connection) { c.session.End(m.shard.now, dialect.UpstreamGone) })
}

// join makes a connection live.
func (m *market) join(c *connection) {
	switch {
	case m.gone:
		c.session.End(m.shard.now, dialect.UpstreamGone)
	case !m.down.IsZero():
		c.asked = m.shard.ticks()
		m.tell(c, c.encoding().dialect.Gap(dialect.Gap{Market: m.name, From: m.down}))
	}
}

func (m *market) tell(c *connection, gap []byte) {
	c.Send(gap)
	m.shard.stats.gaps.Add(1)
}

// notice tells the subscribers of topics that the vendor does not serve them. They
// keep their topic, for the vendor may come to serve it, unless there is no slot for
// it: then they must ask again.
func (m *market) notice(n *notice) {
	text, refused := dialect.NotAcknowledged, false
	switch n.problem {
	case feedv1.TopicProblem_TOPIC_PROBLEM_NOT_AUTHORIZED:
		text = dialect.NotAuthorized
	case feedv1.TopicProblem_TOPIC_PROBLEM_NO_SLOT:
		text, refused = dialect.NoSlot, true
	}
	for _, id := range n.ids {
		slot := feed.Slot(id)
		if id == 0 || slot >= len(m.topics) || m.topics[slot].id != id {
			continue
		}
		t := &m.topics[slot]
		for _, e := range m.shard.encodings {
			e.notice = e.dialect.TopicProblem(t.name, text)
		}
		name := t.name
		for _, subscriber := range slices.Clone(t.subscribers) {
			c := m.shard.slots[subscriber].connection
			if refused {
				c.Unsubscribe(name)
			}
			c.Send(c.encoding().notice)
			m.shard.timers.set(subscriber, m.shard.clock(), m.shard.clock()) // settles it; not here, where the subscribers must stay
		}
	}
}
