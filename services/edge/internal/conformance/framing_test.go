package conformance

import (
	"bytes"
	"fmt"
	"strings"
)

// framingRows take each form of the length to its borders. Binary messages are
// not taken here: 1003 as soon as one begins.
func framingRows() []row {
	var rows []row
	for _, n := range []int{0, 125, 126, 127, 128, 65535, 65536} {
		answer := strings.Repeat("*", n)
		if n == 0 {
			answer = "empty"
		}
		rows = append(rows,
			row{name: fmt.Sprintf("text of %d octets", n), section: "5.2", send: frames(text(strings.Repeat("*", n))), see: echoes(answer)},
			row{name: fmt.Sprintf("binary of %d octets", n), section: "7.4.1", send: frames(binaries(n)), see: closed(1003)})
	}
	long := strings.Repeat("*", 65536)
	return append(rows,
		row{name: "text of 65536 octets in writes of 997", section: "5.2", send: frames(text(long)), cut: 997, see: echoes(long)},
		row{name: "binary of 65536 octets in writes of 997", section: "7.4.1", send: frames(binaries(65536)), cut: 997, see: closed(1003)})
}

func pingRows() []row {
	longest := strings.Repeat("\xfe", 125)
	var ten [][]byte
	var answers []string
	for i := range 10 {
		answers = append(answers, fmt.Sprintf("payload %d", i))
		ten = append(ten, ping(answers[i]))
	}
	return []row{
		{name: "ping without payload", section: "5.5.2", send: frames(ping("")), see: pongs("")},
		{name: "ping with text", section: "5.5.2", send: frames(ping("Hello, world!")), see: pongs("Hello, world!")},
		{name: "ping with octets that are no text", section: "5.5.2", send: frames(ping("\x00\xff\xfe\xfd\xfc\xfb\x00\xff")), see: pongs("\x00\xff\xfe\xfd\xfc\xfb\x00\xff")},
		{name: "ping of 125 octets", section: "5.5", send: frames(ping(longest)), see: pongs(longest)},
		{name: "ping of 126 octets", section: "5.5", send: frames(ping(longest + "\xfe")), see: closed(1002)},
		{name: "ping of 125 octets, octet by octet", section: "5.5", send: frames(ping(longest)), cut: octets, see: pongs(longest)},
		{name: "pong nobody asked for, without payload", section: "5.5.3", send: frames(pong(""))},
		{name: "pong nobody asked for, with payload", section: "5.5.3", send: frames(pong("unsolicited"))},
		{name: "pong nobody asked for, then ping", section: "5.5.3", send: frames(pong("unsolicited"), ping("asked")), see: pongs("asked")},
		{name: "ten pings", section: "5.5.3", send: ten, see: pongs(answers...)},
		{name: "ten pings, octet by octet", section: "5.5.3", send: ten, cut: octets, see: pongs(answers...)},
	}
}

func reservedBitRows() []row {
	refused := seen{texts: []string{"before"}, code: 1002}
	return []row{
		{name: "bits 1 of a text", section: "5.2", send: frames(reserved(1, text("x"))), see: closed(1002)},
		{name: "bits 2 of a text behind a good one", section: "5.2", send: frames(text("before"), reserved(2, text("x")), ping("")), see: refused},
		{name: "bits 3 of a text behind a good one, frame by frame", section: "5.2", send: frames(text("before"), reserved(3, text("x")), ping("")), cut: byFrame, see: refused},
		{name: "bits 4 of a text behind a good one, octet by octet", section: "5.2", send: frames(text("before"), reserved(4, text("x")), ping("")), cut: octets, see: refused},
		{name: "bits 5 of a binary message", section: "5.2", send: frames(reserved(5, binaries(8))), see: closed(1002)},
		{name: "bits 6 of a ping", section: "5.2", send: frames(reserved(6, ping("x"))), see: closed(1002)},
		{name: "bits 7 of a close frame", section: "5.2", send: frames(reserved(7, closing(1000, ""))), see: closed(1002)},
	}
}

// opcodeRows use each reserved opcode, of data and of control frames alike: alone,
// with a payload, and behind a good message in each way of cutting.
func opcodeRows() []row {
	var rows []row
	refused := seen{texts: []string{"before"}, code: 1002}
	for _, first := range []byte{3, 11} {
		is := func(i byte) byte { return 0x80 | (first + i) }
		behind := func(i byte, payload string) [][]byte { return frames(text("before"), octet(is(i), payload), ping("")) }
		name := func(i byte, how string) string { return fmt.Sprintf("opcode %d%s", first+i, how) }
		rows = append(rows,
			row{name: name(0, ""), section: "5.2", send: frames(octet(is(0), "")), see: closed(1002)},
			row{name: name(1, " with payload"), section: "5.2", send: frames(octet(is(1), "reserved")), see: closed(1002)},
			row{name: name(2, " behind a text"), section: "5.2", send: behind(2, ""), see: refused},
			row{name: name(3, " with payload behind a text"), section: "5.2", send: behind(3, "reserved"), cut: byFrame, see: refused},
			row{name: name(4, " with payload behind a text, octet by octet"), section: "5.2", send: behind(4, "reserved"), cut: octets, see: refused})
	}
	return rows
}

func fragmentationRows() []row {
	two := fragments("fragment", "ation")
	around := frames(two[0], ping("inside"), two[1])
	five := fragments("one ", "two ", "three ", "four ", "five")
	pinged := frames(five[0], five[1], ping("first"), pause, five[2], five[3], ping("second"), pause, five[4])
	fiveSeen := seen{texts: []string{"one two three four five"}, pongs: []string{"first", "second"}}
	rows := []row{
		{name: "ping in two frames", section: "5.5", send: frames(octet(0x09, "a"), end("b")), see: closed(1002)},
		{name: "pong in two frames", section: "5.5", send: frames(octet(0x0a, "a"), end("b")), see: closed(1002)},
	}
	for _, way := range []struct {
		how string
		cut cut
	}{{"", whole}, {", frame by frame", byFrame}, {", octet by octet", octets}} {
		rows = append(rows,
			row{name: "text in two frames" + way.how, section: "5.4", send: two, cut: way.cut, see: echoes("fragmentation")},
			row{name: "ping between two fragments" + way.how, section: "5.4", send: around, cut: way.cut, see: seen{texts: []string{"fragmentation"}, pongs: []string{"inside"}}},
			row{name: "last fragment of nothing" + way.how, section: "5.4", send: frames(end("x"), text("y")), cut: way.cut, see: closed(1002)},
			row{name: "middle fragment of nothing" + way.how, section: "5.4", send: frames(middle("x"), text("y")), cut: way.cut, see: closed(1002)})
	}
	return append(rows,
		row{name: "middle fragment behind a whole message", section: "5.4", send: frames(two[0], two[1], middle("x"), text("y")), see: seen{texts: []string{"fragmentation"}, code: 1002}},
		row{name: "middle fragment of nothing ahead of a fragmented message, twice", section: "5.4", send: twice(middle("x"), begin("a"), end("b")), see: closed(1002)},
		row{name: "last fragment of nothing ahead of a fragmented message, twice", section: "5.4", send: twice(end("x"), begin("a"), end("b")), see: closed(1002)},
		row{name: "both fragments have the opcode of text", section: "5.4", send: frames(begin("a"), text("b")), see: closed(1002)},
		row{name: "text in five frames, two pings between them", section: "5.4", send: pinged, see: fiveSeen},
		row{name: "text in five frames, two pings between them, octet by octet", section: "5.4", send: pinged, cut: octets, see: fiveSeen})
}

// twice repeats frames, each copy its own.
func twice(f ...[]byte) [][]byte {
	all := f
	for _, frame := range f {
		all = append(all, bytes.Clone(frame))
	}
	return all
}

// handshakeRows send what the engine gets together with the socket.
func handshakeRows() []row {
	rows := []row{
		{name: "text", section: "5.1", send: frames(text("early")), see: echoes("early")},
		{name: "text, the rest of it later", section: "5.1", send: frames(text("early")), cut: 3, see: echoes("early")},
		{name: "two texts, the second later", section: "5.1", send: frames(text("early"), text("later")), cut: byFrame, see: echoes("early", "later")},
		{name: "text longer than what is read with the handshake", section: "5.1", send: frames(text(strings.Repeat("*", 20000))), see: echoes(strings.Repeat("*", 20000))},
		{name: "ping", section: "5.5.2", send: frames(ping("early")), see: pongs("early")},
		{name: "close frame", section: "5.5.1", send: frames(closing(1001, "")), see: closed(1001)},
		{name: "frame without mask", section: "5.1", send: frames([]byte("\x81\x01x")), see: closed(1002)},
		{name: "binary message", section: "7.4.1", send: frames(binaries(1)), see: closed(1003)},
		{name: "text that is not UTF-8", section: "8.1", send: frames(text("\xff")), see: closed(1007)},
	}
	for i := range rows {
		rows[i].early = true
	}
	return rows
}
