package checker

import (
	"slices"
	"time"
)

// gaps compares the gaps announced to the client with the outages of its market.
func (x *examination) gaps() {
	x.out.Gaps = len(x.c.notices)
	outages := merge(x.m.outages, x.c.cuts)
	spanned := make([]bool, len(outages))
	touched := make([]bool, len(outages))
	for _, n := range x.c.notices {
		var begin, end time.Time
		founded, over := false, true
		for i, o := range outages {
			if !n.overlaps(o) {
				continue
			}
			if !founded {
				begin = o.from
			}
			founded, end, touched[i] = true, o.to, true
			over = !o.to.IsZero()
			spanned[i] = spanned[i] || n.spans(o)
		}
		switch {
		case !founded:
			x.out.GapsUnfounded++
			x.example("gap without an outage", x.out.GapsUnfounded, "%s", n)
		case over && n.exceeds(begin, end):
			x.out.GapsTooLong++
			x.example("gap too long", x.out.GapsTooLong, "%s for the outage %s", n, outage{begin, end})
		}
	}
	first, last, there := x.lifetime()
	for i, o := range outages {
		within := there && !o.from.Before(first) && !o.to.IsZero() && !o.to.After(last)
		if !within && !touched[i] {
			continue
		}
		x.out.Outages++
		if !spanned[i] {
			x.out.OutagesNotSpanned++
			x.example("outage not spanned by one gap", x.out.OutagesNotSpanned, "%s", o)
		}
	}
}

// merge joins outages that overlap, and returns them in their order.
func merge(outages, cuts []outage) []outage {
	if len(cuts) == 0 {
		return outages
	}
	var merged []outage
	all := slices.SortedFunc(slices.Values(slices.Concat(outages, cuts)), func(a, b outage) int { return a.from.Compare(b.from) })
	for _, o := range all {
		last := len(merged) - 1
		switch {
		case last < 0 || !merged[last].to.IsZero() && o.from.After(merged[last].to):
			merged = append(merged, o)
		case o.to.IsZero() || !merged[last].to.IsZero() && o.to.After(merged[last].to):
			merged[last].to = o.to
		}
	}
	return merged
}

// lifetime returns the times between which the client certainly was there.
func (x *examination) lifetime() (first, last time.Time, there bool) {
	if place, found := x.a.first(0, len(x.a.places), func(int32) bool { return true }); found {
		first, last, there = x.m.time(place), x.m.time(x.a.latest(len(x.a.places))), true
	}
	for _, w := range x.c.windows {
		if !w.from.IsZero() && (!there || w.from.Before(first)) {
			first, there = w.from, true
		}
	}
	if x.c.until.After(last) {
		last = x.c.until
	}
	return first, last, there
}

func (n notice) overlaps(o outage) bool {
	return (o.to.IsZero() || !n.from.After(o.to.Add(slack))) && (n.to.IsZero() || !n.to.Before(o.from.Add(-slack)))
}

func (n notice) spans(o outage) bool {
	if len(n.topics) != 0 || n.from.After(o.from.Add(slack)) {
		return false
	}
	return n.to.IsZero() || (!o.to.IsZero() && !n.to.Before(o.to.Add(-slack)))
}

// exceeds tells whether the gap is longer than the outages from begin to end allow.
func (n notice) exceeds(begin, end time.Time) bool {
	from := n.from
	if from.IsZero() {
		from = begin
	}
	return n.to.IsZero() || n.to.Sub(from) > end.Sub(begin)+maxExcess
}

func (n notice) String() string {
	text := outage{n.from, n.to}.String()
	for _, topic := range slices.Sorted(slices.Values(n.topics)) {
		text += " " + topic
	}
	return text
}

func (o outage) String() string {
	show := func(t time.Time) string {
		if t.IsZero() {
			return "…"
		}
		return t.UTC().Format(time.RFC3339Nano)
	}
	text := show(o.from) + " – " + show(o.to)
	if !o.from.IsZero() && !o.to.IsZero() {
		text += " (" + o.to.Sub(o.from).String() + ")"
	}
	return text
}
