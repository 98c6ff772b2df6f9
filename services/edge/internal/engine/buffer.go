package engine

import "sync"

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

// buffer is a piece of a queue.
type buffer struct{ data []byte }

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
			b.data = b.data[:0]
			bufferPools[i].Put(b)
			return
		}
	}
}
