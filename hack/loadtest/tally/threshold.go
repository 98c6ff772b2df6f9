package tally

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Grammar explains thresholds to the user.
const Grammar = `A threshold is FIGURE OP LIMIT; it is crossed when that is true: p99>50ms, loss>0, ready<15000.
OP is one of > >= < <=. A figure that was not measured crosses its thresholds.

durations (LIMIT such as 800us, 50ms, 1.5s)
  p50 p90 p99 p99.9 ... max mean          end-to-end latency of events; any percentile
  connect.p99 upgrade.p99 ready.p99       since the connection was scheduled; also max, mean
  reconnect.p99 lag.p99                   from loss to ready again; lateness of the tester; also max, mean
  server.cpu/event                        CPU of all sampled servers for an event received
counts (LIMIT is a number)
  ready                                   most connections ready at the same time
  failed failed.STAGE                     connections that did not become ready; STAGE is connect, tls, upgrade, auth or subscribe
  closes closes.CODE                      connections ended by the server or the network; CODE is a WebSocket close code
  events frames unstamped ahead           received; without a stamp; before their stamp (the clocks differ)
  loss missing missing.announced          expected events not received: all, outside announced gaps, within them
  duplicates disordered                   events received wrongly
  misframed                               frames that are no array of events
  gaps gaps.announced gaps.unannounced    as seen by connections
  saturated                               testers that were the limit themselves
rates (LIMIT is a number)
  events/s                                average of the whole seconds between the first and the last event
bytes (LIMIT such as 900, 64KiB, 1.5MiB, 2GiB)
  bytes/s                                 of events, the same average
  server.rss/connection server.rss        of all sampled servers: growth for a ready connection, and most at a time`

var errNotMeasured = errors.New("not measured")

type unit int

const (
	plain unit = iota
	duration
	size
)

// figure is one a threshold can be put on.
type figure struct {
	unit  unit
	value func(Result) (float64, error)
}

// Threshold is a limit on a figure of a result; see Grammar.
type Threshold struct {
	text   string
	figure figure
	op     string
	limit  float64
}

// Verdict is a threshold held against a result.
type Verdict struct {
	Threshold string `json:"threshold"`
	Crossed   bool   `json:"crossed"`
	Value     string `json:"value"` // with its unit, or why there is none
}

var form = regexp.MustCompile(`^\s*([^<>=\s]+)\s*(>=|<=|>|<)\s*(\S+)\s*$`)

// ParseThreshold reads a threshold.
func ParseThreshold(s string) (Threshold, error) {
	parts := form.FindStringSubmatch(s)
	if parts == nil {
		return Threshold{}, fmt.Errorf("tally: %q is no threshold: write FIGURE, one of > >= < <=, and the limit, such as p99>50ms", s)
	}
	f, known := find(parts[1])
	if !known {
		return Threshold{}, fmt.Errorf("tally: threshold %q: there is no figure %q\n%s", s, parts[1], Grammar)
	}
	limit, err := f.unit.parse(parts[3])
	if err != nil {
		return Threshold{}, fmt.Errorf("tally: threshold %q: the limit %q %w", s, parts[3], err)
	}
	return Threshold{text: parts[1] + parts[2] + parts[3], figure: f, op: parts[2], limit: limit}, nil
}

// String is the threshold as it was written, without spaces.
func (t Threshold) String() string { return t.text }

// Judge holds the thresholds against the result, in their order.
func (r Result) Judge(thresholds []Threshold) []Verdict {
	verdicts := make([]Verdict, 0, len(thresholds))
	for _, t := range thresholds {
		value, err := t.figure.value(r)
		if err != nil {
			verdicts = append(verdicts, Verdict{t.text, true, err.Error()})
			continue
		}
		verdicts = append(verdicts, Verdict{t.text, t.crossed(value), t.figure.unit.format(value)})
	}
	return verdicts
}

// Crossed reports whether any threshold was.
func Crossed(verdicts []Verdict) bool {
	return slices.ContainsFunc(verdicts, func(v Verdict) bool { return v.Crossed })
}

func (t Threshold) crossed(value float64) bool {
	switch t.op {
	case ">":
		return value > t.limit
	case ">=":
		return value >= t.limit
	case "<":
		return value < t.limit
	default:
		return value <= t.limit
	}
}

var sizes = []struct {
	suffix string
	bytes  float64
}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}}

func (u unit) parse(s string) (float64, error) {
	switch u {
	case duration:
		d, err := time.ParseDuration(s)
		if err != nil || d < 0 {
			return 0, errors.New("is no duration such as 800us, 50ms or 1.5s")
		}
		return float64(d), nil
	case size:
		factor := 1.0
		for _, prefix := range sizes {
			if number, found := strings.CutSuffix(s, prefix.suffix); found {
				s, factor = number, prefix.bytes
			}
		}
		n, ok := number(s)
		if !ok {
			return 0, errors.New("is no number of bytes such as 900, 64KiB or 1.5MiB")
		}
		return n * factor, nil
	default:
		n, ok := number(s)
		if !ok {
			return 0, errors.New("is no number such as 0 or 15000")
		}
		return n, nil
	}
}

var decimal = regexp.MustCompile(`^[0-9]{1,18}(\.[0-9]{1,9})?$`)

func number(s string) (float64, bool) {
	if !decimal.MatchString(s) {
		return 0, false
	}
	n, err := strconv.ParseFloat(s, 64)
	return n, err == nil
}

func (u unit) format(value float64) string {
	switch u {
	case duration:
		d := time.Duration(value)
		if d >= time.Millisecond {
			d = d.Round(time.Microsecond)
		}
		return d.String()
	case size:
		for _, prefix := range sizes {
			if value >= prefix.bytes {
				return strconv.FormatFloat(value/prefix.bytes, 'f', 2, 64) + prefix.suffix
			}
		}
		return strconv.FormatFloat(value, 'f', 0, 64)
	default:
		return strconv.FormatFloat(value, 'f', -1, 64)
	}
}

// stages are those that a connection can fail at.
var stages = []string{"connect", "tls", "upgrade", "auth", "subscribe"}

// find has the figure of a name.
func find(name string) (figure, bool) {
	if f, ok := figures[name]; ok {
		return f, true
	}
	group, rest, grouped := strings.Cut(name, ".")
	switch {
	case grouped && group == "failed" && slices.Contains(stages, rest):
		return count(func(r Result) uint64 {
			return r.closes(func(c Close) bool { return c.Failed() && c.Stage == rest })
		}), true
	case grouped && group == "closes":
		code, err := strconv.Atoi(rest)
		if err != nil || code < 1000 || code > 4999 {
			return figure{}, false
		}
		return count(func(r Result) uint64 {
			return r.closes(func(c Close) bool { return c.Code == code })
		}), true
	}
	if of, ok := histograms[group]; ok && grouped {
		return latency(rest, of)
	}
	return latency(name, func(r Result) Histogram { return r.Event })
}

var histograms = map[string]func(Result) Histogram{
	"connect":   func(r Result) Histogram { return r.Connect },
	"upgrade":   func(r Result) Histogram { return r.Upgrade },
	"ready":     func(r Result) Histogram { return r.Ready },
	"reconnect": func(r Result) Histogram { return r.Reconnect },
	"lag":       func(r Result) Histogram { return r.Lag },
}

// latency is the statistic of that name: a percentile, max or mean.
func latency(name string, of func(Result) Histogram) (figure, bool) {
	var statistic func(Histogram) time.Duration
	switch name {
	case "max":
		statistic = Histogram.Max
	case "mean":
		statistic = Histogram.Mean
	default:
		digits, found := strings.CutPrefix(name, "p")
		percent, ok := number(digits)
		if !found || !ok || percent <= 0 || percent >= 100 {
			return figure{}, false
		}
		statistic = func(h Histogram) time.Duration { return h.Percentile(percent) }
	}
	return figure{duration, func(r Result) (float64, error) {
		h := of(r)
		if h.Count() == 0 {
			return 0, errNotMeasured
		}
		return float64(statistic(h)), nil
	}}, true
}

func count(of func(Result) uint64) figure {
	return figure{plain, func(r Result) (float64, error) { return float64(of(r)), nil }}
}

// judged is a figure of the loss. What was found counts even if not everything was judged.
func judged(of func(Loss) uint64) figure {
	return figure{plain, func(r Result) (float64, error) {
		n := of(r.Loss)
		if n == 0 && !r.Loss.Judged {
			return 0, errors.New("not judged: it takes events with numbers, and the ground truth")
		}
		return float64(n), nil
	}}
}

// server is a figure added up over the sampled servers.
func server(u unit, of func(ServerFigures) float64) figure {
	return figure{u, func(r Result) (float64, error) {
		var sum float64
		for _, s := range r.Servers() {
			sum += of(s)
		}
		if sum == 0 {
			return 0, errNotMeasured
		}
		return sum, nil
	}}
}

func rate(u unit, of func(events, bytes float64) float64) figure {
	return figure{u, func(r Result) (float64, error) {
		events, bytes, known := r.Rate()
		if !known {
			return 0, nil // no event has come: that is a rate, too
		}
		return of(events, bytes), nil
	}}
}

var figures = map[string]figure{
	"ready":                 count(func(r Result) uint64 { return uint64(max(0, r.ReadyPeak)) }),
	"failed":                count(func(r Result) uint64 { return r.Failed }),
	"closes":                count(func(r Result) uint64 { return r.closes(func(Close) bool { return true }) }),
	"events":                count(func(r Result) uint64 { return r.Events }),
	"frames":                count(func(r Result) uint64 { return r.Frames }),
	"unstamped":             count(func(r Result) uint64 { return r.Unstamped }),
	"ahead":                 count(func(r Result) uint64 { return r.Ahead }),
	"misframed":             count(func(r Result) uint64 { return r.Loss.Misframed }),
	"gaps":                  count(func(r Result) uint64 { return r.GapsAnnounced + r.GapsUnannounced }),
	"gaps.announced":        count(func(r Result) uint64 { return r.GapsAnnounced }),
	"gaps.unannounced":      count(func(r Result) uint64 { return r.GapsUnannounced }),
	"saturated":             {plain, Result.saturatedTesters},
	"loss":                  judged(func(l Loss) uint64 { return l.Missing + l.MissingAnnounced }),
	"missing":               judged(func(l Loss) uint64 { return l.Missing }),
	"missing.announced":     judged(func(l Loss) uint64 { return l.MissingAnnounced }),
	"duplicates":            judged(func(l Loss) uint64 { return l.Duplicates }),
	"disordered":            judged(func(l Loss) uint64 { return l.Disordered }),
	"events/s":              rate(plain, func(events, _ float64) float64 { return events }),
	"bytes/s":               rate(size, func(_, bytes float64) float64 { return bytes }),
	"server.cpu/event":      server(duration, func(s ServerFigures) float64 { return float64(s.CPUPerEvent) }),
	"server.rss/connection": server(size, func(s ServerFigures) float64 { return s.RSSPerConnection }),
	"server.rss":            server(size, func(s ServerFigures) float64 { return float64(s.RSSPeak) }),
}
