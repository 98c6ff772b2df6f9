package feed

import (
	"hash/maphash"
	"time"

	feedv1 "github.com/cutemarkets/relay/proto/feed/v1"
)

const (
	// handoverWindow is how long after a change of epoch events are compared
	// with those delivered before it.
	handoverWindow = 10 * time.Second
	// Delivered batches are kept for handoverAge and up to handoverBytes, for a
	// change of epoch that may come.
	handoverAge   = 5 * time.Second
	handoverBytes = 8 << 20

	keptEventCost = 16 // bytes an event takes beside its own
	keptBatchCost = 256
)

// handover suppresses duplicates when the leader changes: for a moment both
// leaders may have had the vendor's events. Each event delivered just before
// suppresses one with the same bytes of the new epoch. Owned by the market's
// goroutine; not thread-safe.
type handover struct {
	seed  maphash.Seed
	kept  []keptBatch // delivered lately, the oldest first
	head  int         // first of kept that counts
	bytes int         // of kept from head on

	delivered map[uint64]int // by hash, how many are left; nil: no window
	until     time.Time      // end of the window
}

type keptBatch struct {
	at    time.Time
	batch *feedv1.Batch
	bytes int
}

func newHandover() handover { return handover{seed: maphash.MakeSeed()} }

// keep remembers a batch that is about to be delivered.
func (h *handover) keep(now time.Time, b *feedv1.Batch) {
	k := keptBatch{now, b, len(b.Payload) + keptEventCost*len(b.Ends) + keptBatchCost}
	h.bytes += k.bytes
	if h.head > len(h.kept)/2 {
		n := copy(h.kept, h.kept[h.head:])
		clear(h.kept[n:])
		h.kept, h.head = h.kept[:n], 0
	}
	h.kept = append(h.kept, k)
	h.forget(now)
}

// forget lets go of what is too old or too much.
func (h *handover) forget(now time.Time) {
	for h.head < len(h.kept) && (h.bytes > handoverBytes || now.Sub(h.kept[h.head].at) > handoverAge) {
		h.bytes -= h.kept[h.head].bytes
		h.kept[h.head] = keptBatch{}
		h.head++
	}
}

// begin opens the window at a change of epoch.
func (h *handover) begin(now time.Time) {
	h.forget(now)
	h.delivered, h.until = make(map[uint64]int), now.Add(handoverWindow)
	for _, k := range h.kept[h.head:] {
		start := uint32(0)
		for _, end := range k.batch.Ends {
			h.delivered[maphash.Bytes(h.seed, k.batch.Payload[start:end])]++
			start = end
		}
	}
}

// expire ends the window when it is over, and forgets old batches.
func (h *handover) expire(now time.Time) {
	h.forget(now)
	if h.delivered != nil && !now.Before(h.until) {
		h.delivered = nil
	}
}

// filter returns a well-formed batch without the events that were delivered
// before the window, and how many they are; the batch itself if there are none.
func (h *handover) filter(now time.Time, b *feedv1.Batch) (*feedv1.Batch, int) {
	if h.delivered == nil {
		return b, 0
	}
	if h.expire(now); len(h.delivered) == 0 {
		h.delivered = nil
		return b, 0
	}
	var rest *feedv1.Batch
	dropped, start := 0, uint32(0)
	for n, end := range b.Ends {
		event := b.Payload[start:end]
		start = end
		sum := maphash.Bytes(h.seed, event)
		if left := h.delivered[sum]; left > 0 {
			if left == 1 {
				delete(h.delivered, sum)
			} else {
				h.delivered[sum] = left - 1
			}
			if rest == nil {
				rest = upTo(b, n)
			}
			dropped++
			continue
		}
		if rest != nil {
			rest.Payload = append(rest.Payload, event...)
			rest.Ends = append(rest.Ends, uint32(len(rest.Payload)))
			rest.SequenceOffsets = append(rest.SequenceOffsets, b.SequenceOffsets[n])
			rest.TopicIds = append(rest.TopicIds, b.TopicIds[2*n:2*n+2]...)
		}
	}
	if rest == nil {
		return b, 0
	}
	return rest, dropped
}

// upTo returns a copy of the first events of a batch, over its whole range.
func upTo(b *feedv1.Batch, events int) *feedv1.Batch {
	end := uint32(0)
	if events > 0 {
		end = b.Ends[events-1]
	}
	return &feedv1.Batch{
		Epoch:           b.Epoch,
		FirstSequence:   b.FirstSequence,
		LastSequence:    b.LastSequence,
		Payload:         append(make([]byte, 0, len(b.Payload)), b.Payload[:end]...),
		Ends:            append(make([]uint32, 0, len(b.Ends)), b.Ends[:events]...),
		SequenceOffsets: append(make([]uint32, 0, len(b.Ends)), b.SequenceOffsets[:events]...),
		TopicIds:        append(make([]uint32, 0, len(b.TopicIds)), b.TopicIds[:2*events]...),
	}
}
