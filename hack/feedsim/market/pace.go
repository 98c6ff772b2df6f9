package market

import (
	"time"

	"github.com/cutemarkets/relay/hack/feedsim/tape"
)

// maxLag is how far the tape may fall behind the clock before time is skipped.
const maxLag = time.Second

// pace keeps the tape in step with the clock, which it is told.
type pace struct {
	start   time.Time // time of the first tick's events; zero: the wall clock
	began   time.Time // by the wall clock
	ticks   int       // printed so far
	skipped time.Duration
}

// next reports whether a tick is due, and the time its events carry. A lag of
// more than maxLag is skipped in whole seconds, so that bars still end on the
// second; skip says how much that was.
func (p *pace) next(now time.Time) (moment time.Time, due bool, skip time.Duration) {
	at := time.Duration(p.ticks) * tape.Interval
	lag := now.Sub(p.began) - p.skipped - at
	if lag > maxLag {
		skip = lag.Truncate(time.Second)
		p.skipped += skip
		lag -= skip
	}
	if lag < tape.Interval {
		return time.Time{}, false, skip
	}
	p.ticks++
	if !p.start.IsZero() {
		return p.start.Add(at), true, skip
	}
	return p.began.Add(p.skipped + at), true, skip
}
