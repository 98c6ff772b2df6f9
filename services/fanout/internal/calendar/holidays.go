package calendar

import "time"

// date is a day in New York.
type date struct {
	year  int
	month time.Month
	day   int
}

func dateOf(t time.Time) date {
	year, month, day := t.Date()
	return date{year, month, day}
}

// at is a time of the day.
func (d date) at(c clock) time.Time {
	return time.Date(d.year, d.month, d.day, int(c)/60, int(c)%60, 0, 0, newYork)
}

// noon stands for the day in sums: no change of the clocks comes near it.
func (d date) noon() time.Time { return time.Date(d.year, d.month, d.day, 12, 0, 0, 0, time.UTC) }

func (d date) plus(days int) date { return dateOf(d.noon().AddDate(0, 0, days)) }

func (d date) weekday() time.Weekday { return d.noon().Weekday() }

func (d date) weekend() bool { return d.weekday() == time.Saturday || d.weekday() == time.Sunday }

func (d date) trading() bool { return !d.weekend() && !d.holiday() }

// holiday reports whether the markets are closed on a day that is no weekend's.
func (d date) holiday() bool {
	for _, closed := range []date{
		observed(date{d.year, time.January, 1}),
		nth(d.year, time.January, time.Monday, 3),       // Martin Luther King
		nth(d.year, time.February, time.Monday, 3),      // Washington
		easter(d.year).plus(-2),                         // Good Friday
		nth(d.year, time.June, time.Monday, 1).plus(-7), // Memorial Day, the last Monday of May
		observed(date{d.year, time.June, 19}),
		observed(date{d.year, time.July, 4}),
		nth(d.year, time.September, time.Monday, 1), // Labor Day
		thanksgiving(d.year),
		observed(date{d.year, time.December, 25}),
	} {
		if d == closed {
			return true
		}
	}
	return false
}

// half reports whether trading ends at 13:00 on a trading day: before
// Independence Day, after Thanksgiving, before Christmas.
func (d date) half() bool {
	return d == date{d.year, time.July, 3} || d == date{d.year, time.December, 24} || d == thanksgiving(d.year).plus(1)
}

// observed is when a holiday of a fixed date is kept: on Friday for a Saturday,
// on Monday for a Sunday. A New Year's Day on a Saturday is not kept, because
// the Friday ends the year; as that is a date of the year before, no day of the
// year equals it.
func observed(d date) date {
	switch d.weekday() {
	case time.Saturday:
		return d.plus(-1)
	case time.Sunday:
		return d.plus(1)
	}
	return d
}

// nth is the n-th such weekday of a month.
func nth(year int, month time.Month, weekday time.Weekday, n int) date {
	first := date{year, month, 1}
	return first.plus((int(weekday)-int(first.weekday())+7)%7 + 7*(n-1))
}

func thanksgiving(year int) date { return nth(year, time.November, time.Thursday, 4) }

// easter is Easter Sunday, by the computation of Meeus, Jones and Butcher for
// the Gregorian calendar.
func easter(year int) date {
	golden := year % 19
	century, ofCentury := year/100, year%100
	moon := (19*golden + century - century/4 - (century-(century+8)/25+1)/3 + 15) % 30
	sunday := (32 + 2*(century%4) + 2*(ofCentury/4) - moon - ofCentury%4) % 7
	correction := (golden + 11*moon + 22*sunday) / 451
	n := moon + sunday - 7*correction + 114
	return date{year, time.Month(n / 31), n%31 + 1}
}
