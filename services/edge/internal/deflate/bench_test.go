package deflate

import (
	"bytes"
	standard "compress/flate"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/klauspost/compress/flate"
)

// frames are how many events are joined in the frames that are measured.
var frames = []int{1, 2, 3, 5, 10, 20, 100, 1900}

// writer is what the compressors to choose from have in common.
type writer interface {
	io.Writer
	Reset(io.Writer)
	Flush() error
}

// stateless is the one without a state.
type stateless struct{ to io.Writer }

func (s *stateless) Reset(to io.Writer) { s.to = to }
func (s *stateless) Flush() error       { return nil }
func (s *stateless) Write(p []byte) (int, error) {
	return len(p), flate.StatelessDeflate(s.to, p, false, nil)
}

// BenchmarkCompressors is what the compressor was chosen by: how many times
// smaller, time per KiB in, and with fresh=true what a new one allocates (but for
// the one without a state, which has pools of its own).
func BenchmarkCompressors(b *testing.B) {
	candidates := []struct {
		name string
		make func() writer
	}{{"stateless", func() writer { return new(stateless) }}}
	for _, level := range []int{-2, 1, 2, 3, 5, 6, 9} {
		candidates = append(candidates, struct {
			name string
			make func() writer
		}{fmt.Sprintf("klauspost_%d", level), func() writer { w, _ := flate.NewWriter(io.Discard, level); return w }}, struct {
			name string
			make func() writer
		}{fmt.Sprintf("standard_%d", level), func() writer { w, _ := standard.NewWriter(io.Discard, level); return w }})
	}
	for _, c := range candidates {
		for _, n := range frames {
			message := events(n)
			b.Run(fmt.Sprintf("%s/events=%d", c.name, n), func(b *testing.B) {
				w, to := c.make(), new(compressor)
				b.ReportAllocs()
				for b.Loop() {
					to.out = to.out[:0]
					w.Reset(to)
					if _, err := w.Write(message); err != nil {
						b.Fatal(err)
					}
					if err := w.Flush(); err != nil {
						b.Fatal(err)
					}
				}
				report(b, len(message), len(to.out)-len(tail))
			})
		}
		b.Run(c.name+"/fresh=true", func(b *testing.B) {
			message := events(1900)
			to := new(compressor)
			b.ReportAllocs()
			for b.Loop() {
				to.out = to.out[:0]
				w := c.make()
				w.Reset(to)
				if _, err := w.Write(message); err != nil {
					b.Fatal(err)
				}
				if err := w.Flush(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func report(b *testing.B, in, out int) {
	b.ReportMetric(float64(in)/float64(out), "ratio")
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/1e3/float64(b.N)/float64(in)*1024, "µs/KiB")
}

func BenchmarkAppend(b *testing.B) {
	for _, n := range frames {
		b.Run(fmt.Sprintf("events=%d", n), func(b *testing.B) {
			message := events(n)
			var out []byte
			b.ReportAllocs()
			for b.Loop() {
				out = Append(out[:0], message)
			}
			report(b, len(message), len(out))
		})
	}
}

// hostile are messages of at most 16 KiB that are as much work as can be.
func hostile(t testing.TB) map[string][]byte {
	const size = 16 << 10
	fill := func(piece string, last string) []byte {
		return append(bytes.Repeat([]byte(piece), size/len(piece)), last...)
	}
	return map[string][]byte{
		"bomb":          bomb(t),
		"last_blocks":   fill("\x03\x00", "\x00"),
		"stored_blocks": fill("\x00\x00\x00\xff\xff", "\x00"),
		"huffman":       tables(size),
	}
}

// tables is a message of empty blocks, each with Huffman codes of its own: two
// of one bit, for the end of the block and for a distance.
func tables(size int) []byte {
	var out []byte
	var bits, n uint64
	put := func(value, width uint64) {
		bits |= value << n
		for n += width; n >= 8; n -= 8 {
			out = append(out, byte(bits))
			bits >>= 8
		}
	}
	for len(out) < size {
		put(0b100, 3)      // not the last, codes of its own
		put(14<<10, 5+5+4) // 257 literals, 1 distance, 18 lengths of codes of lengths
		for i := range 18 {
			length := uint64(0)
			if i == 2 || i == 17 { // of 18, which is that many zeros, and of 1
				length = 1
			}
			put(length, 3)
		}
		put(1|127<<1, 8) // 138 zeros
		put(1|107<<1, 8) // 118 zeros
		put(0, 2)        // a length of 1 for the end of the block and for the distance
		put(0, 1)        // the end of the block
	}
	put(0, 3) // an empty block without compression
	put(0, (8-n)%8)
	return out
}

// BenchmarkHostile is what a client can make a message cost.
func BenchmarkHostile(b *testing.B) {
	for name, payload := range hostile(b) {
		b.Run(name, func(b *testing.B) {
			var out []byte
			b.ReportAllocs()
			for b.Loop() {
				out, _ = Inflate(out[:0], payload, 64<<10)
			}
		})
	}
}

// BenchmarkInflate is the largest message that clients send in earnest: a list of
// 1,000 contracts.
func BenchmarkInflate(b *testing.B) {
	random := rand.New(rand.NewPCG(1, 2))
	names := strings.Fields("SPY QQQ IWM AAPL MSFT NVDA TSLA AMZN META GOOG AMD NFLX INTC BAC XOM")
	var list bytes.Buffer
	for range 1000 {
		fmt.Fprintf(&list, "T.O:%s26%02d%02d%c%08d,", names[random.IntN(len(names))], 1+random.IntN(12), 1+random.IntN(28), "CP"[random.IntN(2)], 2500*(10+random.IntN(400)))
	}
	payload := Append(nil, fmt.Appendf(nil, `{"action":"subscribe","params":"%s"}`, list.Bytes()))
	b.ReportAllocs()
	var out []byte
	for b.Loop() {
		var err error
		if out, err = Inflate(out[:0], payload, 64<<10); err != nil {
			b.Fatal(err)
		}
	}
	report(b, len(payload), len(out))
}
