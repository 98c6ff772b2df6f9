// Package judge says of one client of a relay what it missed, got twice or in
// disorder, for how long it got nothing, and whether it was told. It keeps the
// last number of each topic and a few gaps, and no event.
//
// The events must be those of a feedsim with --number=topic and --stamp. The package
// is pure: it is told the time, starts no goroutine, and its memory is bounded by
// the topics the client subscribed to.
package judge

import (
	"slices"
	"time"
)

const (
	// Interruption is the silence from which on a client counts as interrupted.
	Interruption = time.Second

	// maxGaps is how many notices of a connection are remembered; a hole is
	// found at the first event behind it, so the latest are those that count.
	maxGaps = 16
)

// Client judges one client. It is not safe for concurrent use.
type Client struct {
	topics map[string]*place // by head
	gaps   []gap             // of this connection

	open      bool      // there is a socket
	streaming bool      // it has had an event
	lastEvent time.Time // on this connection, or when the first was to be expected
	lost      time.Time // the socket ended; zero: never was one
	marked    time.Time // the phase began

	figures Figures
}

// place is where a client is in a topic.
type place struct {
	number int64
	at     int64 // unix nanoseconds of that event
	fresh  bool  // no event on this connection yet
}

// gap is an announced one.
type gap struct {
	from, to int64 // unix nanoseconds; to is zero while it lasts
	topics   []string
}

// New returns the judge of a client that is about to connect for the first time.
func New(now time.Time) *Client {
	return &Client{topics: make(map[string]*place), marked: now, figures: newFigures()}
}

// Opened notes that the client has a socket again, and nothing on it yet.
func (c *Client) Opened(time.Time) {
	c.open, c.streaming = true, false
	c.gaps = c.gaps[:0]
	for _, p := range c.topics {
		p.fresh = true
	}
}

// Subscribed notes that events are to be expected from now on.
func (c *Client) Subscribed(now time.Time) { c.lastEvent = now }

// Closed notes the end of the socket. An end without a close frame is 1006.
func (c *Client) Closed(code int, now time.Time) {
	if c.streaming {
		c.silence(now)
	}
	c.open, c.streaming = false, false
	if c.lost.IsZero() {
		c.lost = now
	}
	c.figures.Closes[code]++
}

// Refused notes a handshake that failed.
func (c *Client) Refused(why string) { c.figures.Refusals[why]++ }

// Frame judges one frame and returns the statuses in it.
func (c *Client) Frame(frame []byte, now time.Time) (statuses []Status, err error) {
	for {
		var object []byte
		if object, frame, err = next(frame); err != nil || object == nil {
			return statuses, err
		}
		if len(object) > len(statusHead) && string(object[:len(statusHead)]) == string(statusHead) {
			s, err := parseStatus(object)
			if err != nil {
				return statuses, err
			}
			c.status(s)
			statuses = append(statuses, s)
			continue
		}
		e, err := parseEvent(object)
		if err != nil {
			return statuses, err
		}
		c.event(e, now)
	}
}

func (c *Client) status(s Status) {
	if s.Status != "gap" {
		return
	}
	g := gap{from: s.From.UnixNano(), topics: s.Topics}
	if s.To != nil {
		g.to = s.To.UnixNano()
		c.figures.Notices++
		c.figures.NoticeSpan = max(c.figures.NoticeSpan, s.To.Sub(s.From))
		// It takes the place of the notice that had no end yet.
		c.gaps = slices.DeleteFunc(c.gaps, func(o gap) bool { return o.to == 0 && slices.Equal(o.topics, g.topics) })
	}
	if len(c.gaps) == maxGaps {
		c.gaps = slices.Delete(c.gaps, 0, 1)
	}
	c.gaps = append(c.gaps, g)
}

func (c *Client) event(e event, now time.Time) {
	c.figures.Events++
	if !c.streaming {
		c.streaming = true
		if !c.lost.IsZero() {
			c.figures.Resume = max(c.figures.Resume, now.Sub(c.lost))
			c.lost = time.Time{}
		}
		c.figures.Restored = now.Sub(c.marked)
	} else {
		c.silence(now)
	}
	c.lastEvent = now

	p, known := c.topics[string(e.head)]
	if !known {
		c.topics[string(e.head)] = &place{number: e.number, at: e.at}
		return
	}
	missing := e.number - p.number - 1
	switch {
	case p.fresh:
		// The lost socket announced the hole itself.
		c.figures.Away += max(0, missing)
	case missing == -1:
		c.figures.Duplicates++
		return
	case missing < -1:
		c.figures.Disordered++
		return
	case missing == 0:
	case c.announced(string(e.head), p.at, e.at):
		c.figures.Announced += missing
	default:
		c.figures.Silent += missing
	}
	*p = place{number: e.number, at: e.at}
}

// silence counts the time without an event that ends now.
func (c *Client) silence(now time.Time) {
	quiet := now.Sub(c.lastEvent)
	c.figures.Silence = max(c.figures.Silence, quiet)
	if quiet >= Interruption {
		c.figures.Restored = now.Sub(c.marked)
	}
}

// announced reports whether a notice covers a hole between two events.
func (c *Client) announced(head string, after, before int64) bool {
	for _, g := range c.gaps {
		if g.from > before || (g.to != 0 && g.to < after) {
			continue
		}
		exact, wildcard := topicName(head)
		if len(g.topics) == 0 || slices.Contains(g.topics, exact) || slices.Contains(g.topics, wildcard) {
			return true
		}
	}
	return false
}

// Mark begins a phase: the figures start anew, the places in the topics stay.
func (c *Client) Mark(now time.Time) {
	c.marked = now
	c.figures = newFigures()
}

// Figures are those since the phase began. What lasts counts up to now.
func (c *Client) Figures(now time.Time) Figures {
	f := c.figures.clone()
	f.Streaming = c.streaming
	if c.streaming {
		f.Silence = max(f.Silence, now.Sub(c.lastEvent))
		f.Streaming = now.Sub(c.lastEvent) < Interruption
	}
	if !c.open && !c.lost.IsZero() {
		f.Resume = max(f.Resume, now.Sub(c.lost))
	}
	return f
}
