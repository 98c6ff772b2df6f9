package market

import (
	"github.com/cutemarkets/relay/hack/feedsim/session"
	"github.com/cutemarkets/relay/hack/feedsim/source"
	"github.com/cutemarkets/relay/hack/feedsim/tape"
)

// topics is the set a client subscribed to. An event matches once, however many
// topics name it. Tickers that do not exist take no room: no event has them.
type topics struct {
	all   [tape.Kinds]bool
	exact [tape.Kinds][]bool // by symbol; as long as was needed
	count int
}

func (t *topics) has(e *source.Event) bool {
	if e.Kind == source.Foreign || t.all[e.Kind] {
		return true
	}
	exact := t.exact[e.Kind]
	return uint32(e.Symbol) < uint32(len(exact)) && exact[e.Symbol]
}

// set adds or removes a topic.
func (t *topics) set(topic session.Topic, u *source.Universe, on bool) {
	if topic.Ticker == "*" {
		t.turn(&t.all[topic.Kind], on)
		return
	}
	symbol, exists := u.Number([]byte(topic.Ticker))
	if !exists {
		return
	}
	exact := &t.exact[topic.Kind]
	if missing := int(symbol) + 1 - len(*exact); missing > 0 {
		*exact = append(*exact, make([]bool, missing)...)
	}
	t.turn(&(*exact)[symbol], on)
}

func (t *topics) turn(topic *bool, on bool) {
	switch {
	case on && !*topic:
		t.count++
	case !on && *topic:
		t.count--
	}
	*topic = on
}
