package tally

import (
	"fmt"
	"maps"
	"slices"
	"time"
)

// When a tester counts as the limit of what was measured.
const (
	maxLag  = 10 * time.Millisecond // of the 99th percentile
	maxBusy = 0.1                   // share of its time in which its cores were busy
)

// Saturated says in a sentence each which testers were the limit, rather than
// the server. Where it says so, latencies are too high and rates too low.
func (r Result) Saturated() []string {
	var found []string
	for _, t := range r.Testers {
		if t.late() {
			found = append(found, fmt.Sprintf("tester %s was late by %s or more in 1 %% of all cases (more than %s)",
				t.Name, t.Lag.Percentile(99).Round(time.Millisecond), maxLag))
		}
		if t.busy() {
			found = append(found, fmt.Sprintf("tester %s used at least %.0f %% of its cores (%d) for %.0f %% of the time",
				t.Name, 100*busyShare, t.Cores, 100*float64(t.Busy)/float64(t.Sampled)))
		}
	}
	return found
}

// Measured reports whether both the lateness and the CPU of the tester are
// known; without, it may have been the limit and Saturated does not tell.
func (t Tester) Measured() bool { return t.Lag.Count() > 0 && t.Sampled > 0 }

func (t Tester) late() bool { return t.Lag.Percentile(99) > maxLag }

func (t Tester) busy() bool { return t.Busy > 0 && float64(t.Busy) >= maxBusy*float64(t.Sampled) }

func (r Result) saturatedTesters() (float64, error) {
	var n float64
	unknown := false
	for _, t := range r.Testers {
		unknown = unknown || !t.Measured()
		if t.late() || t.busy() {
			n++
		}
	}
	if n == 0 && unknown {
		return 0, errNotMeasured
	}
	return n, nil
}

// Rate is the average of what came each second: events, and bytes of events.
// It leaves out the points of the series with the first and the last event,
// because they are not whole, where there are more than two. It is not known
// without events.
func (r Result) Rate() (events, bytes float64, known bool) {
	first := slices.IndexFunc(r.Seconds, func(s Second) bool { return s.Events > 0 })
	if first < 0 {
		return 0, 0, false
	}
	last := len(r.Seconds) - 1
	for r.Seconds[last].Events == 0 {
		last--
	}
	if last-first > 1 {
		first, last = first+1, last-1
	}
	for _, s := range r.Seconds[first : last+1] {
		events += float64(s.Events)
		bytes += float64(s.Bytes)
	}
	seconds := float64(r.Seconds[last].At + r.Step - r.Seconds[first].At)
	return events / seconds, bytes / seconds, true
}

// ServerFigures are what a process of the server used.
type ServerFigures struct {
	Name             string
	CPU              time.Duration // in all
	CPUPerEvent      time.Duration // in the seconds with events; 0: not known
	RSSPeak          uint64        // bytes
	RSSPerConnection float64       // bytes, see Servers; 0: not known
}

// leastGrowth is from how many connections on memory is said per connection.
const leastGrowth = 100

// Servers has the figures of each server that was sampled, by name. Memory per
// connection is the growth of RSS from the first point with a sample to the
// first one with the most ready connections, by their difference, when that is
// 100 or more and memory grew.
func (r Result) Servers() []ServerFigures {
	type state struct {
		ServerFigures
		events           uint64
		eventCPU         time.Duration
		before, most     int64
		rssBefore, rssAt uint64
	}
	states := make(map[string]*state)
	for _, s := range r.Seconds {
		for name, used := range s.Servers {
			server := states[name]
			if server == nil {
				server = &state{ServerFigures: ServerFigures{Name: name}, before: s.Ready, most: s.Ready, rssBefore: used.RSS, rssAt: used.RSS}
				states[name] = server
			}
			server.CPU += used.CPU
			if s.Events > 0 {
				server.events += s.Events
				server.eventCPU += used.CPU
			}
			server.RSSPeak = max(server.RSSPeak, used.RSS)
			if s.Ready > server.most {
				server.most, server.rssAt = s.Ready, used.RSS
			}
		}
	}
	var figures []ServerFigures
	for _, name := range slices.Sorted(maps.Keys(states)) {
		server := states[name]
		if server.events > 0 {
			server.CPUPerEvent = server.eventCPU / time.Duration(server.events)
		}
		if grown := server.most - server.before; grown >= leastGrowth && server.rssAt > server.rssBefore {
			server.RSSPerConnection = float64(server.rssAt-server.rssBefore) / float64(grown)
		}
		figures = append(figures, server.ServerFigures)
	}
	return figures
}

// closes counts the connections that ended other than by our own doing and match.
func (r Result) closes(match func(Close) bool) uint64 {
	var n uint64
	for _, c := range r.Closes {
		if c.By != "us" && match(c.Close) {
			n += c.Count
		}
	}
	return n
}

// Points is the series, coarsened to no more than most points of step seconds each.
func (r Result) Points(most int) (points []Second, step int64) {
	s := series{r.Step, r.Seconds}
	for len(s.seconds) > most {
		s = s.coarser(2 * s.step)
	}
	return s.seconds, s.step
}
