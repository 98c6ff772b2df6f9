package wire

import (
	"bytes"
	"encoding/json"
	"math"
)

// Array walks through the objects of a message.
type Array struct {
	rest  []byte
	fault Fault
	inner bool // behind the first object
}

// Split begins with a message [object,object,…].
func Split(message []byte) Array {
	rest := trim(message)
	if len(rest) == 0 || rest[0] != '[' {
		return Array{fault: NotArray}
	}
	return Array{rest: rest[1:]}
}

// Next returns the next object, as it lies in the message, or false after the
// last one and at a fault.
func (a *Array) Next() (object []byte, ok bool) {
	if a.rest == nil {
		return nil, false
	}
	rest := trim(a.rest)
	if a.inner && len(rest) > 0 && rest[0] == ',' {
		rest = trim(rest[1:])
	} else if len(rest) > 0 && rest[0] == ']' {
		if len(trim(rest[1:])) > 0 {
			return a.fail(Trailing)
		}
		return a.fail("")
	} else if a.inner && len(rest) > 0 {
		return a.fail(NotArray)
	}
	if len(rest) == 0 {
		return a.fail(Truncated)
	}
	if rest[0] != '{' {
		return a.fail(NotObject)
	}
	n := objectLength(rest)
	if n == 0 {
		return a.fail(Truncated)
	}
	a.rest, a.inner = rest[n:], true
	return rest[:n], true
}

func (a *Array) fail(f Fault) (object []byte, ok bool) {
	a.rest, a.fault = nil, f
	return nil, false
}

// Fault is what was wrong with the message, once Next has returned false. The
// objects before it count.
func (a *Array) Fault() Fault { return a.fault }

func trim(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\n' || b[0] == '\r' || b[0] == '\t') {
		b = b[1:]
	}
	return b
}

var quote = []byte{'"'}

// objectLength returns the length of the object that b begins with, or 0 when
// it does not end in b. Up to the first closing brace, an object with no other
// brace, no backslash and an even number of quotes ends there: the standard
// library's searches for these are several times as fast as a look at each byte.
func objectLength(b []byte) int {
	end := bytes.IndexByte(b, '}')
	if end < 0 {
		return 0
	}
	inside := b[1:end]
	if bytes.IndexByte(inside, '{') < 0 && bytes.IndexByte(inside, '\\') < 0 && bytes.Count(inside, quote)&1 == 0 {
		return end + 1
	}
	depth := 0
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '{':
			depth++
		case '}':
			if depth--; depth == 0 {
				return i + 1
			}
		case '"':
			for i++; i < len(b) && b[i] != '"'; i++ {
				if b[i] == '\\' {
					i++
				}
			}
		}
	}
	return 0
}

// Field is a key of events whose value is a whole number, such as ts.
type Field string

// NewField returns the field with a name, without quotes around it.
func NewField(name string) Field { return Field(`"` + name + `":`) }

// Stamp returns the number behind the last occurrence of the field in an event,
// or false where there is none. It searches from the end: what a load test
// looks for is appended to events. A name inside a text value is taken as well.
func Stamp(raw []byte, field Field) (int64, bool) {
	n := len(field)
	for i := len(raw) - 1; i >= n; i-- {
		if raw[i-1] == ':' && string(raw[i-n:i]) == string(field) {
			return digits(raw[i:])
		}
	}
	return 0, false
}

func digits(b []byte) (int64, bool) {
	value := int64(0)
	for i, c := range b {
		d := int64(c - '0')
		switch {
		case c == ' ' && i == 0:
			return digits(b[1:])
		case d < 0 || d > 9:
			return value, i > 0 && (c == ',' || c == '}' || c == ' ')
		case value > (math.MaxInt64-d)/10:
			return 0, false
		}
		value = value*10 + d
	}
	return 0, false
}

// The keys of a status in the order that servers send them.
const (
	statusHead    = `{"ev":"status"`
	statusValue   = `,"status":"`
	statusMessage = `","message":"`
)

// IsStatus reports whether an object is a status: one that begins with ev.
func IsStatus(object []byte) bool {
	return len(object) > len(statusHead) && string(object[:len(statusHead)]) == statusHead
}

// ParseStatus returns the fields of a status object; ok is false where status
// is missing. The fields may lie in the object.
func ParseStatus(object []byte) (status, message []byte, ok bool) {
	if rest, found := bytes.CutPrefix(object, []byte(statusHead+statusValue)); found && bytes.IndexByte(object, '\\') < 0 {
		if status, rest, found = bytes.Cut(rest, []byte(statusMessage)); found {
			if message, _, found = bytes.Cut(rest, quote); found && bytes.IndexByte(status, '"') < 0 {
				return status, message, true
			}
		}
	}
	var fields struct{ Status, Message string }
	if err := json.Unmarshal(object, &fields); err != nil || fields.Status == "" {
		return nil, nil, false
	}
	return []byte(fields.Status), []byte(fields.Message), true
}
