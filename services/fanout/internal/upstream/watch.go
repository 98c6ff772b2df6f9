package upstream

import (
	"time"

	"github.com/cutemarkets/relay/services/fanout/internal/calendar"
)

// The times of the watch for silence. A silence that counts as a stall is a
// multiple of the longest one learned. With events at random, n of them while the
// flow was learned, one in some n³/6 is three times as late by chance.
const (
	silenceFactor = 3                // times the longest silence learned
	silenceLeast  = 3 * time.Second  // that counts as a stall
	silenceMost   = 10 * time.Second // that may have to count; a flow that needs more is too sparse to judge
	stallMost     = 5 * time.Minute  // wait for events after stall upon stall
	learnTime     = 30 * time.Second // of flow before silence means anything
	learnSpans    = 5                // spans of a minute that are remembered
	learnSpan     = time.Minute
	leaversShare  = 10          // a flow is learned anew when one of so many topics has left
	lookEvery     = time.Second // between two looks during trading
	lookLate      = time.Second // a look that comes later: it is us who stood still, not the vendor
)

// watch judges the silence of a connection that answers pings: whether events
// should have come by now. It knows the hours of trading, how long the flow was
// silent at most in the last minutes, and how many stalls there were in a row.
type watch struct {
	// Static after construction.
	hours calendar.Hours

	// Owned by the session; not thread-safe.
	part     calendar.Part
	until    time.Time                 // end of the part; zero: none
	began    time.Time                 // of what was learned
	last     time.Time                 // event, or moment from which silence is measured
	learned  time.Time                 // last event that taught something; zero: none since began
	silences [learnSpans]time.Duration // longest of each span, by number of the span
	span     int64                     // number of the newest span
	left     int                       // topics that have left since began
	stalls   uint                      // in a row
}

// enter learns the part of the day. The flow of one says nothing about the next,
// but that more events come when regular trading begins.
func (w *watch) enter(now time.Time) {
	before := w.part
	w.part, w.until = w.hours(now)
	if before == calendar.PreMarket && w.part == calendar.Regular {
		w.resume(now)
	} else {
		w.forget(now)
	}
	if w.part == calendar.Closed {
		w.stalls = 0
	}
}

// turn enters the next part when it is time.
func (w *watch) turn(now time.Time) {
	if !w.until.IsZero() && !now.Before(w.until) {
		w.enter(now)
	}
}

// open reports whether there is trading.
func (w *watch) open() bool { return w.part != calendar.Closed }

// forget begins to learn anew.
func (w *watch) forget(now time.Time) {
	w.began, w.last, w.learned, w.left = now, now, time.Time{}, 0
	w.silences = [learnSpans]time.Duration{}
}

// resume measures silence from now on: what was before it was not the market's.
func (w *watch) resume(now time.Time) {
	if now.Sub(w.learned) > learnSpans*learnSpan {
		w.forget(now)
	}
	w.last = now
}

// event takes events of one moment.
func (w *watch) event(now time.Time) {
	w.turn(now)
	if !w.open() {
		return
	}
	silence := now.Sub(w.last)
	w.last, w.learned = now, now
	span := now.Unix() / int64(learnSpan/time.Second)
	for n := w.span + 1; n <= span && n <= w.span+learnSpans; n++ {
		w.silences[n%learnSpans] = 0
	}
	w.span = span
	at := &w.silences[span%learnSpans]
	*at = max(*at, silence)
}

// leave tells that a topic has left, and how many remain. It may have been the
// one that made the flow.
func (w *watch) leave(now time.Time, remain int, wildcard bool) {
	w.left++
	if wildcard || w.left*leaversShare > remain {
		w.forget(now)
	}
}

// limit is the silence that counts as a stall; 0: none does. canary says that a
// topic is subscribed that is never silent in regular trading; began, whether the
// connection has brought an event.
func (w *watch) limit(canary, began bool) time.Duration {
	switch {
	case !w.open():
		return 0
	case w.stalls > 0:
		return min(silenceMost<<min(w.stalls-1, 10), stallMost)
	}
	limit := time.Duration(0)
	if w.learned.Sub(w.began) >= learnTime {
		limit = silenceFactor * w.longest()
		if limit > silenceMost {
			limit = 0
		} else if began {
			limit = max(limit, silenceLeast)
		} else {
			limit = silenceMost
		}
	}
	if limit == 0 && canary && w.part == calendar.Regular {
		limit = silenceMost
	}
	return limit
}

func (w *watch) longest() time.Duration {
	longest := time.Duration(0)
	for _, silence := range w.silences {
		longest = max(longest, silence)
	}
	return longest
}

// mute reports whether an event is waited for before the gap of a stall ends.
func (s *Session) mute() bool {
	return s.watch.stalls > 0 && s.lastData.IsZero() && s.watch.open() && len(s.topics.byName) > 0
}

// SilenceLimit is the silence that counts as a stall now; 0: none does. Without
// proof of leadership none does: a connection that is left cannot be had again.
func (s *Session) SilenceLimit() time.Duration {
	if !s.proven || s.phase != phaseOpen || !s.live && !s.mute() || len(s.topics.byName) == 0 {
		return 0
	}
	return s.watch.limit(s.topics.canaryServed(), !s.lastData.IsZero())
}

// silenceDue is when to look for a stall; zero: nothing can come of it before
// something else happens.
func (s *Session) silenceDue() time.Time {
	at := s.watch.until
	if s.watch.open() {
		at = s.look
		if limit := s.SilenceLimit(); limit > 0 {
			at = earlier(at, s.watch.last.Add(limit))
		}
	}
	return at
}

// lookForStall ends a connection that has been silent for too long.
func (s *Session) lookForStall(now time.Time) {
	late := now.Sub(s.look) > lookLate
	s.look = now.Add(lookEvery)
	if late {
		s.watch.resume(now)
		return
	}
	if s.live && s.lastData.Sub(s.liveSince) >= backoffReset {
		s.watch.stalls = 0
	}
	limit, silence := s.SilenceLimit(), now.Sub(s.watch.last)
	if limit == 0 || silence < limit {
		return
	}
	s.watch.stalls++
	s.host.Stalled(silence, s.watch.limit(false, false))
	s.close(now, CauseStalled)
}

// silentSince is when the connection that has stalled brought its last event, or
// went live.
func (s *Session) silentSince() time.Time {
	if s.lastData.IsZero() {
		return s.liveSince
	}
	return s.lastData
}

// canaryDue reports whether to subscribe a canary that nobody else wants: not
// before the connection is live, so that it delays nothing, but for after a
// stall, the end of which it shows.
func (s *Session) canaryDue(t *topic) bool { return t.canary && (s.live || s.watch.stalls > 0) }

// canaryServed reports whether events of a canary are to be expected.
func (ts *topics) canaryServed() bool {
	for _, t := range ts.canaries {
		if w := t.kind.wildcard; t.phase == topicAcked || w != nil && w.phase == topicAcked {
			return true
		}
	}
	return false
}
