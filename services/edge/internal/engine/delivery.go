package engine

import (
	"encoding/binary"
	"slices"
	"time"

	"github.com/cutemarkets/relay/services/edge/internal/deflate"
	"github.com/cutemarkets/relay/services/edge/internal/dialect"
	"github.com/cutemarkets/relay/services/edge/internal/frame"
)

const (
	// maxFrame is the largest payload of a frame that joins events. An event
	// that is larger alone goes alone.
	maxFrame = 64 << 10
	// maxMessage is the largest message ever sent: vendor client libraries
	// refuse more than 1 MB.
	maxMessage = 1_000_000
	// keptPlaces is how many places of pending lists are kept for the next round,
	// all in all, and keptFrames the most bytes of frames.
	keptPlaces = 64 << 10
	keptFrames = 1 << 20
)

// pending is what a round has for one connection.
type pending struct {
	slot   int32
	first  int32   // index in shard.events
	events []int32 // all indices, in order, if there are more; else empty
}

// words are a dialect and what it makes of the events of this round.
type words struct {
	// Static after construction.
	dialect                   dialect.Dialect
	policy                    dialect.Policy
	interval                  time.Duration // between two commands in the long run
	prefix, separator, suffix string

	// Owned by the shard.
	events [][]byte // as shard.events; nil: not encoded yet
	notice []byte   // being sent to many
}

// encoding is how a connection gets its events.
type encoding struct {
	*words
	deflate bool // frames worth it are compressed

	// Owned by the shard.
	singles []span // in shard.frames: what single has made, by event
}

// span is a part of a slice; empty: there is none.
type span struct{ from, to int }

// encodingOf returns the shard's encoding of a dialect, compressed or not.
func (s *shard) encodingOf(d dialect.Dialect, deflate bool) *encoding {
	var w *words
	for _, e := range s.encodings {
		if e.dialect != d {
			continue
		}
		if e.deflate == deflate {
			return e
		}
		w = e.words
	}
	if w == nil {
		w = &words{dialect: d, policy: d.Policy()}
		if w.policy.CommandRate > 0 {
			w.interval = time.Duration(float64(time.Second) / w.policy.CommandRate)
		}
		w.prefix, w.separator, w.suffix = d.Envelope()
	}
	e := &encoding{words: w, deflate: deflate}
	s.encodings = append(s.encodings, e)
	return e
}

// event adds an event to the round and returns its index.
func (s *shard) event(event []byte) int32 {
	s.events = append(s.events, event)
	return int32(len(s.events) - 1)
}

// encoded returns an event in the dialect's words.
func (e *words) encoded(s *shard, index int32) []byte {
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
	sl := &s.slots[slot]
	if sl.pending == 0 {
		sl.pending = s.list(slot, index)
		return
	}
	p := &s.pending[sl.pending-1]
	switch n := len(p.events); {
	case n == 0 && p.first == index, n > 0 && p.events[n-1] == index:
	case n == 0:
		p.events = append(p.events, p.first, index)
	default:
		p.events = append(p.events, index)
	}
}

// pendFirst puts events before those that are pending.
func (s *shard) pendFirst(slot int32, events []int32) {
	sl := &s.slots[slot]
	if sl.pending == 0 {
		for _, index := range events {
			s.pend(slot, index)
		}
		return
	}
	p := &s.pending[sl.pending-1]
	if len(p.events) == 0 {
		p.events = append(p.events, p.first)
	}
	p.events = slices.Insert(p.events, 0, events...)
}

// list begins the pending list of a slot and returns its place, from 1 on.
func (s *shard) list(slot, first int32) int32 {
	n := len(s.pending)
	if n < cap(s.pending) {
		s.pending = s.pending[:n+1] // with the memory of an earlier round
	} else {
		s.pending = append(s.pending, pending{})
	}
	p := &s.pending[n]
	p.slot, p.first = slot, first
	return int32(n + 1)
}

// joined is the frames that a list of events makes in one encoding.
type joined struct {
	encoding  *encoding // nil: nothing is joined
	list      []int32
	data      []byte
	frames    int
	events    int
	oversized int
}

// join makes the frames of a list of events. Connections with the same list
// follow each other often: what was made last is not made again. Compressed
// frames are kept for the whole round.
func (s *shard) join(e *encoding, list []int32) *joined {
	j := &s.joined
	if j.encoding == e && slices.Equal(j.list, list) {
		return j
	}
	if e.deflate {
		return s.joinCompressed(e, list)
	}
	*j = joined{encoding: e, list: append(j.list[:0], list...), data: j.data[:0]}
	s.fill(j)
	return j
}

// single returns the frame of one event alone, which is made once in a round: most
// frames are such, and those of other lists come in between. Not for compressed
// encodings; empty: the event is too large.
func (s *shard) single(e *encoding, index int32) []byte {
	for len(e.singles) <= int(index) {
		e.singles = append(e.singles, span{})
	}
	at := &e.singles[index]
	if at.to == 0 {
		size := len(e.prefix) + len(e.encoded(s, index)) + len(e.suffix)
		if size > maxMessage {
			return nil
		}
		at.from = len(s.frames)
		s.one[0] = index
		s.frames = e.appendEvents(frame.AppendTextHeader(s.frames, size), s.one[:])
		at.to = len(s.frames)
	}
	return s.frames[at.from:at.to]
}

// joinCompressed makes the frames of a list once in a round.
func (s *shard) joinCompressed(e *encoding, list []int32) *joined {
	s.key = s.key[:0]
	for _, index := range list {
		s.key = binary.LittleEndian.AppendUint32(s.key, uint32(index))
	}
	if known := s.compressed[string(s.key)]; known != nil && known.encoding == e {
		return known
	}
	j := &joined{encoding: e, list: slices.Clone(list)}
	s.fill(j)
	if s.compressedBytes += len(j.data); s.compressedBytes <= keptFrames {
		s.compressed[string(s.key)] = j
	}
	return j
}

// fill makes the frames.
func (s *shard) fill(j *joined) {
	e := j.encoding
	around := len(e.prefix) + len(e.suffix)
	first, size := 0, around
	for i, index := range j.list {
		n := len(e.encoded(s, index))
		if i > first {
			n += len(e.separator)
		}
		if i > first && size+n > maxFrame {
			s.frame(j, j.list[first:i], size)
			first, size, n = i, around, n-len(e.separator)
		}
		size += n
	}
	s.frame(j, j.list[first:], size)
}

// frame appends one frame of events; size is that of its payload.
func (s *shard) frame(j *joined, list []int32, size int) {
	if size > maxMessage {
		j.oversized += len(list)
		return
	}
	j.frames++
	j.events += len(list)
	if j.encoding.deflate && size >= deflate.Threshold {
		s.plain = j.encoding.appendEvents(s.plain[:0], list)
		s.packed = deflate.Append(s.packed[:0], s.plain)
		if len(s.packed) < size {
			j.data = append(frame.AppendCompressedHeader(j.data, len(s.packed)), s.packed...)
			return
		}
	}
	j.data = j.encoding.appendEvents(frame.AppendTextHeader(j.data, size), list)
}

// appendEvents appends events as the payload of one message.
func (e *words) appendEvents(b []byte, list []int32) []byte {
	b = append(b, e.prefix...)
	for i, index := range list {
		if i > 0 {
			b = append(b, e.separator...)
		}
		b = append(b, e.events[index]...)
	}
	return append(b, e.suffix...)
}

// flush sends to every connection with pending events, first come first served:
// one write for each, however many events there are.
func (s *shard) flush() {
	s.deliverAll()
	kept := 0
	for i := range s.pending {
		p := &s.pending[i]
		if kept += cap(p.events); kept > keptPlaces {
			p.events = nil
		}
		p.events = p.events[:0]
	}
	s.pending = s.pending[:0]
	s.joined.encoding = nil
	if cap(s.joined.data) > keptFrames {
		s.joined.data = nil
	}
	clear(s.compressed)
	s.compressedBytes = 0
	clear(s.events)
	s.events = s.events[:0]
	for _, e := range s.encodings {
		clear(e.events)
		e.events = e.events[:0]
		e.singles = e.singles[:0]
	}
	if s.frames = s.frames[:0]; cap(s.frames) > keptFrames {
		s.frames = nil
	}
}

// attend delivers and follows what became of it.
func (s *shard) attend(slot int32) {
	if s.deliver(slot) {
		s.slots[slot].connection.lookAfter()
	}
}

// deliver sends the pending events of a connection, if there are any. It reports
// whether the connection is to be looked after: not all has been taken at once.
func (s *shard) deliver(slot int32) bool {
	sl := &s.slots[slot]
	if sl.pending == 0 {
		return false
	}
	p := &s.pending[sl.pending-1]
	sl.pending = 0
	list, direct := p.events, sl.fd >= 0
	if len(list) == 0 {
		s.one[0] = p.first
		list = s.one[:]
	}
	if !direct && sl.connection.conflating() {
		list = sl.connection.conflated(list)
	}
	if len(list) == 0 {
		return true
	}
	j := s.join(sl.encoding, list)
	s.counts.oversized += uint64(j.oversized)
	if !direct && !sl.connection.carry(j.data) {
		return true
	}
	s.counts.frames += uint64(j.frames)
	s.counts.events += uint64(j.events)
	return !direct || !s.written(sl, j.data)
}

// carry gives frames to the transport, unless the client is too slow for them: its
// session is told after the input at hand. It reports whether it gave them.
func (c *connection) carry(frames []byte) bool {
	if c.overflow = c.overflow || c.full(len(frames)); c.overflow {
		c.shard.counts.discarded += uint64(len(frames))
		return false
	}
	c.transport().send(frames)
	return true
}
