package report

import (
	"strconv"
	"strings"
	"time"

	"github.com/cutemarkets/relay/hack/loadtest/tally"
)

// table is one part of the summary, the same in text and in HTML.
type table struct {
	Title string
	Note  string
	Left  int // so many columns are text; those behind are numbers
	Head  []string
	Rows  [][]string
	Bars  []float64 // of each row, 0 to 1; in HTML only
}

// Wide reports whether the table needs the width of the page.
func (t table) Wide() bool { return len(t.Head) > 4 }

// tables are the summary of a result, without the thresholds and parameters.
func tables(r tally.Result) []table {
	all := []table{connections(r), events(r), latencies(r), loss(r)}
	if topics := topics(r); len(topics.Rows) > 0 {
		all = append(all, topics)
	}
	return append(all, closes(r), servers(r), testers(r))
}

func connections(r tally.Result) table {
	t := table{Title: "Connections", Left: 1, Rows: [][]string{
		{"wanted", number(r.Wanted)},
		{"ready at the same time, at most", number(r.ReadyPeak)},
		{"became ready", number(r.BecameReady)},
		{"failed to become ready", number(r.Failed)},
		{"lost when ready", number(r.Lost)},
		{"gaps announced to them", number(r.GapsAnnounced)},
		{"gaps not announced", number(r.GapsUnannounced)},
	}}
	if r.BecameReady > uint64(r.ReadyPeak) {
		t.Note = "Connections that came back became ready more than once."
	}
	return t
}

// latency is one of the kinds of latency of a result.
type latency struct {
	name      string
	histogram tally.Histogram
}

func latencyKinds(r tally.Result) []latency {
	return []latency{
		{"connect", r.Connect},
		{"upgrade (101)", r.Upgrade},
		{"ready (topics acknowledged)", r.Ready},
		{"ready again after a loss", r.Reconnect},
		{"event, from stamp to arrival", r.Event},
	}
}

func latencies(r tally.Result) table {
	t := table{
		Title: "Latency", Left: 1, Head: []string{"", "count", "p50", "p90", "p99", "p99.9", "max"},
		Note: "Connections count from the time they were scheduled for, not from when the tester got to them.",
	}
	for _, kind := range latencyKinds(r) {
		h := kind.histogram
		row := []string{kind.name, number(h.Count())}
		for _, percent := range []float64{50, 90, 99, 99.9, 100} {
			if h.Count() == 0 {
				row = append(row, "–")
				continue
			}
			row = append(row, duration(h.Percentile(percent)))
		}
		t.Rows = append(t.Rows, row)
	}
	return t
}

func events(r tally.Result) table {
	perSecond, bytesPerSecond, known := r.Rate()
	rate, byteRate := "–", "–"
	if known {
		rate, byteRate = significant(perSecond), size(bytesPerSecond)+"/s"
	}
	t := table{Title: "Events", Left: 1, Rows: [][]string{
		{"received", number(r.Events)},
		{"per second, on average", rate},
		{"bytes of events", size(float64(r.Bytes))},
		{"bytes of events per second", byteRate},
		{"frames", number(r.Frames)},
		{"events per frame", "–"},
		{"bytes on the wire", size(float64(r.FrameBytes))},
		{"without a stamp", number(r.Unstamped)},
		{"arrived before their stamp", number(r.Ahead)},
	}}
	if r.Frames > 0 {
		t.Rows[5][1] = significant(float64(r.Events) / float64(r.Frames))
	}
	return t
}

func loss(r tally.Result) table {
	l := r.Loss
	t := table{Title: "Loss", Left: 1}
	if l.Judged || l.Expected > 0 {
		t.Rows = [][]string{
			{"events expected", number(l.Expected)},
			{"received of these", number(l.Received)},
			{"missing, not announced", number(l.Missing)},
			{"missing in announced gaps", number(l.MissingAnnounced)},
			{"duplicates", number(l.Duplicates)},
			{"out of order", number(l.Disordered)},
		}
	}
	if !l.Judged {
		t.Note = "Loss was not judged: it takes events with numbers, and the ground truth of what was sent."
		if l.Expected > 0 {
			t.Note = "Loss was not judged in full: only some of the testers had events with numbers, and the ground truth. These are the figures of those."
		}
	}
	t.Rows = append(t.Rows, []string{"frames that are no array of events", number(l.Misframed)})
	return t
}

func topics(r tally.Result) table {
	t := table{Title: "Topics that miss the most", Left: 1, Head: []string{"topic", "expected", "missing, not announced", "in announced gaps"}}
	for _, topic := range r.Loss.Topics {
		if topic.Missing+topic.MissingAnnounced > 0 {
			t.Rows = append(t.Rows, []string{topic.Topic, number(topic.Expected), number(topic.Missing), number(topic.MissingAnnounced)})
		}
	}
	return t
}

func closes(r tally.Result) table {
	t := table{Title: "How connections ended", Left: 3, Head: []string{"at", "by", "reason", "code", "HTTP", "count"}}
	var most uint64
	for _, c := range r.Closes {
		most = max(most, c.Count)
	}
	for _, c := range r.Closes {
		t.Rows = append(t.Rows, []string{c.Stage, c.By, c.Reason, orDash(c.Code), orDash(c.HTTP), number(c.Count)})
		t.Bars = append(t.Bars, float64(c.Count)/float64(most))
	}
	if len(r.Closes) == 0 {
		t.Note = "No connection ended."
	}
	return t
}

func orDash(n int) string {
	if n == 0 {
		return "–"
	}
	return strconv.Itoa(n)
}

func servers(r tally.Result) table {
	t := table{
		Title: "Server", Left: 1, Head: []string{"process", "CPU in all", "CPU per event received", "memory (RSS), at most", "memory per connection"},
		Note: "CPU per event is that of the seconds with events. Memory per connection is how much RSS grew until most connections were ready.",
	}
	for _, s := range r.Servers() {
		row := []string{s.Name, duration(s.CPU), "–", size(float64(s.RSSPeak)), "–"}
		if s.CPUPerEvent > 0 {
			row[2] = significant(float64(s.CPUPerEvent)/float64(time.Microsecond)) + " µs"
		}
		if s.RSSPerConnection > 0 {
			row[4] = size(s.RSSPerConnection)
		}
		t.Rows = append(t.Rows, row)
	}
	if len(t.Rows) == 0 {
		t.Note = "No process of the server was sampled."
	}
	return t
}

func testers(r tally.Result) table {
	t := table{
		Title: "Tester", Left: 1, Head: []string{"worker", "CPU in all", "of its cores", "late p50", "late p99", "late max"},
		Note: "It was fast enough: what was measured is the server.",
	}
	for _, worker := range r.Testers {
		row := []string{worker.Name, "–", "–", "–", "–", "–"}
		if worker.Sampled > 0 {
			row[1], row[2] = duration(worker.CPU), share(worker.CPU.Seconds(), worker.Sampled.Seconds()*float64(worker.Cores))
		}
		if worker.Lag.Count() > 0 {
			row[3], row[4], row[5] = duration(worker.Lag.Percentile(50)), duration(worker.Lag.Percentile(99)), duration(worker.Lag.Max())
		}
		t.Rows = append(t.Rows, row)
		if !worker.Measured() {
			t.Note = "It was not measured throughout, so whether it was the limit is not known."
		}
	}
	if found := r.Saturated(); len(found) > 0 {
		t.Note = saturated + strings.Join(found, "; ") + "."
	}
	return t
}

// Warnings of a result, before any of its figures.
const (
	saturated = "The tester itself was the limit, so latencies are too high and rates too low; use more workers or machines: "
	ahead     = " events arrived before their stamp: the clocks of the sender and the tester differ, so latencies of events are wrong by as much."
)

func warnings(r tally.Result) []string {
	var all []string
	if found := r.Saturated(); len(found) > 0 {
		all = append(all, saturated+strings.Join(found, "; ")+".")
	}
	if r.Ahead > 0 {
		all = append(all, number(r.Ahead)+ahead)
	}
	return all
}

func thresholds(r tally.Result) table {
	t := table{Title: "Thresholds", Left: 2, Head: []string{"threshold", "", "measured"}}
	for _, v := range r.Thresholds {
		state := "held"
		if v.Crossed {
			state = "CROSSED"
		}
		t.Rows = append(t.Rows, []string{v.Threshold, state, v.Value})
	}
	if len(t.Rows) == 0 {
		t.Note = "None were set."
	}
	return t
}

func took(r tally.Result) string { return r.End.Sub(r.Start).Round(100 * time.Millisecond).String() }

func parameters(r tally.Result) table {
	t := table{Title: "Parameters", Left: 2, Rows: [][]string{
		{"scenario", r.Scenario},
		{"targets", strings.Join(r.Targets, ", ")},
		{"began", r.Start.UTC().Format("2006-01-02 15:04:05 MST")},
		{"took", took(r)},
		{"workers", number(len(r.Testers))},
		{"stamp", r.Stamp},
	}}
	if r.Stamp == "" {
		t.Rows[5][1] = "none: the latency of events is not measured"
	}
	for _, p := range r.Parameters {
		t.Rows = append(t.Rows, []string{p.Name, p.Value})
	}
	return t
}
