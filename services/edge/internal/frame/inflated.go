package frame

import (
	"errors"
	"unicode/utf8"

	"github.com/cutemarkets/relay/services/edge/internal/deflate"
)

// maxCompressed is the most bytes of a compressed message that are inflated. The
// longest list of topics that a socket may have, 1,000 contracts, needs 6 KiB; a
// byte of a hostile message takes up to 0.2 µs (BenchmarkHostile in deflate).
const maxCompressed = 16 << 10

// Inflated returns the text of a Text event. That of a compressed one is
// inflated into *scratch, which grows to limit bytes at most and is the caller's
// to use again; it is valid as long as that is left alone. The error is an
// *Error: the text is longer than limit bytes, or than 16 KiB before it is
// inflated; it is no UTF-8; it cannot be inflated.
func Inflated(event Event, limit int, scratch *[]byte) ([]byte, error) {
	if !event.Compressed {
		return event.Payload, nil
	}
	if len(event.Payload) > maxCompressed {
		return nil, errTooBig
	}
	text, err := deflate.Inflate((*scratch)[:0], event.Payload, limit)
	switch {
	case errors.Is(err, deflate.ErrTooBig):
		return nil, errTooBig
	case err != nil:
		return nil, errDeflate
	}
	*scratch = text
	if !utf8.Valid(text) {
		return nil, errText
	}
	return text, nil
}
