package feed

import feedv1 "github.com/cutemarkets/relay/proto/feed/v1"

// wellFormed reports whether the parts of a batch agree with each other, so
// that the Sink may slice its payload without looking.
func wellFormed(b *feedv1.Batch) bool {
	events := len(b.GetEnds())
	if len(b.GetSequenceOffsets()) != events || len(b.GetTopicIds()) != 2*events {
		return false
	}
	span := b.GetLastSequence() - b.GetFirstSequence()
	end, next := uint32(0), uint64(0)
	for n, e := range b.GetEnds() {
		offset := uint64(b.GetSequenceOffsets()[n])
		if e <= end || offset < next || offset > span {
			return false
		}
		end, next = e, offset+1
	}
	return int(end) == len(b.GetPayload())
}

// after returns the part of a well-formed batch behind a sequence, sharing its
// payload; the batch itself when all of it is.
func after(b *feedv1.Batch, covered uint64) *feedv1.Batch {
	if b.GetFirstSequence() > covered {
		return b
	}
	skip := 0
	for skip < len(b.Ends) && b.FirstSequence+uint64(b.SequenceOffsets[skip]) <= covered {
		skip++
	}
	cut := uint32(0)
	if skip > 0 {
		cut = b.Ends[skip-1]
	}
	shift := uint32(covered + 1 - b.FirstSequence)
	rest := &feedv1.Batch{
		Epoch:           b.Epoch,
		FirstSequence:   covered + 1,
		LastSequence:    b.LastSequence,
		Payload:         b.Payload[cut:],
		Ends:            make([]uint32, 0, len(b.Ends)-skip),
		SequenceOffsets: make([]uint32, 0, len(b.Ends)-skip),
		TopicIds:        b.TopicIds[2*skip:],
	}
	for n := skip; n < len(b.Ends); n++ {
		rest.Ends = append(rest.Ends, b.Ends[n]-cut)
		rest.SequenceOffsets = append(rest.SequenceOffsets, b.SequenceOffsets[n]-shift)
	}
	return rest
}
