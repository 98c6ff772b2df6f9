// Package judge says what a connection lost: it compares the numbers of the
// events a connection received with those that feedsim says it sent. An event
// carries its number when feedsim runs with --number=market.
//
// An Account belongs to one connection and takes some 350 bytes, and 16 for each
// announced gap, up to MaxHoles; Truth is the ground truth of one market by topic. What was
// announced by a gap status is told from what was not.
//
// The package does no I/O of its own (ReadTruth reads what it is given) and
// starts no goroutine. What it cannot know it counts apart: events without a
// number, and events so late that they may be duplicates as well.
package judge

import (
	"slices"
	"strings"
)

// Window is how many of the latest events an Account remembers, to tell an
// event that came twice from one that came late.
const Window = 32

// MaxHoles is how many announced gaps with events missing behind them an
// Account remembers. Later ones are counted as Forgotten, and what is missing
// there is not known to be announced.
const MaxHoles = 256

// Account is what one connection received. The zero value is ready. It is not
// safe for concurrent use.
type Account struct {
	first, last uint64 // of the numbers that came; last is the highest
	received    uint64 // without duplicates
	duplicates  uint64
	disordered  uint64
	beyond      uint64
	unnumbered  uint64
	forgotten   uint64
	lateInHoles uint64 // of disordered: those that an announced hole was for
	announced   bool   // a gap, since the last event in order
	evicted     uint64 // the highest number that is not in latest any more
	latest      [Window]uint64
	holes       []hole
}

// hole is the numbers from behind after to before before.
type hole struct{ after, before uint64 }

// Event counts an event by its number, from 1 on, and reports whether it is
// new: not a duplicate.
func (a *Account) Event(n uint64) (fresh bool) {
	if n == 0 {
		a.unnumbered++
		return false
	}
	if n > a.last {
		if a.announced && n > a.last+1 {
			a.open(n)
		}
		if a.first == 0 {
			a.first = n
		}
		a.announced = false
		a.last = n
		a.remember(n)
		return true
	}
	if slices.Contains(a.latest[:], n) {
		a.duplicates++
		return false
	}
	a.disordered++
	if n <= a.evicted {
		a.beyond++
	}
	a.first = min(a.first, n)
	for _, h := range a.holes {
		if n > h.after && n < h.before {
			a.lateInHoles++
			break
		}
	}
	a.remember(n)
	return true
}

func (a *Account) remember(n uint64) {
	place := &a.latest[a.received%Window]
	a.evicted = max(a.evicted, *place)
	*place = n
	a.received++
}

func (a *Account) open(n uint64) {
	if len(a.holes) == MaxHoles {
		a.forgotten++
		return
	}
	a.holes = append(a.holes, hole{a.last, n})
}

// Unnumbered counts an event without a number: the connection's loss cannot be
// judged.
func (a *Account) Unnumbered() { a.unnumbered++ }

// Gap notes a gap status: what is missing between the last event and the next
// one was announced.
func (a *Account) Gap() { a.announced = true }

// Received is how many events came, duplicates and unnumbered ones included.
func (a *Account) Received() uint64 { return a.received + a.duplicates + a.unnumbered }

// Last is the highest number that came; 0: none.
func (a *Account) Last() uint64 { return a.last }

// Span is the numbers a connection answers for.
type Span struct {
	From    uint64 // the first one; 0: the first one that came
	Through uint64 // the last one; 0: the last one that came
}

// Verdict is what became of the events that a connection, or many, had to get.
type Verdict struct {
	Judged           bool   // false: what is missing is not known, because events had no numbers or none came
	Expected         uint64 // by the ground truth
	Received         uint64 // without duplicates
	Missing          uint64 // not announced
	MissingAnnounced uint64
	Unexpected       uint64 // more came than the truth has: of topics not subscribed, or the truth of another run
	Duplicates       uint64
	Disordered       uint64 // came behind one with a higher number; not missing
	Beyond           uint64 // of Disordered: so late that they may be duplicates; Missing may then be too low
	Forgotten        uint64 // gaps beyond MaxHoles: what is missing there counts as not announced
	Unnumbered       uint64
}

// Verdict compares with the ground truth. Without it (nil) nothing is judged
// but what an Account sees by itself.
func (a *Account) Verdict(t *Truth, topics Topics, s Span) Verdict {
	v := Verdict{
		Received: a.received, Duplicates: a.duplicates, Disordered: a.disordered,
		Beyond: a.beyond, Forgotten: a.forgotten, Unnumbered: a.unnumbered,
	}
	from, through := a.span(s)
	v.Judged = t != nil && a.unnumbered == 0 && from > 0 && through > 0
	if !v.Judged {
		return v
	}
	v.Expected = t.Expected(topics, from, through)
	announced := uint64(0)
	for _, h := range a.holesIn(from, through) {
		announced += t.Expected(topics, h.after+1, h.before-1)
	}
	v.MissingAnnounced = subtract(announced, a.lateInHoles)
	elsewhere, came := v.Expected-announced, a.received-a.lateInHoles
	v.Missing = subtract(elsewhere, came)
	v.Unexpected = subtract(came, elsewhere) + subtract(a.lateInHoles, announced)
	return v
}

func subtract(a, b uint64) uint64 { return a - min(a, b) }

// span returns the first and the last number the account answers for.
func (a *Account) span(s Span) (from, through uint64) {
	from, through = s.From, max(s.Through, a.last)
	if from == 0 || (a.first > 0 && a.first < from) {
		from = a.first
	}
	return from, through
}

// holesIn returns the announced holes between two numbers, with that behind the
// last event.
func (a *Account) holesIn(from, through uint64) []hole {
	holes := slices.Clone(a.holes)
	if a.announced && through > a.last {
		holes = append(holes, hole{a.last, through + 1})
	}
	for i := range holes {
		holes[i].after = max(holes[i].after, from-1)
	}
	return slices.DeleteFunc(holes, func(h hole) bool { return h.after+1 >= h.before })
}

// Add adds the figures of another connection. The sum is judged when both are.
func (v *Verdict) Add(w Verdict) {
	v.Judged = v.Judged && w.Judged
	v.Expected += w.Expected
	v.Received += w.Received
	v.Missing += w.Missing
	v.MissingAnnounced += w.MissingAnnounced
	v.Unexpected += w.Unexpected
	v.Duplicates += w.Duplicates
	v.Disordered += w.Disordered
	v.Beyond += w.Beyond
	v.Forgotten += w.Forgotten
	v.Unnumbered += w.Unnumbered
}

// Topics are the topics a connection subscribed to.
type Topics struct {
	exact     []string // without those that a prefix covers
	wildcards []string // prefixes, such as T
}

// ParseTopics reads a list such as T.AAPL, AM.*. What is no topic covers
// nothing.
func ParseTopics(list string) Topics {
	var t Topics
	for topic := range strings.SplitSeq(list, ",") {
		topic = strings.TrimSpace(topic)
		if prefix, all := strings.CutSuffix(topic, ".*"); all {
			t.wildcards = append(t.wildcards, prefix)
		} else if topic != "" {
			t.exact = append(t.exact, topic)
		}
	}
	slices.Sort(t.exact)
	slices.Sort(t.wildcards)
	t.exact = slices.Compact(t.exact)
	t.wildcards = slices.Compact(t.wildcards)
	t.exact = slices.DeleteFunc(t.exact, func(topic string) bool {
		return slices.Contains(t.wildcards, prefixOf(topic))
	})
	return t
}

func prefixOf(topic string) string {
	prefix, _, _ := strings.Cut(topic, ".")
	return prefix
}
