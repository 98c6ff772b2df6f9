package tape

import "fmt"

// Market is one of the two feeds of the vendor.
type Market string

// The markets.
const (
	Stocks  Market = "stocks"
	Options Market = "options"
)

// Kind is the type of an event, and the first part of a topic.
type Kind uint8

// The kinds. Options have no LULD and no NOI.
const (
	Trade Kind = iota
	Quote
	SecondBar
	MinuteBar
	LimitBand
	Imbalance
	FairValue

	Kinds int = iota // how many there are
)

var prefixes = [Kinds]string{"T", "Q", "A", "AM", "LULD", "NOI", "FMV"}

// String returns the kind's topic prefix, which is also the value of "ev".
func (k Kind) String() string {
	if int(k) < Kinds {
		return prefixes[k]
	}
	return fmt.Sprintf("Kind(%d)", uint8(k))
}

// ParseKind finds the kind of a topic prefix that the market knows.
func ParseKind(m Market, prefix string) (Kind, bool) {
	for i, p := range prefixes {
		k := Kind(i)
		if p == prefix {
			return k, m == Stocks || (k != LimitBand && k != Imbalance)
		}
	}
	return 0, false
}
