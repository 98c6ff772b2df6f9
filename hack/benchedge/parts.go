//go:build linux

package benchedge

import (
	"fmt"
	"math"
)

func (r *Result) printMemory(p printer) {
	if len(r.Memory) == 0 {
		return
	}
	m := r.Memory[0]
	p.text("")
	p.text(fmt.Sprintf("Memory of an idle connection: growth from %s to %s, %s after the last handshake, in bytes of one. Heap and stacks are parts of RSS.",
		thousands(float64(m.Few)), thousands(float64(m.Many)), r.Options.MemoryWait))
	p.text("The kernel's is not in RSS; it is that of the whole machine, so of both ends of a connection")
	p.line("topics", "RSS", "heap", "stacks", "goroutines", "kernel objects", "kernel buffers", "RSS MB at first", "in the end")
	for _, m := range r.Memory {
		objects := "not readable"
		if m.KernelObjects >= 0 {
			objects = thousands(m.KernelObjects)
		}
		p.line(decimals(0)(float64(m.Topics)), thousands(m.RSS), thousands(m.Heap), thousands(m.Stacks), decimals(2)(m.Goroutines), objects,
			thousands(m.KernelBuffers), decimals(1)(float64(m.RSSFew)/1e6), decimals(1)(float64(m.RSSMany)/1e6))
	}
	for _, m := range r.Memory {
		if len(m.Sites) == 0 {
			continue
		}
		p.text("")
		p.text(fmt.Sprintf("Where the heap was allocated, topics: %d; %s bytes live (%s)", m.Topics, thousands(float64(m.Live)), m.Profile))
		for _, s := range m.Sites {
			p.line(thousands(float64(s.Bytes)), decimals(1)(100*float64(s.Bytes)/float64(max(m.Live, 1)))+" %", thousands(float64(s.Objects))+" objects", s.Function)
		}
	}
}

func (r *Result) printHandshakes(p printer) {
	if len(r.Handshakes) == 0 {
		return
	}
	p.text("")
	p.text(fmt.Sprintf("%s handshakes without topics, from connect to auth_success, 128 at once; auth and Redis are real", thousands(float64(r.Options.Connections))))
	p.line("", "CPU ms per 1,000", "user ms", "per second", "answered from the cache")
	for _, known := range []bool{false, true} {
		of := func(figure func(Handshakes) float64, format func(float64) string) string {
			var v []float64
			for _, h := range r.Handshakes {
				if h.Known == known {
					v = append(v, figure(h))
				}
			}
			return spread(v, format)
		}
		p.line(keysOf(known),
			of(func(h Handshakes) float64 { return h.CPU }, decimals(1)), of(func(h Handshakes) float64 { return h.UserCPU }, decimals(1)),
			of(func(h Handshakes) float64 { return h.PerSecond }, thousands), of(func(h Handshakes) float64 { return h.Hits }, thousands))
	}
	p.text("")
	p.text(fmt.Sprintf("A storm: %s connects at once, unknown keys", thousands(float64(r.Options.Sockets))))
	p.line("half in, s", "99 % in, s", "all in, s", "CPU ms per 1,000", "refused at first")
	of := func(figure func(Storm) float64, format func(float64) string) string {
		var v []float64
		for _, s := range r.Storms {
			v = append(v, figure(s))
		}
		return spread(v, format)
	}
	p.line(of(func(s Storm) float64 { return s.Half }, seconds), of(func(s Storm) float64 { return s.Most }, seconds),
		of(func(s Storm) float64 { return s.All }, seconds), of(func(s Storm) float64 { return s.CPU }, decimals(1)),
		of(func(s Storm) float64 { return float64(s.Refused) }, thousands))
	reasons := map[string]int{}
	for _, s := range r.Storms {
		for what, n := range s.Reasons {
			reasons[what] += n
		}
	}
	if text := list("Refused in all storms: ", reasons); text != "" {
		p.text(text)
	}
}

func (r *Result) printSlow(p printer) {
	if len(r.Slow) == 0 {
		return
	}
	each := float64(r.Options.SlowConnections / slowShare)
	p.text("")
	p.text(fmt.Sprintf("Slow clients: %s connections, %d events/s over the topics of S2; of %.0f clients with the wildcard half read nothing, and half 5 KB/s, or all",
		thousands(float64(r.Options.SlowConnections)), r.Options.SlowRate, 2*each))
	p.text(fmt.Sprintf("read as the others do. Latencies are the others'. RSS and queue: at most at a moment, ÷ %.0f. Closed: by the edge as slow, and when after the first event", 2*each))
	p.line("", "p50 ms", "p99 ms", "p99.9 ms", "of due", "core %", "RSS KiB", "queue KiB", "closed", "first s", "last s")
	for _, slow := range []bool{false, true} {
		of := func(figure func(Slow) float64, format func(float64) string) string {
			var v []float64
			for _, s := range r.Slow {
				if s.Slow == slow && !math.IsNaN(figure(s)) {
					v = append(v, figure(s))
				}
			}
			return spread(v, format)
		}
		whenClosed := func(at func(Slow) float64) func(Slow) float64 {
			return func(s Slow) float64 {
				if s.Closed == 0 {
					return math.NaN()
				}
				return at(s)
			}
		}
		kib := 1024 * 2 * each
		p.line(Slow{Slow: slow}.variant(),
			of(func(s Slow) float64 { return s.Latency.P50 }, short), of(func(s Slow) float64 { return s.Latency.P99 }, short),
			of(func(s Slow) float64 { return s.Latency.P999 }, short), of(func(s Slow) float64 { return s.Served }, decimals(2)),
			of(func(s Slow) float64 { return 100 * s.ServerShare }, decimals(0)),
			of(func(s Slow) float64 { return float64(s.RSS) / kib }, decimals(0)), of(func(s Slow) float64 { return float64(s.Queue) / kib }, decimals(0)),
			of(func(s Slow) float64 { return float64(s.Closed) }, decimals(0)),
			of(whenClosed(func(s Slow) float64 { return s.FirstClosed }), decimals(0)), of(whenClosed(func(s Slow) float64 { return s.LastClosed }), decimals(0)))
	}
	ratio := func(figure func(Slow) float64) string { return spread(r.slowRatios(figure), decimals(2)) }
	p.line("some ÷ none", ratio(func(s Slow) float64 { return s.Latency.P50 }), ratio(func(s Slow) float64 { return s.Latency.P99 }),
		ratio(func(s Slow) float64 { return s.Latency.P999 }))
	actions := map[string]int{}
	for _, s := range r.Slow {
		for what, n := range s.Actions {
			if s.Slow {
				actions[what] += n
			}
		}
	}
	p.text("Slow by the edge's own count, with slow ones: " + list("", actions))
	for _, name := range []class{stalled, trickling} {
		p.text(fmt.Sprintf("Who %s: %s", name, r.slowClass(name)))
	}
}

// slowRatios returns a figure with slow clients over that without, round by
// round.
func (r *Result) slowRatios(figure func(Slow) float64) []float64 {
	var out []float64
	for _, a := range r.Slow {
		for _, b := range r.Slow {
			if a.Slow && !b.Slow && a.Round == b.Round && figure(b) > 0 {
				out = append(out, figure(a)/figure(b))
			}
		}
	}
	return out
}

// slowClass adds up what became of the slow ones of a class.
func (r *Result) slowClass(name class) SlowClass {
	sum := SlowClass{Statuses: map[string]int{}, Ends: map[string]int{}}
	for _, s := range r.Slow {
		c, ok := s.Classes[name]
		if !ok || !s.Slow {
			continue
		}
		sum.Clients += c.Clients
		sum.Warned += c.Warned
		sum.Kernel, sum.KernelMost = max(sum.Kernel, c.Kernel), max(sum.KernelMost, c.KernelMost)
		for what, n := range c.Statuses {
			sum.Statuses[what] += n
		}
		for what, n := range c.Ends {
			sum.Ends[what] += n
		}
	}
	return sum
}
