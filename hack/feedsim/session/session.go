// Package session is the vendor's side of the conversation on one socket:
// which frame answers which message, and what the message changes. It is a
// state machine without I/O, clock or goroutine; the socket, its timers and the
// delivery of events are the business of package market.
//
// It speaks as the vendor does: one status object per topic, all in one frame;
// a ticker that does not exist is acknowledged, a topic prefix that does not
// exist is passed over in silence.
package session

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"

	"github.com/cutemarkets/relay/hack/feedsim/tape"
)

// MaxFrame bounds the payload of one outbound frame, in bytes. The vendor's own
// clients accept no frame above 1,000,000.
const MaxFrame = 900_000

// Frames the server sends of its own accord.
const (
	Connected = `[{"ev":"status","status":"connected","message":"Connected Successfully"}]`

	AuthTimeout = `[{"ev":"status","status":"auth_timeout","message":"No authentication request received."}]`

	// The message ends in a space on the vendor's wire too.
	MaxConnections = `[{"ev":"status","status":"max_connections","message":"Maximum number of websocket connections exceeded. "}]`

	authSuccess = `[{"ev":"status","status":"auth_success","message":"authenticated"}]`
	authFailed  = `[{"ev":"status","status":"auth_failed","message":"authentication failed"}]`
	invalidJSON = `[{"ev":"status","status":"error","message":"Invalid JSON"}]`
)

const notAuthorized = `{"ev":"status","status":"error","message":"not authorized"}`

// Rules are the same for all sessions of a market.
type Rules struct {
	Market       tape.Market
	Accept       func(Key) bool
	Unauthorized []tape.Kind // topics the plan lacks
}

// Topic is what a client may subscribe to.
type Topic struct {
	Kind   tape.Kind
	Ticker string // "*" for all; may be one that does not exist
}

// Change is what a message asks of the socket's owner.
type Change uint8

// The changes.
const (
	None Change = iota
	Authenticated
	AuthFailed // end the connection after the frames
	Subscribe
	Unsubscribe
)

// Answer is the outcome of one message.
type Answer struct {
	Frames [][]byte // to send in this order; often none or one
	Change Change
	Topics []Topic // of Subscribe and Unsubscribe
}

// Session is one conversation. The zero value is not ready; see New.
type Session struct {
	rules         Rules
	authenticated bool
}

// New starts a conversation; the caller has sent Connected.
func New(rules Rules) *Session { return &Session{rules: rules} }

// Authenticated reports whether a key was accepted.
func (s *Session) Authenticated() bool { return s.authenticated }

// Handle answers one message of the client.
func (s *Session) Handle(message []byte) Answer {
	var m struct {
		Action string `json:"action"`
		Params string `json:"params"`
	}
	if json.Unmarshal(message, &m) != nil {
		return Answer{Frames: frames(invalidJSON)}
	}
	switch m.Action {
	case "auth":
		if !s.rules.Accept(Key(m.Params)) {
			return Answer{Frames: frames(authFailed), Change: AuthFailed}
		}
		if s.authenticated {
			return Answer{Frames: frames(authSuccess)}
		}
		s.authenticated = true
		return Answer{Frames: frames(authSuccess), Change: Authenticated}
	case "subscribe":
		return s.change(Subscribe, m.Params, "subscribed to: ")
	case "unsubscribe":
		return s.change(Unsubscribe, m.Params, "unsubscribed to: ")
	default:
		return Answer{}
	}
}

// change acknowledges the topics that exist. A refusal for want of rights names
// no topic and comes before the acknowledgements.
func (s *Session) change(c Change, params, verb string) Answer {
	if !s.authenticated {
		return Answer{Frames: frames("[" + notAuthorized + "]")}
	}
	a := Answer{Change: c}
	var refused, acks [][]byte
	for param := range strings.SplitSeq(params, ",") {
		param = strings.TrimSpace(param)
		topic, ok := parseTopic(s.rules.Market, param)
		switch {
		case !ok:
		case s.unauthorized(topic.Kind):
			refused = append(refused, []byte(notAuthorized))
		default:
			acks = append(acks, success(verb+param))
			a.Topics = append(a.Topics, topic)
		}
	}
	a.Frames = join(append(refused, acks...))
	return a
}

func (s *Session) unauthorized(k tape.Kind) bool {
	return slices.Contains(s.rules.Unauthorized, k)
}

// parseTopic splits at the first dot, for tickers contain dots. Options have no
// wildcard for quotes and fair values.
func parseTopic(m tape.Market, param string) (Topic, bool) {
	prefix, ticker, found := strings.Cut(param, ".")
	kind, known := tape.ParseKind(m, prefix)
	if !found || !known || ticker == "" {
		return Topic{}, false
	}
	if m == tape.Options && ticker == "*" && (kind == tape.Quote || kind == tape.FairValue) {
		return Topic{}, false
	}
	return Topic{Kind: kind, Ticker: ticker}, true
}

func success(message string) []byte {
	return append(append([]byte(`{"ev":"status","status":"success","message":`), quote(message)...), '}')
}

// quote is JSON text without the HTML escapes of encoding/json.
func quote(s string) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(s); err != nil {
		panic("session: a string does not encode: " + err.Error())
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

func frames(f string) [][]byte { return [][]byte{[]byte(f)} }

// join puts objects into as few arrays as MaxFrame allows.
func join(objects [][]byte) [][]byte {
	var out [][]byte
	var frame []byte
	for _, o := range objects {
		if len(frame) > 0 && len(frame)+len(o)+2 > MaxFrame {
			out = append(out, append(frame, ']'))
			frame = nil
		}
		if len(frame) == 0 {
			frame = append(frame, '[')
		} else {
			frame = append(frame, ',')
		}
		frame = append(frame, o...)
	}
	if len(frame) > 0 {
		out = append(out, append(frame, ']'))
	}
	return out
}
