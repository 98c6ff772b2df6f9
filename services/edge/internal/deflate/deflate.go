// Package deflate is compression as WebSocket has it: permessage-deflate, RFC
// 7692. It owns the negotiation, the compression of one message and the bounded
// inflation of one. It starts no goroutine and does no I/O. Every message stands
// by itself (no context takeover), so that a connection holds nothing for it and
// one compressed message serves every client that gets the same content.
//
// What a message costs is bounded by its bytes in and out; nothing waits. The
// memory is that of the messages in work at a time: 1.1 MB for each that is
// being compressed, 40 KB for each that is being inflated, kept in pools which
// the garbage collector empties when they are idle.
package deflate

import (
	"io"
	"sync"

	"github.com/klauspost/compress/flate"
)

// Threshold is the size in bytes from which on a message is worth compressing.
// Whatever its size, it costs 5 µs before the first byte, about what a write does.
// Two joined events (0.3 KB) shrink by 125 bytes for 7 µs, four (0.5 KB) by 330
// bytes for 9 µs, twenty (2.7 KB) by 2 KB for 16 µs.
const Threshold = 512

// level is a level of klauspost/compress. Events of 135 bytes, joined as the
// engine does (the last column: longer than it does), came to this on one core of
// an AMD EPYC (BenchmarkCompressors; times the message was made smaller, and µs
// per KiB before):
//
//	                 1 event     5 events    20 events   100 events  1,900 (256 KiB)  memory
//	standard 1       1.25  49.0  2.52  18.0  3.55   8.0  4.16   4.2  4.47   5.9       1,217 KB
//	standard 6       1.26 142.9  2.79  42.2  4.27  16.4  5.32  22.1  6.20  67.4         830 KB
//	klauspost -2     0.96  20.6  1.63   8.9  1.76   4.0  1.80   2.1  1.81   1.9         320 KB
//	stateless        0.96  27.3  2.59  11.8  3.60   5.0  4.14   2.8  4.41   3.5         287 KB
//	klauspost 1      0.96  25.8  2.55  11.4  3.72   4.7  4.43   2.5  4.82   3.0         822 KB
//	klauspost 3      1.26  37.6  2.72  12.3  4.00   5.3  4.71   3.1  5.13   3.7       1,213 KB
//	klauspost 5      1.27  40.7  2.76  13.5  4.20   6.2  5.28   4.1  5.85   5.4       1,081 KB
//	klauspost 6      1.27  40.1  2.81  14.0  4.30   6.6  5.43   4.7  6.10   6.4       1,081 KB
//
// 5 costs no more than the standard library's fastest and sends a fifth less; 6
// costs a seventh more than 5 for a few percent. With the caches cold all of them
// take a tenth to a quarter longer.
const level = 5

// tail is what the sender takes off a message and the receiver adds again (RFC
// 7692 §7.2.1): an empty block without compression, but for its first byte.
const tail = "\x00\x00\xff\xff"

// compressor compresses a message into out.
type compressor struct {
	flate *flate.Writer
	out   []byte
}

var compressors = sync.Pool{New: func() any {
	w, err := flate.NewWriter(io.Discard, level)
	check(err)
	return &compressor{flate: w}
}}

// Write implements io.Writer; it never fails.
func (c *compressor) Write(p []byte) (int, error) {
	c.out = append(c.out, p...)
	return len(p), nil
}

// Append appends a payload compressed as one message and returns the extended
// buffer. Safe for concurrent use.
func Append(dst, payload []byte) []byte {
	c := compressors.Get().(*compressor)
	c.out = dst
	c.flate.Reset(c)
	_, err := c.flate.Write(payload)
	check(err)
	check(c.flate.Flush())
	dst = c.out[:len(c.out)-len(tail)]
	c.out = nil
	compressors.Put(c)
	return dst
}

// check holds that compressing never fails: the level exists, and Write takes
// everything.
func check(err error) {
	if err != nil {
		panic("deflate: " + err.Error())
	}
}
