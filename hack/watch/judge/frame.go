package judge

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"time"
)

// event is one event of a frame.
type event struct {
	head   []byte // `T","sym":"AAPL`: as good a name of the topic as T.AAPL, and nothing to copy
	number int64
	at     int64 // unix nanoseconds
}

// Status is what a server says itself.
type Status struct {
	Status  string     `json:"status"`
	Message string     `json:"message"`
	Market  string     `json:"market"`
	From    time.Time  `json:"from"`
	To      *time.Time `json:"to"`
	Topics  []string   `json:"topics"`
}

var (
	eventHead  = []byte(`{"ev":"`)
	statusHead = []byte(`{"ev":"status"`)
	symbolKey  = []byte(`","sym":"`)
	numberKey  = []byte(`,"n":`)
	stampKey   = []byte(`,"ts":`)
)

// next cuts the first object off the rest of an array. An array that has ended
// has no object.
func next(rest []byte) (object, after []byte, err error) {
	if len(rest) > 0 && (rest[0] == '[' || rest[0] == ',') {
		rest = rest[1:]
	}
	if len(rest) == 1 && rest[0] == ']' {
		return nil, nil, nil
	}
	depth, inString := 0, false
	for i := 0; i < len(rest); i++ {
		switch c := rest[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
		case inString:
		case c == '{':
			depth++
		case c == '}':
			if depth--; depth == 0 {
				return rest[:i+1], rest[i+1:], nil
			}
		}
	}
	return nil, nil, fmt.Errorf("a frame that is no array of objects: %.80q", rest)
}

// parseEvent reads what feedsim prints with --number=topic and --stamp.
func parseEvent(object []byte) (event, error) {
	wrong := func() (event, error) {
		return event{}, fmt.Errorf("an event without sym, n and ts (feedsim needs --number=topic --stamp): %.80q", object)
	}
	if !bytes.HasPrefix(object, eventHead) {
		return wrong()
	}
	body := object[len(eventHead):]
	kind := bytes.IndexByte(body, '"')
	if kind < 0 || !bytes.HasPrefix(body[kind:], symbolKey) {
		return wrong()
	}
	symbol := bytes.IndexByte(body[kind+len(symbolKey):], '"')
	number, ok1 := last(object, numberKey)
	at, ok2 := last(object, stampKey)
	if symbol < 0 || !ok1 || !ok2 {
		return wrong()
	}
	return event{head: body[:kind+len(symbolKey)+symbol], number: number, at: at}, nil
}

// last reads the number behind the last occurrence of a key.
func last(object, key []byte) (int64, bool) {
	i := bytes.LastIndex(object, key)
	if i < 0 {
		return 0, false
	}
	digits := object[i+len(key):]
	end := bytes.IndexAny(digits, ",}")
	if end < 0 {
		return 0, false
	}
	n, err := strconv.ParseInt(string(digits[:end]), 10, 64)
	return n, err == nil
}

// topicName returns T.AAPL, and T.* that names it too.
func topicName(head string) (exact, wildcard string) {
	kind, symbol, _ := bytes.Cut([]byte(head), symbolKey)
	return string(kind) + "." + string(symbol), string(kind) + ".*"
}

func parseStatus(object []byte) (Status, error) {
	var s Status
	if err := json.Unmarshal(object, &s); err != nil {
		return Status{}, fmt.Errorf("a status that cannot be read: %.200q: %w", object, err)
	}
	return s, nil
}
