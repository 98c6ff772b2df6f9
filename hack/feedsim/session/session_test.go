package session

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cutemarkets/relay/hack/feedsim/tape"
)

const (
	authOK  = `[{"ev":"status","status":"auth_success","message":"authenticated"}]`
	authBad = `[{"ev":"status","status":"auth_failed","message":"authentication failed"}]`
	denied  = `{"ev":"status","status":"error","message":"not authorized"}`
	badJSON = `[{"ev":"status","status":"error","message":"Invalid JSON"}]`
)

func rules(m tape.Market) Rules {
	return Rules{
		Market:       m,
		Accept:       func(k Key) bool { return k == "good" },
		Unauthorized: []tape.Kind{tape.Imbalance},
	}
}

func ack(topic string) string {
	return fmt.Sprintf(`{"ev":"status","status":"success","message":"subscribed to: %s"}`, topic)
}

func unack(topic string) string {
	return fmt.Sprintf(`{"ev":"status","status":"success","message":"unsubscribed to: %s"}`, topic)
}

func array(objects ...string) string { return "[" + strings.Join(objects, ",") + "]" }

// reply is all that an answer sends, with a space between two frames.
func reply(a Answer) string {
	return a.Frame + string(bytes.Join(Frames(a.Objects), []byte(" ")))
}

// TestConversation goes through the vendor's rules, message by message. Each
// case starts with an accepted key unless it is about the key.
func TestConversation(t *testing.T) {
	t.Parallel()
	topic := func(k tape.Kind, ticker string) Topic { return Topic{k, ticker} }
	for _, c := range []struct {
		name    string
		market  tape.Market
		keyless bool
		message string
		reply   string // of one frame; empty: none
		change  Change
		topics  []Topic
	}{
		{"good key", tape.Stocks, true, `{"action":"auth","params":"good"}`, authOK, Authenticated, nil},
		{"bad key", tape.Stocks, true, `{"action":"auth","params":"bad"}`, authBad, AuthFailed, nil},
		{"empty key", tape.Stocks, true, `{"action":"auth"}`, authBad, AuthFailed, nil},
		{"key again", tape.Stocks, false, `{"action":"auth","params":"good"}`, authOK, None, nil},
		{"bad key later", tape.Stocks, false, `{"action":"auth","params":"bad"}`, authBad, AuthFailed, nil},
		{"subscribe before the key", tape.Stocks, true, `{"action":"subscribe","params":"T.AAPL"}`, array(denied), None, nil},
		{"one topic", tape.Stocks, false, `{"action":"subscribe","params":"T.AAPL"}`, array(ack("T.AAPL")), Subscribe,
			[]Topic{topic(tape.Trade, "AAPL")}},
		{"several, trimmed", tape.Stocks, false, `{"action":"subscribe","params":" AM.AAPL, AM.MSFT ,T.*"}`,
			array(ack("AM.AAPL"), ack("AM.MSFT"), ack("T.*")), Subscribe,
			[]Topic{topic(tape.MinuteBar, "AAPL"), topic(tape.MinuteBar, "MSFT"), topic(tape.Trade, "*")}},
		{"dots in the ticker", tape.Stocks, false, `{"action":"subscribe","params":"T.BRK.A"}`, array(ack("T.BRK.A")), Subscribe,
			[]Topic{topic(tape.Trade, "BRK.A")}},
		{"duplicates", tape.Stocks, false, `{"action":"subscribe","params":"T.A,T.A"}`, array(ack("T.A"), ack("T.A")), Subscribe,
			[]Topic{topic(tape.Trade, "A"), topic(tape.Trade, "A")}},
		{"unknown ticker", tape.Stocks, false, `{"action":"subscribe","params":"T.NOSUCH"}`, array(ack("T.NOSUCH")), Subscribe,
			[]Topic{topic(tape.Trade, "NOSUCH")}},
		{"unknown prefixes", tape.Stocks, false, `{"action":"subscribe","params":"ZZ.AAPL,LV.AAPL,T,T.,.AAPL,,t.AAPL"}`, "", Subscribe, nil},
		{"unknown beside known", tape.Stocks, false, `{"action":"subscribe","params":"ZZ.AAPL,LULD.*"}`, array(ack("LULD.*")), Subscribe,
			[]Topic{topic(tape.LimitBand, "*")}},
		{"not authorized", tape.Stocks, false, `{"action":"subscribe","params":"T.A,NOI.*,Q.A"}`, array(denied, ack("T.A"), ack("Q.A")), Subscribe,
			[]Topic{topic(tape.Trade, "A"), topic(tape.Quote, "A")}},
		{"unsubscribe", tape.Stocks, false, `{"action":"unsubscribe","params":"T.A, Q.*"}`, array(unack("T.A"), unack("Q.*")), Unsubscribe,
			[]Topic{topic(tape.Trade, "A"), topic(tape.Quote, "*")}},
		{"ticker to escape", tape.Stocks, false, `{"action":"subscribe","params":"T.<\"é\\>"}`, array(ack(`T.<\"é\\>`)), Subscribe,
			[]Topic{topic(tape.Trade, `<"é\>`)}},
		{"options", tape.Options, false, `{"action":"subscribe","params":"T.*,A.*,AM.*,Q.O:SPY260515C00500000"}`,
			array(ack("T.*"), ack("A.*"), ack("AM.*"), ack("Q.O:SPY260515C00500000")), Subscribe,
			[]Topic{topic(tape.Trade, "*"), topic(tape.SecondBar, "*"), topic(tape.MinuteBar, "*"), topic(tape.Quote, "O:SPY260515C00500000")}},
		{"no quotes of all options", tape.Options, false, `{"action":"subscribe","params":"Q.*,FMV.*"}`, "", Subscribe, nil},
		{"no bands on options", tape.Options, false, `{"action":"subscribe","params":"LULD.*,NOI.*"}`, "", Subscribe, nil},
		{"no JSON", tape.Stocks, false, `{"action":`, badJSON, None, nil},
		{"no object", tape.Stocks, false, `[{"action":"subscribe"}]`, badJSON, None, nil},
		{"params no string", tape.Stocks, false, `{"action":"subscribe","params":["T.A"]}`, badJSON, None, nil},
		{"unknown action", tape.Stocks, false, `{"action":"dance"}`, "", None, nil},
		{"empty object", tape.Stocks, true, `{}`, "", None, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := New(rules(c.market))
			if !c.keyless {
				s.Handle([]byte(`{"action":"auth","params":"good"}`))
			}
			a := s.Handle([]byte(c.message))
			if reply := reply(a); reply != c.reply {
				t.Errorf("\n got %s\nwant %s", reply, c.reply)
			}
			if a.Change != c.change || !slices.Equal(a.Topics, c.topics) {
				t.Errorf("change %d of %v, want %d of %v", a.Change, a.Topics, c.change, c.topics)
			}
		})
	}
}

// oddQuirks refuses bars and withholds the acknowledgements of two tickers.
type oddQuirks struct {
	fail, silent bool // the answer to a key
	after        bool // where the refusals come
}

func (q oddQuirks) Auth() (fail, silent bool) { return q.fail, q.silent }

func (oddQuirks) NoAck(topic string) (withheld, deliver bool) {
	return topic == "T.LOST" || topic == "T.QUIET", topic == "T.QUIET"
}

func (q oddQuirks) Unauthorized(k tape.Kind) (refused, after bool) {
	return k == tape.MinuteBar, q.after
}

func TestQuirks(t *testing.T) {
	t.Parallel()
	const (
		auth      = `{"action":"auth","params":"good"}`
		subscribe = `{"action":"subscribe","params":"T.A,T.LOST,AM.*,T.QUIET,NOI.*,T.B"}`
	)
	for _, c := range []struct {
		name    string
		quirks  oddQuirks
		message string
		reply   string
		change  Change
		topics  int
	}{
		{"key refused", oddQuirks{fail: true}, auth, authBad, AuthFailed, 0},
		{"key not answered", oddQuirks{silent: true}, auth, "", None, 0},
		{"refusals before", oddQuirks{}, subscribe, array(denied, denied, ack("T.A"), ack("T.B")), Subscribe, 3},
		{"refusals after", oddQuirks{after: true}, subscribe, array(denied, ack("T.A"), ack("T.B"), denied), Subscribe, 3},
		{"unsubscribe", oddQuirks{}, `{"action":"unsubscribe","params":"T.LOST"}`, array(unack("T.LOST")), Unsubscribe, 1},
	} {
		r := rules(tape.Stocks)
		r.Quirks = c.quirks
		s := New(r)
		s.authenticated = c.message != auth
		a := s.Handle([]byte(c.message))
		if reply(a) != c.reply || a.Change != c.change || len(a.Topics) != c.topics {
			t.Errorf("%s: %s, change %d of %v, want %s", c.name, reply(a), a.Change, a.Topics, c.reply)
		}
	}
}

// TestLongAnswer splits only what would not fit a frame of the vendor's clients.
func TestLongAnswer(t *testing.T) {
	t.Parallel()
	s := New(rules(tape.Stocks))
	s.Handle([]byte(`{"action":"auth","params":"good"}`))
	for _, n := range []int{10_000, 40_000} {
		a := s.Handle([]byte(`{"action":"subscribe","params":"` + strings.Repeat("T.AAPL,", n) + `"}`))
		total, frames := 0, Frames(a.Objects)
		for _, f := range frames {
			var objects []json.RawMessage
			if err := json.Unmarshal(f, &objects); err != nil {
				t.Fatal(err)
			}
			total += len(objects)
			if len(f) > MaxFrame {
				t.Errorf("a frame of %d bytes", len(f))
			}
		}
		if total != n || (n == 10_000) != (len(frames) == 1) {
			t.Errorf("%d acknowledgements of %d in %d frames", total, n, len(frames))
		}
	}
}

func TestKeyIsNeverPrinted(t *testing.T) {
	t.Parallel()
	marshalled, err := json.Marshal(map[string]any{"k": []Key{"canary"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{fmt.Sprint(Key("canary")), fmt.Sprintf("%#v %q %x", Key("canary"), []Key{"canary"}, Key("canary")), string(marshalled)} {
		if strings.Contains(text, "canary") || strings.Contains(text, "63616e617279") {
			t.Errorf("the key is in %s", text)
		}
	}
}
