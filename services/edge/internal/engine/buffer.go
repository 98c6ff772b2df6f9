package engine

import "sync"

// Buffers come in sizes, so that a short frame in a slow queue does not hold
// memory for a long one.
const (
	smallBuffer = 512
	chunkBuffer = 4 << 10
	largeBuffer = 16 << 10
)

var bufferSizes = [...]int{smallBuffer, chunkBuffer, largeBuffer}

var bufferPools [len(bufferSizes)]sync.Pool

// buffer is a piece of a queue.
type buffer struct{ data []byte }

// getBuffer returns an empty buffer with room for n bytes, or for largeBuffer if
// that is less.
func getBuffer(n int) *buffer {
	kind := 0
	for kind < len(bufferSizes)-1 && n > bufferSizes[kind] {
		kind++
	}
	if b, ok := bufferPools[kind].Get().(*buffer); ok {
		return b
	}
	return &buffer{data: make([]byte, 0, bufferSizes[kind])}
}

// release gives a buffer back to its pool.
func (b *buffer) release() {
	for kind, size := range bufferSizes {
		if cap(b.data) == size {
			b.data = b.data[:0]
			bufferPools[kind].Put(b) // it is another's from here on
			return
		}
	}
}
