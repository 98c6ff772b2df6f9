package market

import (
	"testing"
	"time"
)

func TestHistory(t *testing.T) {
	t.Parallel()
	var h history
	at := func(n int) time.Time { return time.Unix(int64(n), 0) }
	for i, n := range []int{0, 1, 1, 2, 2, 0} {
		h.note(n, at(i))
	}
	want := []Change{{at(1), 1}, {at(3), 2}, {at(5), 0}}
	if len(h.changes) != len(want) || h.changes[0] != want[0] || h.changes[1] != want[1] || h.changes[2] != want[2] {
		t.Errorf("%+v, want %+v", h.changes, want)
	}
	for i := range 2 * maxHistory {
		h.note(i%2+1, at(i))
	}
	if n := len(h.changes); n != maxHistory || h.changes[n-1] != (Change{at(2*maxHistory - 1), 2}) {
		t.Errorf("%d changes, the last %+v", n, h.changes[n-1])
	}
}
