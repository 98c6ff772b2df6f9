//go:build linux

package benchedge

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/cutemarkets/relay/hack/benchedge/shape"
)

// version of the stored form of a Result.
const version = 2

// Result is all that a run found out.
type Result struct {
	Version    int          `json:"version"`
	Started    time.Time    `json:"started"`
	Took       float64      `json:"took_seconds"`
	Options    Options      `json:"options"`
	Notes      []string     `json:"notes"` // what makes the figures worth less
	Samples    []Sample     `json:"samples"`
	Ceilings   []Ceiling    `json:"ceilings"`
	Memory     []Memory     `json:"memory"`
	Handshakes []Handshakes `json:"handshakes"`
	Storms     []Storm      `json:"storms"`
	Slow       []Slow       `json:"slow"`
}

// Sample is one measurement of one server under one shape.
type Sample struct {
	Server      string `json:"server"`
	Shape       string `json:"shape"`
	Round       int    `json:"round"` // from 0
	Connections int    `json:"connections"`

	// Of the handshakes, from the first connect to the last acknowledgement.
	HandshakesPerSecond float64 `json:"handshakes_per_second"`
	HandshakeCPU        float64 `json:"handshake_cpu_ms_per_1000"`
	MemoryPerConnection float64 `json:"idle_rss_bytes_per_connection"`

	// Of the window.
	Seconds      float64 `json:"seconds"`
	Events       uint64  `json:"events"`
	Due          uint64  `json:"deliveries_due"` // the sum of the subscribers of each event
	Deliveries   uint64  `json:"deliveries"`
	Reads        uint64  `json:"client_reads"`
	Writes       float64 `json:"writes_per_delivery,omitempty"` // by the server's own count; 0: it has none
	CPU          float64 `json:"server_cpu_us_per_delivery"`
	UserCPU      float64 `json:"server_user_cpu_us_per_delivery"`
	ServerShare  float64 `json:"server_core_share"`
	WaitShare    float64 `json:"server_wait_share"` // ready to run while others had its core
	ClientShare  float64 `json:"client_busy_share"`
	Latency      Latency `json:"latency_ms"`
	PublisherLag Lag     `json:"publisher_lag_ms"`

	Troubles map[string]int `json:"troubles"` // lost connections, statuses, broken frames

	perMoment float64 // deliveries of the events that are published at once, on average
}

// Latency is in ms, from the publisher's stamp to the client's read.
type Latency struct {
	P50  float64 `json:"p50"`
	P99  float64 `json:"p99"`
	P999 float64 `json:"p99.9"`
	Max  float64 `json:"max"`
}

// Lag is how late the publisher was, in ms; latencies do not include it.
type Lag struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

// Ceiling is what a server can hold.
type Ceiling struct {
	Server string  `json:"server"`
	Held   *Sample `json:"held"`   // the last step at which it did; nil: none
	Failed *Sample `json:"failed"` // the step after it; nil: none was tried
}

// take computes the figures of a window.
func (s *Sample) take(from, to mark, sh shape.Shape) {
	used := to.cpu.Sub(from.cpu)
	s.Seconds = to.at.Sub(from.at).Seconds()
	s.Events, s.Due = to.events-from.events, to.deliveries-from.deliveries
	s.Deliveries, s.Reads = to.stats.Events-from.stats.Events, to.stats.Reads-from.stats.Reads
	if events := to.counted.events - from.counted.events; events > 0 {
		s.Writes = (to.counted.writes - from.counted.writes) / events
	}
	s.perMoment = float64(s.Due) / float64(max(s.Events, 1)) * float64(sh.Burst)
	s.ServerShare = used.Run.Seconds() / s.Seconds
	s.WaitShare = used.Wait.Seconds() / s.Seconds
	s.ClientShare = (to.stats.Busy - from.stats.Busy).Seconds() / s.Seconds
	if s.Deliveries > 0 {
		s.CPU = used.Run.Seconds() * 1e6 / float64(s.Deliveries)
		s.UserCPU = s.CPU * used.UserShare()
	}
}

// minServed is the part of the due deliveries that a server must make in the
// window, but for those of one moment.
const minServed = 0.97

// Served is the part of the due deliveries that were made.
func (s Sample) Served() float64 {
	if s.Due == 0 {
		return 0
	}
	return float64(s.Deliveries) / float64(s.Due)
}

// heldUp says that the server fell behind by more than what is on its way at
// the end of the window: its latencies are those of a backlog.
func (s Sample) heldUp() bool {
	return float64(s.Deliveries) < minServed*float64(s.Due)-s.perMoment
}

// ReadsPerDelivery is at most the number of writes per delivery.
func (s Sample) ReadsPerDelivery() float64 {
	if s.Deliveries == 0 {
		return 0
	}
	return float64(s.Reads) / float64(s.Deliveries)
}

// WritesPerDelivery is by the server's own count; NaN: it has none.
func (s Sample) WritesPerDelivery() float64 {
	if s.Writes == 0 {
		return math.NaN()
	}
	return s.Writes
}

// DeliveriesPerSecond is the rate in the window.
func (s Sample) DeliveriesPerSecond() float64 { return float64(s.Deliveries) / s.Seconds }

// String is a line of progress.
func (s Sample) String() string {
	line := fmt.Sprintf("%-12s %6.2f µs per delivery (%.2f user), %s/s (%.2f of due), p50 %s p99 %s ms, core %.0f %%, wait %.0f %%",
		s.Server, s.CPU, s.UserCPU, thousands(s.DeliveriesPerSecond()), s.Served(), short(s.Latency.P50), short(s.Latency.P99), 100*s.ServerShare, 100*s.WaitShare)
	if s.heldUp() {
		line += ", falls behind"
	}
	for _, what := range slices.Sorted(maps.Keys(s.Troubles)) {
		line += fmt.Sprintf(", %s: %d", what, s.Troubles[what])
	}
	return line
}

func newResult(o Options, started time.Time) *Result {
	return &Result{
		Version: version, Started: started.UTC(), Options: o, Notes: []string{}, Samples: []Sample{}, Ceilings: []Ceiling{},
		Memory: []Memory{}, Handshakes: []Handshakes{}, Storms: []Storm{}, Slow: []Slow{},
	}
}

func (r *Result) store(dir string) (path string, err error) {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return "", fmt.Errorf("benchedge: %w", err)
	}
	path = filepath.Join(dir, "result.json")
	if err := os.WriteFile(path, append(b, '\n'), 0o600); err != nil {
		return "", fmt.Errorf("benchedge: %w", err)
	}
	return path, nil
}

// of returns a figure of all samples of a server and shape, by round; NaN is
// none.
func (r *Result) of(server, shape string, figure func(Sample) float64) []float64 {
	var out []float64
	for _, s := range r.Samples {
		if s.Server != server || s.Shape != shape {
			continue
		}
		if v := figure(s); !math.IsNaN(v) {
			out = append(out, v)
		}
	}
	return out
}

// Ratios returns a figure of one server over that of another, round by round.
func (r *Result) Ratios(shape, over, under string, figure func(Sample) float64) []float64 {
	var out []float64
	for _, a := range r.Samples {
		for _, b := range r.Samples {
			if a.Shape == shape && b.Shape == shape && a.Round == b.Round && a.Server == over && b.Server == under && figure(b) > 0 {
				out = append(out, figure(a)/figure(b))
			}
		}
	}
	return out
}

// Spread is the least, middle and greatest of some values.
type Spread struct{ Min, Median, Max float64 }

// NewSpread sorts values; none give zeros.
func NewSpread(values []float64) Spread {
	if len(values) == 0 {
		return Spread{}
	}
	v := slices.Sorted(slices.Values(values))
	n := len(v)
	return Spread{v[0], (v[(n-1)/2] + v[n/2]) / 2, v[n-1]}
}
