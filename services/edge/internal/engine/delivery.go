package engine

import (
	"time"

	"github.com/cutemarkets/relay/services/edge/internal/dialect"
	"github.com/cutemarkets/relay/services/edge/internal/frame"
)

const (
	// maxFrame is the largest payload of a frame that joins events. An event
	// that is larger alone goes alone.
	maxFrame = 256 << 10
	// maxMessage is the largest message ever sent: vendor client libraries
	// refuse more than 1 MB.
	maxMessage = 1_000_000
	// maxSpare is how many pending lists are kept for later, and sparePlaces the
	// largest list kept.
	maxSpare    = 4096
	sparePlaces = 1024
)

// delivery is what a round has for one connection.
type delivery struct {
	pending []int32 // indices in shard.events
	touched bool    // it is in shard.touched
}

// encoding is a dialect and its words for the events of this round.
type encoding struct {
	// Static after construction.
	dialect                   dialect.Dialect
	policy                    dialect.Policy
	interval                  time.Duration // between two commands in the long run
	prefix, separator, suffix string

	// Owned by the shard.
	events [][]byte // as shard.events; nil: not encoded yet
	notice []byte   // being sent to many
}

// encodingOf returns the shard's encoding of a dialect.
func (s *shard) encodingOf(d dialect.Dialect) *encoding {
	for _, e := range s.encodings {
		if e.dialect == d {
			return e
		}
	}
	e := &encoding{dialect: d, policy: d.Policy()}
	if e.policy.CommandRate > 0 {
		e.interval = time.Duration(float64(time.Second) / e.policy.CommandRate)
	}
	e.prefix, e.separator, e.suffix = d.Envelope()
	s.encodings = append(s.encodings, e)
	return e
}

// event adds an event to the round and returns its index.
func (s *shard) event(event []byte) int32 {
	s.events = append(s.events, event)
	return int32(len(s.events) - 1)
}

// encoded returns an event in the dialect's words.
func (e *encoding) encoded(s *shard, index int32) []byte {
	for len(e.events) < len(s.events) {
		e.events = append(e.events, nil)
	}
	if e.events[index] == nil {
		e.events[index] = e.dialect.Encode(s.events[index])
	}
	return e.events[index]
}

// pend puts an event on a connection's pending list, once: the exact topic and
// the wildcard of one event come one after the other.
func (s *shard) pend(slot, index int32) {
	d := &s.deliveries[slot]
	n := len(d.pending)
	if n == 0 {
		s.touch(slot)
		if d.pending == nil {
			d.pending = s.spareList()
		}
	} else if d.pending[n-1] == index {
		return
	}
	d.pending = append(d.pending, index)
}

func (s *shard) touch(slot int32) {
	if d := &s.deliveries[slot]; !d.touched {
		d.touched = true
		s.touched = append(s.touched, slot)
	}
}

func (s *shard) spareList() []int32 {
	if n := len(s.spare); n > 0 {
		list := s.spare[n-1]
		s.spare = s.spare[:n-1]
		return list
	}
	return make([]int32, 0, 16)
}

// joinPending turns the pending events of a connection into frames behind what
// it was sent before.
func (s *shard) joinPending(slot int32) {
	d := &s.deliveries[slot]
	if d.pending == nil {
		return
	}
	c := s.connections[slot]
	e := c.encoding
	around := len(e.prefix) + len(e.suffix)
	first, size := 0, around
	for i, index := range d.pending {
		n := len(e.encoded(s, index))
		if i > first {
			n += len(e.separator)
		}
		if i > first && size+n > maxFrame {
			c.join(d.pending[first:i], size)
			first, size, n = i, around, n-len(e.separator)
		}
		size += n
	}
	c.join(d.pending[first:], size)
	if len(s.spare) < maxSpare && cap(d.pending) <= sparePlaces {
		s.spare = append(s.spare, d.pending[:0])
	}
	d.pending = nil
}

// join builds one frame of events; size is that of its payload.
func (c *connection) join(events []int32, size int) {
	s, e := c.shard, c.encoding
	if size > maxMessage {
		s.stats.oversized.Add(uint64(len(events)))
		return
	}
	if c.overflow {
		s.stats.discarded.Add(uint64(size))
		return
	}
	c.reserve(frame.HeaderSize(size) + size)
	onlyEvents := c.out.events == len(c.out.data)
	b := frame.AppendTextHeader(c.out.data, size)
	b = append(b, e.prefix...)
	for i, index := range events {
		if i > 0 {
			b = append(b, e.separator...)
		}
		b = append(b, e.events[index]...)
	}
	b = append(b, e.suffix...)
	c.out.data = b
	if onlyEvents {
		c.out.events = len(b)
	}
	s.stats.frames.Add(1)
	s.stats.events.Add(uint64(len(events)))
}

// reserve makes room for n more bytes of frames.
func (c *connection) reserve(n int) {
	switch {
	case c.out == nil:
		c.out = getBuffer(n)
	case len(c.out.data)+n <= cap(c.out.data):
	case len(c.out.data) >= largeBuffer:
		c.handOver()
		c.out = getBuffer(n)
	default:
		larger := getBuffer(len(c.out.data) + n)
		larger.add(c.out)
		c.out.release()
		c.out = larger
	}
}

// handOver gives the frames of this round to the transport. When they do not
// fit, the client is too slow: what is queued is discarded, so that the client
// can still be told, and the session is told after the input at hand.
func (c *connection) handOver() {
	if c.out == nil {
		return
	}
	out := c.out
	c.out = nil
	if c.transport.send(out) {
		return
	}
	c.shard.stats.discarded.Add(uint64(len(out.data)))
	out.release()
	c.transport.discard()
	c.overflow = true
}

// flush sends to every touched connection, first come first served.
func (s *shard) flush() {
	for i := 0; i < len(s.touched); i++ {
		slot := s.touched[i]
		s.deliveries[slot].touched = false
		c := s.connections[slot]
		if c == nil || c.closed {
			continue
		}
		s.joinPending(slot)
		c.handOver()
		if c.overflow {
			c.settle()
		}
	}
	s.touched = s.touched[:0]
	clear(s.events)
	s.events = s.events[:0]
	for _, e := range s.encodings {
		clear(e.events)
		e.events = e.events[:0]
	}
}
