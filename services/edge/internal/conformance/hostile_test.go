package conformance

import (
	"bytes"
	"compress/flate"
	"fmt"
	"slices"
	"strings"
)

// hostileRows are what no library sends by itself.
func hostileRows() []row {
	declared := func(first byte, form byte, length string) []byte {
		return masked(append([]byte{first, form}, length...), "")
	}
	fragment := strings.Repeat("*", messageLimit/16)
	rows := []row{
		{name: "frame without mask", section: "5.1", send: frames([]byte("\x81\x05Hello")), see: closed(1002)},
		{name: "ping without mask", section: "5.1", send: frames([]byte("\x89\x00")), see: closed(1002)},
		{name: "close frame without mask", section: "5.1", send: frames([]byte("\x88\x02\x03\xe8")), see: closed(1002)},
		{name: "close frame in two frames", section: "5.5", send: frames(octet(0x08, "\x03\xe8"), end("x")), see: closed(1002)},
		{name: "ping whose length has the 16-bit form", section: "5.5", send: frames(masked([]byte{0x89, 126, 0, 5}, "Hello")), see: closed(1002)},
		{name: "ping between fragments that is too long", section: "5.5", send: frames(begin("a"), ping(strings.Repeat("p", 126)), end("b")), see: closed(1002)},
		{name: "binary message inside a fragmented text", section: "5.4", send: frames(begin("a"), binaries(1), end("b")), see: closed(1002)},
		{name: "first fragment of a binary message", section: "7.4.1", send: frames(octet(0x02, "a"), end("b")), see: closed(1003)},

		{name: "length 2^63-1", section: "10.4", send: frames(declared(0x81, 127, "\x7f\xff\xff\xff\xff\xff\xff\xff")), see: closed(1009)},
		{name: "length 2^63", section: "5.2", send: frames(declared(0x81, 127, "\x80\x00\x00\x00\x00\x00\x00\x00")), see: closed(1002)},
		{name: "length 2^64-1", section: "5.2", send: frames(declared(0x81, 127, "\xff\xff\xff\xff\xff\xff\xff\xff")), see: closed(1002)},
		{name: "length 5 in the 16-bit form", section: "5.2", send: frames(masked([]byte{0x81, 126, 0, 5}, "Hello")), see: closed(1002)},
		{name: "length 125 in the 16-bit form", section: "5.2", send: frames(declared(0x81, 126, "\x00\x7d")), see: closed(1002)},
		{name: "length 5 in the 64-bit form", section: "5.2", send: frames(masked([]byte{0x81, 127, 0, 0, 0, 0, 0, 0, 0, 5}, "Hello")), see: closed(1002)},
		{name: "length 65535 in the 64-bit form", section: "5.2", send: frames(declared(0x81, 127, "\x00\x00\x00\x00\x00\x00\xff\xff")), see: closed(1002)},

		{name: "longest message in 16 frames", section: "10.4", send: fragments(slices.Repeat([]string{fragment}, 16)...), see: echoes(strings.Repeat("*", messageLimit))},
		{name: "one octet too many in one frame", section: "10.4", send: frames(text(strings.Repeat("*", messageLimit+1))), see: closed(1009)},
		{name: "one octet too many in 16 frames", section: "10.4", send: fragments(append(slices.Repeat([]string{fragment}, 15), fragment+"*")...), see: closed(1009)},
		{name: "17 fragments", section: "10.4", send: fragments(slices.Repeat([]string{"a"}, 17)...), see: closed(1008)},
		{name: "10,000 empty fragments", section: "10.4", send: append(frames(begin("a")), slices.Repeat(frames(middle("")), 10_000)...), see: closed(1008)},
		{name: "message that never ends", section: "10.4", send: frames(begin("a"), ping("alive")), see: seen{pongs: []string{"alive"}, code: 1008}},
		{name: "frame that never ends", section: "10.4", send: frames(text("Hello")[:8]), see: closed(1008)},
		{name: "header that never ends", section: "10.4", send: frames(text("Hello")[:1]), see: closed(1008)},

		{name: "surrogate inside a text of 14 octets, a frame for each", section: "8.1", send: fragments(split(greek+"\xed\xa0\x80", 1)...), see: closed(1007)},
		{name: "two fragmented messages and a whole one", section: "5.4", send: append(slices.Concat(fragments("a", "b"), fragments("c", "", "d")), text("e")), see: echoes("ab", "cd", "e")},
		{name: "character cut by a ping", section: "8.1", send: frames(begin("\xce"), ping("inside"), end("\xba")), see: seen{texts: []string{"\u03ba"}, pongs: []string{"inside"}}},
		{name: "character that the last fragment does not end", section: "8.1", send: fragments("\u03ba\xce", ""), see: closed(1007)},
		{name: "message behind one that is not UTF-8", section: "8.1", send: frames(text("\xff"), text("late")), see: closed(1007)},

		{name: "close frame behind many messages", section: "5.5.1", send: append(slices.Repeat(frames(text("again")), 100), closing(4000, "")), see: seen{texts: slices.Repeat([]string{"again"}, 100), code: 4000}},
		{name: "much data behind a close frame", section: "5.5.1", send: append(frames(closing(1000, "")), slices.Repeat(frames(text(strings.Repeat("*", 60_000))), 10)...), see: closed(1000)},
		{name: "garbage behind a close frame", section: "5.5.1", send: frames(octet(0x88, ""), bytes.Repeat([]byte{0xff}, 5000)), see: closed(noCode)},
		{name: "1,000 pings", section: "docs/PROTOCOL.md, control frames", send: slices.Repeat(frames(ping("p")), 1000), see: seen{pongs: slices.Repeat([]string{"p"}, 1000), code: 1008}},
		{name: "1,000 pongs", section: "docs/PROTOCOL.md, control frames", send: slices.Repeat(frames(pong("p")), 1000), see: closed(1008)},

		{name: "compressed text", section: "5.2", send: frames(reserved(4, text(deflated("Hello")))), see: closed(1002)},
		{name: "compressed zeros, 1 MiB of them", section: "5.2", send: frames(reserved(4, text(deflated(strings.Repeat("\x00", 1<<20))))), see: closed(1002)},
		{name: "compressed text in two frames", section: "5.2", send: frames(reserved(4, begin(deflated("Hello")[:3])), end(deflated("Hello")[3:])), see: closed(1002)},
	}
	for bits := byte(1); bits < 8; bits++ {
		for name, f := range map[string][]byte{"text": text("x"), "fragment": begin("x"), "ping": ping("x"), "pong": pong("x"), "close frame": closing(1000, "")} {
			rows = append(rows, row{name: fmt.Sprintf("reserved bits %d of a %s", bits, name), section: "5.2", send: frames(reserved(bits, f)), see: closed(1002)})
		}
	}
	for _, opcode := range []byte{3, 4, 5, 6, 7, 11, 12, 13, 14, 15} {
		rows = append(rows,
			row{name: fmt.Sprintf("opcode %d inside a message", opcode), section: "5.2", send: frames(begin("a"), octet(0x80|opcode, "b"), end("c")), see: closed(1002)},
			row{name: fmt.Sprintf("opcode %d, not the last frame", opcode), section: "5.2", send: frames(octet(opcode, "b"), end("c")), see: closed(1002)})
	}
	for _, code := range []uint16{1012, 1013, 1014} {
		rows = append(rows, row{name: fmt.Sprintf("close code %d", code), section: "docs/PROTOCOL.md, echoed", send: frames(closing(code, "")), see: closed(code)})
	}
	return rows
}

// deflated is a message as permessage-deflate would have it (RFC 7692 §7.2.1).
func deflated(message string) string {
	var out bytes.Buffer
	w, err := flate.NewWriter(&out, flate.BestCompression)
	if err != nil {
		panic(err)
	}
	_, _ = w.Write([]byte(message)) // into memory
	_ = w.Flush()
	return strings.TrimSuffix(out.String(), "\x00\x00\xff\xff")
}
