package frame

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"unsafe"

	"pgregory.net/rapid"

	"github.com/cutemarkets/relay/services/edge/internal/deflate"
	"github.com/cutemarkets/relay/services/edge/internal/dialect"
)

// hello is "Hello" compressed (RFC 7692 §7.2.3.1).
const hello = "\xf2\x48\xcd\xc9\xc9\x07\x00"

// feedDeflate is feed where compression was negotiated.
func feedDeflate(stream []byte, chunks ...int) string {
	p := NewParser(testMax)
	p.AcceptDeflate()
	return feedTo(&p, stream, chunks...)
}

func compressed(text string) string { return string(deflate.Append(nil, []byte(text))) }

// deflateRows is what RFC 7692 asks of a server, by its sections.
func deflateRows() []row {
	most := strings.Repeat("a", testMax)
	all := []row{
		// §6: the bit is the first frame's.
		{"one frame", client(0xc1, hello), "text(Hello) "},
		{"not compressed", client(0x81, "plain"), "text(plain) "},
		{"in turn", join(client(0xc1, hello), client(0x81, "plain"), client(0xc1, hello)), "text(Hello) text(plain) text(Hello) "},
		{"two frames", join(client(0x41, hello[:3]), client(0x80, hello[3:])), "text(Hello) "},
		{"a frame per byte", join(client(0x41, hello[:1]), client(0x00, hello[1:2]), client(0x00, ""), client(0x00, hello[2:6]), client(0x80, hello[6:])), "text(Hello) "},
		{"ping inside", join(client(0x41, hello[:3]), client(0x89, "p"), client(0x80, hello[3:])), "ping(p) text(Hello) "},
		{"plain in two behind compressed", join(client(0xc1, hello), client(0x01, "pla"), client(0x80, "in")), "text(Hello) text(plain) "},
		{"bit on the second frame too", join(client(0x41, hello[:3]), client(0xc0, hello[3:])), "protocol_error "},
		{"bit on the second frame alone", join(client(0x01, hello[:3]), client(0xc0, hello[3:])), "protocol_error "},
		{"continuation first", client(0xc0, hello), "protocol_error "},
		{"message inside", join(client(0x41, hello[:3]), client(0xc1, hello)), "protocol_error "},
		{"plain message inside", join(client(0x41, hello[:3]), client(0x81, "plain")), "protocol_error "},
		{"ping", client(0xc9, hello), "protocol_error "},
		{"pong", client(0xca, hello), "protocol_error "},
		{"close", client(0xc8, hello), "protocol_error "},
		{"reserved opcode", client(0xc3, hello), "protocol_error "},
		{"binary", client(0xc2, hello), "unsupported_data "},
		{"binary in two", client(0x42, hello), "unsupported_data "},
		// §7.2.2 and §7.2.3: what is in it.
		{"two blocks", client(0xc1, "\xf2\x48\x05\x00\x00\x00\xff\xff\xca\xc9\xc9\x07\x00"), "text(Hello) "},
		{"last block", client(0xc1, "\xf3\x48\xcd\xc9\xc9\x07\x00\x00"), "text(Hello) "},
		{"stored", client(0xc1, "\x00\x05\x00\xfa\xffHello\x00"), "text(Hello) "},
		{"empty", client(0xc1, "\x00"), "text() "},
		{"nothing", client(0xc1, ""), "protocol_error "},
		{"garbage", client(0xc1, `{"action":"subscribe"}`), "protocol_error "},
		{"refers to the message before", join(client(0xc1, hello), client(0xc1, "\xf2\x00\x11\x00\x00")), "text(Hello) protocol_error "},
		// The rules of a text are those of what comes out.
		{"UTF-8", client(0xc1, compressed("κόσμε")), "text(κόσμε) "},
		{"not UTF-8", client(0xc1, compressed("κόσμε\xed\xa0\x80")), "invalid_utf8 "},
		{"too big", client(0xc1, compressed(most+"a")), "message_too_big "},
		{"too big in two", join(client(0x41, compressed(most + "a")[:9]), client(0x80, compressed(most + "a")[9:])), "message_too_big "},
		{"as big as may be", client(0xc1, compressed(most)), "text(" + most + ") "},
		{"bomb", client(0xc1, compressed(strings.Repeat("0", 4<<20))), "message_too_big "},
		{"too big before it is inflated", client(0xc1, most+"a"), "message_too_big "},
		{"seventeen frames", join(client(0x41, "\x00"), bytes.Repeat(client(0x00, ""), 15), client(0x80, "")), "too_many_fragments "},
	}
	for bits := byte(1); bits < 8; bits++ {
		if bits != 4 { // RSV1 alone
			all = append(all, row{"reserved bits", client(0x81|bits<<4, hello), "protocol_error "})
		}
	}
	return all
}

func TestParserFollowsTheRFCOfDeflate(t *testing.T) {
	t.Parallel()
	follow(t, append(deflateRows(), rows()...), feedDeflate) // what is not compressed is as without
}

func TestCompressedIsAViolationUnlessNegotiated(t *testing.T) {
	t.Parallel()
	for _, first := range []byte{0xc1, 0x41, 0xc2, 0xc9, 0xc0} {
		if got := feed(join(client(0x81, "a"), client(first, hello))); got != "text(a) protocol_error " {
			t.Errorf("%x: %s", first, got)
		}
	}
}

func TestSplittingCompressedChangesNothing(t *testing.T) {
	t.Parallel()
	all := append(deflateRows(), rows()...)
	rapid.Check(t, func(t *rapid.T) {
		var stream []byte
		for _, i := range rapid.SliceOfN(rapid.IntRange(0, len(all)-1), 1, 6).Draw(t, "rows") {
			stream = append(stream, all[i].stream...)
		}
		if len(stream) > 0 && rapid.Bool().Draw(t, "flip") {
			stream[rapid.IntRange(0, len(stream)-1).Draw(t, "at")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		}
		chunks := rapid.SliceOfN(rapid.IntRange(1, 200), 0, 400).Draw(t, "chunks")
		if whole, split := feedDeflate(stream), feedDeflate(stream, chunks...); whole != split {
			t.Fatalf("whole %.300q, split %.300q", whole, split)
		}
	})
}

// TestInflatedUsesTheScratch holds what may grow, and to what.
func TestInflatedUsesTheScratch(t *testing.T) {
	t.Parallel()
	scratch := make([]byte, 0, 64)
	plain := []byte("plain")
	text, err := Inflated(Event{Kind: Text, Payload: plain}, 10, &scratch)
	if err != nil || &text[0] != &plain[0] {
		t.Errorf("plain: %q, error %v; want the payload itself", text, err)
	}
	text, err = Inflated(Event{Kind: Text, Compressed: true, Payload: []byte(hello)}, 10, &scratch)
	if err != nil || string(text) != "Hello" || &text[0] != &scratch[0] || cap(scratch) != 64 {
		t.Errorf("%q, error %v; want it in the scratch", text, err)
	}
	long := strings.Repeat("a", 1000)
	text, err = Inflated(Event{Kind: Text, Compressed: true, Payload: []byte(compressed(long))}, 1000, &scratch)
	if err != nil || string(text) != long || cap(scratch) != 1000 {
		t.Errorf("%d bytes, error %v, room for %d", len(text), err, cap(scratch))
	}
}

// TestInflatedTakesNoMore holds the bound of what is inflated at all.
func TestInflatedTakesNoMore(t *testing.T) {
	t.Parallel()
	var scratch []byte
	empty := append(bytes.Repeat([]byte("\x00\x00\x00\xff\xff"), maxCompressed/5), '\x00') // blocks of nothing
	if text, err := Inflated(Event{Kind: Text, Compressed: true, Payload: empty}, 100, &scratch); err != nil || len(text) != 0 {
		t.Errorf("%q, error %v", text, err)
	}
	var violation *Error
	if _, err := Inflated(Event{Kind: Text, Compressed: true, Payload: make([]byte, maxCompressed+1)}, 64<<10, &scratch); !errors.As(err, &violation) || violation.Reason != dialect.MessageTooBig {
		t.Errorf("error %v", err)
	}
}

// TestParserIsNoLarger holds what an idle connection pays for parsing.
func TestParserIsNoLarger(t *testing.T) {
	t.Parallel()
	if n := unsafe.Sizeof(Parser{}); n > 88 {
		t.Fatalf("%d bytes", n)
	}
}
