package router

import (
	"bytes"
	"encoding/json"
	"unicode/utf8"
)

const (
	// maxEvent is the greatest event that is forwarded: one that is alone in a
	// message to an edge.
	maxEvent = maxPayload
	// maxDepth bounds the nesting of an event; the vendor's have 2.
	maxDepth = 64
)

// Event is one object of an upstream frame. Its slices point into the frame.
type Event struct {
	Raw    []byte // original bytes
	Kind   []byte // value of "ev", never empty
	Symbol []byte // value of "sym", else of "T" (LULD, NOI); empty: none
}

// Status reports whether the event is a message of the vendor about the
// connection instead of the market.
func (e *Event) Status() bool { return string(e.Kind) == "status" }

// Fault is why a frame, or an element of it, was dropped.
type Fault uint8

// The faults.
const (
	FaultSyntax    Fault = iota // not a JSON array; what came before the fault was taken
	FaultNotObject              // element that is no object
	FaultNoKind                 // object without a string "ev"
	FaultEncoding               // object that is not UTF-8: it would end a client's socket
	FaultOversize               // object too big for a message to an edge
	faultEnd
)

var faultNames = [faultEnd]string{"syntax", "not_object", "no_ev", "encoding", "oversize"}

// String is the metric label.
func (f Fault) String() string { return faultNames[f] }

// AllFaults returns the faults, for metric labels.
func AllFaults() []Fault {
	all := make([]Fault, faultEnd)
	for i := range all {
		all[i] = Fault(i)
	}
	return all
}

// Faults counts what was dropped of a frame, by Fault.
type Faults [faultEnd]uint32

// Any reports whether there is a fault.
func (f *Faults) Any() bool { return *f != Faults{} }

// Split appends the events of an upstream frame to events, in order, and counts
// what cannot be taken: a faulty element costs itself, a syntax error the rest
// of the frame. An event's bytes are whole and valid JSON, so that they can be
// joined with others. It allocates only to grow events, and for a ticker or a
// key that is written with escapes.
func Split(frame []byte, events []Event) ([]Event, Faults) {
	var faults Faults
	s := scanner(frame)
	i := s.space(0)
	if s.at(i) != '[' {
		faults[FaultSyntax]++
		return events, faults
	}
	i = s.space(i + 1)
	if s.at(i) == ']' {
		return events, s.end(i, faults)
	}
	for {
		start := i
		object := s.at(i) == '{'
		var e Event
		if object {
			i = s.object(i, 0, &e)
		} else {
			i = s.value(i, 0)
		}
		if i < 0 {
			faults[FaultSyntax]++
			return events, faults
		}
		e.Raw = frame[start:i]
		switch {
		case !object:
			faults[FaultNotObject]++
		case len(e.Kind) == 0:
			faults[FaultNoKind]++
		case len(e.Raw) > maxEvent:
			faults[FaultOversize]++
		case !utf8.Valid(e.Raw):
			faults[FaultEncoding]++
		default:
			events = append(events, e)
		}
		i = s.space(i)
		switch s.at(i) {
		case ',':
			i = s.space(i + 1)
		case ']':
			return events, s.end(i, faults)
		default:
			faults[FaultSyntax]++
			return events, faults
		}
	}
}

// scanner reads JSON (RFC 8259). Its methods take the index of the first byte
// of a thing and return the index behind it, or -1 if it is not there.
type scanner []byte

// at returns the byte at i, or 0 behind the end.
func (s scanner) at(i int) byte {
	if i < len(s) {
		return s[i]
	}
	return 0
}

// end counts a fault if something follows the array that ends at i.
func (s scanner) end(i int, faults Faults) Faults {
	if s.space(i+1) != len(s) {
		faults[FaultSyntax]++
	}
	return faults
}

func (s scanner) space(i int) int {
	for i < len(s) && (s[i] == ' ' || s[i] == '\n' || s[i] == '\r' || s[i] == '\t') {
		i++
	}
	return i
}

func (s scanner) value(i, depth int) int {
	switch c := s.at(i); {
	case c == '"':
		return s.text(i)
	case c == '-' || c-'0' <= 9:
		return s.number(i)
	case c == '{':
		return s.object(i, depth, nil)
	case c == '[':
		return s.array(i, depth)
	case c == 't':
		return s.word(i, "true")
	case c == 'f':
		return s.word(i, "false")
	case c == 'n':
		return s.word(i, "null")
	}
	return -1
}

func (s scanner) word(i int, word string) int {
	if end := i + len(word); end <= len(s) && string(s[i:end]) == word {
		return end
	}
	return -1
}

func (s scanner) array(i, depth int) int {
	if depth == maxDepth {
		return -1
	}
	i = s.space(i + 1)
	if s.at(i) == ']' {
		return i + 1
	}
	for {
		if i = s.value(i, depth+1); i < 0 {
			return -1
		}
		i = s.space(i)
		switch s.at(i) {
		case ',':
			i = s.space(i + 1)
		case ']':
			return i + 1
		default:
			return -1
		}
	}
}

// object reads an object and, if e is not nil, notes its ev and its ticker.
func (s scanner) object(i, depth int, e *Event) int {
	if depth == maxDepth {
		return -1
	}
	var symbol, t []byte
	i = s.space(i + 1)
	if s.at(i) == '}' {
		return i + 1
	}
	for {
		key := i
		if i = s.text(i); i < 0 {
			return -1
		}
		keyEnd := i
		i = s.space(i)
		if s.at(i) != ':' {
			return -1
		}
		i = s.space(i + 1)
		value := i
		if i = s.value(i, depth+1); i < 0 {
			return -1
		}
		if e != nil {
			switch string(content(s[key:keyEnd])) {
			case "ev":
				e.Kind = content(s[value:i])
			case "sym":
				symbol = content(s[value:i])
			case "T":
				t = content(s[value:i])
			}
		}
		i = s.space(i)
		switch s.at(i) {
		case ',':
			i = s.space(i + 1)
		case '}':
			if e != nil {
				e.Symbol = symbol
				if len(symbol) == 0 {
					e.Symbol = t
				}
			}
			return i + 1
		default:
			return -1
		}
	}
}

// content returns what a string says, nil for any other value.
func content(value []byte) []byte {
	if value[0] != '"' {
		return nil
	}
	if bytes.IndexByte(value, '\\') < 0 {
		return value[1 : len(value)-1]
	}
	var text string
	if err := json.Unmarshal(value, &text); err != nil {
		panic("router: a scanned string is no string: " + err.Error())
	}
	return []byte(text)
}

// plain marks the bytes that stand for themselves in a string.
var plain = func() (table [256]bool) {
	for c := range table {
		table[c] = c >= 0x20 && c != '"' && c != '\\'
	}
	return table
}()

func (s scanner) text(i int) int {
	if s.at(i) != '"' {
		return -1
	}
	i++
	for i < len(s) {
		c := s[i]
		if plain[c] {
			i++
			continue
		}
		switch c {
		case '"':
			return i + 1
		case '\\':
			if i = s.escape(i); i < 0 {
				return -1
			}
		default:
			return -1
		}
	}
	return -1
}

func (s scanner) escape(i int) int {
	switch s.at(i + 1) {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return i + 2
	case 'u':
		for k := i + 2; k < i+6; k++ {
			if c := s.at(k); c-'0' > 9 && c|0x20-'a' > 5 {
				return -1
			}
		}
		return i + 6
	}
	return -1
}

func (s scanner) number(i int) int {
	if s.at(i) == '-' {
		i++
	}
	if s.at(i) == '0' {
		i++
	} else if i = s.digits(i); i < 0 {
		return -1
	}
	if s.at(i) == '.' {
		if i = s.digits(i + 1); i < 0 {
			return -1
		}
	}
	if s.at(i)|0x20 == 'e' {
		i++
		if c := s.at(i); c == '+' || c == '-' {
			i++
		}
		return s.digits(i)
	}
	return i
}

// digits reads one digit or more.
func (s scanner) digits(i int) int {
	start := i
	for i < len(s) && s[i]-'0' <= 9 {
		i++
	}
	if i == start {
		return -1
	}
	return i
}
