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
	Quirks       Quirks      // nil: none
}

// Quirks are departures from the rules, asked about for each message anew.
type Quirks interface {
	// Auth says whether a key is refused whatever it is, or gets no answer.
	Auth() (fail, silent bool)
	// NoAck says whether a topic's acknowledgement is withheld, and whether its
	// events come nevertheless.
	NoAck(topic string) (withheld, deliver bool)
	// Unauthorized says whether topics of a kind are refused, and whether that
	// comes after the acknowledgements of the others.
	Unauthorized(tape.Kind) (refused, after bool)
}

type noQuirks struct{}

func (noQuirks) Auth() (fail, silent bool)                    { return false, false }
func (noQuirks) NoAck(string) (withheld, deliver bool)        { return false, false }
func (noQuirks) Unauthorized(tape.Kind) (refused, after bool) { return false, false }

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
	Frame   string // to send; empty: none
	Change  Change
	Objects [][]byte // of Subscribe and Unsubscribe: to send in this order; see Frames
	Topics  []Topic  // of Subscribe and Unsubscribe
}

// Session is one conversation. The zero value is not ready; see New.
type Session struct {
	rules         Rules
	authenticated bool
}

// New starts a conversation; the caller has sent Connected.
func New(rules Rules) *Session {
	if rules.Quirks == nil {
		rules.Quirks = noQuirks{}
	}
	return &Session{rules: rules}
}

// Authenticated reports whether a key was accepted.
func (s *Session) Authenticated() bool { return s.authenticated }

// Handle answers one message of the client.
func (s *Session) Handle(message []byte) Answer {
	var m struct {
		Action string `json:"action"`
		Params string `json:"params"`
	}
	if json.Unmarshal(message, &m) != nil {
		return Answer{Frame: invalidJSON}
	}
	switch m.Action {
	case "auth":
		return s.auth(Key(m.Params))
	case "subscribe":
		return s.change(Subscribe, m.Params, "subscribed to: ")
	case "unsubscribe":
		return s.change(Unsubscribe, m.Params, "unsubscribed to: ")
	default:
		return Answer{}
	}
}

func (s *Session) auth(key Key) Answer {
	fail, silent := s.rules.Quirks.Auth()
	switch {
	case silent:
		return Answer{}
	case fail || !s.rules.Accept(key):
		return Answer{Frame: authFailed, Change: AuthFailed}
	case s.authenticated:
		return Answer{Frame: authSuccess}
	}
	s.authenticated = true
	return Answer{Frame: authSuccess, Change: Authenticated}
}

// change acknowledges the topics that exist. A refusal for want of rights names
// no topic and comes before the acknowledgements, or as a quirk behind them.
func (s *Session) change(c Change, params, verb string) Answer {
	if !s.authenticated {
		return Answer{Frame: "[" + notAuthorized + "]"}
	}
	a := Answer{Change: c}
	var before, acks, after [][]byte
	for param := range strings.SplitSeq(params, ",") {
		param = strings.TrimSpace(param)
		topic, ok := parseTopic(s.rules.Market, param)
		if !ok {
			continue
		}
		if refused, behind := s.unauthorized(topic.Kind); refused {
			if behind {
				after = append(after, []byte(notAuthorized))
			} else {
				before = append(before, []byte(notAuthorized))
			}
			continue
		}
		var withheld, deliver bool
		if c == Subscribe {
			withheld, deliver = s.rules.Quirks.NoAck(param)
		}
		if !withheld {
			acks = append(acks, success(verb+param))
		}
		if !withheld || deliver {
			a.Topics = append(a.Topics, topic)
		}
	}
	a.Objects = slices.Concat(before, acks, after)
	return a
}

func (s *Session) unauthorized(k tape.Kind) (refused, after bool) {
	if slices.Contains(s.rules.Unauthorized, k) {
		return true, false
	}
	return s.rules.Quirks.Unauthorized(k)
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

// Frames puts objects into as few arrays as MaxFrame allows.
func Frames(objects [][]byte) [][]byte {
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
