// Package tally has the figures of a load test: counters, histograms of
// latencies, and a series of them by the second. Tally takes them down, Result
// is what they come to; the results of several workers merge exactly, because
// histograms are merged and not their percentiles. A Threshold is a limit on a
// figure, judged on the merged result.
//
// The package starts no goroutine. Its memory is bounded: a series of more
// than 3,600 points continues with points of twice the length, and labels
// beyond the 256th count as "other". Nothing here waits for anything but a mutex,
// held for nanoseconds, and at the end of a second for a fraction of a millisecond.
package tally

import (
	"maps"
	"math"
	"regexp"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// NoStamp is the latency of an event without a stamp.
const NoStamp time.Duration = math.MinInt64

// maxLabels bounds the number of different closes, and other the reason of those beyond.
const (
	maxLabels = 256
	other     = "other"
)

// busyShare is the share of its cores from which on a tester counts as busy.
const busyShare = 0.9

// Options say what is tallied.
type Options struct {
	Run
	Tester string // name of this worker; unlike those of the others
	Cores  int    // how many cores this worker can keep busy: its number of event loops
}

// Parameter is one of the parameters of a run.
type Parameter struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Close says how a connection ended. Failures to become ready are closes too:
// those of a stage before live.
type Close struct {
	Stage  string `json:"stage"`          // connect, tls, upgrade, auth, subscribe or live
	By     string `json:"by"`             // us, server or network
	Reason string `json:"reason"`         // short label of a bounded set
	Code   int    `json:"code,omitempty"` // WebSocket close code
	HTTP   int    `json:"http,omitempty"` // HTTP status that refused the upgrade
}

// Failed reports whether the connection never became ready, other than by our own doing.
func (c Close) Failed() bool { return c.Stage != "live" && c.By != "us" }

// Lost reports whether a ready connection ended other than by our own doing.
func (c Close) Lost() bool { return c.Stage == "live" && c.By != "us" }

// Sample is what was measured from outside at a moment.
type Sample struct {
	At      time.Time
	Open    int                   // sockets that are connected
	Opening int                   // of these, not ready yet
	CPU     time.Duration         // that the tester's process used since it began
	Servers map[string]ServerUsed // by a name that says which process on which machine
}

// ServerUsed is what a process of the server has used up to a moment.
type ServerUsed struct {
	CPU time.Duration // since it began
	RSS uint64        // bytes
}

// Tally takes down the figures of one worker. All methods may be called from
// any goroutine. No recorder allocates, but for a label or a bucket seen for
// the first time, and at the end of a second.
type Tally struct {
	// Static after construction.
	options Options

	// Guarded by mu.
	mu        sync.Mutex
	totals    Totals
	closes    map[Close]uint64
	connect   Histogram
	upgrade   Histogram
	ready     Histogram
	reconnect Histogram
	event     Histogram
	lag       *hdrhistogram.Histogram
	loss      Loss
	series    series
	now       Second                  // still under way; its latencies are in latency
	latency   *hdrhistogram.Histogram // of now
	tester    Tester
	sampled   Sample // the one before
}

// New returns a tally that begins at the start of the run. Keys in parameters
// and targets are replaced.
func New(o Options) *Tally {
	targets := make([]string, len(o.Targets))
	for i, target := range o.Targets {
		targets[i] = redact(target)
	}
	parameters := make([]Parameter, len(o.Parameters))
	for i, p := range o.Parameters {
		parameters[i] = Parameter{p.Name, redact(p.Value)}
	}
	o.Targets, o.Parameters = targets, parameters
	return &Tally{
		options:   o,
		closes:    make(map[Close]uint64),
		connect:   newHistogram(digits),
		upgrade:   newHistogram(digits),
		ready:     newHistogram(digits),
		reconnect: newHistogram(digits),
		event:     newHistogram(digits),
		lag:       hdrhistogram.New(int64(shortest), int64(longest), digits),
		series:    series{step: 1},
		now:       Second{At: o.Start.Unix()},
		latency:   hdrhistogram.New(int64(shortest), int64(longest), digits),
		tester:    Tester{Name: o.Tester, Cores: o.Cores},
	}
}

var secrets = regexp.MustCompile(`cm_[A-Za-z0-9_-]+|(?i:((?:api_key|token)=|bearer\s+))[^\s&"]+`)

// redact replaces what looks like a key.
func redact(text string) string { return secrets.ReplaceAllString(text, "${1}[redacted]") }

// Advance ends the seconds before now, in unix nanoseconds. What is recorded
// afterwards counts in now's second. A time before the last one is ignored.
// Call it with the time of each read, and at least once a second.
func (t *Tally) Advance(now int64) {
	t.mu.Lock()
	t.advance(now / int64(time.Second))
	t.mu.Unlock()
}

func (t *Tally) advance(second int64) {
	for t.now.At+t.series.step <= second {
		if t.latency.TotalCount() > 0 {
			t.now.Latency = t.secondLatency()
			t.event.packed.MergeFrom(t.latency)
			t.latency.Reset()
		}
		t.series.add(t.now)
		last := t.series.seconds[len(t.series.seconds)-1]
		t.now = Second{At: last.At + t.series.step, Ready: t.now.Ready, Open: t.now.Open, Opening: t.now.Opening}
	}
}

// secondLatency has the latencies of the second under way.
func (t *Tally) secondLatency() Histogram {
	if t.latency.TotalCount() == 0 {
		return Histogram{}
	}
	h := newHistogram(secondDigits)
	h.packed.MergeFrom(t.latency)
	h.packed.Compact()
	return h
}

// Connected takes down a TCP connection (with TLS: and its handshake), d after
// it was scheduled.
func (t *Tally) Connected(d time.Duration) {
	t.mu.Lock()
	t.connect.record(d)
	t.mu.Unlock()
}

// Upgraded takes down an answer 101, d after the connection was scheduled.
func (t *Tally) Upgraded(d time.Duration) {
	t.mu.Lock()
	t.upgrade.record(d)
	t.mu.Unlock()
}

// Ready takes down that a connection is authenticated and its topics are
// acknowledged, d after it was scheduled.
func (t *Tally) Ready(d time.Duration) {
	t.mu.Lock()
	t.ready.record(d)
	t.totals.BecameReady++
	t.now.BecameReady++
	t.now.Ready++
	t.mu.Unlock()
}

// Reconnected takes down that a client is ready again, d after it lost its connection.
func (t *Tally) Reconnected(d time.Duration) {
	t.mu.Lock()
	t.reconnect.record(d)
	t.mu.Unlock()
}

// Event takes down one event of so many bytes, that came latency after its
// stamp. An event without a stamp has latency NoStamp; another negative one
// means that the clocks differ. Both are counted apart.
func (t *Tally) Event(latency time.Duration, bytes int) {
	t.mu.Lock()
	t.now.Events++
	t.now.Bytes += uint64(bytes)
	t.totals.Events++
	t.totals.Bytes += uint64(bytes)
	switch {
	case latency >= 0:
		// A duration in range is always recorded.
		_ = t.latency.RecordValue(int64(min(latency, longest)))
	case latency == NoStamp:
		t.totals.Unstamped++
	default:
		t.totals.Ahead++
	}
	t.mu.Unlock()
}

// Frames takes down so many data frames, and the bytes on the wire they came with.
func (t *Tally) Frames(count, bytes uint64) {
	t.mu.Lock()
	t.totals.Frames += count
	t.totals.FrameBytes += bytes
	t.mu.Unlock()
}

// Closed takes down the end of a connection, also of one that never became ready.
func (t *Tally) Closed(c Close) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if c.Stage == "live" {
		t.now.Ready--
	}
	if c.Failed() {
		t.totals.Failed++
		t.now.Failed++
	}
	if c.Lost() {
		t.totals.Lost++
		t.now.Lost++
	}
	if _, known := t.closes[c]; !known && len(t.closes) >= maxLabels {
		c = Close{Stage: c.Stage, By: c.By, Reason: other}
	}
	t.closes[c]++
}

// Gap takes down a gap in the events of a connection, announced by the server or not.
func (t *Tally) Gap(announced bool) {
	t.mu.Lock()
	if announced {
		t.totals.GapsAnnounced++
	} else {
		t.totals.GapsUnannounced++
	}
	t.mu.Unlock()
}

// Loss takes down what became of the events that were expected. It replaces
// what was taken down before.
func (t *Tally) Loss(l Loss) {
	t.mu.Lock()
	t.loss = l
	t.mu.Unlock()
}

// Lag takes down how late the tester itself was: how long after the scheduled
// time it did something, or how long what it received waited to be read.
func (t *Tally) Lag(d time.Duration) {
	t.mu.Lock()
	d = min(max(d, 0), longest)
	_ = t.lag.RecordValue(int64(d)) // always in range
	t.now.LagMax = max(t.now.LagMax, d)
	t.mu.Unlock()
}

// Sample takes down what was measured from outside, and advances to its time.
// What a process used between two samples counts in the second of the later.
// A server that is first seen has used nothing yet; one whose CPU fell was
// started again.
func (t *Tally) Sample(s Sample) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.advance(s.At.Unix())
	t.now.Open, t.now.Opening = int64(s.Open), int64(s.Opening)
	if before := t.sampled; !before.At.IsZero() {
		span, used := s.At.Sub(before.At), s.CPU-before.CPU
		t.now.CPU += used
		t.tester.CPU += used
		t.tester.Sampled += span
		if t.tester.Cores > 0 && float64(used) >= busyShare*float64(span)*float64(t.tester.Cores) {
			t.tester.Busy += span
		}
	}
	for name, server := range s.Servers {
		before, known := t.sampled.Servers[name]
		var used time.Duration
		switch {
		case known && server.CPU >= before.CPU:
			used = server.CPU - before.CPU
		case known:
			used = server.CPU
		}
		if t.now.Servers == nil {
			t.now.Servers = make(map[string]Usage, len(s.Servers))
		}
		t.now.Servers[name] = Usage{CPU: t.now.Servers[name].CPU + used, RSS: server.RSS}
	}
	t.sampled = s
	t.sampled.Servers = maps.Clone(s.Servers) // the caller may use its map again
}
