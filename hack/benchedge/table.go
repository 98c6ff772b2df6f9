//go:build linux

package benchedge

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/cutemarkets/relay/hack/benchedge/shape"
)

// column is a figure of a table.
type column struct {
	title  string
	figure func(Sample) float64
	format func(float64) string
	spread bool // min / median / max; else the median
	ratio  bool // has a ratio between servers
}

var deliveries = []column{
	{"CPU µs", func(s Sample) float64 { return s.CPU }, decimals(2), true, true},
	{"user µs", func(s Sample) float64 { return s.UserCPU }, decimals(2), true, false},
	{"per second", Sample.DeliveriesPerSecond, thousands, false, false},
	{"of due", Sample.Served, decimals(2), true, false},
	{"writes", Sample.WritesPerDelivery, decimals(2), true, false},
	{"reads", Sample.ReadsPerDelivery, decimals(2), false, false},
	{"p50 ms", func(s Sample) float64 { return s.Latency.P50 }, short, true, true},
	{"p99 ms", func(s Sample) float64 { return s.Latency.P99 }, short, true, true},
	{"p99.9 ms", func(s Sample) float64 { return s.Latency.P999 }, short, true, true},
	{"core %", func(s Sample) float64 { return 100 * s.ServerShare }, decimals(0), false, false},
	{"wait %", func(s Sample) float64 { return 100 * s.WaitShare }, decimals(0), false, false},
	{"clients %", func(s Sample) float64 { return 100 * s.ClientShare }, decimals(0), false, false},
	{"late ms", func(s Sample) float64 { return s.PublisherLag.P99 }, short, false, false},
}

var openings = []column{
	{"RSS bytes", func(s Sample) float64 { return s.MemoryPerConnection }, decimals(0), true, false},
	{"CPU ms per 1,000 handshakes", func(s Sample) float64 { return s.HandshakeCPU }, decimals(1), true, true},
	{"handshakes/s", func(s Sample) float64 { return s.HandshakesPerSecond }, thousands, true, false},
}

// Servers in the order of the tables, and the pairs whose ratios are printed.
// How a bare loop takes its connections is of no interest.
var (
	rows  = []string{nameEdge, nameWrite, nameWritev, nameBare}
	pairs = [][2]string{{nameEdge, nameWrite}, {nameEdge, nameWritev}, {nameWrite, nameBare}}

	openingRows  = rows[:3]
	openingPairs = pairs[:1]
)

// maxFloor is how many times what a bare loop of write costs the floor may cost.
const maxFloor = 1.10

// Print writes the tables.
func (r *Result) Print(out io.Writer) {
	p := printer{tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)}
	p.line()
	if len(r.Samples) > 0 {
		r.printDeliveries(p)
	}
	r.printCeilings(p)
	r.printMemory(p)
	r.printHandshakes(p)
	r.printSlow(p)
	p.text("")
	for _, note := range slices.Concat(r.Notes, r.remarks()) {
		p.text("Note: " + note)
	}
	_ = p.w.Flush() // a terminal that is gone is no reason to stop
}

func (r *Result) printDeliveries(p printer) {
	p.text("Of several rounds: min / median / max, or the median. All but the latencies are per delivered event. user: CPU outside the kernel. of due: below")
	p.text("0.97 a server falls behind, and its latencies are those of a backlog. writes: by the edge's own count. reads: of the clients, at most the writes of")
	p.text("the server. core: how busy the server was; wait: how long others had its core while it was ready; clients: how busy these were. late: p99 of the")
	p.text("publisher, which the latencies do not include. Ratios are taken round by round.")
	for _, name := range r.Options.Shapes {
		s, _ := shape.ByName(name)
		pace := "evenly"
		if s.Burst > 1 {
			pace = fmt.Sprintf("in bursts of %d", s.Burst)
		}
		p.text("")
		p.text(fmt.Sprintf("%s: %s connections, topics: %s, each connection: %d, events/s: %d %s",
			name, thousands(float64(r.Options.Connections)), thousands(float64(s.Topics)), s.PerConnection, s.Rate, pace))
		r.print(p, deliveries, []string{name}, rows, pairs)
	}
	for _, topics := range []int{1, 20} {
		names := slices.DeleteFunc(slices.Clone(r.Options.Shapes), func(name string) bool {
			s, _ := shape.ByName(name)
			return s.PerConnection != topics
		})
		if len(names) > 0 {
			p.text("")
			p.text(fmt.Sprintf("An idle connection, topics: %d. A handshake lasts from connect to the last acknowledgement; 128 at once", topics))
			r.print(p, openings, names, openingRows, openingPairs)
		}
	}
}

// printer writes rows of cells.
type printer struct{ w *tabwriter.Writer }

func (p printer) line(cells ...string) { _, _ = fmt.Fprintln(p.w, strings.Join(cells, "\t")) }

// text writes a line that does not widen the columns.
func (p printer) text(line string) {
	_ = p.w.Flush()
	p.line(line)
	_ = p.w.Flush()
}

// print writes the figures of some shapes, a row for each server, and the
// ratios.
func (r *Result) print(p printer, columns []column, shapes, rows []string, pairs [][2]string) {
	header := []string{""}
	for _, c := range columns {
		header = append(header, c.title)
	}
	p.line(header...)
	for _, server := range rows {
		r.row(p, server, columns, func(c column) []float64 {
			var out []float64
			for _, name := range shapes {
				out = append(out, r.of(server, name, c.figure)...)
			}
			return out
		})
	}
	ratios := slices.Clone(columns)
	for i := range ratios {
		ratios[i].format, ratios[i].spread = decimals(2), true
	}
	for _, pair := range pairs {
		r.row(p, pair[0]+" ÷ "+pair[1], ratios, func(c column) []float64 {
			var out []float64
			for _, name := range shapes {
				if c.ratio {
					out = append(out, r.Ratios(name, pair[0], pair[1], c.figure)...)
				}
			}
			return out
		})
	}
}

// row writes a row, if there is anything in it.
func (r *Result) row(p printer, title string, columns []column, values func(column) []float64) {
	cells, filled := []string{title}, false
	for _, c := range columns {
		cell := ""
		if v := values(c); len(v) > 0 {
			filled = true
			if cell = c.format(NewSpread(v).Median); c.spread {
				cell = spread(v, c.format)
			}
		}
		cells = append(cells, cell)
	}
	if filled {
		p.line(cells...)
	}
}

func (r *Result) printCeilings(p printer) {
	if len(r.Ceilings) == 0 {
		return
	}
	p.text("")
	p.text(fmt.Sprintf("What a server holds: %s connections, topics: 2,000, each connection: 20, the rate raised by a quarter until it falls behind", thousands(float64(r.Options.Connections))))
	p.line("", "deliveries/s", "CPU µs", "p50 ms", "p99 ms", "core %", "clients %", "and then")
	for _, c := range r.Ceilings {
		cells := []string{c.Server, "less than the first step", "", "", "", "", ""}
		if s := c.Held; s != nil {
			cells = []string{
				c.Server, thousands(s.DeliveriesPerSecond()), decimals(2)(s.CPU), short(s.Latency.P50), short(s.Latency.P99),
				decimals(0)(100 * s.ServerShare), decimals(0)(100 * s.ClientShare),
			}
		}
		p.line(append(cells, c.then())...)
	}
}

// then says what was beyond the ceiling.
func (c Ceiling) then() string {
	s := c.Failed
	if s == nil {
		return "no further step was tried"
	}
	var texts []string
	if s.heldUp() {
		texts = append(texts, fmt.Sprintf("%.2f of %s/s", s.Served(), thousands(float64(s.Due)/s.Seconds)))
	}
	if s.elsewhere() {
		texts = append(texts, fmt.Sprintf("with the server's core %.0f %% busy: something else was the limit", 100*s.ServerShare))
	}
	for _, what := range slices.Sorted(maps.Keys(s.Troubles)) {
		texts = append(texts, fmt.Sprintf("%s (%d)", what, s.Troubles[what]))
	}
	return strings.Join(texts, ", ")
}

// busy is the part of a core from which on its process is the limit.
const busy = 0.9

// elsewhere says that the server fell behind, but not for want of its core.
func (s Sample) elsewhere() bool { return s.heldUp() && s.ServerShare < busy }

// From these on a figure is told to be worth less.
const (
	maxWait     = 0.05 // of the time
	maxLateness = 20.0 // ms
)

// remarks tells what makes figures worth less.
func (r *Result) remarks() []string {
	var out []string
	worst := func(what, unit string, from, scale float64, figure func(Sample) float64) {
		n, most := 0, 0.0
		for _, s := range r.Samples {
			if v := figure(s); v > from {
				n, most = n+1, max(most, v)
			}
		}
		if n > 0 {
			out = append(out, fmt.Sprintf("%s in %d of %d measurements, by up to %s %s.", what, n, len(r.Samples), short(scale*most), unit))
		}
	}
	worst("Other work took the server's core while the server was ready to run", "% of the time; a server that has to wait joins more, and costs less than it would", maxWait, 100,
		func(s Sample) float64 { return s.WaitShare })
	worst("The publisher was late", "ms (p99)", maxLateness, 1, func(s Sample) float64 { return s.PublisherLag.P99 })
	worst("A server fell behind with its core less than 90 % busy, so something else was the limit,", "% of what was due", 0, 100, func(s Sample) float64 {
		if !s.elsewhere() {
			return 0
		}
		return 1 - s.Served()
	})
	troubles := map[string]int{}
	for _, s := range r.Samples {
		for what, n := range s.Troubles {
			troubles[s.Server+", "+what] += n
		}
	}
	for _, m := range r.Memory {
		for what, n := range m.Troubles {
			troubles[fmt.Sprintf("memory, topics: %d, %s", m.Topics, what)] += n
		}
	}
	for _, h := range r.Handshakes {
		for what, n := range h.Troubles {
			troubles["handshakes, "+what] += n
		}
	}
	for _, s := range r.Slow {
		for what, n := range s.Troubles {
			troubles["slow, the others, "+what] += n
		}
	}
	for _, what := range slices.Sorted(maps.Keys(troubles)) {
		out = append(out, fmt.Sprintf("%s: %s in all.", what, thousands(float64(troubles[what]))))
	}
	ratios := r.Ratios(bareShape, nameWrite, nameBare, func(s Sample) float64 { return s.CPU })
	if s := NewSpread(ratios); s.Median > maxFloor {
		out = append(out, fmt.Sprintf("%s costs %.2f times a bare loop of write, more than %.2f: the machine was busy with something else, or the floor is none.", nameWrite, s.Median, maxFloor))
	}
	return out
}
