package engine

import "sync"

// transport carries the bytes of one connection. The shard calls it; no call
// blocks. It reports through the shard's inbox: messages, control frames, a
// broken socket and, after close, at last inputDone.
type transport interface {
	// start begins to carry; reports bear the ref.
	start(r ref)
	// send queues whole frames and takes the buffer over. It reports false when
	// they do not fit; the buffer then stays the caller's.
	send(b *buffer) bool
	// ping sends a ping ahead of what is queued.
	ping()
	// pong answers a ping ahead of what is queued; of several pings that wait
	// for an answer only the latest gets one (RFC 6455 §5.5.3).
	pong(payload []byte)
	// discard drops everything queued but a write in flight.
	discard()
	// close ends the connection: queued events are dropped, except behind another
	// message in one buffer, the rest is sent, then the close frame (nil: none).
	close(frame []byte)
}

// buffer is a number of whole frames on their way to one connection.
type buffer struct {
	data   []byte
	events int // bytes at the front that are events alone: dropped when the connection closes
}

// add copies the frames of another buffer behind those it has.
func (b *buffer) add(other *buffer) {
	if b.events == len(b.data) {
		b.events += other.events
	}
	b.data = append(b.data, other.data...)
}

// sealed returns a buffer that nothing is added to any more: without the room
// behind its frames, where that is worth a copy.
func (b *buffer) sealed() *buffer {
	n, size := len(b.data), cap(b.data)
	if size < largeBuffer || size-n <= size/8 {
		return b
	}
	exact := &buffer{data: make([]byte, 0, n)}
	exact.add(b)
	b.release()
	return exact
}

// Buffers come in sizes, so that a short frame in a slow queue does not hold
// memory for a long one.
const (
	smallBuffer = 512
	chunkBuffer = 8 << 10
	largeBuffer = 64 << 10
	frameBuffer = maxFrame + 1<<10
)

var bufferSizes = [...]int{smallBuffer, chunkBuffer, largeBuffer, frameBuffer}

var bufferPools [len(bufferSizes)]sync.Pool

// getBuffer returns an empty buffer with room for n bytes.
func getBuffer(n int) *buffer {
	for i, size := range bufferSizes {
		if n > size {
			continue
		}
		if b, ok := bufferPools[i].Get().(*buffer); ok {
			return b
		}
		return &buffer{data: make([]byte, 0, size)}
	}
	return &buffer{data: make([]byte, 0, n)}
}

// release gives a buffer back to its pool. One of an odd size is left to the
// garbage collector.
func (b *buffer) release() {
	for i, size := range bufferSizes {
		if cap(b.data) == size {
			b.data, b.events = b.data[:0], 0
			bufferPools[i].Put(b)
			return
		}
	}
}
