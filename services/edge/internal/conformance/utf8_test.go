package conformance

import (
	"fmt"
	"strings"
)

// sequence writes a number in the bit pattern of a UTF-8 sequence of n octets,
// also where RFC 3629 §3 forbids that: in more octets than needed, for a
// surrogate, or beyond U+10FFFF.
func sequence(number uint32, n int) string {
	if n == 1 {
		return string([]byte{byte(number)})
	}
	out := make([]byte, n)
	for i := n - 1; i > 0; i-- {
		out[i] = 0x80 | byte(number&0x3f)
		number >>= 6
	}
	out[0] = byte(0xff<<(8-n)) | byte(number)
	return string(out)
}

// greek are eleven octets of two and three each.
const greek = "\u03ba\u1f79\u03c3\u03bc\u03b5"

// utf8Rows are what a text may and may not hold. A text is judged when it is
// whole, and one of more than 16 frames is not taken.
func utf8Rows() []row {
	const mixed = "Hello-\u00b5@\u00df\u00f6\u00e4\u00fc\u00e0\u00e1-UTF-8!!"
	const surrogate = greek + "\xed\xa0\x80" + "edited"
	const beyond = greek + "\xf4\x90\x80\x80" + "edited"
	rows := []row{
		{name: "empty text", section: "5.6", send: frames(text("")), see: echoes("empty")},
		{name: "empty text in three empty frames", section: "5.4", send: fragments("", "", ""), see: echoes("empty")},
		{name: "text in the middle one of three frames", section: "5.4", send: fragments("", "middle", ""), see: echoes("middle")},

		{name: "valid text in one frame", section: "8.1", send: frames(text(mixed)), see: echoes(mixed)},
		{name: "valid text in two frames", section: "8.1", send: fragments(mixed[:11], mixed[11:]), see: echoes(mixed)},
		{name: "valid text of 29 octets, a frame for each", section: "docs/PROTOCOL.md, 16 fragments", send: fragments(split(mixed, 1)...), see: closed(1008)},
		{name: "valid text of 11 octets, a frame for each", section: "8.1", send: fragments(split(greek, 1)...), see: echoes(greek)},

		{name: "surrogate inside a text", section: "8.1", send: frames(text(surrogate)), see: closed(1007)},
		{name: "surrogate inside a text of 20 octets, a frame for each", section: "docs/PROTOCOL.md, 16 fragments", send: fragments(split(surrogate, 1)...), see: closed(1008)},

		{name: "second frame of three has what is beyond U+10FFFF", section: "8.1", send: fragments(greek, "\xf4\x90\x80\x80", "edited"), cut: byFrame, see: closed(1007)},
		{name: "second frame of three begins with what cannot follow", section: "8.1", send: fragments(greek+"\xf4", "\x90", "\x80\x80edited"), cut: byFrame, see: closed(1007)},
		{name: "one frame has what is beyond U+10FFFF, in three writes", section: "8.1", send: frames(text(beyond)), cut: 9, see: closed(1007)},
		{name: "one frame has what is beyond U+10FFFF, octet by octet", section: "8.1", send: frames(text(beyond)), cut: octets, see: closed(1007)},
	}
	add := func(valid bool, kind string, texts ...string) {
		for i, s := range texts {
			r := row{name: fmt.Sprintf("%s, %d", kind, i+1), section: "8.1", send: frames(text(s)), see: closed(1007)}
			if valid {
				r.see = echoes(s)
			}
			rows = append(rows, r)
		}
	}
	add(true, "characters of one to four octets", "hello$world", "hello\u00a2world", "hello\u20acworld", "hello\U00024b62world", greek)
	for n := 1; n <= len(greek); n++ {
		switch kind := fmt.Sprintf("the first %d octets of a text", n); n {
		case 2, 5, 7, 9, 11:
			add(true, kind, greek[:n])
		default:
			add(false, kind, greek[:n])
		}
	}
	addBorders(add)
	addIncomplete(add)
	addForbidden(add)
	for plane := range uint32(17) {
		add(true, fmt.Sprintf("non-characters of plane %d", plane), sequence(plane<<16|0xfffe, planeOctets(plane)), sequence(plane<<16|0xffff, planeOctets(plane)))
	}
	for number := uint32(0xfff9); number <= 0xffff; number++ {
		add(true, fmt.Sprintf("special U+%X", number), sequence(number, 3))
	}
	return rows
}

func planeOctets(plane uint32) int {
	if plane == 0 {
		return 3
	}
	return 4
}

// adder adds a row for each text.
type adder = func(valid bool, kind string, texts ...string)

// addBorders adds the first and last sequence of each length.
func addBorders(add adder) {
	add(true, "first of a length", sequence(0, 1), sequence(0x80, 2), sequence(0x800, 3), sequence(0x10000, 4))
	add(false, "first of five and six octets", sequence(0x200000, 5), sequence(0x4000000, 6))
	add(true, "last of a length", sequence(0x7f, 1), sequence(0x7ff, 2), sequence(0xffff, 3), sequence(0x10ffff, 4))
	add(false, "last of four, five and six octets", sequence(0x1fffff, 4), sequence(0x3ffffff, 5), sequence(0x7fffffff, 6))
	add(true, "around the surrogates and up to the end", sequence(0xd7ff, 3), sequence(0xe000, 3), sequence(0xfffd, 3), sequence(0x10ffff, 4))
	add(false, "one beyond the end", sequence(0x110000, 4))
}

// addIncomplete adds octets that follow nothing and sequences that lack some.
func addIncomplete(add adder) {
	add(false, "a continuation octet alone", "\x80", "\xbf")
	var all strings.Builder
	for n := range 64 {
		all.WriteByte(0x80 | byte(n))
	}
	for n := 2; n <= 6; n++ {
		add(false, fmt.Sprintf("%d continuation octets alone", n), strings.Repeat("\x80\xbf", 3)[:n])
	}
	add(false, "all continuation octets", all.String())
	for _, starts := range [][2]int{{0xc0, 0xdf}, {0xe0, 0xef}, {0xf0, 0xf7}, {0xf8, 0xfb}, {0xfc, 0xfd}} {
		var lonely strings.Builder
		for start := starts[0]; start <= starts[1]; start++ {
			lonely.Write([]byte{byte(start), ' '})
		}
		add(false, fmt.Sprintf("first octets %x to %x, a space behind each", starts[0], starts[1]), lonely.String())
	}
	var concatenated string
	for n := 2; n <= 6; n++ {
		first, last := sequence(0, n), sequence(1<<(5*n+1)-1, n)
		add(false, fmt.Sprintf("the last of %d octets is missing", n), first[:n-1], last[:n-1])
		concatenated += first[:n-1] + last[:n-1]
	}
	add(false, "all of those in one text", concatenated)
}

// addForbidden adds what RFC 3629 rules out although its bits are in order.
func addForbidden(add adder) {
	add(false, "octets of no sequence", "\xfe", "\xff", "\xfe\xfe\xff\xff")
	for n := 2; n <= 6; n++ {
		longest := []uint32{2: 0x7f, 3: 0x7ff, 4: 0xffff, 5: 0x1fffff, 6: 0x3ffffff}[n]
		add(false, fmt.Sprintf("too long a form, of %d octets", n), sequence('/', n), sequence(longest, n), sequence(0, n))
	}
	for _, number := range []uint32{0xd800, 0xdb7f, 0xdb80, 0xdbff, 0xdc00, 0xdf80, 0xdfff} {
		add(false, fmt.Sprintf("surrogate U+%X", number), sequence(number, 3))
	}
	for _, high := range []uint32{0xd800, 0xdb7f, 0xdb80, 0xdbff} {
		add(false, fmt.Sprintf("surrogate pair of U+%X", high), sequence(high, 3)+sequence(0xdc00, 3), sequence(high, 3)+sequence(0xdfff, 3))
	}
}
