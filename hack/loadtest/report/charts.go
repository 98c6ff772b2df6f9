package report

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/cutemarkets/relay/hack/loadtest/tally"
)

// maxPoints bounds the points of a line over time.
const maxPoints = 300

// toggled are two views of the same: a logarithmic y and a linear one.
type toggled struct {
	ID          string
	Title       string
	Note        string
	Log, Linear chart
}

// drawing makes the charts over time of a result.
type drawing struct {
	points []tally.Second
	span   map[int64]float64 // seconds that a point covers, by its time
	x      scale
	xLabel string
	start  int64
}

// newDrawing leaves out a last point of which less than half was run.
func newDrawing(r tally.Result) drawing {
	points, step := r.Points(maxPoints)
	start := r.Start.Unix()
	x, unit := times(float64(r.End.Unix() - start))
	d := drawing{x: x, xLabel: "time since the start (" + unit + ")", start: start, span: make(map[int64]float64)}
	for i, s := range points {
		whole, from, to := float64(step), max(seconds(r.Start), float64(s.At)), min(seconds(r.End), float64(s.At+step))
		if i > 0 && to-from < whole/2 {
			continue
		}
		d.points = append(d.points, s)
		d.span[s.At] = min(whole, max(to-from, whole/2))
	}
	return d
}

func seconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

// line has a value of each point; without ok, an interruption.
func (d drawing) line(name string, value func(tally.Second) (y float64, ok bool)) line {
	l := line{Name: name}
	for _, s := range d.points {
		y, ok := value(s)
		if !ok {
			y = math.NaN()
		}
		l.points = append(l.points, point{min(max(0, float64(s.At-d.start)), d.x.high), y})
	}
	return l
}

func (d drawing) chart(id, title, yLabel string, y func(high float64) scale, lines ...line) chart {
	return chart{Title: title, id: id, xLabel: d.xLabel, yLabel: yLabel, x: d.x, y: y(highest(lines)), Lines: lines}
}

// rates is a linear scale with a few ticks.
func rates(high float64) scale { return linear(high, 6) }

// overTime are the charts over time of a result.
func overTime(r tally.Result) []chart {
	d := newDrawing(r)
	always := func(value func(tally.Second) float64) func(tally.Second) (float64, bool) {
		return func(s tally.Second) (float64, bool) { return value(s), true }
	}
	connections := []line{
		d.line("ready", always(func(s tally.Second) float64 { return float64(s.Ready) })),
		d.line("wanted", always(func(tally.Second) float64 { return float64(r.Wanted) })),
	}
	if open := d.line("sockets open, as sampled", always(func(s tally.Second) float64 { return float64(s.Open) })); highest([]line{open}) > 0 {
		connections = append(connections, open)
	}
	charts := []chart{
		d.chart("connections", "Connections", "connections", whole, connections...),
		d.chart("ends", "Failed and lost connections", "connections per second", rates,
			d.line("failed to become ready", always(func(s tally.Second) float64 { return float64(s.Failed) / d.span[s.At] })),
			d.line("lost when ready", always(func(s tally.Second) float64 { return float64(s.Lost) / d.span[s.At] }))),
	}
	if r.Events > 0 {
		charts = append(charts,
			d.chart("events", "Events received", "events per second", rates,
				d.line("events", always(func(s tally.Second) float64 { return float64(s.Events) / d.span[s.At] }))),
			d.chart("bytes", "Bytes of events received", "MiB per second", rates,
				d.line("bytes of events", always(func(s tally.Second) float64 { return float64(s.Bytes) / d.span[s.At] / (1 << 20) }))))
	}
	return append(charts, d.processes(r)...)
}

// processes are the charts of CPU and memory of the servers and of the tester.
func (d drawing) processes(r tally.Result) []chart {
	var cpu, memory []line
	servers := r.Servers()
	slices.SortStableFunc(servers, func(a, b tally.ServerFigures) int { return cmp.Compare(b.CPU, a.CPU) })
	note := ""
	if most := maxLines - 1; len(servers) > most {
		note = fmt.Sprintf("The %d that used the most CPU, of %d.", most, len(servers))
		servers = servers[:most]
	}
	for _, server := range servers {
		cpu = append(cpu, d.line(server.Name, func(s tally.Second) (float64, bool) {
			used, sampled := s.Servers[server.Name]
			return used.CPU.Seconds() / d.span[s.At], sampled
		}))
		memory = append(memory, d.line(server.Name, func(s tally.Second) (float64, bool) {
			used, sampled := s.Servers[server.Name]
			return float64(used.RSS) / (1 << 20), sampled
		}))
	}
	if slices.ContainsFunc(r.Testers, func(t tally.Tester) bool { return t.Sampled > 0 }) {
		cpu = append(cpu, d.line("tester", func(s tally.Second) (float64, bool) { return s.CPU.Seconds() / d.span[s.At], true }))
	}
	var charts []chart
	if len(cpu) > 0 {
		c := d.chart("cpu", "CPU", "cores in use", rates, cpu...)
		c.Note = note
		charts = append(charts, c)
	}
	if len(memory) > 0 {
		charts = append(charts, d.chart("memory", "Memory of the server", "RSS (MiB)", rates, memory...))
	}
	if r.Lag.Count() > 0 {
		lag, unit := inUnit([]line{d.line("late at most", func(s tally.Second) (float64, bool) { return float64(s.LagMax), true })})
		charts = append(charts, d.chart("lag", "Lateness of the tester", "late by ("+unit+")", rates, lag...))
	}
	return charts
}

// inUnit turns nanoseconds into the unit in which the highest is best read.
func inUnit(lines []line) (converted []line, unit string) {
	factor, unit := float64(time.Millisecond), "ms"
	switch most := time.Duration(highest(lines)); {
	case most >= 10*time.Second:
		factor, unit = float64(time.Second), "s"
	case most > 0 && most < time.Millisecond:
		factor, unit = float64(time.Microsecond), "µs"
	}
	for _, l := range lines {
		c := line{Name: l.Name, points: slices.Clone(l.points)}
		for i := range c.points {
			c.points[i].y /= factor
		}
		converted = append(converted, c)
	}
	return converted, unit
}

// latencyOverTime has the latency of events by the second.
func latencyOverTime(r tally.Result) toggled {
	d := newDrawing(r)
	var lines []line
	if r.Event.Count() > 0 {
		for _, statistic := range []struct {
			name    string
			percent float64
		}{{"p50", 50}, {"p99", 99}, {"max", 100}} {
			lines = append(lines, d.line(statistic.name, func(s tally.Second) (float64, bool) {
				return float64(s.Latency.Percentile(statistic.percent)), s.Latency.Count() > 0
			}))
		}
	}
	return toggle("over-time", "Latency of events over time", d.x, d.xLabel, lines)
}

// latencyPercentiles has the latencies of a result by percentile.
func latencyPercentiles(r tally.Result) toggled {
	const samples = 40 // points for each further nine
	var lines []line
	most := int64(1)
	for _, kind := range latencyKinds(r) {
		h := kind.histogram
		if h.Count() == 0 {
			continue
		}
		most = max(most, h.Count())
		l := line{Name: kind.name}
		last := math.Log10(float64(h.Count()))
		for i := 0; float64(i)/samples < last; i++ {
			x := float64(i) / samples
			l.points = append(l.points, point{x, float64(h.Percentile(100 * (1 - math.Pow(10, -x))))})
		}
		l.points = append(l.points, point{last, float64(h.Max())})
		lines = append(lines, l)
	}
	t := toggle("percentiles", "Latency by percentile", percentiles(most), "percentile (%), stretched towards 100", lines)
	t.Note = "A point says: this part of all took no longer than that."
	return t
}

// toggle draws lines of nanoseconds in both ways.
func toggle(id, title string, x scale, xLabel string, lines []line) toggled {
	log := chart{Title: title, id: id + "-log", xLabel: xLabel, yLabel: "latency (s, ms, µs)", x: x, Lines: lines}
	log.y = logarithmic(lowest(lines), highest(lines))
	linear := log
	converted, unit := inUnit(lines)
	linear.id, linear.yLabel, linear.Lines, linear.y = id+"-linear", "latency ("+unit+")", converted, rates(highest(converted))
	return toggled{ID: id, Title: title, Log: log, Linear: linear}
}
