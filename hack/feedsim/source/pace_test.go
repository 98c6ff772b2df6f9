package source

import (
	"testing"
	"time"

	"github.com/cutemarkets/relay/hack/feedsim/tape"
)

// TestPace wakes the market at given times after its start.
func TestPace(t *testing.T) {
	t.Parallel()
	began := time.Date(2026, 11, 21, 8, 0, 0, 0, time.UTC)
	fixed := time.Date(2026, 5, 15, 13, 30, 0, 0, time.UTC)
	for _, start := range []time.Time{{}, fixed} {
		p := pace{start: start, began: began}
		total := 0
		for _, step := range []struct {
			after   time.Duration
			ticks   int
			skipped time.Duration
			last    time.Duration // time of the last tick by the wall clock, since the start
		}{
			{4 * time.Millisecond, 0, 0, 0},
			{5 * time.Millisecond, 1, 0, 0},
			{5 * time.Millisecond, 0, 0, 0},
			{19 * time.Millisecond, 2, 0, 10 * time.Millisecond},
			{time.Second, 197, 0, 995 * time.Millisecond},                            // late, but made up for
			{4500 * time.Millisecond, 100, 3 * time.Second, 4495 * time.Millisecond}, // too late: 3.5 s
			{4505 * time.Millisecond, 1, 0, 4500 * time.Millisecond},
		} {
			ticks, skipped := 0, time.Duration(0)
			var last time.Time
			for {
				moment, due, skip := p.next(began.Add(step.after))
				skipped += skip
				if !due {
					break
				}
				last = moment
				ticks++
			}
			total += ticks
			want := began.Add(step.last)
			if !start.IsZero() {
				want = start.Add(time.Duration(total-1) * tape.Interval)
			}
			if ticks != step.ticks || skipped != step.skipped || (ticks > 0 && !last.Equal(want)) {
				t.Errorf("start %v, after %s: %d ticks, %s skipped, last at %s; want %d, %s, %s",
					start, step.after, ticks, skipped, last, step.ticks, step.skipped, want)
			}
		}
	}
}
