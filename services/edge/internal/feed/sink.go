package feed

import (
	"time"

	feedv1 "github.com/cutemarkets/relay/proto/feed/v1"
)

// Sink takes what a market's feed yields, in order. Calls come from one
// goroutine per market; a Sink that blocks slows the stream down until the
// fanout pod cuts it, which the clients are told of as a gap.
type Sink interface {
	// Batch takes a batch; it is immutable from then on.
	Batch(b *feedv1.Batch)
	// Gap tells that events between two moments may be missing. It comes
	// before the first batch after the gap and ends a Down.
	Gap(from, to time.Time)
	// Down tells that events may be missing since a moment, until Gap or Up.
	Down(since time.Time)
	// Up ends a Down that proves to have lost nothing: between its two moments
	// events are missing only for those who were not there before it, or who
	// asked for more topics in it.
	Up(from, to time.Time)
	// TopicNotice tells what the vendor said of topics. The ids of those that have
	// no slot are retired: Acquire gives another one, and each must be released.
	TopicNotice(ids []uint32, problem feedv1.TopicProblem)
}

// Topic ids are a slot in the low 24 bits and a generation in the high 8, so
// that a batch built for a topic that has since left never reaches the topic
// that took its slot.
const (
	slotBits = 24
	slotMask = 1<<slotBits - 1
)

// Slot returns the slot of a topic id: an index that is dense and small.
func Slot(id uint32) int { return int(id & slotMask) }
