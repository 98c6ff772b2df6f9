// Package oddity changes the bytes of events as a vendor might one day: numbers
// in other forms, keys and event types that nobody knows, and sequence numbers
// that do not rise. It also adds what measurements need: the time stamp, and
// a number by which a hole is seen.
// What comes out is always valid JSON.
//
// The package is pure. It owns its buffer and does nothing when nothing is
// asked for.
package oddity

import (
	"bytes"
	"strconv"
	"strings"
	"time"

	"github.com/cutemarkets/relay/hack/feedsim/source"
	"github.com/cutemarkets/relay/hack/feedsim/tape"
)

// Sequence is what happens to "q".
type Sequence uint8

// The sequences.
const (
	Rising   Sequence = iota // as it was
	Repeated                 // always the same
	Falling
)

// Number says by what "n" counts, from 1 on without a hole.
type Number uint8

// The numbers. Events that nobody can subscribe to have no topic to be counted
// in.
const (
	NoNumber Number = iota
	ByTopic
	ByMarket // as the ground truth does
)

// Settings say what to change.
type Settings struct {
	Stamp    bool     // add "ts"
	Number   Number   // add "n", the last key
	Last     uint64   // of the market's event before, for ByMarket
	Numbers  bool     // 12.0 and 1e3 for integers
	Keys     bool     // add keys that nobody knows
	Sequence Sequence // of "q"
	Types    int      // after each n-th event add one of a type that nobody knows; zero: none
	Huge     int      // before the events add one of that many bytes; zero: none
}

// Counts is how many events were changed or added.
type Counts struct{ Numbers, Keys, Types, Sequence int }

const (
	// unknownKeys has what a sloppy parser trips over.
	unknownKeys = `,"zz":{"sym":"ZZBAD","ev":"status","a":[1,"]}",null,-0.5e-3]},"z\u00e9":"\ud83d\ude00\"}"}`

	repeated  = 1000
	fallsFrom = 1 << 40
	hugeTopic = "T.ZZHUGE"
	hugeHead  = `{"ev":"T","sym":"ZZHUGE","pad":"`
	hugeTail  = `"}`
	noSymbol  = -1
)

// Oddity changes the events of one market. The zero value is ready. It is not
// safe for concurrent use.
type Oddity struct {
	buf    []byte
	events []source.Event
	number map[string]uint64 // the last one of each topic
	stamp  int64             // the last one
	fallen int64             // numbers given out by Falling
	seen   int               // events looked at for Types
	added  int64             // events added by Types
}

// Apply returns the events as they are to be sent. The result is valid until
// the next call.
func (o *Oddity) Apply(events []source.Event, now time.Time, set Settings) ([]source.Event, Counts) {
	var counts Counts
	if set == (Settings{}) {
		return events, counts
	}
	o.buf, o.events = o.buf[:0], o.events[:0]
	if set.Huge > 0 {
		o.add(source.Event{Kind: tape.Trade, Symbol: noSymbol, Topic: hugeTopic, Data: huge(set.Huge)}, now, set)
	}
	for _, e := range events {
		e.Data = o.change(e.Data, set, &counts)
		o.add(e, now, set)
		if set.Types == 0 {
			continue
		}
		if o.seen++; o.seen%set.Types == 0 {
			counts.Types++
			o.add(o.unknown(e.Topic), now, set)
		}
	}
	return o.events, counts
}

// add appends an event, with its number and its stamp. Stamps rise, so that no two
// events of a market are the same.
func (o *Oddity) add(e source.Event, now time.Time, set Settings) {
	number := o.count(&e, set)
	if set.Stamp || number > 0 {
		start := len(o.buf)
		o.buf = append(o.buf, e.Data[:len(e.Data)-1]...)
		if set.Stamp {
			o.stamp = max(o.stamp+1, now.UnixNano())
			o.buf = strconv.AppendInt(append(o.buf, `,"ts":`...), o.stamp, 10)
		}
		if number > 0 {
			o.buf = strconv.AppendUint(append(o.buf, `,"n":`...), number, 10)
		}
		o.buf = append(o.buf, '}')
		e.Data = o.buf[start:len(o.buf):len(o.buf)]
	}
	o.events = append(o.events, e)
}

// count returns the number of an event; zero: none.
func (o *Oddity) count(e *source.Event, set Settings) uint64 {
	switch {
	case set.Number == ByMarket:
		return set.Last + 1 + uint64(len(o.events))
	case set.Number == ByTopic && e.Kind != source.Foreign:
		if o.number == nil {
			o.number = make(map[string]uint64)
		}
		o.number[e.Topic]++
		return o.number[e.Topic]
	}
	return 0
}

func (o *Oddity) change(data []byte, set Settings, counts *Counts) []byte {
	if set.Numbers {
		before := data
		data = replace(data, `"z":`, func(digits []byte) []byte { return append(digits, ".0"...) })
		data = replace(data, `"s":`, exponent)
		if len(data) != len(before) {
			counts.Numbers++
		}
	}
	if set.Sequence != Rising {
		was := o.fallen
		data = replace(data, `"q":`, func([]byte) []byte {
			o.fallen++
			if set.Sequence == Repeated {
				return strconv.AppendInt(nil, repeated, 10)
			}
			return strconv.AppendInt(nil, fallsFrom-o.fallen, 10)
		})
		counts.Sequence += int(o.fallen - was)
	}
	if set.Keys {
		counts.Keys++
		data = append(bytes.Clone(data[:len(data)-1]), unknownKeys...)
	}
	return data
}

// unknown is an event of a type that no client can subscribe to.
func (o *Oddity) unknown(topic string) source.Event {
	o.added++
	_, ticker, _ := strings.Cut(topic, ".")
	data := strconv.AppendInt([]byte(`{"ev":"ZB","sym":"`+ticker+`","i":`), o.added, 10)
	return source.Event{Kind: source.Foreign, Symbol: noSymbol, Topic: "ZB." + ticker, Data: append(data, '}')}
}

func huge(size int) []byte {
	data := make([]byte, 0, size)
	data = append(data, hugeHead...)
	data = append(data, bytes.Repeat([]byte("x"), size-len(hugeHead)-len(hugeTail))...)
	return append(data, hugeTail...)
}

// replace puts another number in the place of the first integer behind a key.
// value gets a copy of the digits.
func replace(data []byte, key string, value func(digits []byte) []byte) []byte {
	start := bytes.Index(data, []byte(key))
	if start < 0 {
		return data
	}
	start += len(key)
	end := start
	for end < len(data) && data[end]-'0' <= 9 {
		end++
	}
	if end == start || end == len(data) || (data[end] != ',' && data[end] != '}') {
		return data
	}
	out := append(make([]byte, 0, len(data)+16), data[:start]...)
	out = append(out, value(bytes.Clone(data[start:end]))...)
	return append(out, data[end:]...)
}

// exponent writes 12000 as 12e3 and 12 as 12e0.
func exponent(digits []byte) []byte {
	significant := bytes.TrimRight(digits, "0")
	if len(significant) == 0 {
		return []byte("0e0")
	}
	zeros := len(digits) - len(significant)
	return strconv.AppendInt(append(significant, 'e'), int64(zeros), 10)
}
