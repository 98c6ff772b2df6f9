package tape

import (
	"math/rand/v2"
	"strconv"
)

// book is the state of one ticker. Prices are cents, sizes shares or contracts.
type book struct {
	ticker string
	level  int64 // the walk is pulled back to it
	price  int64 // best bid
	seq    int64 // "q", rising
	id     int64 // last trade id
	tapeID int64 // "z": 1 NYSE, 2 regional, 3 Nasdaq
	otc    bool

	open [2]bar // the open second and the open minute
	day  bar
}

// bar gathers trades.
type bar struct {
	first, high, low, last int64 // cents
	volume, trades         int64
	notional               int64 // cents times size
}

// add reports whether it was the bar's first trade.
func (b *bar) add(price, size int64) bool {
	first := b.trades == 0
	if first {
		b.first, b.high, b.low = price, price, price
	}
	b.high, b.low, b.last = max(b.high, price), min(b.low, price), price
	b.volume += size
	b.trades++
	b.notional += price * size
	return first
}

// average is the volume-weighted price in hundredths of a cent.
func (b *bar) average() int64 { return b.notional * 100 / b.volume }

func newBook(l listing, r *rand.Rand) book {
	return book{
		ticker: l.ticker,
		level:  l.cents,
		price:  l.cents,
		seq:    1_000 + r.Int64N(1_000_000),
		id:     r.Int64N(1_000_000),
		tapeID: 1 + r.Int64N(3),
		otc:    r.IntN(50) == 0,
	}
}

func (b *book) spread() int64 { return 1 + b.price/20_000 }

// move lets the price step one spread up or down now and then, and back when
// it has left 5 % around its level.
func (b *book) move(d *dice) {
	if d.roll(4) != 0 {
		return
	}
	step := b.spread()
	up := d.roll(2) == 0
	switch reach := max(b.level/20, 3); {
	case b.price > b.level+reach:
		up = false
	case b.price < b.level-reach || b.price-step < 1:
		up = true
	}
	if !up {
		step = -step
	}
	b.price += step
}

// size is mostly round lots; dear stocks trade in single shares.
func (b *book) size(d *dice) int64 {
	n := int64(1 + d.roll(9))
	if b.level > 1_000_000 || d.roll(3) == 0 {
		return n
	}
	return 100 * n
}

var (
	stockExchanges  = [...]int64{4, 11, 12, 8, 19, 10, 21, 15, 1, 2} // 4 is FINRA: reported off-exchange
	optionExchanges = [...]int64{300, 301, 302, 303, 304, 308, 309, 312, 313, 316, 318, 319, 322, 323, 325, 65}
	tradeReports    = [...]int64{201, 202, 203}
	conditions      = [...]string{"", "", `,"c":[41]`, `,"c":[12]`, `,"c":[14,41]`, `,"c":[12,41]`}
	oddConditions   = [...]string{`,"c":[37]`, `,"c":[12,37]`, `,"c":[14,37,41]`}
	optionConds     = [...]string{"", "", `,"c":[209]`, `,"c":[219]`, `,"c":[227]`, `,"c":[232]`, `,"c":[233]`}
	fractions       = [...]string{"", "", "", "", "", ".5", ".25", ".0417"}
	imbalanceTypes  = "OMHCPR"
)

const offExchange = 4

func (b *book) appendStockTrade(buf []byte, now stamp, price, size int64, d *dice) []byte {
	exchange := stockExchanges[d.roll(uint64(len(stockExchanges)))]
	b.id++
	buf = b.head(buf, `{"ev":"T","sym":"`)
	buf = number(buf, `","x":`, exchange)
	buf = number(buf, `,"i":"`, b.id)
	buf = number(buf, `","z":`, b.tapeID)
	buf = decimal(buf, `,"p":`, price, 100)
	buf = number(buf, `,"s":`, size)
	if size < 100 {
		buf = append(buf, oddConditions[d.roll(uint64(len(oddConditions)))]...)
	} else {
		buf = append(buf, conditions[d.roll(uint64(len(conditions)))]...)
	}
	buf = number(buf, `,"t":`, now.milli)
	buf = number(buf, `,"q":`, b.seq)
	if exchange == offExchange {
		buf = number(buf, `,"trfi":`, tradeReports[d.roll(uint64(len(tradeReports)))])
		buf = number(buf, `,"trft":`, now.milli)
	}
	buf = number(buf, `,"ds":"`, size)
	if size < 100 {
		buf = append(buf, fractions[d.roll(uint64(len(fractions)))]...)
	}
	return append(buf, `"}`...)
}

func (b *book) appendOptionTrade(buf []byte, now stamp, price, size int64, d *dice) []byte {
	buf = b.head(buf, `{"ev":"T","sym":"`)
	buf = number(buf, `","x":`, optionExchanges[d.roll(uint64(len(optionExchanges)))])
	buf = decimal(buf, `,"p":`, price, 100)
	buf = number(buf, `,"s":`, size)
	buf = append(buf, optionConds[d.roll(uint64(len(optionConds)))]...)
	buf = number(buf, `,"t":`, now.milli)
	buf = number(buf, `,"q":`, b.seq)
	return append(buf, '}')
}

func (b *book) appendStockQuote(buf []byte, now stamp, d *dice) []byte {
	buf = b.head(buf, `{"ev":"Q","sym":"`)
	buf = number(buf, `","bx":`, stockExchanges[1+d.roll(uint64(len(stockExchanges)-1))])
	buf = decimal(buf, `,"bp":`, b.price, 100)
	buf = number(buf, `,"bs":`, int64(1+d.roll(20)))
	buf = number(buf, `,"ax":`, stockExchanges[1+d.roll(uint64(len(stockExchanges)-1))])
	buf = decimal(buf, `,"ap":`, b.price+b.spread(), 100)
	buf = number(buf, `,"as":`, int64(1+d.roll(20)))
	buf = number(buf, `,"c":`, int64(d.roll(2)))
	if d.roll(4) == 0 {
		buf = append(buf, `,"i":[604]`...)
	}
	buf = number(buf, `,"t":`, now.milli)
	buf = number(buf, `,"q":`, b.seq)
	buf = number(buf, `,"z":`, b.tapeID)
	return append(buf, '}')
}

func (b *book) appendOptionQuote(buf []byte, now stamp, d *dice) []byte {
	buf = b.head(buf, `{"ev":"Q","sym":"`)
	buf = number(buf, `","bx":`, optionExchanges[d.roll(uint64(len(optionExchanges)))])
	buf = number(buf, `,"ax":`, optionExchanges[d.roll(uint64(len(optionExchanges)))])
	buf = decimal(buf, `,"bp":`, b.price, 100)
	buf = decimal(buf, `,"ap":`, b.price+b.spread(), 100)
	buf = number(buf, `,"bs":`, int64(1+d.roll(90)))
	buf = number(buf, `,"as":`, int64(1+d.roll(90)))
	buf = number(buf, `,"t":`, now.milli)
	buf = number(buf, `,"q":`, b.seq)
	return append(buf, '}')
}

// appendBar prints the bar of a window, start and end in milliseconds.
func (b *book) appendBar(buf []byte, k Kind, w bar, span [2]int64, m Market) []byte {
	if k == SecondBar {
		buf = b.head(buf, `{"ev":"A","sym":"`)
	} else {
		buf = b.head(buf, `{"ev":"AM","sym":"`)
	}
	buf = number(buf, `","v":`, w.volume)
	buf = number(buf, `,"av":`, b.day.volume)
	if m == Stocks {
		buf = number(buf, `,"dv":"`, w.volume)
		buf = number(buf, `","dav":"`, b.day.volume)
		buf = append(buf, '"')
	}
	buf = decimal(buf, `,"op":`, b.day.first, 100)
	buf = decimal(buf, `,"vw":`, w.average(), 10_000)
	buf = decimal(buf, `,"o":`, w.first, 100)
	buf = decimal(buf, `,"c":`, w.last, 100)
	buf = decimal(buf, `,"h":`, w.high, 100)
	buf = decimal(buf, `,"l":`, w.low, 100)
	buf = decimal(buf, `,"a":`, b.day.average(), 10_000)
	buf = number(buf, `,"z":`, w.volume/w.trades)
	buf = number(buf, `,"s":`, span[0])
	buf = number(buf, `,"e":`, span[1])
	if b.otc && m == Stocks {
		buf = append(buf, `,"otc":true`...)
	}
	return append(buf, '}')
}

// appendLimitBand prints a limit-up-limit-down band of 10 % around the level.
// The ticker is in "T" and the time in nanoseconds, as on the vendor's wire.
func (b *book) appendLimitBand(buf []byte, now stamp) []byte {
	buf = b.head(buf, `{"ev":"LULD","T":"`)
	buf = decimal(buf, `","h":`, b.level+b.level/10, 100)
	buf = decimal(buf, `,"l":`, b.level-b.level/10, 100)
	buf = number(buf, `,"i":[17],"z":`, b.tapeID)
	buf = number(buf, `,"t":`, now.nano)
	buf = number(buf, `,"q":`, b.seq)
	return append(buf, '}')
}

// appendImbalance prints a net order imbalance of an opening or closing auction.
func (b *book) appendImbalance(buf []byte, now stamp, d *dice) []byte {
	auction := [...]int64{930, 1600}[d.roll(2)]
	buf = b.head(buf, `{"ev":"NOI","T":"`)
	buf = number(buf, `","t":`, now.nano)
	buf = number(buf, `,"at":`, auction)
	buf = append(buf, `,"a":"`...)
	buf = append(buf, imbalanceTypes[d.roll(uint64(len(imbalanceTypes)))])
	buf = number(buf, `","i":`, b.id)
	buf = number(buf, `,"x":`, 10)
	buf = number(buf, `,"o":`, int64(d.roll(5_000)))
	buf = number(buf, `,"p":`, int64(d.roll(5_000)))
	buf = decimal(buf, `,"b":`, b.price, 100)
	return append(buf, '}')
}

func (b *book) appendFairValue(buf []byte, now stamp) []byte {
	buf = b.head(buf, `{"ev":"FMV","sym":"`)
	buf = decimal(buf, `","fmv":`, 2*b.price+b.spread(), 200)
	buf = number(buf, `,"t":`, now.nano)
	return append(buf, '}')
}

func (b *book) head(buf []byte, text string) []byte {
	buf = append(buf, text...)
	return append(buf, b.ticker...)
}

func number(buf []byte, key string, n int64) []byte {
	return strconv.AppendInt(append(buf, key...), n, 10)
}

// decimal appends units/scale as a JSON number without trailing zeros: the
// vendor prints doubles. units must not be negative.
func decimal(buf []byte, key string, units, scale int64) []byte {
	buf = number(buf, key, units/scale)
	rest := units % scale
	if rest == 0 {
		return buf
	}
	buf = append(buf, '.')
	for rest > 0 {
		rest *= 10
		buf = append(buf, byte('0'+rest/scale))
		rest %= scale
	}
	return buf
}
