package engine

import "time"

// timers is a heap of connections by the time they want to be looked at. A
// connection whose time moves to later stays where it is and is looked at in
// vain once: moving on every message would cost more.
type timers struct {
	entries []*connection
}

// set makes sure that the connection is looked at no later than at.
func (h *timers) set(c *connection, at time.Time) {
	if c.timer >= 0 && !at.Before(c.wakeAt) {
		return
	}
	c.wakeAt = at
	if c.timer < 0 {
		c.timer = len(h.entries)
		h.entries = append(h.entries, c)
	}
	h.up(c.timer)
}

// next returns the earliest time; zero: none.
func (h *timers) next() time.Time {
	if len(h.entries) == 0 {
		return time.Time{}
	}
	return h.entries[0].wakeAt
}

// pop removes and returns a connection whose time has come; nil: none.
func (h *timers) pop(now time.Time) *connection {
	if len(h.entries) == 0 || now.Before(h.entries[0].wakeAt) {
		return nil
	}
	c := h.entries[0]
	h.remove(c)
	return c
}

// remove takes a connection out; one that is not in stays out.
func (h *timers) remove(c *connection) {
	i := c.timer
	if i < 0 {
		return
	}
	last := len(h.entries) - 1
	h.swap(i, last)
	h.entries[last] = nil
	h.entries = h.entries[:last]
	c.timer = -1
	if i < last {
		h.up(i)
		h.down(i)
	}
}

func (h *timers) up(i int) {
	for i > 0 {
		parent := (i - 1) / 2
		if !h.less(i, parent) {
			return
		}
		h.swap(i, parent)
		i = parent
	}
}

func (h *timers) down(i int) {
	for {
		child := 2*i + 1
		if child >= len(h.entries) {
			return
		}
		if child+1 < len(h.entries) && h.less(child+1, child) {
			child++
		}
		if !h.less(child, i) {
			return
		}
		h.swap(i, child)
		i = child
	}
}

func (h *timers) less(i, j int) bool { return h.entries[i].wakeAt.Before(h.entries[j].wakeAt) }

func (h *timers) swap(i, j int) {
	h.entries[i], h.entries[j] = h.entries[j], h.entries[i]
	h.entries[i].timer, h.entries[j].timer = i, j
}
