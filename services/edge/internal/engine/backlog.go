package engine

import (
	"time"

	"github.com/cutemarkets/relay/services/edge/internal/frame"
)

// backlog is what the kernel has not taken yet of what was sent to one client,
// in pooled pieces. It does no I/O: the owner writes what next returns and tells
// how much of it was taken. Not thread-safe.
type backlog struct {
	pieces   []*buffer
	head     int       // bytes of the first piece that have been taken
	size     int       // bytes of pieces that have not
	frames   []waiting // the oldest first; those before first have been taken
	first    int
	begun    bool   // part of the first frame has been taken
	claimed  int    // bytes of frames that are being written
	hasty    []byte // frames that go ahead of them
	hastened int    // bytes of hasty that have been taken
	pong     []byte // payload of the answer to the latest ping
	ponging  bool
}

// waiting is what waits of a frame.
type waiting struct {
	left int // bytes
	at   time.Time
}

// waitingCost is what a frame costs beside its bytes.
const waitingCost = 32

// held is what counts towards the bound.
func (b *backlog) held() int { return b.size + waitingCost*len(b.waiting()) }

// waiting is the frames of which not all has been taken.
func (b *backlog) waiting() []waiting { return b.frames[b.first:] }

// add queues frames that were sent at once; the kernel has the first taken bytes.
func (b *backlog) add(frames []byte, taken int, now time.Time) {
	for end := 0; end < len(frames); {
		start := end
		end += frame.Size(frames[start:])
		if end <= taken {
			continue
		}
		b.begun = b.begun || taken > start
		b.frames = append(b.frames, waiting{end - max(start, taken), now})
	}
	rest := frames[taken:]
	b.size += len(rest)
	for len(rest) > 0 {
		last := len(b.pieces) - 1
		if last < 0 || len(b.pieces[last].data) == cap(b.pieces[last].data) {
			b.pieces = append(b.pieces, getBuffer(max(len(rest), b.size/2)))
			last++
		}
		piece := b.pieces[last]
		n := min(len(rest), cap(piece.data)-len(piece.data))
		piece.data = append(piece.data, rest[:n]...)
		rest = rest[n:]
	}
}

// hasten queues frames that go ahead.
func (b *backlog) hasten(frames []byte) { b.hasty = append(b.hasty, frames...) }

// answer queues the answer to a ping in place of one that still waits.
func (b *backlog) answer(payload []byte) {
	b.pong, b.ponging = append(b.pong[:0], payload...), true
}

// next is what to write now; empty: nothing waits.
func (b *backlog) next() []byte {
	if b.ponging && !b.begun {
		b.hasty, b.ponging = frame.AppendPong(b.hasty, b.pong), false
	}
	hurry := len(b.hasty) > 0
	if hurry && !b.begun {
		return b.hasty[b.hastened:]
	}
	if b.size == 0 {
		return nil
	}
	piece := b.pieces[0].data[b.head:]
	if rest := b.waiting()[0].left; (hurry || b.ponging) && len(piece) > rest {
		piece = piece[:rest]
	}
	return piece
}

// claim tells that the beginning of what next returned is being written, and is
// not to be discarded until took is called.
func (b *backlog) claim(n int) {
	if len(b.hasty) == 0 || b.begun {
		b.claimed = n
	}
}

// took tells how much of what next returned the kernel has taken.
func (b *backlog) took(n int) {
	if b.claimed == 0 && len(b.hasty) > 0 && !b.begun {
		if b.hastened += n; b.hastened == len(b.hasty) {
			b.hasty, b.hastened = nil, 0
		}
		return
	}
	b.claimed = 0
	b.head += n
	b.size -= n
	if b.head == len(b.pieces[0].data) {
		b.drop(1)
	}
	for n > 0 && n >= b.frames[b.first].left {
		n -= b.frames[b.first].left
		b.first++
		b.begun = false
	}
	if n > 0 {
		b.frames[b.first].left -= n
		b.begun = true
	}
	if 2*b.first > len(b.frames) { // else many small frames would be moved for each piece
		b.frames, b.first = append(b.frames[:0], b.waiting()...), 0
	}
}

// drop gives the first pieces back.
func (b *backlog) drop(n int) {
	for _, piece := range b.pieces[:n] {
		piece.release()
	}
	rest := copy(b.pieces, b.pieces[n:])
	clear(b.pieces[rest:])
	b.pieces, b.head = b.pieces[:rest], 0
}

// discard drops the frames that have not begun, and returns their bytes. What
// was hastened stays.
func (b *backlog) discard() int {
	kept, size := 0, 0
	for kept < len(b.waiting()) && (size < b.claimed || b.begun && kept == 0) {
		size += b.waiting()[kept].left
		kept++
	}
	dropped := b.size - size
	b.frames, b.size = b.frames[:b.first+kept], size
	if size == 0 {
		b.drop(len(b.pieces))
		return dropped
	}
	last, end := 0, b.head+size // counted from the begin of the piece
	for ; end > len(b.pieces[last].data); last++ {
		end -= len(b.pieces[last].data)
	}
	b.pieces[last].data = b.pieces[last].data[:end]
	for _, piece := range b.pieces[last+1:] {
		piece.release()
	}
	clear(b.pieces[last+1:])
	b.pieces = b.pieces[:last+1]
	return dropped
}

// empty reports whether nothing waits.
func (b *backlog) empty() bool { return b.size == 0 && len(b.hasty) == 0 && !b.ponging }

// since is when the oldest frame was queued; zero: none is.
func (b *backlog) since() time.Time {
	if len(b.waiting()) == 0 {
		return time.Time{}
	}
	return b.waiting()[0].at
}

// stuck reports whether the oldest frame has waited for longer than it takes to
// write it to a kernel that has room.
func (b *backlog) stuck(now time.Time) bool {
	since := b.since()
	return !since.IsZero() && now.Sub(since) >= stuckAfter
}

// release gives everything up.
func (b *backlog) release() {
	b.drop(len(b.pieces))
	*b = backlog{}
}
