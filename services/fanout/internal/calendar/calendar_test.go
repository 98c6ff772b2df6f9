package calendar

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// published are the days without trading and, with a half, the half days, as
// NYSE Group announced them (see the package).
var published = map[int]string{
	2024: "01-01 01-15 02-19 03-29 05-27 06-19 07-03/2 07-04 09-02 11-28 11-29/2 12-24/2 12-25",
	2025: "01-01 01-20 02-17 04-18 05-26 06-19 07-03/2 07-04 09-01 11-27 11-28/2 12-24/2 12-25",
	2026: "01-01 01-19 02-16 04-03 05-25 06-19 07-03 09-07 11-26 11-27/2 12-24/2 12-25",
	2027: "01-01 01-18 02-15 03-26 05-31 06-18 07-05 09-06 11-25 11-26/2 12-24",
	2028: "01-17 02-21 04-14 05-29 06-19 07-03/2 07-04 09-04 11-23 11-24/2 12-25",
}

func TestPublishedHolidays(t *testing.T) {
	for _, year := range slices.Sorted(maps.Keys(published)) {
		var got []string
		for d := (date{year, time.January, 1}); d.year == year; d = d.plus(1) {
			name := d.noon().Format("01-02")
			switch {
			case d.weekend():
			case d.holiday():
				got = append(got, name)
			case d.half():
				got = append(got, name+"/2")
			}
		}
		if want := published[year]; strings.Join(got, " ") != want {
			t.Errorf("%d\n got %s\nwant %s", year, strings.Join(got, " "), want)
		}
	}
}

func TestHours(t *testing.T) {
	for _, tt := range []struct {
		name  string
		hours Hours
		at    string // in New York
		part  Part
		until string
	}{
		{"night", Stocks, "2026-11-20 03:59:59", Closed, "2026-11-20 04:00"},
		{"pre-market begins", Stocks, "2026-11-20 04:00:00", PreMarket, "2026-11-20 09:30"},
		{"the opening", Stocks, "2026-11-20 09:30:00", Regular, "2026-11-20 16:00"},
		{"the close", Stocks, "2026-11-20 16:00:00", AfterHours, "2026-11-20 20:00"},
		{"Friday evening", Stocks, "2026-11-20 20:00:00", Closed, "2026-11-23 04:00"},
		{"weekend", Stocks, "2026-11-21 12:00:00", Closed, "2026-11-23 04:00"},
		{"evening of a day between", Stocks, "2026-11-18 23:00:00", Closed, "2026-11-19 04:00"},
		{"holiday", Stocks, "2026-11-26 11:00:00", Closed, "2026-11-27 04:00"},
		{"half day", Stocks, "2026-11-27 12:59:59", Regular, "2026-11-27 13:00"},
		{"half day's afternoon", Stocks, "2026-11-27 13:00:00", AfterHours, "2026-11-27 17:00"},
		{"half day's evening", Stocks, "2026-11-27 17:00:00", Closed, "2026-11-30 04:00"},
		{"a holiday and a weekend", Stocks, "2026-07-02 20:00:00", Closed, "2026-07-06 04:00"},
		{"the year's end", Stocks, "2026-12-31 20:00:00", Closed, "2027-01-04 04:00"},
		{"a New Year that is not kept", Stocks, "2027-12-31 10:00:00", Regular, "2027-12-31 16:00"},
		{"options have no pre-market", Options, "2026-11-20 09:29:59", Closed, "2026-11-20 09:30"},
		{"options open", Options, "2026-11-20 09:30:00", Regular, "2026-11-20 16:00"},
		{"some options go on", Options, "2026-11-20 16:00:00", AfterHours, "2026-11-20 16:15"},
		{"no options", Options, "2026-11-20 16:15:00", Closed, "2026-11-23 09:30"},
		{"options on a half day", Options, "2026-12-24 13:00:00", AfterHours, "2026-12-24 13:15"},
		{"the Friday before summer time", Stocks, "2026-03-06 20:00:00", Closed, "2026-03-09 04:00"},
		{"summer time", Stocks, "2026-03-09 10:00:00", Regular, "2026-03-09 16:00"},
		{"the night of the change", Stocks, "2026-03-08 03:30:00", Closed, "2026-03-09 04:00"},
		{"winter time", Stocks, "2026-11-02 09:30:00", Regular, "2026-11-02 16:00"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			at := parse(t, "2006-01-02 15:04:05", tt.at)
			part, until := tt.hours(at.UTC())
			if want := parse(t, "2006-01-02 15:04", tt.until); part != tt.part || !until.Equal(want) {
				t.Errorf("%v until %v, want %v until %v", part, until, tt.part, want)
			}
		})
	}
}

func parse(t *testing.T, layout, value string) time.Time {
	t.Helper()
	at, err := time.ParseInLocation(layout, value, newYork)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// TestSummerTime pins the distance to UTC on both sides of each change.
func TestSummerTime(t *testing.T) {
	for day, open := range map[string]string{
		"2026-03-06": "14:30", "2026-03-09": "13:30", "2026-10-30": "13:30", "2026-11-02": "14:30",
	} {
		_, until := Options(parse(t, "2006-01-02", day))
		if got := until.UTC().Format("15:04"); got != open {
			t.Errorf("%s: options open at %s UTC, want %s", day, got, open)
		}
	}
}

func TestHoursWithoutEnd(t *testing.T) {
	now := time.Date(2026, 11, 21, 3, 0, 0, 0, time.UTC)
	if part, until := Always(now); part != Regular || !until.IsZero() {
		t.Errorf("always: %v until %v", part, until)
	}
	if part, until := Never(now); part != Closed || !until.IsZero() {
		t.Errorf("never: %v until %v", part, until)
	}
}

// TestParts: from any moment the parts follow one another without a hole, in the
// order of the day, and do not change in between.
func TestParts(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		hours := rapid.SampledFrom([]Hours{Stocks, Options}).Draw(t, "hours")
		begin := time.Date(2022, 1, 1, 0, 0, 0, 0, time.UTC)
		at := begin.Add(time.Duration(rapid.Int64Range(0, int64(40*365*24*time.Hour)).Draw(t, "at")))
		part, until := hours(at)
		if !until.After(at) || until.Sub(at) > 5*24*time.Hour {
			t.Fatalf("%v at %v until %v", part, at, until)
		}
		between := at.Add(time.Duration(rapid.Int64Range(0, int64(until.Sub(at))-1).Draw(t, "between")))
		if p, u := hours(between); p != part || !u.Equal(until) {
			t.Fatalf("%v until %v at %v, but %v until %v at %v", part, until, at, p, u, between)
		}
		next, _ := hours(until)
		if next == part || next < part && next != Closed {
			t.Fatalf("%v is followed by %v at %v", part, next, until)
		}
		if local := until.In(newYork); part == Closed && (!dateOf(local).trading() || next == Closed) {
			t.Fatalf("%v opens on %v", next, local)
		}
	})
}

// TestYears: a year has 249 to 253 trading days, three half days at most, and no
// six days in a row without trading.
func TestYears(t *testing.T) {
	for year := 2022; year < 2100; year++ {
		trading, half, pause := 0, 0, 0
		for d := (date{year, time.January, 1}); d.year == year; d = d.plus(1) {
			pause++
			if d.trading() {
				trading, pause = trading+1, 0
				if d.half() {
					half++
				}
			}
			if pause > 4 {
				t.Errorf("no trading for %d days up to %v", pause, d)
			}
		}
		if trading < 249 || trading > 253 || half < 1 || half > 3 {
			t.Errorf("%d has %d trading days and %d half days", year, trading, half)
		}
	}
}
