package checker

import (
	"fmt"
	"slices"
	"time"

	"github.com/cutemarkets/relay/hack/truth"
)

const (
	// maxExcess is how much longer than the outage an announced gap may be.
	maxExcess = time.Second
	// slack is how far the marks of the truth may be off: feedsim notes the end of
	// a socket just before or after it ends it.
	slack = 10 * time.Millisecond
)

// Check compares all clients with the ground truth. The clients must be at rest.
// It can be called again with another truth.
func (ck *Checker) Check(r *truth.Reader) (Report, error) {
	records, err := read(r, ck.seed)
	if err != nil {
		return Report{}, err
	}
	ck.mu.Lock()
	clients := slices.Clone(ck.clients)
	ck.mu.Unlock()
	var report Report
	for _, c := range clients {
		m := records[c.market]
		if m == nil {
			m = &record{}
		}
		x := examination{c: c, m: m, a: align(m, c)}
		result := x.run()
		report.Clients = append(report.Clients, result)
		report.Total.add(result.Figures)
	}
	return report, nil
}

// examination compares one client with the truth of its market.
type examination struct {
	c   *Client
	m   *record
	a   *alignment
	out ClientReport
}

func (x *examination) run() ClientReport {
	x.out.Name, x.out.Market = x.c.name, x.c.market
	x.out.Received, x.out.Bytes = len(x.c.received), x.c.bytes
	x.received()
	x.expected()
	x.gaps()
	return x.out
}

// received judges each received event by its place.
func (x *examination) received() {
	asked := make([]bool, len(x.m.topics))
	for i, topic := range x.m.topics {
		asked[i] = slices.ContainsFunc(x.c.windows, func(w window) bool { return covers(w.topic, topic) })
	}
	last := int32(-1)
	lastOf := map[int32]int32{}
	for i, number := range x.a.places {
		switch number {
		case unknown:
			x.out.Altered++
			x.example("altered", x.out.Altered, "event %d as received", i+1)
			continue
		case duplicate:
			x.out.Duplicates++
			x.example("duplicate", x.out.Duplicates, "event %d as received", i+1)
			continue
		}
		topic := x.m.events[number].topic
		if !asked[topic] {
			x.out.Unasked++
			x.example("unasked", x.out.Unasked, "event %d as received, %s", i+1, x.describe(number))
		}
		if number < last {
			x.out.Disordered++
			x.example("disordered", x.out.Disordered, "event %d as received, %s, behind %s", i+1, x.describe(number), x.describe(last))
		}
		last = number
		if before, there := lastOf[topic]; there && number < before {
			x.out.DisorderedInTopic++
		}
		lastOf[topic] = number
	}
}

// interval is a part of the truth, both ends included.
type interval struct{ first, last int }

// interval returns the part of the truth that a subscription covers.
func (x *examination) interval(w window) interval {
	end := w.end
	if end == open {
		end = len(x.a.places)
	}
	last := x.a.latest(end)
	if w.end == open && !x.c.until.IsZero() {
		last = max(last, x.m.after(x.c.until)-1)
	}
	if !w.from.IsZero() {
		return interval{x.m.after(w.from), last}
	}
	covered := x.covered(w.topic)
	first, found := x.a.first(w.first, end, func(number int32) bool { return covered[x.m.events[number].topic] })
	if !found {
		return interval{0, -1}
	}
	return interval{first, last}
}

// covered tells by its number whether a topic is covered by a subscription.
func (x *examination) covered(subscribed string) []bool {
	covered := make([]bool, len(x.m.topics))
	for i, topic := range x.m.topics {
		covered[i] = covers(subscribed, topic)
	}
	return covered
}

// expected looks for what the client should have got and has not.
func (x *examination) expected() {
	due := make([][]interval, len(x.m.topics))
	whole := interval{len(x.m.events), -1}
	for _, w := range x.c.windows {
		part := x.interval(w)
		if part.first > part.last {
			continue
		}
		whole = interval{min(whole.first, part.first), max(whole.last, part.last)}
		for i, topic := range x.m.topics {
			if covers(w.topic, topic) {
				due[i] = append(due[i], part)
			}
		}
	}
	for number := whole.first; number <= whole.last; number++ {
		topic := x.m.events[number].topic
		if !slices.ContainsFunc(due[topic], func(i interval) bool { return i.first <= number && number <= i.last }) {
			continue
		}
		x.out.Expected++
		switch {
		case x.a.used[number]:
		case x.announced(number):
			x.out.MissingInGaps++
		default:
			x.out.Missing++
			x.example("missing", x.out.Missing, "%s", x.describe(int32(number)))
		}
	}
}

// announced tells whether an event of the truth lies in a gap the client was told of.
func (x *examination) announced(number int) bool {
	at, topic := x.m.time(number), x.m.topics[x.m.events[number].topic]
	return slices.ContainsFunc(x.c.notices, func(n notice) bool {
		about := len(n.topics) == 0 || slices.ContainsFunc(n.topics, func(t string) bool { return covers(t, topic) })
		return about && !at.Before(n.from) && (n.to.IsZero() || !at.After(n.to))
	})
}

func (x *examination) describe(number int32) string {
	e := x.m.events[number]
	return fmt.Sprintf("%s, number %d in the truth, of %s", x.m.topics[e.topic], e.seq, time.Unix(0, e.at).UTC().Format(time.RFC3339Nano))
}

// example keeps the first few faults of a kind; count is the fault's number.
func (x *examination) example(kind string, count int, format string, args ...any) {
	const most = 5
	if count <= most {
		x.out.Examples = append(x.out.Examples, kind+": "+fmt.Sprintf(format, args...))
	}
}
