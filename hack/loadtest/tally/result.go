package tally

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// Schema is the version of the form of a Result.
const Schema = 1

// maxResult bounds what is read as a result, in bytes.
const maxResult = 256 << 20

// Run says what was done.
type Run struct {
	Scenario   string      `json:"scenario"`
	Start      time.Time   `json:"start"`
	Targets    []string    `json:"targets"` // hosts
	Wanted     int         `json:"wanted"`  // connections at the same time
	Stamp      string      `json:"stamp"`   // field of an event that latency counts from; "": none
	Parameters []Parameter `json:"parameters,omitempty"`
}

// Result has the figures of a run, of one worker or merged of several.
type Result struct {
	Schema int `json:"schema"`
	Run
	End       time.Time `json:"end"`
	ReadyPeak int64     `json:"ready_peak"` // most connections ready at the end of a second
	Totals
	Connect    Histogram    `json:"connect"` // this and the next two: since the scheduled time
	Upgrade    Histogram    `json:"upgrade"`
	Ready      Histogram    `json:"ready"`
	Reconnect  Histogram    `json:"reconnect"` // from the loss of a connection until ready again
	Event      Histogram    `json:"event"`     // from the stamp of an event to its arrival
	Lag        Histogram    `json:"lag"`       // how late the tester was
	Loss       Loss         `json:"loss"`
	Closes     []CloseCount `json:"closes"`
	Testers    []Tester     `json:"testers"`
	Step       int64        `json:"step"` // seconds that a point of Seconds spans
	Seconds    []Second     `json:"seconds"`
	Thresholds []Verdict    `json:"thresholds,omitempty"`
}

// Totals are counters of the whole run.
type Totals struct {
	BecameReady     uint64 `json:"became_ready"` // how often; more than connections, where some came back
	Failed          uint64 `json:"failed"`       // connections that did not become ready
	Lost            uint64 `json:"lost"`         // ready connections that ended, not by our own doing
	Events          uint64 `json:"events"`
	Bytes           uint64 `json:"bytes"`     // of the events
	Unstamped       uint64 `json:"unstamped"` // events without a stamp
	Ahead           uint64 `json:"ahead"`     // events that came before their stamp: the clocks differ
	Frames          uint64 `json:"frames"`
	FrameBytes      uint64 `json:"frame_bytes"` // on the wire
	GapsAnnounced   uint64 `json:"gaps_announced"`
	GapsUnannounced uint64 `json:"gaps_unannounced"`
}

func (t *Totals) count(o Totals) {
	t.BecameReady += o.BecameReady
	t.Failed += o.Failed
	t.Lost += o.Lost
	t.Events += o.Events
	t.Bytes += o.Bytes
	t.Unstamped += o.Unstamped
	t.Ahead += o.Ahead
	t.Frames += o.Frames
	t.FrameBytes += o.FrameBytes
	t.GapsAnnounced += o.GapsAnnounced
	t.GapsUnannounced += o.GapsUnannounced
}

// CloseCount says how many connections ended in this way.
type CloseCount struct {
	Close
	Count uint64 `json:"count"`
}

// Tester is what a worker says of itself.
type Tester struct {
	Name    string        `json:"name"`
	Cores   int           `json:"cores"` // that it can keep busy
	CPU     time.Duration `json:"cpu_ns"`
	Sampled time.Duration `json:"sampled_ns"` // time over which CPU was sampled
	Busy    time.Duration `json:"busy_ns"`    // the part of it in which 90 % of the cores or more were used
	Lag     Histogram     `json:"lag"`
}

// Loss is what became of the events that were expected. Except for Misframed,
// its figures mean nothing unless Judged.
type Loss struct {
	Judged           bool        `json:"judged"`
	Expected         uint64      `json:"expected"`
	Received         uint64      `json:"received"`
	Missing          uint64      `json:"missing"`           // outside announced gaps
	MissingAnnounced uint64      `json:"missing_announced"` // within announced gaps
	Duplicates       uint64      `json:"duplicates"`
	Disordered       uint64      `json:"disordered"`
	Misframed        uint64      `json:"misframed"` // frames that are no array of events; counted in any case
	Topics           []TopicLoss `json:"topics,omitempty"`
}

// maxTopics is how many topics a Loss names, those that miss the most.
const maxTopics = 20

// TopicLoss is the loss of one topic. After a merge it counts the workers
// among whose worst topics it was.
type TopicLoss struct {
	Topic            string `json:"topic"`
	Expected         uint64 `json:"expected"`
	Missing          uint64 `json:"missing"`
	MissingAnnounced uint64 `json:"missing_announced"`
}

// Result is what the tally comes to at a moment. The second under way is its last one.
func (t *Tally) Result(now time.Time) Result {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.advance(now.Unix())
	last := t.now
	last.Latency = t.secondLatency()
	event := newHistogram(digits)
	event.packed.MergeFrom(t.latency)
	lag := newHistogram(digits)
	lag.packed.MergeFrom(t.lag)
	tester := t.tester
	tester.Lag = lag
	r := Result{
		Schema:    Schema,
		Run:       t.options.Run,
		End:       now,
		Totals:    t.totals,
		Connect:   t.connect.clone(),
		Upgrade:   t.upgrade.clone(),
		Ready:     t.ready.clone(),
		Reconnect: t.reconnect.clone(),
		Event:     t.event.merged(event),
		Lag:       lag.clone(),
		Loss:      t.loss,
		Testers:   []Tester{tester},
		Step:      t.series.step,
		Seconds:   append(slices.Clone(t.series.seconds), last),
	}
	for c, count := range t.closes {
		r.Closes = append(r.Closes, CloseCount{c, count})
	}
	r.settle()
	return r
}

// settle puts the closes and topics in order, and finds the peak.
func (r *Result) settle() {
	slices.SortFunc(r.Closes, func(a, b CloseCount) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Stage, b.Stage), cmp.Compare(a.By, b.By),
			cmp.Compare(a.Reason, b.Reason), cmp.Compare(a.Code, b.Code), cmp.Compare(a.HTTP, b.HTTP))
	})
	slices.SortFunc(r.Loss.Topics, func(a, b TopicLoss) int {
		return cmp.Or(cmp.Compare(b.Missing, a.Missing), cmp.Compare(b.MissingAnnounced, a.MissingAnnounced), strings.Compare(a.Topic, b.Topic))
	})
	r.Loss.Topics = r.Loss.Topics[:min(maxTopics, len(r.Loss.Topics))]
	r.ReadyPeak = 0
	for _, s := range r.Seconds {
		r.ReadyPeak = max(r.ReadyPeak, s.Ready)
	}
}

// Write writes the result as JSON.
func (r Result) Write(w io.Writer) error {
	if err := json.NewEncoder(w).Encode(r); err != nil {
		return fmt.Errorf("tally: writing the result: %w", err)
	}
	return nil
}

// Read reads the JSON of one result. It refuses another schema, unknown fields
// and figures that contradict each other, rather than guess.
func Read(from io.Reader) (Result, error) {
	data, err := io.ReadAll(io.LimitReader(from, maxResult+1))
	if err != nil {
		return Result{}, fmt.Errorf("tally: reading a result: %w", err)
	}
	if len(data) > maxResult {
		return Result{}, fmt.Errorf("tally: the result is longer than %d MiB", maxResult>>20)
	}
	var version struct {
		Schema int `json:"schema"`
	}
	if err := json.Unmarshal(data, &version); err != nil {
		return Result{}, fmt.Errorf("tally: not the JSON of a result: %w", err)
	}
	if version.Schema != Schema {
		return Result{}, fmt.Errorf("tally: the result has schema %d, this program reads %d: use the same version of loadtest everywhere", version.Schema, Schema)
	}
	var r Result
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&r); err != nil {
		return Result{}, fmt.Errorf("tally: not a result: %w", err)
	}
	if err := r.validate(); err != nil {
		return Result{}, fmt.Errorf("tally: not a sound result: %w", err)
	}
	return r, nil
}

func (r Result) validate() error {
	switch {
	case r.Start.IsZero() || r.End.Before(r.Start):
		return errors.New("it ends before its start")
	case r.Wanted < 0:
		return errors.New("it wants less than no connections")
	case r.Step < 1 || r.Step&(r.Step-1) != 0:
		return fmt.Errorf("a step of %d seconds is no power of two", r.Step)
	case len(r.Testers) == 0:
		return errors.New("it names no tester")
	case r.Unstamped+r.Ahead > r.Events || uint64(r.Event.Count()) != r.Events-r.Unstamped-r.Ahead:
		return fmt.Errorf("%d latencies for %d events", r.Event.Count(), r.Events)
	}
	for _, t := range r.Testers {
		if t.Busy < 0 || t.Busy > t.Sampled {
			return fmt.Errorf("tester %q was busy for longer than it was sampled", t.Name)
		}
	}
	var events uint64
	for i, s := range r.Seconds {
		if s.At%r.Step != 0 || i > 0 && s.At <= r.Seconds[i-1].At {
			return fmt.Errorf("its second %d is out of line", s.At)
		}
		events += s.Events
	}
	if events != r.Events {
		return fmt.Errorf("%d events in its seconds, %d in all", events, r.Events)
	}
	return nil
}
