package checker

import "slices"

// Special places of a received event in the truth.
const (
	unknown   = -1 // its bytes are nowhere in the truth
	duplicate = -2 // it came more often than it was sent
	unplaced  = -3
)

// alignment says which event of the truth each received event is.
type alignment struct {
	m      *record
	hashes []uint64
	places []int32 // by received event: number in the truth, or one of the above
	used   []bool  // by event of the truth: it was received
}

// align finds the place of each received event. Events with the same bytes are
// told apart by their neighbours: the received events between two gap notices
// are taken as one run of the truth wherever that is possible.
func align(m *record, c *Client) *alignment {
	a := &alignment{m: m, hashes: c.received, places: make([]int32, len(c.received)), used: make([]bool, len(m.events))}
	for i := range a.places {
		a.places[i] = unplaced
	}
	first, last := 0, int32(-1)
	for _, n := range c.notices {
		last = a.run(first, n.before, last)
		first = n.before
	}
	a.run(first, len(c.received), last)
	return a
}

// run places the received events from first to before end, given the place of
// the one before them, and returns that of the last.
func (a *alignment) run(first, end int, last int32) int32 {
	a.backwards(first, a.anchor(first, end), last)
	for i := first; i < end; i++ {
		if a.places[i] == unplaced {
			a.places[i] = a.next(a.m.same(a.hashes[i]), last)
		}
		if a.places[i] >= 0 {
			last = a.places[i]
			a.used[last] = true
		}
	}
	return last
}

// anchor returns the first received event whose bytes were sent exactly once.
func (a *alignment) anchor(first, end int) int {
	for i := first; i < end; i++ {
		if len(a.m.same(a.hashes[i])) == 1 {
			return i
		}
	}
	return first
}

// backwards places the events before an anchor as late as they fit before it:
// those that were sent earlier were not for this client, or fell into the gap.
func (a *alignment) backwards(first, anchor int, floor int32) {
	if anchor == first {
		return
	}
	limit := a.m.same(a.hashes[anchor])[0]
	for i := anchor - 1; i >= first; i-- {
		same := a.m.same(a.hashes[i])
		k, _ := slices.BinarySearch(same, limit)
		for k--; k >= 0 && a.used[same[k]]; k-- {
		}
		if k < 0 || same[k] <= floor {
			continue
		}
		limit = same[k]
		a.places[i], a.used[limit] = limit, true
	}
}

// next chooses the place of an event among those with its bytes: the first free
// one after last, or else the first free one.
func (a *alignment) next(same []int32, last int32) int32 {
	if len(same) == 0 {
		return unknown
	}
	k, _ := slices.BinarySearch(same, last+1)
	for _, part := range [][]int32{same[k:], same[:k]} {
		for _, number := range part {
			if !a.used[number] {
				return number
			}
		}
	}
	return duplicate
}

// first returns the place of the first received event from first to before end
// that satisfies ok.
func (a *alignment) first(first, end int, ok func(number int32) bool) (place int, found bool) {
	for _, number := range a.places[first:end] {
		if number >= 0 && ok(number) {
			return int(number), true
		}
	}
	return 0, false
}

// latest returns the greatest place of the received events before end, or -1.
func (a *alignment) latest(end int) int {
	latest := -1
	for _, number := range a.places[:end] {
		latest = max(latest, int(number))
	}
	return max(latest, -1)
}
