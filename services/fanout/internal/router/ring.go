package router

import (
	"encoding/binary"
	"slices"
	"time"
)

const (
	// chunkBytes is what the records of a chunk take, unless one alone takes more.
	chunkBytes = 256 << 10
	// chunkRecords is how many a chunk can have; the vendor's take 100 to 250 bytes.
	chunkRecords = chunkBytes / 96
	// recordCost is what a record takes beside its bytes.
	recordCost = 16
	// chunkParts is how many chunks of a quiet market make up the age of its ring.
	chunkParts = 4
	// maxSpare is how many chunks wait to be used again, beside the bound.
	maxSpare = 4
)

// RingBounds bound what a leader keeps of the recent events of a market, before
// any filtering, for edges whose streams broke. The zero value: nothing.
type RingBounds struct {
	Age   time.Duration // what is older than this, and a quarter, is dropped
	Bytes int           // of memory; beyond, the oldest is dropped; 0: no ring
}

// ring holds the newest events and gaps of an epoch, without a break in their
// sequence, in chunks that are used again. Guarded by Router.mu.
type ring struct {
	bounds RingBounds
	chunks []*chunk // oldest first
	spare  []*chunk
	bytes  int    // of chunks
	next   uint64 // sequence that the next record will have
}

// chunk is the records of contiguous sequences.
type chunk struct {
	first   uint64 // sequence of the first record
	began   int64  // arrival of the first, Unix nanoseconds
	newest  int64  // arrival of the last
	data    []byte
	records []record
}

// record is an event, its original bytes, kind and symbol one behind the other;
// or a gap, which has no kind: its two moments.
type record struct {
	end   uint32 // in the chunk's data
	raw   uint32 // bytes of the event
	kind  uint32 // bytes of its kind
	after uint32 // the chunk's first arrival, in milliseconds
}

// reset drops all records; the next one has a sequence.
func (g *ring) reset(next uint64) {
	*g = ring{bounds: g.bounds, next: next}
}

// first is the oldest sequence held, the next one if there is none.
func (g *ring) first() uint64 {
	if len(g.chunks) == 0 {
		return g.next
	}
	return g.chunks[0].first
}

func (g *ring) off() bool { return g.bounds.Bytes == 0 }

// event adds an event that arrived at a moment.
func (g *ring) event(e *Event, at int64) {
	if g.off() {
		return
	}
	c := g.room(len(e.Raw)+len(e.Kind)+len(e.Symbol), at)
	c.data = append(append(append(c.data, e.Raw...), e.Kind...), e.Symbol...)
	c.records = append(c.records, record{
		end: uint32(len(c.data)), raw: uint32(len(e.Raw)), kind: uint32(len(e.Kind)),
		after: uint32(max(at-c.began, 0) / int64(time.Millisecond)), // a clock may have been set back
	})
}

// gap adds a gap.
func (g *ring) gap(from, to time.Time, at int64) {
	if g.off() {
		return
	}
	c := g.room(16, at)
	c.data = binary.LittleEndian.AppendUint64(c.data, uint64(from.UnixNano()))
	c.data = binary.LittleEndian.AppendUint64(c.data, uint64(to.UnixNano()))
	c.records = append(c.records, record{end: uint32(len(c.data))})
}

// room counts a record and returns the chunk that has room for it.
func (g *ring) room(bytes int, at int64) *chunk {
	g.next++
	if last := len(g.chunks) - 1; last >= 0 {
		c := g.chunks[last]
		if len(c.data)+bytes <= cap(c.data) && len(c.records) < cap(c.records) && at-c.began < int64(g.bounds.Age/chunkParts) {
			c.newest = at
			return c
		}
	}
	g.trim(at)
	size := max(bytes, chunkBytes)
	for len(g.chunks) > 0 && g.bytes+size+chunkRecords*recordCost > g.bounds.Bytes {
		g.drop()
	}
	c := g.fresh(size)
	c.first, c.began, c.newest = g.next-1, at, at
	g.chunks = append(g.chunks, c)
	g.bytes += c.cost()
	return c
}

func (g *ring) fresh(size int) *chunk {
	if last := len(g.spare) - 1; last >= 0 && size == chunkBytes {
		c := g.spare[last]
		g.spare = g.spare[:last]
		return c
	}
	return &chunk{data: make([]byte, 0, size), records: make([]record, 0, chunkRecords)}
}

func (c *chunk) cost() int { return cap(c.data) + cap(c.records)*recordCost }

// trim drops the chunks that are older than the age.
func (g *ring) trim(now int64) {
	for len(g.chunks) > 0 && now-g.chunks[0].newest > int64(g.bounds.Age) {
		g.drop()
	}
}

// drop drops the oldest chunk.
func (g *ring) drop() {
	c := g.chunks[0]
	g.chunks = slices.Delete(g.chunks, 0, 1)
	g.bytes -= c.cost()
	if cap(c.data) == chunkBytes && len(g.spare) < maxSpare {
		c.data, c.records = c.data[:0], c.records[:0]
		g.spare = append(g.spare, c)
	}
}

// cursor is a place in the ring; it holds while the ring is not changed.
type cursor struct {
	ring  *ring
	chunk int
	index int
}

// from returns the place of a sequence that is held.
func (g *ring) from(sequence uint64) cursor {
	i, found := slices.BinarySearchFunc(g.chunks, sequence, func(c *chunk, s uint64) int {
		switch {
		case c.first < s:
			return -1
		case c.first > s:
			return 1
		}
		return 0
	})
	if !found {
		i--
	}
	return cursor{ring: g, chunk: i, index: int(sequence - g.chunks[i].first)}
}

// arrival is when the event of the place arrived, to the millisecond, in Unix
// nanoseconds.
func (at *cursor) arrival() int64 {
	c := at.ring.chunks[at.chunk]
	return c.began + int64(c.records[at.index].after)*int64(time.Millisecond)
}

// read returns the record of the place and goes on to the next. A gap has no
// kind.
func (at *cursor) read() (e Event, from, to time.Time) {
	c := at.ring.chunks[at.chunk]
	r, start := c.records[at.index], uint32(0)
	if at.index > 0 {
		start = c.records[at.index-1].end
	}
	data := c.data[start:r.end]
	if at.index++; at.index == len(c.records) {
		at.chunk, at.index = at.chunk+1, 0
	}
	if r.kind == 0 {
		return Event{}, unixNano(data), unixNano(data[8:])
	}
	return Event{Raw: data[:r.raw], Kind: data[r.raw : r.raw+r.kind], Symbol: data[r.raw+r.kind:]}, from, to
}

func unixNano(b []byte) time.Time { return time.Unix(0, int64(binary.LittleEndian.Uint64(b))) }
