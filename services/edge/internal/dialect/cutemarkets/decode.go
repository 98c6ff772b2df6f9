package cutemarkets

import (
	"bytes"
	"encoding/json"

	"github.com/cutemarkets/relay/services/edge/internal/dialect"
	"github.com/cutemarkets/relay/services/internal/secret"
)

// Answers to messages that are no command.
var (
	replyInvalid  = status("error", "Invalid JSON")
	replyNoObject = status("error", "invalid message: not a JSON object")
	replyNoAction = status("error", "invalid message: action is missing or not a string")
	replyAction   = status("error", "unknown action; use subscribe, unsubscribe or auth")
	replyNoParams = status("error", "params is missing or not a string of comma-separated topics")
	replyTooMany  = status("error", "too many params: at most 1000 per message; none was carried out")
)

// API keys of the product begin so; a topic never holds it.
var credentialStart = []byte("cm_")

const redactedParam = "cm_[redacted]"

// Decode implements dialect.Dialect. A message is a JSON object whose keys
// action and params are spelled exactly so; of equal keys the last one counts,
// other keys are ignored. The replies never echo an action, nor a param that
// looks like an API key.
func (d *Dialect) Decode(name string, message []byte, c *dialect.Command) {
	m, ok := markets[name]
	if !ok {
		panic("cutemarkets: no market " + name)
	}
	*c = dialect.Command{Params: c.Params[:0]}
	if !json.Valid(message) {
		c.Reply, c.Malformed = replyInvalid, true
		return
	}
	message = bytes.TrimLeft(message, space)
	if message[0] != '{' {
		c.Reply, c.Malformed = replyNoObject, true
		return
	}
	rawAction, rawParams := fields(message)
	action, ok := text(rawAction)
	if !ok {
		c.Reply, c.Malformed = replyNoAction, true
		return
	}
	switch string(action) {
	case "auth":
		c.Op = dialect.OpSignin
		if params, ok := text(rawParams); ok && plausible(string(params)) {
			c.Credential = secret.New(string(params))
		}
	case "subscribe":
		c.Op = dialect.OpSubscribe
		decodeTopics(m, rawParams, c)
	case "unsubscribe":
		c.Op = dialect.OpUnsubscribe
		decodeTopics(m, rawParams, c)
	default:
		c.Reply = replyAction
	}
}

// decodeTopics splits a comma-separated list. Spaces and tabs around a topic
// and empty entries are ignored.
func decodeTopics(m market, rawParams []byte, c *dialect.Command) {
	list, ok := text(rawParams)
	for ok && len(list) > 0 {
		var item []byte
		item, list, _ = bytes.Cut(list, []byte{','})
		if item = bytes.Trim(item, " \t"); len(item) == 0 {
			continue
		}
		if len(c.Params) == maxParams {
			*c = dialect.Command{Params: c.Params[:0], Reply: replyTooMany}
			return
		}
		c.Params = append(c.Params, param(m, item))
	}
	if len(c.Params) == 0 {
		c.Op, c.Reply = dialect.OpNone, replyNoParams
	}
}

func param(m market, item []byte) dialect.Param {
	problem := m.topicProblem(item)
	switch {
	case problem == "":
		topic := string(item)
		return dialect.Param{Topic: topic, Text: topic}
	case bytes.Contains(item, credentialStart):
		return dialect.Param{Text: redactedParam, Problem: problem}
	default:
		return dialect.Param{Text: string(cut(item)), Problem: problem}
	}
}

// space is JSON's white space (RFC 8259 section 2).
const space = " \t\r\n"

// fields returns the raw values of action and params in a valid JSON object
// without white space before it; nil: there is no such key. It neither
// recurses nor allocates, whatever else the object holds.
func fields(object []byte) (action, params []byte) {
	rest := object[1:]
	for {
		rest = bytes.TrimLeft(rest, space+",")
		if rest[0] == '}' {
			return action, params
		}
		end := valueEnd(rest)
		key, _ := text(rest[:end])
		rest = bytes.TrimLeft(rest[end:], space+":")
		end = valueEnd(rest)
		switch string(key) {
		case "action":
			action = rest[:end]
		case "params":
			params = rest[:end]
		}
		rest = rest[end:]
	}
}

// valueEnd returns the length of the valid JSON value that b begins with.
func valueEnd(b []byte) int {
	depth := 0
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '"':
			for i++; b[i] != '"'; i++ {
				if b[i] == '\\' {
					i++
				}
			}
			if depth == 0 {
				return i + 1
			}
		case '{', '[':
			depth++
		case '}', ']':
			if depth == 0 {
				return i // of the object around a number or a word
			}
			if depth--; depth == 0 {
				return i + 1
			}
		case ',', ' ', '\t', '\r', '\n':
			if depth == 0 {
				return i
			}
		}
	}
	return len(b)
}

// text returns what a valid raw JSON value spells, when it is a string; a part
// of raw where that holds no escape and plain ASCII.
func text(raw []byte) (value []byte, ok bool) {
	if len(raw) == 0 || raw[0] != '"' {
		return nil, false
	}
	inner := raw[1 : len(raw)-1]
	for _, c := range inner {
		if c == '\\' || c > '~' {
			var s string
			if json.Unmarshal(raw, &s) != nil {
				return nil, false
			}
			return []byte(s), true
		}
	}
	return inner, true
}
