package engine

import "time"

// allowance is a rate limit in one word (the generic cell rate algorithm): the
// moment, since the shard's start, when all that was taken will have been paid.
type allowance time.Duration

// take takes one at now; it reports false when that exceeds burst at once or
// one per interval in the long run. An interval of zero is no limit.
func (a *allowance) take(now, interval time.Duration, burst int) bool {
	paid := max(time.Duration(*a), now)
	if paid-now > interval*time.Duration(burst-1) {
		return false
	}
	*a = allowance(paid + interval)
	return true
}
