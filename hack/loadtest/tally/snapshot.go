package tally

import "time"

// bounds are those of the latency histogram of the metrics.
var bounds = [...]time.Duration{
	100 * time.Microsecond, 250 * time.Microsecond, 500 * time.Microsecond,
	time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond,
	10 * time.Millisecond, 25 * time.Millisecond, 50 * time.Millisecond,
	100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond,
	time.Second, 2500 * time.Millisecond, 5 * time.Second, 10 * time.Second,
}

// Snapshot is the state of a tally under way: for the progress and the
// metrics. Those of several workers can be added.
type Snapshot struct {
	Totals
	Elapsed     time.Duration       `json:"elapsed_ns"`
	Wanted      int                 `json:"wanted"`
	Last        Second              `json:"last"` // the last second that is over
	Step        int64               `json:"step"` // seconds that Last spans
	Ready       int64               `json:"ready"`
	Open        int64               `json:"open"`
	Opening     int64               `json:"opening"`
	Misframed   uint64              `json:"misframed"`
	LatencyUpTo [len(bounds)]uint64 `json:"latency_up_to"` // events, by the bounds of the metrics
	LatencySum  float64             `json:"latency_sum_seconds"`
}

// Snapshot is the state now.
func (t *Tally) Snapshot(now time.Time) Snapshot {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.advance(now.Unix())
	s := Snapshot{
		Totals:    t.totals,
		Elapsed:   now.Sub(t.options.Start),
		Wanted:    t.options.Wanted,
		Step:      t.series.step,
		Ready:     t.now.Ready,
		Open:      t.now.Open,
		Opening:   t.now.Opening,
		Misframed: t.loss.Misframed,
	}
	if n := len(t.series.seconds); n > 0 {
		s.Last = t.series.seconds[n-1]
	}
	for _, h := range []Histogram{t.event, t.secondLatency()} {
		h.UpTo(bounds[:], s.LatencyUpTo[:])
		s.LatencySum += h.Mean().Seconds() * float64(h.Count())
	}
	return s
}

// Add has the state of both.
func (s Snapshot) Add(o Snapshot) Snapshot {
	s.count(o.Totals)
	s.Elapsed = max(s.Elapsed, o.Elapsed)
	s.Wanted += o.Wanted
	s.Last = s.Last.beside(o.Last)
	s.Step = max(s.Step, o.Step)
	s.Ready += o.Ready
	s.Open += o.Open
	s.Opening += o.Opening
	s.Misframed += o.Misframed
	for i, n := range o.LatencyUpTo {
		s.LatencyUpTo[i] += n
	}
	s.LatencySum += o.LatencySum
	return s
}
