package engine

import "time"

const (
	// tick is how exact timers are: they are due late by less than that.
	tick = int64(time.Millisecond)
	// horizon is how far ahead a timer may be, in ticks; a later one is due then,
	// in vain.
	horizon = 1 << 30
)

// timers is a heap of slots by the time they want to be looked at. A slot whose
// time moves to later stays where it is and is looked at in vain once: moving on
// every message would cost more. Times are ns of the shard's clock; inside they
// are ticks modulo 2^32, which no two of them are half of apart.
type timers struct {
	entries []timed
	places  []int32 // in entries, by slot, from 1 on; 0: none
}

type timed struct {
	at   uint32 // ticks
	slot int32
}

func before(a, b uint32) bool { return int32(a-b) < 0 }

// set makes sure that the slot is looked at no later than at, or at once.
func (h *timers) set(slot int32, at, now int64) {
	ticks := uint32(min(max((at+tick-1)/tick, now/tick), now/tick+horizon))
	for int(slot) >= len(h.places) {
		h.places = append(h.places, 0)
	}
	place := h.places[slot]
	switch {
	case place == 0:
		h.entries = append(h.entries, timed{ticks, slot})
		place = int32(len(h.entries))
		h.places[slot] = place
	case before(ticks, h.entries[place-1].at):
		h.entries[place-1].at = ticks
	default:
		return
	}
	h.up(int(place - 1))
}

// next returns the earliest time; 0: none.
func (h *timers) next(now int64) int64 {
	if len(h.entries) == 0 {
		return 0
	}
	ticks := now / tick
	return max((ticks+int64(int32(h.entries[0].at-uint32(ticks))))*tick, 1)
}

// pop removes and returns a slot whose time has come.
func (h *timers) pop(now int64) (slot int32, ok bool) {
	if len(h.entries) == 0 || before(uint32(now/tick), h.entries[0].at) {
		return 0, false
	}
	slot = h.entries[0].slot
	h.remove(slot)
	return slot, true
}

// remove takes a slot out; one that is not in stays out.
func (h *timers) remove(slot int32) {
	if int(slot) >= len(h.places) || h.places[slot] == 0 {
		return
	}
	i, last := int(h.places[slot]-1), len(h.entries)-1
	h.swap(i, last)
	h.entries = h.entries[:last]
	h.places[slot] = 0
	if i < last {
		h.up(i)
		h.down(i)
	}
}

func (h *timers) up(i int) {
	for i > 0 {
		parent := (i - 1) / 2
		if !before(h.entries[i].at, h.entries[parent].at) {
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
		if child+1 < len(h.entries) && before(h.entries[child+1].at, h.entries[child].at) {
			child++
		}
		if !before(h.entries[child].at, h.entries[i].at) {
			return
		}
		h.swap(i, child)
		i = child
	}
}

func (h *timers) swap(i, j int) {
	h.entries[i], h.entries[j] = h.entries[j], h.entries[i]
	h.places[h.entries[i].slot], h.places[h.entries[j].slot] = int32(i+1), int32(j+1)
}

// earlier returns the earlier of two times, of which 0 is none.
func earlier(a, b int64) int64 {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}
