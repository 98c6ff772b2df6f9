package engine

// timers is a heap of connections by the time they want to be looked at. A
// connection whose time moves to later stays where it is and is looked at in
// vain once: moving on every message would cost more.
type timers struct {
	entries []timed
}

type timed struct {
	at         int64 // ns of the shard's clock
	connection *connection
}

// set makes sure that the connection is looked at no later than at.
func (h *timers) set(c *connection, at int64) {
	switch {
	case c.timer < 0:
		c.timer = int32(len(h.entries))
		h.entries = append(h.entries, timed{at, c})
	case at < h.entries[c.timer].at:
		h.entries[c.timer].at = at
	default:
		return
	}
	h.up(int(c.timer))
}

// next returns the earliest time; 0: none.
func (h *timers) next() int64 {
	if len(h.entries) == 0 {
		return 0
	}
	return h.entries[0].at
}

// pop removes and returns a connection whose time has come; nil: none.
func (h *timers) pop(now int64) *connection {
	if len(h.entries) == 0 || now < h.entries[0].at {
		return nil
	}
	c := h.entries[0].connection
	h.remove(c)
	return c
}

// remove takes a connection out; one that is not in stays out.
func (h *timers) remove(c *connection) {
	i := int(c.timer)
	if i < 0 {
		return
	}
	last := len(h.entries) - 1
	h.swap(i, last)
	h.entries[last] = timed{}
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
		if h.entries[parent].at <= h.entries[i].at {
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
		if child+1 < len(h.entries) && h.entries[child+1].at < h.entries[child].at {
			child++
		}
		if h.entries[i].at <= h.entries[child].at {
			return
		}
		h.swap(i, child)
		i = child
	}
}

func (h *timers) swap(i, j int) {
	h.entries[i], h.entries[j] = h.entries[j], h.entries[i]
	h.entries[i].connection.timer, h.entries[j].connection.timer = int32(i), int32(j)
}

// earlier returns the earlier of two times, of which 0 is none.
func earlier(a, b int64) int64 {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}
