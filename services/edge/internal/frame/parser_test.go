package frame

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/gobwas/ws"
	"github.com/gobwas/ws/wsutil"
	"pgregory.net/rapid"

	"github.com/cutemarkets/relay/services/edge/internal/dialect"
)

const testMax = 16 << 10

// client builds a masked frame.
func client(first byte, payload string) []byte {
	b := []byte{first}
	switch n := len(payload); {
	case n <= 125:
		b = append(b, 0x80|byte(n))
	case n <= 0xffff:
		b = binary.BigEndian.AppendUint16(append(b, 0x80|126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 0x80|127), uint64(n))
	}
	mask := [4]byte{0x11, 0xf2, 0x73, 0xe4}
	b = append(b, mask[:]...)
	body := []byte(payload)
	ws.Cipher(body, mask, 0)
	return append(b, body...)
}

// declared builds a header whose length stands in the given form.
func declared(first byte, form byte, length uint64, payload string) []byte {
	b := []byte{first, 0x80 | form}
	switch form {
	case 126:
		b = binary.BigEndian.AppendUint16(b, uint16(length))
	case 127:
		b = binary.BigEndian.AppendUint64(b, length)
	}
	return append(append(b, 0, 0, 0, 0), payload...)
}

func closing(code uint16, text string) []byte {
	return client(0x88, string(binary.BigEndian.AppendUint16(nil, code))+text)
}

func join(frames ...[]byte) []byte { return bytes.Join(frames, nil) }

// feed gives chunks of the stream to a new parser and writes down what it finds.
func feed(stream []byte, chunks ...int) string {
	p := NewParser(testMax)
	return feedTo(&p, stream, chunks...)
}

func feedTo(p *Parser, stream []byte, chunks ...int) string {
	var found strings.Builder
	var scratch []byte
	stream = bytes.Clone(stream)
	for len(stream) > 0 {
		n := len(stream)
		if len(chunks) > 0 {
			n, chunks = min(n, chunks[0]), chunks[1:]
		}
		in := stream[:n:n]
		stream = stream[n:]
		for {
			event, rest, err := p.Next(in)
			if err == nil && event.Kind == Text {
				event.Payload, err = Inflated(event, testMax, &scratch)
			}
			if err != nil {
				var violation *Error
				if !errors.As(err, &violation) {
					panic(err)
				}
				fmt.Fprintf(&found, "%s ", violation.Reason)
				return found.String()
			}
			if event.Kind == None {
				break
			}
			in = rest
			switch event.Kind {
			case Close:
				fmt.Fprintf(&found, "close(%d,%s) ", event.Code, event.Payload)
			default:
				fmt.Fprintf(&found, "%s(%s) ", [...]string{Text: "text", Ping: "ping", Pong: "pong"}[event.Kind], event.Payload)
			}
		}
	}
	return found.String()
}

type row struct {
	name   string
	stream []byte
	want   string
}

// rows is what RFC 6455 asks of a server, by its sections.
func rows() []row {
	long := strings.Repeat("*", 125)
	all := []row{
		// Framing, §5.2: each form of the length.
		{"text empty", client(0x81, ""), "text() "},
		{"text unmasked", []byte{0x81, 0x01, 'a'}, "protocol_error "},
		{"two messages", join(client(0x81, "a"), client(0x81, "b")), "text(a) text(b) "},
		{"binary", client(0x82, "a"), "unsupported_data "},
		{"binary fragment", client(0x02, "a"), "unsupported_data "},
		{"length of 16 bits, not minimal", declared(0x81, 126, 5, "hello"), "protocol_error "},
		{"length of 64 bits, not minimal", declared(0x81, 127, 5, "hello"), "protocol_error "},
		{"length 65535 in 64 bits", declared(0x81, 127, 0xffff, ""), "protocol_error "},
		{"length bit 63", declared(0x81, 127, 1<<63, ""), "protocol_error "},
		{"length 2^63-1", declared(0x81, 127, 1<<63-1, ""), "message_too_big "},
		{"one byte too big", declared(0x81, 126, testMax+1, ""), "message_too_big "},
		{"too big over fragments", join(client(0x01, strings.Repeat("a", testMax)), client(0x80, "a")), "message_too_big "},
		// Ping and pong, §5.5.
		{"ping empty", client(0x89, ""), "ping() "},
		{"ping", client(0x89, "Hello"), "ping(Hello) "},
		{"ping with bytes", client(0x89, "\x00\xff\xfe"), "ping(\x00\xff\xfe) "},
		{"ping of 125", client(0x89, long), "ping(" + long + ") "},
		{"ping of 126", client(0x89, long+"*"), "protocol_error "},
		{"pong unsolicited", client(0x8a, ""), "pong() "},
		{"pong then ping", join(client(0x8a, "u"), client(0x89, "p")), "pong(u) ping(p) "},
		{"ten pings", bytes.Repeat(client(0x89, "p"), 10), strings.Repeat("ping(p) ", 10)},
		// Fragmentation, §5.4.
		{"ping fragmented", join(client(0x09, "a"), client(0x80, "b")), "protocol_error "},
		{"pong fragmented", join(client(0x0a, "a"), client(0x80, "b")), "protocol_error "},
		{"close fragmented", client(0x08, ""), "protocol_error "},
		{"text in two", join(client(0x01, "frag"), client(0x80, "ment")), "text(fragment) "},
		{"ping inside", join(client(0x01, "frag"), client(0x89, "p"), client(0x80, "ment")), "ping(p) text(fragment) "},
		{"ping inside, long", join(client(0x01, long), client(0x89, long), client(0x80, long)), "ping(" + long + ") text(" + long + long + ") "},
		{"empty fragments", join(client(0x01, ""), client(0x00, ""), client(0x80, "")), "text() "},
		{"empty around", join(client(0x01, ""), client(0x00, "mid"), client(0x80, "")), "text(mid) "},
		{"continuation first", client(0x80, "a"), "protocol_error "},
		{"continuation first, not final", client(0x00, "a"), "protocol_error "},
		{"continuation after a message", join(client(0x81, "a"), client(0x80, "b")), "text(a) protocol_error "},
		{"text inside", join(client(0x01, "a"), client(0x81, "b")), "protocol_error "},
		{"binary inside", join(client(0x01, "a"), client(0x82, "b")), "protocol_error "},
		{"sixteen frames", join(client(0x01, "a"), bytes.Repeat(client(0x00, ""), 14), client(0x80, "b")), "text(ab) "},
		{"seventeen frames", join(client(0x01, "a"), bytes.Repeat(client(0x00, ""), 15), client(0x80, "b")), "too_many_fragments "},
		{"fragmented, then whole, then fragmented", join(client(0x01, "a"), client(0x80, "b"), client(0x81, "c"), client(0x01, "d"), client(0x89, "p"), client(0x80, "e")), "text(ab) text(c) ping(p) text(de) "},
		// Close, §5.5.1 and §7.
		{"close empty", client(0x88, ""), "close(1005,) "},
		{"close of one byte", client(0x88, "a"), "protocol_error "},
		{"close with reason", closing(1000, "bye"), "close(1000,bye) "},
		{"close with the longest reason", closing(1000, strings.Repeat("*", 123)), "close(1000," + strings.Repeat("*", 123) + ") "},
		{"close too long", closing(1000, strings.Repeat("*", 124)), "protocol_error "},
		{"close with bad reason", closing(1000, "\xce\xba\xed\xa0\x80"), "invalid_utf8 "},
		{"ping after close", join(closing(1000, ""), client(0x89, "p")), "close(1000,) "},
		{"garbage after close", join(closing(1000, ""), []byte{0xff, 0xff, 0xff}), "close(1000,) "},
		{"close inside a message", join(client(0x01, "a"), closing(1001, ""), client(0x80, "b")), "close(1001,) "},
		// A message of sizable frames, §10.
		{"large message in pieces", join(client(0x01, strings.Repeat("a", 8<<10)), client(0x80, strings.Repeat("b", 8<<10))),
			"text(" + strings.Repeat("a", 8<<10) + strings.Repeat("b", 8<<10) + ") "},
	}
	for _, n := range []int{124, 125, 126, 127, 128, 254, 255, 256, 4096, testMax} {
		body := strings.Repeat("x", n)
		all = append(all, row{fmt.Sprintf("text of %d", n), client(0x81, body), "text(" + body + ") "})
	}
	for bits := 1; bits < 8; bits++ { // reserved bits, §5.2
		for _, first := range []byte{0x81, 0x89, 0x88} {
			all = append(all, row{fmt.Sprintf("reserved bits %d of %x", bits, first), join(client(0x81, "a"), client(first|byte(bits<<4), "")), "text(a) protocol_error "})
		}
	}
	for _, opcode := range []byte{3, 4, 5, 6, 7, 11, 12, 13, 14, 15} { // reserved opcodes, §5.2
		all = append(all, row{fmt.Sprintf("opcode %d", opcode), client(0x80|opcode, ""), "protocol_error "})
		all = append(all, row{fmt.Sprintf("opcode %d after text", opcode), join(client(0x81, "a"), client(0x80|opcode, "b")), "text(a) protocol_error "})
	}
	for code, want := range map[uint16]bool{ // §7.4
		0: false, 999: false, 1000: true, 1001: true, 1002: true, 1003: true, 1004: false, 1005: false, 1006: false,
		1007: true, 1008: true, 1009: true, 1010: true, 1011: true, 1012: true, 1013: true, 1014: true, 1015: false,
		1016: false, 1100: false, 2000: false, 2999: false, 3000: true, 3999: true, 4000: true, 4999: true, 5000: false, 65535: false,
	} {
		text := "protocol_error "
		if want {
			text = fmt.Sprintf("close(%d,x) ", code)
		}
		all = append(all, row{fmt.Sprintf("close code %d", code), closing(code, "x"), text})
	}
	for text, valid := range utf8Rows() {
		want := "invalid_utf8 "
		if valid {
			want = "text(" + text + ") "
		}
		all = append(all, row{fmt.Sprintf("text %q", text), client(0x81, text), want})
		var split []byte
		for i := range len(text) - 1 {
			first := byte(0x00)
			if i == 0 {
				first = 0x01
			}
			split = append(split, client(first, text[i:i+1])...)
		}
		if len(text) > 1 && len(text) <= MaxFragments {
			all = append(all, row{fmt.Sprintf("text %q, one byte a frame", text), append(split, client(0x80, text[len(text)-1:])...), want})
		}
	}
	return all
}

// utf8Rows are the borders of RFC 3629: of each length, of the surrogates and
// of the range, and the shapes of broken sequences.
func utf8Rows() map[string]bool {
	return map[string]bool{
		"κόσμε": true, "Hello-µ@ßöäüàá": true, "\x00": true, "\x7f": true,
		"\u0080": true, "\u07ff": true, "\u0800": true, "\ud7ff": true, "\ue000": true, "\ufffd": true, "\ufffe": true, "\uffff": true,
		"\U00010000": true, "\U0001ffff": true, "\U0010ffff": true, "\U0010fffe": true, "\ufeff": true,
		"\x80": false, "\xbf": false, "\x80\xbf": false, "\xc0\x20": false, "\xc2": false, "\xdf": false,
		"\xe0\x80": false, "\xe0\xa0": false, "\xef\xbf": false, "\xf0\x90\x80": false, "\xf4\x8f\xbf": false,
		"\xf8\x88\x80\x80\x80": false, "\xfc\x84\x80\x80\x80\x80": false, "\xfe": false, "\xff": false, "\xfe\xfe\xff\xff": false,
		"\xc0\xaf": false, "\xe0\x80\xaf": false, "\xf0\x80\x80\xaf": false, "\xc1\xbf": false, "\xe0\x9f\xbf": false, "\xf0\x8f\xbf\xbf": false,
		"\xc0\x80": false, "\xed\xa0\x80": false, "\xed\xad\xbf": false, "\xed\xae\x80": false, "\xed\xbf\xbf": false,
		"\xed\xa0\x80\xed\xb0\x80": false, "\xf4\x90\x80\x80": false, "\xf5\x80\x80\x80": false,
		"κόσμε\xed\xa0\x80edited": false, "κόσμε\xf4\x90\x80\x80": false,
	}
}

func TestParserFollowsTheRFC(t *testing.T) {
	t.Parallel()
	follow(t, rows(), feed)
}

// follow feeds each row to a parser at once, and byte by byte.
func follow(t *testing.T, rows []row, feed func(stream []byte, sizes ...int) string) {
	t.Helper()
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			if got := feed(r.stream); got != r.want {
				t.Errorf("at once: got %.200q, want %.200q", got, r.want)
			}
			ones := make([]int, len(r.stream))
			for i := range ones {
				ones[i] = 1
			}
			if got := feed(r.stream, ones...); got != r.want {
				t.Errorf("byte by byte: got %.200q, want %.200q", got, r.want)
			}
		})
	}
}

func TestSplittingTheStreamChangesNothing(t *testing.T) {
	t.Parallel()
	all := rows()
	rapid.Check(t, func(t *rapid.T) {
		var stream []byte
		for _, i := range rapid.SliceOfN(rapid.IntRange(0, len(all)-1), 1, 6).Draw(t, "rows") {
			stream = append(stream, all[i].stream...)
		}
		if len(stream) > 0 && rapid.Bool().Draw(t, "flip") {
			stream[rapid.IntRange(0, len(stream)-1).Draw(t, "at")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		}
		chunks := rapid.SliceOfN(rapid.IntRange(1, 200), 0, 400).Draw(t, "chunks")
		if whole, split := feed(stream), feed(stream, chunks...); whole != split {
			t.Fatalf("whole %.300q, split %.300q", whole, split)
		}
	})
}

// TestAgreesWithGobwas compares valid streams with the reader of gobwas/ws.
func TestAgreesWithGobwas(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var stream []byte
		for _, text := range rapid.SliceOfN(rapid.StringN(0, 200, 600), 1, 8).Draw(t, "texts") {
			cuts := rapid.IntRange(1, 5).Draw(t, "frames")
			for i := range cuts {
				first := byte(0x00)
				if i == 0 {
					first = 0x01
				}
				part := text[len(text)*i/cuts : len(text)*(i+1)/cuts]
				if i == cuts-1 {
					first |= 0x80
				}
				stream = append(stream, client(first, part)...)
				if rapid.Bool().Draw(t, "ping") {
					stream = append(stream, client(0x89, "p")...)
				}
			}
		}
		want := readWithGobwas(t, bytes.Clone(stream))
		if got := feed(stream, rapid.SliceOfN(rapid.IntRange(1, 64), 0, 100).Draw(t, "chunks")...); got != want {
			t.Fatalf("got %q, gobwas %q", got, want)
		}
	})
}

func readWithGobwas(t *rapid.T, stream []byte) string {
	var found strings.Builder
	control := func(h ws.Header, r io.Reader) error {
		body, err := io.ReadAll(r)
		fmt.Fprintf(&found, "ping(%s) ", body)
		return err
	}
	r := wsutil.Reader{Source: bytes.NewReader(stream), State: ws.StateServerSide, CheckUTF8: true, OnIntermediate: control}
	for {
		h, err := r.NextFrame()
		if errors.Is(err, io.EOF) {
			return found.String()
		}
		if err != nil {
			t.Fatalf("gobwas: %v", err)
		}
		if h.OpCode.IsControl() {
			if err := control(h, &r); err != nil {
				t.Fatalf("gobwas: %v", err)
			}
			continue
		}
		body, err := io.ReadAll(&r)
		if err != nil {
			t.Fatalf("gobwas: %v", err)
		}
		fmt.Fprintf(&found, "text(%s) ", body)
	}
}

func TestErrorIsFinal(t *testing.T) {
	t.Parallel()
	p := NewParser(testMax)
	want := &Error{}
	if _, _, err := p.Next([]byte{0x81, 0x00}); !errors.As(err, &want) || want.Reason != dialect.ProtocolError {
		t.Fatalf("first: %v", err)
	}
	if _, _, err := p.Next(client(0x81, "a")); !errors.Is(err, want) {
		t.Fatalf("second: %v", err)
	}
}

func TestPendingNamesTheOldestUnfinished(t *testing.T) {
	t.Parallel()
	p := NewParser(testMax)
	steps := []struct {
		in   []byte
		same bool // as before
		zero bool
	}{
		{in: client(0x81, "whole"), zero: true, same: true},
		{in: client(0x81, "cut")[:4]},
		{in: client(0x81, "cut")[4:], zero: true},
		{in: client(0x01, "first")},
		{in: client(0x89, "ping"), same: true},
		{in: client(0x00, "second")[:3], same: true},
		{in: join(client(0x00, "second")[3:], client(0x80, ""), client(0x01, "next"))},
		{in: client(0x80, ""), zero: true},
		{in: join(client(0x88, ""), client(0x01, "x")), zero: true, same: true},
	}
	before := p.Pending()
	for i, s := range steps {
		feedTo(&p, s.in)
		now := p.Pending()
		if (now == before) != s.same || (now == 0) != s.zero {
			t.Errorf("step %d: pending %d after %d", i, now, before)
		}
		before = now
	}
}

func TestIdleParserHoldsNoBuffer(t *testing.T) {
	t.Parallel()
	for _, r := range rows() {
		p := NewParser(testMax)
		feedTo(&p, r.stream, 1, 1, 1, 1, 1, 1, 1)
		if p.Pending() == 0 && p.collected != nil {
			t.Errorf("%s: %d bytes held", r.name, cap(*p.collected))
		}
	}
}

func TestDeclaredLengthAllocatesNothing(t *testing.T) {
	p := NewParser(1 << 40)
	header := declared(0x81, 127, 1<<39, "x")
	if _, _, err := p.Next(header); err != nil {
		t.Fatal(err)
	}
	if c := cap(*p.collected); c > 1<<20 {
		t.Fatalf("%d bytes for one that arrived", c)
	}
}

func TestUnfragmentedMessagesAllocateNothing(t *testing.T) {
	stream := join(client(0x81, strings.Repeat("a", 300)), client(0x89, "ping"), client(0x8a, ""))
	in := make([]byte, len(stream))
	p := NewParser(testMax)
	if n := testing.AllocsPerRun(100, func() {
		rest := in[:copy(in, stream)]
		for {
			event, left, err := p.Next(rest)
			if err != nil {
				t.Fatal(err)
			}
			if event.Kind == None {
				return
			}
			rest = left
		}
	}); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}

func FuzzParser(f *testing.F) {
	for _, r := range rows() {
		if len(r.stream) < 300 {
			f.Add(r.stream, uint8(3), false)
		}
	}
	for _, r := range deflateRows() {
		if len(r.stream) < 300 {
			f.Add(r.stream, uint8(3), true)
		}
	}
	f.Fuzz(func(t *testing.T, stream []byte, size uint8, deflate bool) {
		chunks := make([]int, len(stream))
		for i := range chunks {
			chunks[i] = int(size) + 1
		}
		feed := feed
		if deflate {
			feed = feedDeflate
		}
		if whole, split := feed(stream), feed(stream, chunks...); whole != split {
			t.Fatalf("whole %q, split %q", whole, split)
		}
	})
}

func BenchmarkParser(b *testing.B) {
	stream := client(0x81, `{"action":"subscribe","params":"T.AAPL,Q.AAPL,AM.MSFT"}`)
	in := make([]byte, len(stream))
	p := NewParser(testMax)
	b.SetBytes(int64(len(stream)))
	b.ReportAllocs()
	for b.Loop() {
		if event, _, err := p.Next(in[:copy(in, stream)]); err != nil || event.Kind != Text {
			b.Fatal(err)
		}
	}
}
