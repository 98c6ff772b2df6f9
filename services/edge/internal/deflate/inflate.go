package deflate

import (
	"errors"
	"io"
	"sync"

	"github.com/klauspost/compress/flate"
)

// What is wrong with a message.
var (
	ErrTooBig  = errors.New("deflate: message inflates to more than the limit")
	ErrCorrupt = errors.New("deflate: message is no DEFLATE stream")
)

// end is what is read behind a message: its tail, and an empty last block, so
// that the reader comes to an end.
const end = tail + "\x01\x00\x00\xff\xff"

// firstRoom is what a message is given before it is known to need more, in bytes.
const firstRoom = 512

// Inflate appends what the payload of a compressed message inflates to and
// returns the extended buffer. The error is ErrTooBig for more than limit bytes,
// and ErrCorrupt. The buffer grows with what has come out, and to no more than
// the limit. Safe for concurrent use.
func Inflate(dst, payload []byte, limit int) ([]byte, error) {
	f := inflaters.Get().(*inflater)
	defer f.release()
	f.source = source{payload: payload, end: end}
	most := len(dst) + limit
	for !f.source.empty() { // once, but for blocks that say they are the last (RFC 7692 §7.2.3.4)
		if err := f.flate.(flate.Resetter).Reset(&f.source, nil); err != nil {
			return nil, ErrCorrupt
		}
		var err error
		if dst, err = f.inflate(dst, most); err != nil {
			return nil, err
		}
	}
	return dst, nil
}

// inflater is one inflation.
type inflater struct {
	source source
	flate  io.ReadCloser
	beyond [1]byte // takes the byte that is one too many
}

var inflaters = sync.Pool{New: func() any { return &inflater{flate: flate.NewReader(new(source))} }}

func (f *inflater) release() {
	f.source = source{}
	inflaters.Put(f)
}

// inflate reads to the end of a DEFLATE stream, of which dst may have most bytes.
func (f *inflater) inflate(dst []byte, most int) ([]byte, error) {
	for {
		full := len(dst) == most
		if len(dst) == cap(dst) && !full {
			dst = append(make([]byte, 0, min(max(2*cap(dst), firstRoom), most)), dst...)
		}
		room := dst[len(dst):min(cap(dst), most)]
		if full {
			room = f.beyond[:]
		}
		n, err := f.flate.Read(room)
		switch {
		case full && n > 0:
			return nil, ErrTooBig
		case errors.Is(err, io.EOF):
			return dst[:len(dst)+n], nil
		case err != nil:
			return nil, ErrCorrupt
		}
		dst = dst[:len(dst)+n]
	}
}

// source is a message as the reader of DEFLATE wants it: a byte at a time, so
// that it takes none too many.
type source struct {
	payload []byte
	end     string
}

func (s *source) empty() bool { return len(s.payload)+len(s.end) == 0 }

// ReadByte implements io.ByteReader.
func (s *source) ReadByte() (byte, error) {
	var b byte
	switch {
	case len(s.payload) > 0:
		b, s.payload = s.payload[0], s.payload[1:]
	case len(s.end) > 0:
		b, s.end = s.end[0], s.end[1:]
	default:
		return 0, io.EOF
	}
	return b, nil
}

// Read implements io.Reader.
func (s *source) Read(p []byte) (int, error) {
	n := copy(p, s.payload)
	s.payload = s.payload[n:]
	m := copy(p[n:], s.end)
	s.end = s.end[m:]
	if n+m == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return n + m, nil
}
