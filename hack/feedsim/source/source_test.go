package source

import (
	"bytes"
	"testing"
	"time"

	"github.com/cutemarkets/relay/hack/feedsim/tape"
)

var began = time.Date(2026, 5, 15, 13, 30, 0, 0, time.UTC)

func newTape(start time.Time) *Tape {
	return NewTape(tape.Config{Market: tape.Stocks, Symbols: 100, Rate: 4_000, Seed: 7, Minute: time.Second}, start, began)
}

// TestAhead: events that come before they are due are those that would have
// come, and cost none of those that are due.
func TestAhead(t *testing.T) {
	t.Parallel()
	want := tape.New(tape.Config{Market: tape.Stocks, Symbols: 100, Rate: 4_000, Seed: 7, Minute: time.Second})
	var all []string
	for i := range 1000 {
		for _, e := range want.Tick(began.Add(time.Duration(i) * tape.Interval)) {
			all = append(all, string(e.Data))
		}
	}
	got := newTape(began)
	var seen []string
	take := func(events []Event) {
		for _, e := range events {
			prefix, ticker, _ := bytes.Cut([]byte(e.Topic), []byte("."))
			if !bytes.Contains(e.Data, append(prefix, '"')) || !bytes.Contains(e.Data, append(ticker, '"')) {
				t.Fatalf("%s is no topic of %s", e.Topic, e.Data)
			}
			seen = append(seen, string(e.Data))
		}
	}
	for _, most := range []int{1, 7, 0, 100, 1000, All} {
		left := most
		for range 100 {
			events, more := got.Next(began, true, left)
			if len(events) > left || !more {
				t.Fatalf("%d events of %d", len(events), left)
			}
			left -= len(events)
			take(events)
		}
	}
	if _, more := got.Next(began, false, All); more {
		t.Error("events are due at the start")
	}
	due := 0
	for {
		events, more := got.Next(began.Add(time.Second), false, All)
		if !more {
			break
		}
		due++
		take(events)
	}
	if due != 200 {
		t.Errorf("%d ticks were due in a second", due)
	}
	for i, data := range seen {
		if data != all[i] {
			t.Fatalf("event %d: %s, want %s", i, data, all[i])
		}
	}
}

func TestHold(t *testing.T) {
	t.Parallel()
	s := newTape(time.Time{})
	s.Hold(began.Add(500 * time.Millisecond))
	if _, more := s.Next(began.Add(504*time.Millisecond), false, All); more {
		t.Error("events for the time of the hold")
	}
	if _, more := s.Next(began.Add(505*time.Millisecond), false, All); !more {
		t.Error("no events after the hold")
	}
	if s.Skipped() != 0 {
		t.Error("a hold is no lack of time")
	}
	if _, more := s.Next(began.Add(10*time.Second), false, All); !more || s.Skipped() != 9*time.Second || s.Skipped() != 0 {
		t.Error("time was not skipped")
	}
}

// TestHoldOfFixedTime: the times of events go on where they stopped.
func TestHoldOfFixedTime(t *testing.T) {
	t.Parallel()
	p := pace{start: began.Add(time.Hour), began: began}
	for i, after := range []int{5, 10, 515, 520} {
		if i == 2 {
			p.hold(began.Add(510 * time.Millisecond))
		}
		moment, due, _ := p.next(began.Add(time.Duration(after) * time.Millisecond))
		if want := began.Add(time.Hour + time.Duration(i)*tape.Interval); !due || !moment.Equal(want) {
			t.Errorf("tick %d: %s, want %s", i, moment, want)
		}
	}
}

func TestUniverse(t *testing.T) {
	t.Parallel()
	closed, open := NewUniverse([]string{"A", "B"}, false), NewUniverse([]string{"A", "B"}, true)
	for _, c := range []struct {
		u      *Universe
		ticker string
		number int32
		known  bool
	}{{closed, "B", 1, true}, {closed, "C", 0, false}, {open, "B", 1, true}, {open, "C", 2, true}, {open, "D", 3, true}, {open, "C", 2, true}} {
		if n, known := c.u.Number([]byte(c.ticker)); n != c.number || known != c.known {
			t.Errorf("%s: %d, %v", c.ticker, n, known)
		}
	}
}
