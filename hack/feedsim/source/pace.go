package source

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

// extra is the time of the events of a tick that comes before it is due. The
// ticks that are due are not changed by it.
func (p *pace) extra(now time.Time) time.Time {
	if p.start.IsZero() {
		return now
	}
	at := time.Duration(p.ticks) * tape.Interval
	p.ticks++
	p.skipped -= tape.Interval
	return p.start.Add(at)
}

// hold lets the ticks that are due pass, without a jump of a fixed time.
func (p *pace) hold(now time.Time) {
	at := time.Duration(p.ticks) * tape.Interval
	if lag := now.Sub(p.began) - p.skipped - at; lag > 0 {
		p.skipped += lag.Truncate(tape.Interval)
	}
}
