// Package source says which events of a market come next, and when: those of a
// tape, or those of a recorded file.
//
// A source is told the time and starts no goroutine; that of a file reads it. It
// is not safe for concurrent use. Under overload a tape skips time, which its
// Skipped says, and a file is read later.
package source

import (
	"math"
	"time"

	"github.com/cutemarkets/relay/hack/feedsim/tape"
)

// All is for Next: as many events as there are.
const All = math.MaxInt

// Foreign is the kind of events nobody can subscribe to. They go to every
// client.
const Foreign = tape.Kind(tape.Kinds)

// Event is one event. Data is valid until the next call of Next.
type Event struct {
	Kind   tape.Kind // or Foreign
	Symbol int32     // as Universe says
	Topic  string    // such as T.AAPL
	Data   []byte    // one JSON object
}

// Source has the events of a market.
type Source interface {
	// Next returns the next events, at most a number of them, and whether it had
	// any to give, which may be none. Without ahead these are only what is due.
	Next(now time.Time, ahead bool, most int) (events []Event, more bool)
	// Hold lets the time up to now pass without events.
	Hold(now time.Time)
	// Unpaced reports whether everything is due at once.
	Unpaced() bool
	// Skipped is the time for which there were no events because Next was called
	// too late, since it was asked last.
	Skipped() time.Duration
	// Err is what ended the source before its time.
	Err() error
}

// Universe numbers the tickers of a market.
type Universe struct {
	numbers map[string]int32
	open    bool
}

// maxTickers bounds an open universe.
const maxTickers = 1 << 20

// NewUniverse returns a universe of these tickers. To an open one, others are
// added when they are asked for.
func NewUniverse(tickers []string, open bool) *Universe {
	u := &Universe{numbers: make(map[string]int32, len(tickers)), open: open}
	for i, ticker := range tickers {
		u.numbers[ticker] = int32(i)
	}
	return u
}

// Number returns the number of a ticker; false: there is none.
func (u *Universe) Number(ticker []byte) (int32, bool) {
	n, known := u.numbers[string(ticker)]
	if !known && u.open && len(u.numbers) < maxTickers {
		n, known = int32(len(u.numbers)), true
		u.numbers[string(ticker)] = n
	}
	return n, known
}

// Tape is the source of invented events.
type Tape struct {
	tape    *tape.Tape
	pace    pace
	topics  [tape.Kinds][]string // by symbol
	events  []Event              // of the last tick
	rest    []Event              // of them, those not yet given
	skipped time.Duration
}

// NewTape returns the source of a new tape, whose events begin at start, or
// carry the time of the clock if that is zero.
func NewTape(cfg tape.Config, start, now time.Time) *Tape {
	t := &Tape{tape: tape.New(cfg), pace: pace{start: start, began: now}}
	tickers := tape.Tickers(cfg.Market, cfg.Symbols)
	for k := range t.topics {
		prefix := tape.Kind(k).String() + "."
		t.topics[k] = make([]string, len(tickers))
		for i, ticker := range tickers {
			t.topics[k][i] = prefix + ticker
		}
	}
	return t
}

// Next implements Source. It gives the events of one tick at a time; what is
// left of one is always due.
func (t *Tape) Next(now time.Time, ahead bool, most int) ([]Event, bool) {
	if len(t.rest) == 0 {
		moment, due, skip := t.pace.next(now)
		t.skipped += skip
		if !due && !ahead {
			return nil, false
		}
		if !due {
			moment = t.pace.extra(now)
		}
		t.tick(moment)
	}
	n := min(most, len(t.rest))
	events := t.rest[:n]
	t.rest = t.rest[n:]
	return events, true
}

func (t *Tape) tick(moment time.Time) {
	t.events = t.events[:0]
	for _, e := range t.tape.Tick(moment) {
		t.events = append(t.events, Event{e.Kind, e.Symbol, t.topics[e.Kind][e.Symbol], e.Data})
	}
	t.rest = t.events
}

// Hold implements Source.
func (t *Tape) Hold(now time.Time) { t.pace.hold(now) }

// Unpaced implements Source.
func (*Tape) Unpaced() bool { return false }

// Skipped implements Source.
func (t *Tape) Skipped() time.Duration {
	skipped := t.skipped
	t.skipped = 0
	return skipped
}

// Err implements Source.
func (*Tape) Err() error { return nil }
