package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

const (
	// lockTTL is that of the edges' locks.
	lockTTL = 15 * time.Second
	// lockWait is how long an edge waits for Redis before it closes a socket whose
	// lock it gives back.
	lockWait = time.Second
	// silence ends a run of events; they come every 50 ms.
	silence = 500 * time.Millisecond
)

// verdict is how an attempt to connect, or a socket that was accepted, ended.
type verdict string

const (
	accepted    verdict = "accepted"
	held        verdict = "4409"
	unavailable verdict = "1011"
	noAnswer    verdict = "no answer"
	lost        verdict = "lost"      // TCP ended without a close frame
	left        verdict = "left"      // by the client, with the server's close frame in time
	leftLate    verdict = "left late" // the lock may not have been given back
)

// sighting is a socket as its client saw it. Times are since the world began; 0:
// not yet.
type sighting struct {
	edge     int
	began    time.Duration // the attempt that was accepted
	accepted time.Duration
	since    time.Duration // the present run of events
	last     time.Duration // event
	events   int
	forsaken time.Duration // the client had no event for long, looks elsewhere and still reads
	stale    int           // events that came after that
	ended    time.Duration
	end      verdict
}

// attempt is one to connect.
type attempt struct {
	edge    int
	began   time.Duration
	decided time.Duration // a status or a close frame told the verdict
	verdict verdict
}

// lockLog is what the clients of one user saw.
type lockLog struct {
	sockets  []*sighting
	attempts []*attempt
	overlap  time.Duration // the longest in which two sockets had events
	last     time.Duration // event on any socket
	away     time.Duration // the longest without an event
}

// event takes one that came to a socket.
func (u *lockLog) event(s *sighting, now time.Duration) {
	if s.events == 0 || now-s.last > silence {
		s.since = now
	}
	s.events++
	s.last = now
	if s.forsaken != 0 {
		s.stale++
	}
	for _, o := range u.sockets {
		if o != s && o.events > 0 && now-o.last <= silence {
			u.overlap = max(u.overlap, o.last-max(o.since, s.since))
		}
	}
	u.away = max(u.away, now-u.last)
	u.last = now
}

// live reports whether a socket is open and has events.
func (u *lockLog) live(now time.Duration) bool {
	return slices.ContainsFunc(u.sockets, func(s *sighting) bool {
		return s.ended == 0 && s.events > 0 && now-s.last <= silence
	})
}

// Why an attempt may have met a lock.
const (
	byOpen     = "a socket is open"
	byTTL      = "a socket ended, its lock not given back"
	byAttempt  = "an attempt that was given up may have left a lock"
	byNobody   = "nobody"
	lockRemain = lockTTL + time.Second
)

// refusedBy says why an attempt was answered with 4409.
func (u *lockLog) refusedBy(a *attempt) string {
	because := byNobody
	for _, s := range u.sockets {
		switch {
		case s.began <= a.decided && (s.ended == 0 || s.ended >= a.began):
			return byOpen
		case s.ended != 0 && s.end != left && s.ended < a.began && a.began-s.ended <= lockRemain:
			because = byTTL
		}
	}
	if because == byTTL {
		return byTTL
	}
	for _, b := range u.attempts {
		unsure := b.verdict != held && b.verdict != accepted
		if b != a && unsure && b.began <= a.decided && (b.decided == 0 || a.began-b.decided <= lockRemain) {
			return byAttempt
		}
	}
	return byNobody
}

// since tells of what began or ended after a moment, with times since another one.
func (u *lockLog) since(began, zero time.Duration) string {
	var lines []string
	seconds := func(d time.Duration) string {
		if d == 0 {
			return "-"
		}
		return fmt.Sprintf("%.2f", (d - zero).Seconds())
	}
	for _, a := range u.attempts {
		if a.began >= began {
			lines = append(lines, fmt.Sprintf("%s to %s: attempt at edge %d: %s", seconds(a.began), seconds(a.decided), a.edge, a.verdict))
		}
	}
	for _, s := range u.sockets {
		if s.ended == 0 || s.ended >= began {
			lines = append(lines, fmt.Sprintf("%s to %s: socket at edge %d, last event %s, end %q", seconds(s.accepted), seconds(s.ended), s.edge, seconds(s.last), s.end))
		}
	}
	return strings.Join(lines, "\n")
}

// forget drops what ended before a moment and explains nothing behind it.
func (u *lockLog) forget(now time.Duration) {
	u.sockets = slices.DeleteFunc(u.sockets, func(s *sighting) bool { return s.ended != 0 && now-s.ended > lockRemain })
	u.attempts = slices.DeleteFunc(u.attempts, func(a *attempt) bool { return a.decided != 0 && now-a.decided > lockRemain })
	u.overlap, u.away = 0, 0
	u.last = now
}

func TestLockLog(t *testing.T) {
	const ms = time.Millisecond
	feed := func(u *lockLog, s *sighting, from, to time.Duration) {
		for at := from; at <= to; at += 50 * ms {
			u.event(s, at)
		}
	}
	t.Run("overlap", func(t *testing.T) {
		for _, row := range []struct {
			name   string
			play   func(u *lockLog, a, b *sighting)
			longer time.Duration // at least
			most   time.Duration
		}{
			{"one behind the other", func(u *lockLog, a, b *sighting) { feed(u, a, 1000*ms, 2000*ms); feed(u, b, 2010*ms, 3000*ms) }, 0, 0},
			{"one that stood still, and has an event later", func(u *lockLog, a, b *sighting) {
				feed(u, a, 1000*ms, 2000*ms)
				feed(u, b, 3000*ms, 9000*ms)
				u.event(a, 9010*ms)
				feed(u, b, 9050*ms, 9500*ms)
			}, 0, 0},
			{"the same with events for 300 ms", func(u *lockLog, a, b *sighting) {
				feed(u, a, 1000*ms, 2000*ms)
				feed(u, b, 3000*ms, 9000*ms)
				for at := 9000 * ms; at <= 9300*ms; at += 50 * ms {
					u.event(a, at+10*ms)
					u.event(b, at+20*ms)
				}
			}, 250 * ms, 310 * ms},
		} {
			a, b := &sighting{}, &sighting{}
			u := &lockLog{sockets: []*sighting{a, b}}
			row.play(u, a, b)
			if u.overlap < row.longer || u.overlap > row.most {
				t.Errorf("%s: overlap %s, want %s to %s", row.name, u.overlap, row.longer, row.most)
			}
		}
	})
	t.Run("refusals", func(t *testing.T) {
		const s = time.Second
		for _, row := range []struct {
			socket sighting
			other  attempt
			want   string
		}{
			{sighting{began: 1 * s}, attempt{}, byOpen},
			{sighting{began: 1 * s, ended: 30*s + 1*ms, end: left}, attempt{}, byOpen},
			{sighting{began: 1 * s, ended: 29 * s, end: left}, attempt{}, byNobody},
			{sighting{began: 1 * s, ended: 29 * s, end: leftLate}, attempt{}, byTTL},
			{sighting{began: 1 * s, ended: 15 * s, end: lost}, attempt{}, byTTL},
			{sighting{began: 1 * s, ended: 13 * s, end: lost}, attempt{}, byNobody},
			{sighting{began: 31 * s}, attempt{}, byNobody},
			{sighting{began: 31 * s}, attempt{began: 30 * s}, byAttempt},
			{sighting{began: 31 * s}, attempt{began: 20 * s, decided: 21 * s, verdict: unavailable}, byAttempt},
			{sighting{began: 31 * s}, attempt{began: 20 * s, decided: 21 * s, verdict: held}, byNobody},
		} {
			a := &attempt{began: 30 * s, decided: 30*s + 5*ms, verdict: held}
			u := &lockLog{sockets: []*sighting{&row.socket}, attempts: []*attempt{a}}
			if row.other != (attempt{}) {
				u.attempts = append(u.attempts, &row.other)
			}
			if got := u.refusedBy(a); got != row.want {
				t.Errorf("%+v, %+v: refused by %q, want %q", row.socket, row.other, got, row.want)
			}
		}
	})
}

// lockFigures are what a fault led to.
type lockFigures struct {
	name     string
	overlap  time.Duration
	wrong    int           // answers 4409 that nothing explains
	away     time.Duration // the longest that a user had no event
	recovery time.Duration // from the end of the fault until all are live
	refusals time.Duration // from the end of the fault until the last newcomer got 1011
	cycle    time.Duration // the longest from one attempt of a client to its next
	slowest  string        // what befell the user who was live again last
	because  map[string]int
	refused  map[verdict]int // newcomers
	closed   map[verdict]int // sockets that the client did not close
	stale    struct {        // sockets that their clients had forsaken
		kept   int // live on: the lock was still theirs
		closes map[verdict]int
		events int           // that came to those that were closed, until they were
		closed time.Duration // from the end of the fault until the last of these was
	}
}

const lockHeader = `
| fault | two sockets of a user live | false 4409 | longest without events | all live again | sockets closed 4409 / 1011 / other | newcomers refused 4409 / 1011 / other | the last 1011 |
|---|---|---|---|---|---|---|---|`

func (f *lockFigures) String() string {
	seconds := func(d time.Duration) string { return fmt.Sprintf("%.1f s", max(d, 0).Seconds()) }
	three := func(of map[verdict]int) string {
		other := 0
		for v, n := range of {
			if v != held && v != unavailable {
				other += n
			}
		}
		return fmt.Sprintf("%d / %d / %d", of[held], of[unavailable], other)
	}
	return fmt.Sprintf("| %s | %d ms | %d | %s | %s | %s | %s | %s |", f.name, f.overlap.Milliseconds(), f.wrong,
		seconds(f.away), seconds(f.recovery), three(f.closed), three(f.refused), seconds(f.refusals))
}

// judge adds up the logs of a fault that began and ended at these moments.
func (f *lockFigures) judge(logs []*lockLog, began, ended time.Duration) {
	f.because, f.refused, f.closed = map[string]int{}, map[verdict]int{}, map[verdict]int{}
	f.stale.closes = map[verdict]int{}
	for _, u := range logs {
		f.overlap = max(f.overlap, u.overlap)
		f.away = max(f.away, u.away)
		for n, a := range u.attempts {
			if n > 0 && a.began >= began && u.attempts[n-1].verdict != accepted {
				f.cycle = max(f.cycle, a.began-u.attempts[n-1].began)
			}
			if a.began < began || a.decided == 0 || a.verdict == accepted {
				continue
			}
			f.refused[a.verdict]++
			switch a.verdict {
			case held:
				why := u.refusedBy(a)
				f.because[why]++
				if why == byNobody {
					f.wrong++
				}
			case unavailable:
				f.refusals = max(f.refusals, a.decided-ended)
			}
		}
		for _, s := range u.sockets {
			if s.ended >= began && s.end != left && s.end != leftLate {
				f.closed[s.end]++
			}
			if s.forsaken == 0 {
				continue
			}
			if s.ended == 0 {
				f.stale.kept++
				continue
			}
			f.stale.closes[s.end]++
			f.stale.events += s.stale
			f.stale.closed = max(f.stale.closed, s.ended-ended)
		}
	}
}
