package cutemarkets

import "bytes"

// market is what the vendor serves on one stream.
type market struct {
	prefixes   []string // topic prefixes
	noWildcard []string // prefixes without PREFIX.*
	unknown    string   // problem of any other prefix
	symbol     func(symbol []byte) (problem string)
}

// markets follows the vendor's documentation of both streams: option quotes
// and option fair market values have no wildcard.
var markets = map[string]market{
	"stocks": {
		prefixes: []string{"T", "Q", "A", "AM", "LULD", "NOI", "FMV", "LV"},
		unknown:  "unknown prefix (stocks: T Q A AM LULD NOI FMV LV)",
		symbol:   stockProblem,
	},
	"options": {
		prefixes:   []string{"T", "Q", "A", "AM", "FMV", "LV"},
		noWildcard: []string{"Q", "FMV"},
		unknown:    "unknown prefix (options: T Q A AM FMV LV)",
		symbol:     optionProblem,
	},
}

// Why a topic is refused; user-visible.
const (
	problemForm        = "a topic is PREFIX.SYMBOL or PREFIX.*"
	problemWildcard    = "this prefix has no wildcard"
	problemLong        = "the symbol is longer than 64 bytes"
	problemStock       = "not a stock symbol (symbols are case-sensitive)"
	problemOption      = "not an option symbol (O: and the contract in upper case)"
	problemOtherMarket = "option contracts are on the options stream"
)

const maxSymbol = 64

// topicProblem says why a market does not serve a topic; empty: it does. A
// topic is split at its first dot, since symbols have dots themselves.
func (m market) topicProblem(topic []byte) string {
	prefix, symbol, found := bytes.Cut(topic, []byte{'.'})
	if !found || len(symbol) == 0 {
		return problemForm
	}
	if !has(m.prefixes, prefix) {
		return m.unknown
	}
	if len(symbol) == 1 && symbol[0] == '*' {
		if has(m.noWildcard, prefix) {
			return problemWildcard
		}
		return ""
	}
	if len(symbol) > maxSymbol {
		return problemLong
	}
	return m.symbol(symbol)
}

func has(list []string, b []byte) bool {
	for _, s := range list {
		if s == string(b) {
			return true
		}
	}
	return false
}

// stockProblem takes upper-case letters, digits and inner dots (BRK.A), and
// after the first character the lower-case p, r and w of preferred shares,
// rights and when-issued shares: the vendor tells AMpB (a preferred share of
// AM) from AMPB (github.com/polygon-io/issues/issues/36).
func stockProblem(symbol []byte) string {
	if bytes.HasPrefix(symbol, []byte("O:")) {
		return problemOtherMarket
	}
	for i, c := range symbol {
		switch {
		case upperOrDigit(c):
		case i > 0 && (c == '.' || c == 'p' || c == 'r' || c == 'w'):
		default:
			return problemStock
		}
	}
	return ""
}

// optionProblem takes O: and then upper-case letters, digits and inner dots.
func optionProblem(symbol []byte) string {
	contract, found := bytes.CutPrefix(symbol, []byte("O:"))
	if !found || len(contract) == 0 {
		return problemOption
	}
	for i, c := range contract {
		if !upperOrDigit(c) && (c != '.' || i == 0) {
			return problemOption
		}
	}
	return ""
}

func upperOrDigit(c byte) bool { return c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' }
