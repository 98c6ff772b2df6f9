package wire

import (
	"bytes"
	"compress/flate"
	"io"
)

// tail ends a compressed message: what RFC 7692 takes off it, and an empty last
// block, so that its reader comes to an end.
const tail = "\x00\x00\xff\xff\x01\x00\x00\xff\xff"

// Inflater inflates messages, each by itself, into one buffer. It is not safe
// for concurrent use. A message costs the allocations of compress/flate.
type Inflater struct {
	in     bytes.Reader
	joined []byte
	flate  io.ReadCloser
	out    []byte
}

// Inflate returns the message, valid until the next call. Its fault is Inflate,
// or MessageTooBig for more than most bytes.
func (i *Inflater) Inflate(payload []byte, most int) ([]byte, Fault) {
	i.joined = append(append(i.joined[:0], payload...), tail...)
	i.in.Reset(i.joined)
	if i.flate == nil {
		i.flate = flate.NewReader(&i.in)
	} else if err := i.flate.(flate.Resetter).Reset(&i.in, nil); err != nil {
		return nil, Inflate
	}
	i.out = i.out[:0]
	for {
		if len(i.out) == cap(i.out) {
			i.out = append(i.out, make([]byte, max(len(i.out), 4<<10))...)[:len(i.out)]
		}
		n, err := i.flate.Read(i.out[len(i.out):cap(i.out)])
		i.out = i.out[:len(i.out)+n]
		switch {
		case len(i.out) > most:
			return nil, MessageTooBig
		case err == io.EOF:
			return i.out, ""
		case err != nil:
			return nil, Inflate
		}
	}
}
