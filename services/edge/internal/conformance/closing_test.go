package conformance

import (
	"fmt"
	"strings"
)

// closingRows are about close frames. A good one is echoed with its code, an
// empty one with an empty one, and whatever comes behind it is not looked at.
func closingRows() []row {
	large := strings.Repeat("*", messageLimit)
	longest := strings.Repeat("*", 123)
	rows := []row{
		{name: "behind a message", section: "5.5.1", send: frames(text("Hello"), closing(1000, "")), see: seen{texts: []string{"Hello"}, code: 1000}},
		{name: "twice", section: "5.5.1", send: frames(closing(1000, ""), closing(1000, "")), see: closed(1000)},
		{name: "ahead of a ping", section: "5.5.1", send: frames(closing(1000, ""), ping("late")), see: closed(1000)},
		{name: "ahead of a text", section: "5.5.1", send: frames(closing(1000, ""), text("late")), see: closed(1000)},
		{name: "between two fragments", section: "5.4", send: frames(begin("a"), closing(1000, ""), end("b")), see: closed(1000)},
		{name: "behind a message of 256 KiB, ahead of a ping", section: "5.5.1", send: frames(text(large), closing(1000, ""), ping("late")), see: seen{texts: []string{large}, code: 1000}},

		{name: "empty", section: "5.5.1", send: frames(octet(0x88, "")), see: closed(noCode)},
		{name: "of one octet", section: "5.5.1", send: frames(octet(0x88, "a")), see: closed(1002)},
		{name: "with a code", section: "5.5.1", send: frames(closing(1000, "")), see: closed(1000)},
		{name: "with a code and a reason", section: "5.5.1", send: frames(closing(1000, "enough")), see: closed(1000)},
		{name: "with the longest reason", section: "5.5", send: frames(closing(1000, longest)), see: closed(1000)},
		{name: "with too long a reason", section: "5.5", send: frames(closing(1000, longest+"*")), see: closed(1002)},

		{name: "with a reason that is not UTF-8", section: "8.1", send: frames(closing(1000, greek+"\xed\xa0\x80edited")), see: closed(1007)},
	}
	for _, code := range []uint16{1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999} {
		rows = append(rows, row{name: fmt.Sprintf("code %d", code), section: "7.4", send: frames(closing(code, "")), see: closed(code)})
	}
	for _, code := range []uint16{0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999, 5000, 65535} {
		rows = append(rows, row{name: fmt.Sprintf("code %d", code), section: "7.4", send: frames(closing(code, "")), see: closed(1002)})
	}
	return rows
}

// miscellaneousRows send a message in 51 fragments, of which 16 are taken.
func miscellaneousRows() []row {
	return []row{{
		name: "text of 65536 octets in frames of 1300", section: "docs/PROTOCOL.md, 16 fragments",
		send: fragments(split(strings.Repeat("*", 65536), 1300)...), see: closed(1008),
	}}
}
