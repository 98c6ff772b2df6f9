package market

import (
	"slices"
	"time"
)

// maxHistory bounds the changes that are kept; the oldest are dropped.
const maxHistory = 1000

// Change is a moment from which on a market had another number of authenticated
// connections.
type Change struct {
	At            time.Time `json:"at"`
	Authenticated int       `json:"authenticated"`
}

// history is how many authenticated connections there were when.
type history struct {
	changes []Change
}

func (h *history) note(authenticated int, now time.Time) {
	last := 0
	if n := len(h.changes); n > 0 {
		last = h.changes[n-1].Authenticated
	}
	if authenticated == last {
		return
	}
	if len(h.changes) == maxHistory {
		h.changes = slices.Delete(h.changes, 0, 1)
	}
	h.changes = append(h.changes, Change{now, authenticated})
}

// History returns how many authenticated connections the market had, and since
// when: the last 1,000 changes, the oldest first. Before the first it had none.
func (m *Market) History() []Change {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pruneLocked(time.Now())
	return slices.Clone(m.history.changes)
}
