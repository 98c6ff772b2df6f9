package fleet

// Buffers come in sizes, so that a few bytes do not hold memory for many.
var bufferSizes = [...]int{256, 4 << 10, 64 << 10, 1 << 20}

// maxSpare is how many bytes of buffers of one size are kept for later.
const maxSpare = 4 << 20

// buffer holds bytes of one connection that wait for more of them, or for room.
type buffer struct{ data []byte }

// pool lends buffers. It is not safe for concurrent use.
type pool struct{ spare [len(bufferSizes)][]*buffer }

// add appends to a buffer, or to a new one for nil, and returns the one that
// has the bytes.
func (p *pool) add(b *buffer, data []byte) *buffer {
	if b == nil {
		b = p.get(len(data))
	} else if need := len(b.data) + len(data); need > cap(b.data) {
		larger := p.get(max(need, 2*cap(b.data)))
		larger.data = append(larger.data, b.data...)
		p.release(b)
		b = larger
	}
	b.data = append(b.data, data...)
	return b
}

func (p *pool) get(n int) *buffer {
	for i, size := range bufferSizes {
		if n > size {
			continue
		}
		if last := len(p.spare[i]) - 1; last >= 0 {
			b := p.spare[i][last]
			p.spare[i] = p.spare[i][:last]
			return b
		}
		return &buffer{data: make([]byte, 0, size)}
	}
	return &buffer{data: make([]byte, 0, n)}
}

// release takes a buffer back; nil is none.
func (p *pool) release(b *buffer) {
	if b == nil {
		return
	}
	for i, size := range bufferSizes {
		if cap(b.data) == size && (len(p.spare[i])+1)*size <= maxSpare {
			b.data = b.data[:0]
			p.spare[i] = append(p.spare[i], b)
			return
		}
	}
}
