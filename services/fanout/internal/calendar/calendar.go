// Package calendar knows when US stocks and options trade: which part of the
// trading day a moment belongs to, and until when. It is pure, starts no
// goroutine and carries the time zone's rules with it, so it needs no files of
// the system.
//
// Holidays and half days follow from the rules of NYSE (Rule 7.2), valid from
// 2022 on, when Juneteenth became one. They give what NYSE Group published as
// "Holiday and Early Closings Calendar" for 2022 to 2024 (2021-12-27), 2025 to
// 2027 (2024-11-08) and 2026 to 2028 (2025-12-23). What no rule foresees, such
// as the day of mourning on 2025-01-09 or a halt of the whole market, is a
// trading day here on which nothing happens.
package calendar

import (
	"fmt"
	"time"
	_ "time/tzdata" // images have no files of time zones
)

// Part is a part of the day.
type Part uint8

// The parts, in order of the day.
const (
	Closed     Part = iota
	PreMarket       // stocks only
	Regular         // 09:30 to 16:00, on half days to 13:00, in New York
	AfterHours      // stocks: to 20:00 or 17:00; options: a quarter of an hour, in which some trade
)

// String is for logs.
func (p Part) String() string {
	return [...]string{"closed", "pre_market", "regular", "after_hours"}[p]
}

// Hours tells which part of the trading day a moment is in, and when that part
// ends; zero: never. The moment of a change belongs to the part that begins.
type Hours func(t time.Time) (part Part, until time.Time)

// Always is trading that never ends.
func Always(time.Time) (Part, time.Time) { return Regular, time.Time{} }

// Never is no trading.
func Never(time.Time) (Part, time.Time) { return Closed, time.Time{} }

// clock is a time of day in minutes.
type clock int

func at(hour, minute int) clock { return clock(60*hour + minute) }

// day is when the parts of a trading day begin and the last one ends. A part
// that begins with the next is none.
type day struct {
	pre, open, end, late clock
}

var (
	stocksDay   = day{pre: at(4, 0), open: at(9, 30), end: at(16, 0), late: at(20, 0)}
	stocksHalf  = day{pre: at(4, 0), open: at(9, 30), end: at(13, 0), late: at(17, 0)}
	optionsDay  = day{pre: at(9, 30), open: at(9, 30), end: at(16, 0), late: at(16, 15)}
	optionsHalf = day{pre: at(9, 30), open: at(9, 30), end: at(13, 0), late: at(13, 15)}
)

// Stocks are the hours of US stocks.
func Stocks(t time.Time) (Part, time.Time) { return hours(t, stocksDay, stocksHalf) }

// Options are the hours of US options on stocks and funds.
func Options(t time.Time) (Part, time.Time) { return hours(t, optionsDay, optionsHalf) }

func hours(t time.Time, whole, half day) (Part, time.Time) {
	for d := dateOf(t.In(newYork)); ; d = d.plus(1) {
		if !d.trading() {
			continue
		}
		times := whole
		if d.half() {
			times = half
		}
		for _, end := range []struct {
			part Part
			at   clock
		}{{Closed, times.pre}, {PreMarket, times.open}, {Regular, times.end}, {AfterHours, times.late}} {
			if until := d.at(end.at); t.Before(until) {
				return end.part, until
			}
		}
	}
}

var newYork = load("America/New_York")

func load(name string) *time.Location {
	location, err := time.LoadLocation(name)
	if err != nil {
		panic(fmt.Sprintf("calendar: the embedded time zones lack %s: %v", name, err))
	}
	return location
}
