package deflate

import "strings"

// What Negotiate answers. No window is kept from one message to the next, in
// neither direction, whether that was asked for or not.
const (
	answer       = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
	answerWindow = answer + "; server_max_window_bits=15"
)

// Negotiate takes the values of Sec-WebSocket-Extensions, as many lines as there
// are, and returns the answer to the first offer that is acceptable. It reports
// false when none is: the upgrade then goes on without compression.
//
// An offer is declined for a parameter that is unknown, repeated or malformed
// (RFC 7692 §7.1), and for a server_max_window_bits below 15: a compressed
// message is shared by all clients, so its window cannot follow one of them.
// Whatever client_max_window_bits says is fine, as Inflate takes the largest
// window; it needs no answer.
func Negotiate(offers []string) (response string, ok bool) {
	for _, list := range offers {
		for more := true; more; {
			var offer string
			offer, list, more = cut(list, ',')
			if response, ok := accept(offer); ok {
				return response, true
			}
		}
	}
	return "", false
}

// accept answers one offer.
func accept(offer string) (response string, ok bool) {
	name, params, more := cut(offer, ';')
	if trim(name) != "permessage-deflate" {
		return "", false
	}
	var seen struct{ serverTakeover, clientTakeover, serverWindow, clientWindow bool }
	for more {
		var param string
		param, params, more = cut(params, ';')
		name, value, valued := strings.Cut(param, "=")
		value = unquote(trim(value))
		var before *bool
		switch trim(name) {
		case "server_no_context_takeover":
			before, ok = &seen.serverTakeover, !valued
		case "client_no_context_takeover":
			before, ok = &seen.clientTakeover, !valued
		case "server_max_window_bits":
			before, ok = &seen.serverWindow, value == "15"
		case "client_max_window_bits":
			before, ok = &seen.clientWindow, !valued || isWindow(value)
		default:
			return "", false
		}
		if !ok || *before {
			return "", false
		}
		*before = true
	}
	if seen.serverWindow {
		return answerWindow, true
	}
	return answer, true
}

// isWindow reports whether a value is a window's size in bits: 8 to 15, without
// a leading zero.
func isWindow(value string) bool {
	switch value {
	case "8", "9", "10", "11", "12", "13", "14", "15":
		return true
	default:
		return false
	}
}

// cut cuts a list at its first separator outside a quoted string.
func cut(list string, separator byte) (item, rest string, found bool) {
	quoted := false
	for i := 0; i < len(list); i++ {
		switch c := list[i]; {
		case c == '\\' && quoted:
			i++
		case c == '"':
			quoted = !quoted
		case c == separator && !quoted:
			return list[:i], list[i+1:], true
		}
	}
	return list, "", false
}

// unquote takes the quotes off a value that has them. An escape stays as it is,
// and no good value has one.
func unquote(value string) string {
	if len(value) >= 2 && value[0] == '"' && value[len(value)-1] == '"' {
		return value[1 : len(value)-1]
	}
	return value
}

func trim(s string) string { return strings.Trim(s, " \t") }
