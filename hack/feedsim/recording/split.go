package recording

import "encoding/json"

// element is one object of a frame.
type element struct {
	raw    []byte
	kind   []byte // value of "ev"
	ticker []byte // value of "sym", else of "T"
}

// split appends the objects of a frame. It reports false for a frame that is no
// JSON array, of which it takes nothing.
func split(frame []byte, elements []element) ([]element, bool) {
	if !json.Valid(frame) {
		return elements, false
	}
	i := space(frame, 0)
	if frame[i] != '[' {
		return elements, false
	}
	for i = space(frame, i+1); frame[i] != ']'; {
		start := i
		object := frame[i] == '{'
		var e element
		if object {
			i = scanObject(frame, i, &e)
		} else {
			i = skipValue(frame, i)
		}
		if e.raw = frame[start:i]; object {
			elements = append(elements, e)
		}
		if i = space(frame, i); frame[i] == ',' {
			i = space(frame, i+1)
		}
	}
	return elements, true
}

// scanObject reads the keys of the valid object at i and returns the index
// behind it.
func scanObject(text []byte, i int, e *element) int {
	var t []byte
	for i = space(text, i+1); text[i] != '}'; {
		end := skipString(text, i)
		key := text[i+1 : end-1]
		i = space(text, space(text, end)+1) // behind the colon
		end = skipValue(text, i)
		if text[i] == '"' {
			value := text[i+1 : end-1]
			switch string(key) {
			case "ev":
				e.kind = value
			case "sym":
				e.ticker = value
			case "T":
				t = value
			}
		}
		if i = space(text, end); text[i] == ',' {
			i = space(text, i+1)
		}
	}
	if e.ticker == nil {
		e.ticker = t
	}
	return i + 1
}

// skipValue returns the index behind the valid value at i.
func skipValue(text []byte, i int) int {
	switch text[i] {
	case '"':
		return skipString(text, i)
	case '{', '[':
		for depth := 0; ; {
			switch text[i] {
			case '"':
				i = skipString(text, i)
				continue
			case '{', '[':
				depth++
			case '}', ']':
				depth--
			}
			if i++; depth == 0 {
				return i
			}
		}
	}
	for text[i] != ',' && text[i] != ']' && text[i] != '}' && text[i] > ' ' {
		i++
	}
	return i
}

func skipString(text []byte, i int) int {
	for i++; text[i] != '"'; i++ {
		if text[i] == '\\' {
			i++
		}
	}
	return i + 1
}

func space(text []byte, i int) int {
	for text[i] == ' ' || text[i] == '\n' || text[i] == '\r' || text[i] == '\t' {
		i++
	}
	return i
}
