package lock

import "time"

const (
	// guardTime is for how long newcomers are refused after a loss: all edges must
	// have noticed it (beatEvery, beatTimeout) and have asserted their locks anew
	// (sweepTime, two round trips) before one of those locks is given away.
	guardTime = 2500 * time.Millisecond
	sweepTime = 750 * time.Millisecond
)

// trigger is how a loss was noticed.
type trigger uint8

const (
	noTrigger  trigger = iota
	generation         // Redis is another process than before
	vanished           // a lock is missing while its lease is valid
	triggerEnd
)

// guard holds what follows when Redis has lost data, without I/O or clock: for a
// while newcomers are refused, and all held locks are asserted anew first. Times
// are those of machine.
type guard struct {
	since time.Duration // the loss was noticed then
	until time.Duration // newcomers are refused until then
}

// missing tells that a lock is missing whose lease is valid and was confirmed
// last by a command sent at that time. noTrigger: the guard knows of that loss.
func (g *guard) missing(now, confirmed time.Duration) trigger {
	if g.refuses(now) && confirmed < g.since {
		return noTrigger
	}
	return g.begin(now, vanished)
}

// begin tells of a loss.
func (g *guard) begin(now time.Duration, t trigger) trigger {
	g.since, g.until = now, now+guardTime
	return t
}

// refuses reports whether newcomers are refused.
func (g *guard) refuses(now time.Duration) bool { return now < g.until }

// assertAt is when the locks of a bucket are asserted anew.
func (g *guard) assertAt(bucket int) time.Duration {
	return g.since + sweepTime*time.Duration(bucket)/buckets
}
