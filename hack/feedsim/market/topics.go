package market

import (
	"github.com/cutemarkets/relay/hack/feedsim/session"
	"github.com/cutemarkets/relay/hack/feedsim/tape"
)

// topics is the set a client subscribed to. An event matches once, however many
// topics name it. Tickers that do not exist take no room: no event has them.
type topics struct {
	all   [tape.Kinds]bool
	exact [tape.Kinds][]bool // by symbol; nil until the first topic of the kind
}

func (t *topics) has(k tape.Kind, symbol int32) bool {
	return t.all[k] || (t.exact[k] != nil && t.exact[k][symbol])
}

// set adds or removes a topic; symbols holds the tickers that exist.
func (t *topics) set(topic session.Topic, symbols map[string]int32, on bool) {
	if topic.Ticker == "*" {
		t.all[topic.Kind] = on
		return
	}
	symbol, exists := symbols[topic.Ticker]
	if !exists {
		return
	}
	if t.exact[topic.Kind] == nil {
		t.exact[topic.Kind] = make([]bool, len(symbols))
	}
	t.exact[topic.Kind][symbol] = on
}
