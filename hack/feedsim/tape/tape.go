package tape

import (
	"fmt"
	"math/rand/v2"
	"time"
)

// Interval is the time one tick stands for.
const Interval = 5 * time.Millisecond

const (
	ticksPerSecond = int(time.Second / Interval)

	// An event costs this much credit; fractions let any rate come out exact.
	eventCost = 1000

	// Of what a tick earns, this share (in fifths) is kept for bursts.
	savedFifths = 2

	// A burst starts in one tick of burstOdds and then spends burstFactor times
	// a tick's income, or burstFloor events, until the savings are gone.
	burstOdds   = 100
	burstFactor = 10
	burstFloor  = 16 * eventCost

	// Popularity of tickers: weight (rank+zipfOffset)^-zipfExponent.
	zipfExponent = 1.1
	zipfOffset   = 5
)

// Config fixes a tape. Every field is needed.
type Config struct {
	Market  Market
	Symbols int           // tickers, 1 to MaxSymbols
	Rate    int           // events per second on average, bars included
	Seed    uint64        // the sequence of events follows from it
	Minute  time.Duration // length of an AM window; whole seconds, the vendor's is one minute
}

// Event is one printed event. Data is valid until the next Tick.
type Event struct {
	Kind   Kind
	Symbol int32  // index into Tickers
	Data   []byte // one compact JSON object
}

// Tape prints the events of one market. It is not safe for concurrent use.
type Tape struct {
	// Static after construction.
	market    Market
	income    int // credit earned by a tick
	minuteLen time.Duration
	perMinute int // ticks in an AM window

	// Owned by the caller of Tick; not thread-safe.
	random   *rand.Rand
	zipf     *rand.Zipf
	books    []book
	traded   [2][]int32 // symbols with a trade in the open second, in the open minute
	ticks    int
	credit   int // may fall below zero when many bars close at once
	savings  int
	bursting bool
	last     int32 // symbol of the event before
	now      stamp
	events   []Event
	buf      []byte
}

// stamp is the time of a tick in the units of the wire.
type stamp struct{ milli, nano int64 }

// New starts a tape. It panics on a Config that cannot be.
func New(cfg Config) *Tape {
	if cfg.Rate < 1 || cfg.Minute < time.Second || cfg.Minute%time.Second != 0 {
		panic(fmt.Sprintf("tape: rate %d, minute %s", cfg.Rate, cfg.Minute))
	}
	listings := universe(cfg.Market, cfg.Symbols)
	// The second half of the seed keeps the two markets apart.
	random := rand.New(rand.NewPCG(cfg.Seed, uint64(len(cfg.Market))))
	t := &Tape{
		market:    cfg.Market,
		income:    cfg.Rate * eventCost / ticksPerSecond,
		minuteLen: cfg.Minute,
		perMinute: int(cfg.Minute / Interval),
		random:    random,
		zipf:      rand.NewZipf(random, zipfExponent, zipfOffset, uint64(len(listings)-1)),
		books:     make([]book, len(listings)),
	}
	for i, l := range listings {
		t.books[i] = newBook(l, random)
	}
	return t
}

// Tick prints what happens in the next Interval. The time is what the events
// carry and changes nothing else. The result is valid until the next Tick.
func (t *Tape) Tick(now time.Time) []Event {
	t.now = stamp{milli: now.UnixMilli(), nano: now.UnixNano()}
	t.events, t.buf = t.events[:0], t.buf[:0]
	if t.ticks > 0 && t.ticks%ticksPerSecond == 0 {
		t.closeBars(SecondBar, now, time.Second)
	}
	if t.ticks > 0 && t.ticks%t.perMinute == 0 {
		t.closeBars(MinuteBar, now, t.minuteLen)
	}
	t.ticks++
	t.earn()
	for ; t.credit >= eventCost; t.credit -= eventCost {
		t.print()
	}
	return t.events
}

// earn adds a tick's income to the credit, but for the share kept for bursts,
// and pays out of the savings while there is a burst.
func (t *Tape) earn() {
	saved := t.income * savedFifths / 5
	t.credit += t.income - saved
	t.savings += saved
	t.bursting = t.bursting || t.random.IntN(burstOdds) == 0
	if !t.bursting {
		return
	}
	paid := min(t.savings, max(t.income*burstFactor, burstFloor))
	t.savings -= paid
	t.credit += paid
	t.bursting = t.savings > 0
}

// print emits one event that is no bar.
func (t *Tape) print() {
	d := dice(t.random.Uint64())
	if !t.bursting || d.roll(2) == 0 { // in a burst every other event stays with the ticker
		t.last = int32(t.zipf.Uint64())
	}
	kind := pickKind(t.market, &d)
	b := &t.books[t.last]
	start := len(t.buf)
	b.seq += 1 + int64(d.roll(4))
	switch kind {
	case Trade:
		b.move(&d)
		t.trade(b, &d)
	case Quote:
		b.move(&d)
		t.quote(b, &d)
	case LimitBand:
		t.buf = b.appendLimitBand(t.buf, t.now)
	case Imbalance:
		t.buf = b.appendImbalance(t.buf, t.now, &d)
	case FairValue:
		t.buf = b.appendFairValue(t.buf, t.now)
	}
	t.emit(kind, t.last, start)
}

func (t *Tape) emit(k Kind, symbol int32, start int) {
	end := len(t.buf)
	t.events = append(t.events, Event{Kind: k, Symbol: symbol, Data: t.buf[start:end:end]})
}

func (t *Tape) trade(b *book, d *dice) {
	size := b.size(d)
	price := b.price + int64(d.roll(2))*b.spread()
	for i := range b.open {
		if b.open[i].add(price, size) {
			t.traded[i] = append(t.traded[i], t.last)
		}
	}
	b.day.add(price, size)
	if t.market == Options {
		t.buf = b.appendOptionTrade(t.buf, t.now, price, size, d)
		return
	}
	t.buf = b.appendStockTrade(t.buf, t.now, price, size, d)
}

func (t *Tape) quote(b *book, d *dice) {
	if t.market == Options {
		t.buf = b.appendOptionQuote(t.buf, t.now, d)
		return
	}
	t.buf = b.appendStockQuote(t.buf, t.now, d)
}

// closeBars emits the bars of all tickers that traded in the window that ends
// now. Windows are told as the vendor does: from one full second to another.
func (t *Tape) closeBars(k Kind, now time.Time, window time.Duration) {
	which := int(k - SecondBar)
	end := now.Truncate(time.Second).UnixMilli()
	span := [2]int64{end - window.Milliseconds(), end}
	for _, symbol := range t.traded[which] {
		start := len(t.buf)
		b := &t.books[symbol]
		t.buf = b.appendBar(t.buf, k, b.open[which], span, t.market)
		b.open[which] = bar{}
		t.emit(k, symbol, start)
		t.credit -= eventCost
	}
	t.traded[which] = t.traded[which][:0]
}

// pickKind keeps the vendor's proportion of four quotes to a trade.
func pickKind(m Market, d *dice) Kind {
	switch n := d.roll(100); {
	case n < 19:
		return Trade
	case n < 95:
		return Quote
	case n < 98 || m == Options:
		return FairValue
	case n < 99:
		return LimitBand
	default:
		return Imbalance
	}
}

// dice are 64 random bits, used up roll by roll.
type dice uint64

// roll returns a number from 0 to n-1.
func (d *dice) roll(n uint64) uint64 {
	v := uint64(*d) % n
	*d /= dice(n)
	return v
}
