package frame

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/gobwas/ws"
	"pgregory.net/rapid"

	"github.com/cutemarkets/relay/services/edge/internal/dialect"
)

// judgement is what gobwas, and we beyond it, hold of a stream up to the first
// frame that either refuses.
type judgement struct {
	found    string           // messages and control frames ahead of it, as feed writes them
	refused  error            // why gobwas refuses it; nil: it does not
	stricter []dialect.Reason // why we do, whatever gobwas says
}

// stricter are the rules that we have and the frame reader of gobwas has not. It
// is the list of all differences, with the one below.
var stricter = []struct {
	rule   string
	reason dialect.Reason
	breaks func(f *reference) bool
}{
	{"a length has its minimal form (RFC 6455 §5.2)", dialect.ProtocolError, func(f *reference) bool {
		return f.lengthKnown && (f.form == 126 && f.header.Length <= 125 || f.form == 127 && f.header.Length <= 0xffff)
	}},
	{"messages are text (1003)", dialect.UnsupportedData, func(f *reference) bool { return f.header.OpCode == ws.OpBinary }},
	{"a message has at most 16 frames (1008)", dialect.TooManyFragments, func(f *reference) bool {
		return !f.header.OpCode.IsControl() && f.fragments > MaxFragments
	}},
	{"a message has a largest size (1009)", dialect.MessageTooBig, func(f *reference) bool {
		return f.lengthKnown && !f.header.OpCode.IsControl() && f.header.Length > int64(testMax-len(f.message))
	}},
	{"a text is UTF-8 (RFC 6455 §8.1)", dialect.InvalidUTF8, func(f *reference) bool {
		return f.whole && f.header.Fin && !f.header.OpCode.IsControl() && !utf8.Valid(slices.Concat(f.message, f.payload))
	}},
	{"a close code is below 5000 (RFC 6455 §7.4.2)", dialect.ProtocolError, func(f *reference) bool {
		return f.whole && f.header.OpCode == ws.OpClose && len(f.payload) >= 2 && binary.BigEndian.Uint16(f.payload) >= 5000
	}},
}

// registered are the close codes that gobwas refuses and we take: they came into
// the registry after the RFC.
func registered(code ws.StatusCode) bool { return code >= 1012 && code <= 1014 }

// reference reads frames with the parts of gobwas.
type reference struct {
	rest      []byte
	message   []byte // of the fragments before this frame
	fragments int    // frames of the message, this one included

	// The frame.
	header      ws.Header
	form        byte // of the length: 126 and 127 stand for the longer ones
	lengthKnown bool
	whole       bool // the payload is there
	payload     []byte
}

// judge reads a stream.
func judge(stream []byte) judgement {
	var found strings.Builder
	f := reference{rest: bytes.Clone(stream)}
	for {
		more, refused := f.next()
		j := judgement{found: found.String(), refused: refused}
		if more {
			for _, rule := range stricter {
				if rule.breaks(&f) {
					j.stricter = append(j.stricter, rule.reason)
				}
			}
		}
		if refused != nil || len(j.stricter) > 0 || !f.whole {
			return j
		}
		switch f.header.OpCode {
		case ws.OpPing:
			fmt.Fprintf(&found, "ping(%s) ", f.payload)
		case ws.OpPong:
			fmt.Fprintf(&found, "pong(%s) ", f.payload)
		case ws.OpClose:
			code := uint16(NoStatus)
			if len(f.payload) >= 2 {
				code, f.payload = binary.BigEndian.Uint16(f.payload), f.payload[2:]
			}
			fmt.Fprintf(&found, "close(%d,%s) ", code, f.payload)
			return judgement{found: found.String()}
		default:
			f.message = append(f.message, f.payload...)
			if f.header.Fin {
				fmt.Fprintf(&found, "text(%s) ", f.message)
				f.message, f.fragments = nil, 0
			}
		}
	}
}

// next reads one frame, as much of it as there is, and has gobwas check it. more
// is false when there is not enough to check anything.
func (f *reference) next() (more bool, refused error) {
	f.whole, f.payload, f.lengthKnown = false, nil, false
	if len(f.rest) < 2 {
		return false, nil
	}
	f.form = f.rest[1] & 0x7f
	in := bytes.NewReader(f.completed())
	var err error
	if f.header, err = ws.ReadHeader(in); err != nil {
		return true, err
	}
	state := ws.StateServerSide
	if f.fragments > 0 {
		state = state.Set(ws.StateFragmented)
	}
	if err := ws.CheckHeader(f.header, state); err != nil {
		return true, err
	}
	if !f.header.OpCode.IsControl() {
		f.fragments++
	}
	size := ws.HeaderSize(f.header)
	if len(f.rest) < size || f.header.Length > int64(len(f.rest)-size) {
		return true, nil
	}
	f.payload, f.rest = f.rest[size:size+int(f.header.Length)], f.rest[size+int(f.header.Length):]
	ws.Cipher(f.payload, f.header.Mask, 0)
	f.whole = true
	if f.header.OpCode == ws.OpClose && len(f.payload) > 0 {
		code, reason := ws.ParseCloseFrameData(f.payload)
		switch {
		case !registered(code):
			return true, ws.CheckCloseFrameData(code, reason)
		case !utf8.ValidString(reason):
			return true, ws.ErrProtocolInvalidUTF8
		}
	}
	return true, nil
}

// completed is the header with what is not there yet: the least length that its
// form may have, and a mask. gobwas checks a header when it has all of it, and we
// check what is there.
func (f *reference) completed() []byte {
	header := bytes.Clone(f.rest[:min(len(f.rest), ws.MaxHeaderSize)])
	least := map[byte][]byte{126: {0, 126}, 127: {0, 0, 0, 0, 0, 1, 0, 0}}[f.form]
	if f.lengthKnown = len(header) >= 2+len(least); !f.lengthKnown {
		header = append(header[:2], least...)
	}
	return append(header, make([]byte, ws.MaxHeaderSize)...)
}

// agree compares what the parser finds in a stream, divided into chunks, with the
// judgement of it.
func agree(stream []byte, chunks ...int) error {
	j := judge(stream)
	got := feed(stream, chunks...)
	ending, found := strings.CutPrefix(got, j.found)
	if !found {
		return fmt.Errorf("found %.300q, want %.300q at first", got, j.found)
	}
	var want []string
	switch {
	case j.refused == ws.ErrProtocolInvalidUTF8: //nolint:errorlint // gobwas compares so
		want = append(want, dialect.InvalidUTF8.String()+" ")
	case j.refused != nil:
		want = append(want, dialect.ProtocolError.String()+" ")
	case len(j.stricter) == 0:
		want = append(want, "")
	}
	for _, reason := range j.stricter {
		want = append(want, reason.String()+" ")
	}
	if !slices.Contains(want, ending) {
		return fmt.Errorf("after %.300q: %.300q, want one of %q (gobwas: %s)", j.found, ending, want, fmt.Sprint(j.refused))
	}
	return nil
}

// cutBy gives the sizes of chunks for a stream: cuts over and over, each one more
// than it says; none: the whole at once.
func cutBy(stream, cuts []byte) []int {
	if len(cuts) == 0 {
		return nil
	}
	var chunks []int
	for left := len(stream); left > 0; left -= chunks[len(chunks)-1] {
		chunks = append(chunks, int(cuts[len(chunks)%len(cuts)])+1)
	}
	return chunks
}

// differences are streams on which we and gobwas differ, one for each rule.
func differences() []row {
	return []row{
		{"length not minimal", declared(0x81, 126, 5, "hello"), "protocol_error "},
		{"binary", client(0x82, "a"), "unsupported_data "},
		{"seventeen frames", join(client(0x01, "a"), bytes.Repeat(client(0x00, ""), 15), client(0x80, "b")), "too_many_fragments "},
		{"too big", declared(0x81, 126, testMax+1, ""), "message_too_big "},
		{"not UTF-8", client(0x81, "\xff"), "invalid_utf8 "},
		{"close code 5000", closing(5000, ""), "protocol_error "},
	}
}

// borders are streams at the border of a rule, on either side of it.
func borders() [][]byte {
	begun := client(0x01, "0123456789")
	return [][]byte{
		declared(0x81, 126, 125, ""), declared(0x81, 126, 126, ""), declared(0x81, 127, 0xffff, ""), declared(0x81, 127, 0x10000, ""),
		declared(0x81, 126, testMax, ""), declared(0x81, 126, testMax+1, ""), declared(0x81, 127, 1<<63-1, ""), declared(0x81, 127, 1<<63, ""),
		join(begun, declared(0x80, 126, testMax-10, "")), join(begun, declared(0x80, 126, testMax-9, "")),
		join(begun, bytes.Repeat(client(0x00, ""), 15)), join(begun, bytes.Repeat(client(0x00, ""), 16)),
		{0x81, 0}, {0x89, 0}, {0x88, 0}, {0x81, 0x7e, 0}, {0x89, 0xfe}, {0x89, 0xfd}, {0x82}, {0x82, 0xff},
		join(begun, client(0x80, "a"), client(0x01, "b"), client(0x80, "c"), client(0x81, "d")),
	}
}

// TestEachDifferenceFromGobwasIsReal shows that no rule of the list is idle.
func TestEachDifferenceFromGobwasIsReal(t *testing.T) {
	t.Parallel()
	rows := differences()
	if len(rows) != len(stricter) {
		t.Fatalf("%d streams for %d rules", len(rows), len(stricter))
	}
	for i, r := range rows {
		j := judge(r.stream)
		if j.refused != nil || !slices.Equal(j.stricter, []dialect.Reason{stricter[i].reason}) {
			t.Errorf("%s: gobwas says %v, we %v", r.name, j.refused, j.stricter)
		}
		if got := feed(r.stream); got != r.want {
			t.Errorf("%s: got %q, want %q", r.name, got, r.want)
		}
	}
	for code := ws.StatusCode(1012); code <= 1014; code++ {
		if ws.CheckCloseFrameData(code, "") == nil {
			t.Errorf("gobwas takes %d by now", code)
		}
		if got, want := feed(closing(uint16(code), "")), fmt.Sprintf("close(%d,) ", code); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// TestAnyStreamIsJudgedAsByGobwas makes streams of frames in which most of the
// fields are right, and flips bits of some.
func TestAnyStreamIsJudgedAsByGobwas(t *testing.T) {
	t.Parallel()
	first := rapid.OneOf(rapid.SampledFrom([]byte{0x81, 0x01, 0x00, 0x80, 0x89, 0x8a}), rapid.SampledFrom([]byte{0x81, 0x01, 0x00, 0x80, 0x88, 0x82}), rapid.Byte())
	payload := rapid.OneOf(
		rapid.Map(rapid.String(), func(s string) []byte { return []byte(s) }),
		rapid.SliceOfN(rapid.Byte(), 0, 300),
		rapid.Map(rapid.IntRange(0, 3*testMax/2), func(n int) []byte { return bytes.Repeat([]byte("x"), n) }),
		rapid.Map(rapid.IntRange(990, 5010), func(code int) []byte { return binary.BigEndian.AppendUint16(nil, uint16(code)) }),
	)
	rapid.Check(t, func(t *rapid.T) {
		var stream []byte
		for range rapid.IntRange(1, 20).Draw(t, "frames") {
			f := client(first.Draw(t, "first"), string(payload.Draw(t, "payload")))
			if rapid.IntRange(0, 9).Draw(t, "flip") == 0 {
				f[rapid.IntRange(0, min(len(f), ws.MaxHeaderSize)-1).Draw(t, "at")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
			}
			stream = append(stream, f...)
		}
		stream = stream[:rapid.IntRange(0, len(stream)).Draw(t, "length")]
		cuts := rapid.SliceOfN(rapid.Byte(), 0, 20).Draw(t, "cuts")
		if err := agree(stream, cutBy(stream, cuts)...); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzParserAgainstGobwas takes any octets, divided in any way.
func FuzzParserAgainstGobwas(f *testing.F) {
	for _, r := range slices.Concat(rows(), differences()) {
		if len(r.stream) < 300 {
			f.Add(r.stream, []byte{})
			f.Add(r.stream, []byte{0})
			f.Add(r.stream[:len(r.stream)-1], []byte{2, 0, 6})
		}
	}
	for _, stream := range borders() {
		f.Add(stream, []byte{})
		f.Add(stream, []byte{0})
	}
	f.Fuzz(func(t *testing.T, stream, cuts []byte) {
		if err := agree(stream, cutBy(stream, cuts)...); err != nil {
			t.Fatal(err)
		}
	})
}
