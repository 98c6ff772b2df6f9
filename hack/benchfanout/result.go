//go:build linux

package benchfanout

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
)

const (
	// minSent is the part of the rate that the vendor must make: it comes in bursts.
	minSent = 0.85
	// minReceived is the part of what was sent that must have come, but for what is
	// under way.
	minReceived = 0.97
	// maxWait is the part of the time that the threads of fanout, together, may wait
	// for a core before the machine is taken for the limit.
	maxWait = 0.5
)

// Result is all that a run found out.
type Result struct {
	Cores   int
	Samples []Sample
}

// Sample is one measurement of a subject at a rate.
type Sample struct {
	Subject string
	Rate    int // events per second that were asked for
	Round   int // from 0

	Seconds   float64
	Events    float64            // sent by the vendor
	Received  float64            // by the one behind the subject that got the fewest; of a reader: Events
	SkippedMS uint64             // for which the vendor made no events
	CPU       map[string]float64 // seconds, by process
	Wait      map[string]float64 // seconds ready to run while others ran
	Troubles  map[string]float64 // connections and streams that ended, gaps
}

// newSample computes the figures between two marks.
func newSample(subject string, rate int, from, to mark) Sample {
	s := Sample{
		Subject: subject, Rate: rate, Seconds: to.at.Sub(from.at).Seconds(),
		Events: float64(to.sent - from.sent), SkippedMS: to.skipped - from.skipped,
		CPU: map[string]float64{}, Wait: map[string]float64{}, Troubles: map[string]float64{},
	}
	s.Received = s.Events
	for name, cpu := range to.cpu {
		used := cpu.Sub(from.cpu[name])
		s.CPU[name], s.Wait[name] = used.Run.Seconds(), used.Wait.Seconds()
	}
	for name, n := range to.received {
		if subject != subjectReader {
			s.Received = min(s.Received, n-from.received[name])
		}
	}
	for what, n := range to.troubles {
		if more := n - from.troubles[what]; more > 0 {
			s.Troubles[what] = more
		}
	}
	return s
}

// Sustained says that all events were made and came, and nothing broke.
func (s Sample) Sustained() bool {
	return s.SkippedMS == 0 && len(s.Troubles) == 0 &&
		s.Events >= minSent*float64(s.Rate)*s.Seconds && s.Received >= minReceived*s.Events
}

// cost is the processor time of all processes with a prefix, in µs for an event.
func (s Sample) cost(prefix string) float64 {
	if s.Events == 0 {
		return 0
	}
	return s.cpu(prefix) * 1e6 / s.Events
}

func (s Sample) cpu(prefix string) float64 {
	sum := 0.0
	for name, seconds := range s.CPU {
		if strings.HasPrefix(name, prefix) {
			sum += seconds
		}
	}
	return sum
}

// reading is the cost of the process that reads the vendor's socket.
func (s Sample) reading() float64 {
	if s.Subject == subjectReader {
		return s.cost(subjectReader)
	}
	return s.cost("fanout")
}

// behind is the cost of one edge or stand-in; 0: there is none.
func (s Sample) behind() float64 {
	return (s.cost("edge") + s.cost("stand-in")) / edges
}

// String is a line of progress.
func (s Sample) String() string {
	line := fmt.Sprintf("%-9s at %d/s: %.0f events/s, %.2f µs for an event, feedsim %.2f µs", s.Subject, s.Rate, s.Received/s.Seconds, s.reading(), s.cost("feedsim"))
	if s.SkippedMS > 0 {
		line += fmt.Sprintf(", the vendor skipped %d ms", s.SkippedMS)
	}
	for what, n := range s.Troubles {
		line += fmt.Sprintf(", %s: %.0f", what, n)
	}
	if !s.Sustained() {
		line += ", not sustained"
	}
	return line
}

// of returns the samples of a subject at a rate.
func (r Result) of(subject string, rate int) []Sample {
	var some []Sample
	for _, s := range r.Samples {
		if s.Subject == subject && s.Rate == rate {
			some = append(some, s)
		}
	}
	return some
}

// Ratios are the costs of reading the vendor's socket over those of the bare reader, round by
// round.
func (r Result) Ratios(subject string, rate int) []float64 {
	var ratios []float64
	for _, s := range r.of(subject, rate) {
		for _, base := range r.of(subjectReader, rate) {
			if s.Round == base.Round && base.reading() > 0 {
				ratios = append(ratios, s.reading()/base.reading())
			}
		}
	}
	return ratios
}

// Print writes the table.
func (r Result) Print(out io.Writer) error {
	var rates []int
	for _, s := range r.Samples {
		rates = append(rates, s.Rate)
	}
	slices.Sort(rates)
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintf(t, "\nMedians, µs of processor time for an event of the vendor; shares of one of %d cores, of which all together is what there is\n", r.Cores)
	_, _ = fmt.Fprintln(t, "asked/s\tsubject\tsustained\tevents/s\treader or fanout\t÷ reader\teach edge\tfeedsim\tshare of it\tshare of fanout\tall shares\tits wait for a core")
	for _, rate := range slices.Compact(rates) {
		for _, subject := range subjects {
			some := r.of(subject, rate)
			if len(some) == 0 {
				continue
			}
			of := func(format string, figure func(s Sample) float64) string {
				var all []float64
				for _, s := range some {
					all = append(all, figure(s))
				}
				return fmt.Sprintf(format, median(all))
			}
			held := 0
			for _, s := range some {
				if s.Sustained() {
					held++
				}
			}
			ratio := "-"
			if ratios := r.Ratios(subject, rate); len(ratios) > 0 {
				ratio = fmt.Sprintf("%.2f", median(ratios))
			}
			_, _ = fmt.Fprintf(t, "%d\t%s\t%d of %d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", rate, subject, held, len(some),
				of("%.0f", func(s Sample) float64 { return s.Received / s.Seconds }),
				of("%.3f", Sample.reading), ratio, of("%.3f", Sample.behind), of("%.3f", func(s Sample) float64 { return s.cost("feedsim") }),
				of("%.2f", func(s Sample) float64 { return s.cpu("feedsim") / s.Seconds }), of("%.2f", func(s Sample) float64 { return s.cpu("fanout") / s.Seconds }),
				of("%.2f", func(s Sample) float64 { return s.cpu("") / s.Seconds }), of("%.2f", func(s Sample) float64 { return s.Wait["fanout-0"] / s.Seconds }))
		}
	}
	_, _ = fmt.Fprintln(t, "\n"+r.limit())
	return t.Flush()
}

// limit says what did not hold a rate, or that all did.
func (r Result) limit() string {
	for _, s := range r.Samples {
		if s.Sustained() {
			continue
		}
		who := "the machine, whose cores were busy, with other programs too if all shares are fewer"
		switch free := float64(r.Cores) - s.cpu("")/s.Seconds; {
		case free < 0.1*float64(r.Cores), s.Wait["fanout-0"] > maxWait*s.Seconds:
		case s.SkippedMS > 0:
			who = "feedsim, which skipped " + strconv.FormatUint(s.SkippedMS, 10) + " ms"
		default:
			who = "what is behind feedsim"
		}
		return fmt.Sprintf("The first rate that was not sustained: %d/s by %s; the limit was %s.", s.Rate, s.Subject, who)
	}
	return "All rates were sustained."
}

func median(values []float64) float64 {
	v := slices.Sorted(slices.Values(values))
	if len(v) == 0 {
		return 0
	}
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}
