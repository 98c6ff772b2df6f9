package cutemarkets

import (
	"time"
	"unicode/utf8"
)

// status makes a message of one status object; its text is the parts joined.
func status(kind string, parts ...string) []byte {
	return append(appendStatus([]byte{'['}, kind, parts...), "}]"...)
}

// appendStatus appends a status object without its closing brace. Its keys are
// ev, status, message, in that order: the Python SDK fails without message.
func appendStatus(b []byte, kind string, parts ...string) []byte {
	b = append(b, `{"ev":"status","status":"`...)
	b = append(b, kind...)
	b = append(b, `","message":"`...)
	for _, part := range parts {
		b = appendEscaped(b, part)
	}
	return append(b, '"')
}

// appendEscaped appends valid UTF-8 as the inside of a JSON string (RFC 8259
// section 7). No result is longer than the shortest JSON spelling of the text,
// which bounds a reply by the message it answers.
func appendEscaped(b []byte, text string) []byte {
	const hex = "0123456789abcdef"
	plain := 0 // where the part not yet appended begins
	for i := range len(text) {
		c := text[i]
		if c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		b = append(b, text[plain:i]...)
		plain = i + 1
		switch c {
		case '\b':
			c = 'b'
		case '\f':
			c = 'f'
		case '\n':
			c = 'n'
		case '\r':
			c = 'r'
		case '\t':
			c = 't'
		case '"', '\\':
		default:
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
			continue
		}
		b = append(b, '\\', c)
	}
	return append(b, text[plain:]...)
}

// appendTime appends a moment in UTC with milliseconds as a JSON string; null
// for the zero time.
func appendTime(b []byte, t time.Time) []byte {
	if t.IsZero() {
		return append(b, "null"...)
	}
	b = append(b, '"')
	b = t.UTC().AppendFormat(b, "2006-01-02T15:04:05.000Z")
	return append(b, '"')
}

// echoLimit is how many bytes of a refused param are echoed.
const echoLimit = 64

// cut shortens valid UTF-8 to echoLimit bytes without breaking a character.
func cut(text []byte) []byte {
	if len(text) <= echoLimit {
		return text
	}
	end := echoLimit
	for !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end]
}
