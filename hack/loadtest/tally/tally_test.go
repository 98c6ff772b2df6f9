package tally

import (
	"bytes"
	"encoding/json"
	"math"
	"net/http"
	"net/http/httptest"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"pgregory.net/rapid"
)

var start = time.Unix(1_800_000_000, 0).UTC()

func options(tester string) Options {
	return Options{Run: Run{Scenario: "stream", Start: start, Targets: []string{"127.0.0.1:8080"}, Wanted: 10, Stamp: "ts"}, Tester: tester, Cores: 1}
}

func TestRecordersDoNotAllocate(t *testing.T) {
	y := New(options("a"))
	closed := Close{Stage: "live", By: "server", Reason: "slow_consumer", Code: 1008}
	second := start.UnixNano()
	all := func() {
		y.Advance(second)
		y.Event(time.Millisecond, 135)
		y.Event(NoStamp, 135)
		y.Frames(1, 139)
		y.Connected(time.Millisecond)
		y.Upgraded(2 * time.Millisecond)
		y.Ready(3 * time.Millisecond)
		y.Reconnected(4 * time.Millisecond)
		y.Gap(true)
		y.Lag(time.Microsecond)
		y.Closed(closed)
	}
	if n := testing.AllocsPerRun(1000, all); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestSeriesIsBySecondOfTheWallClock(t *testing.T) {
	y := New(options("a"))
	y.Ready(time.Millisecond)
	y.Event(time.Millisecond, 100)
	y.Advance(start.Add(2500 * time.Millisecond).UnixNano())
	y.Event(2*time.Millisecond, 50)
	y.Advance(start.UnixNano()) // the clock fell: still the same second
	y.Closed(Close{Stage: "live", By: "server", Reason: "draining", Code: 1012})
	r := y.Result(start.Add(3 * time.Second))
	want := []Second{
		{At: start.Unix(), Events: 1, Bytes: 100, BecameReady: 1, Ready: 1},
		{At: start.Unix() + 1, Ready: 1},
		{At: start.Unix() + 2, Events: 1, Bytes: 50, Lost: 1},
		{At: start.Unix() + 3},
	}
	for i := range r.Seconds {
		r.Seconds[i].Latency = Histogram{}
	}
	if !reflect.DeepEqual(r.Seconds, want) {
		t.Errorf("got %+v", r.Seconds)
	}
	if r.ReadyPeak != 1 || r.Lost != 1 || r.Event.Count() != 2 {
		t.Errorf("got %+v", r)
	}
}

func TestSeriesIsBounded(t *testing.T) {
	for _, shift := range []int64{0, 3} {
		o := options("a")
		o.Start = start.Add(time.Duration(shift) * time.Second)
		y := New(o)
		const seconds = 2*maxSeconds + 7
		for i := range int64(seconds) {
			y.Advance(o.Start.Add(time.Duration(i) * time.Second).UnixNano())
			y.Event(NoStamp, 1)
			if i%50 == 0 {
				y.Event(time.Duration(i)*time.Microsecond, 1)
			}
		}
		r := y.Result(o.Start.Add(seconds * time.Second))
		if len(r.Seconds) > maxSeconds+2 || r.Step != 4 || r.Unstamped != seconds {
			t.Errorf("%d points of %d s with %d events", len(r.Seconds), r.Step, r.Events)
		}
		if err := r.validate(); err != nil {
			t.Error(err)
		}
		if events, _, _ := r.Rate(); math.Abs(events-1.02) > 0.001 {
			t.Errorf("%v events/s", events)
		}
	}
}

func TestClockMayJumpForYears(t *testing.T) {
	y := New(options("a"))
	y.Event(time.Millisecond, 1)
	r := y.Result(start.AddDate(30, 0, 0))
	if len(r.Seconds) > maxSeconds+2 || r.validate() != nil {
		t.Errorf("%d points, %v", len(r.Seconds), r.validate())
	}
}

func TestSampleCountsWhatWasUsedBetween(t *testing.T) {
	y := New(options("a"))
	servers := make(map[string]ServerUsed)
	at := func(seconds int, own, server time.Duration, rss uint64) {
		servers["edge"] = ServerUsed{server, rss}
		y.Sample(Sample{At: start.Add(time.Duration(seconds) * time.Second), Open: 5, Opening: 2, CPU: own, Servers: servers})
	}
	at(0, 7*time.Second, time.Hour, 1000)
	at(1, 7*time.Second+100*time.Millisecond, time.Hour+time.Second, 2000)
	at(2, 8*time.Second+50*time.Millisecond, 300*time.Millisecond, 500) // the server was started again
	r := y.Result(start.Add(2 * time.Second))
	wantUsage := []Usage{{0, 1000}, {time.Second, 2000}, {300 * time.Millisecond, 500}}
	wantCPU := []time.Duration{0, 100 * time.Millisecond, 950 * time.Millisecond}
	for i, s := range r.Seconds {
		if s.Servers["edge"] != wantUsage[i] || s.CPU != wantCPU[i] || s.Open != 5 || s.Opening != 2 {
			t.Errorf("second %d: %+v", i, s)
		}
	}
	if tester := r.Testers[0]; tester.Busy != time.Second || tester.Sampled != 2*time.Second || tester.CPU != 1050*time.Millisecond {
		t.Errorf("got %+v", tester)
	}
	if found := r.Saturated(); len(found) != 1 || !strings.Contains(found[0], "90 % of its cores (1) for 50 % of the time") {
		t.Errorf("got %q", found)
	}
	if servers := r.Servers(); len(servers) != 1 || servers[0].CPU != 1300*time.Millisecond || servers[0].RSSPeak != 2000 {
		t.Errorf("got %+v", servers)
	}
}

func TestServersFigures(t *testing.T) {
	y := New(options("a"))
	sample := func(seconds int, cpu time.Duration, rss uint64) {
		y.Sample(Sample{At: start.Add(time.Duration(seconds) * time.Second), Servers: map[string]ServerUsed{"edge": {cpu, rss}}})
	}
	sample(0, 0, 1_000_000)
	y.Advance(start.Add(time.Second).UnixNano())
	for range 200 {
		y.Ready(time.Millisecond)
	}
	sample(1, time.Second, 1_100_000) // connecting is not delivering
	y.Advance(start.Add(2 * time.Second).UnixNano())
	for range 1000 {
		y.Event(time.Millisecond, 10)
	}
	sample(2, time.Second+5*time.Millisecond, 1_200_000)
	got := y.Result(start.Add(2 * time.Second)).Servers()[0]
	want := ServerFigures{"edge", 1005 * time.Millisecond, 5 * time.Microsecond, 1_200_000, 500}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestLateTesterIsSaid(t *testing.T) {
	y := New(options("a"))
	for i := range 100 {
		y.Lag(time.Duration(i) * time.Millisecond)
	}
	if found := y.Result(start).Saturated(); len(found) != 1 || !strings.Contains(found[0], "tester a was late by 98") {
		t.Errorf("got %q", found)
	}
}

func TestLabelsAreBounded(t *testing.T) {
	y := New(options("a"))
	const n = 2 * maxLabels
	for code := range n {
		y.Closed(Close{Stage: "auth", By: "server", Reason: "x" + strconv.Itoa(code)})
	}
	r := y.Result(start)
	if len(r.Closes) != maxLabels+1 || r.Closes[0] != (CloseCount{Close{Stage: "auth", By: "server", Reason: other}, n - maxLabels}) || r.Failed != n {
		t.Errorf("%d labels, first %+v", len(r.Closes), r.Closes[0])
	}
}

func TestKeysAreReplaced(t *testing.T) {
	o := options("a")
	o.Targets = []string{"h/?api_key=topsecret&x=1"}
	o.Parameters = []Parameter{{"key", "cm_topsecret"}, {"header", "Authorization: Bearer topsecret"}}
	var out bytes.Buffer
	if err := New(o).Result(start).Write(&out); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out.String(), "topsecret") || !strings.Contains(out.String(), "api_key=[redacted]\\u0026x=1") {
		t.Error(out.String())
	}
}

// drawTally has what one worker took down; others take down the same.
func drawTally(t *rapid.T, name string, into ...*Tally) *Tally {
	y := New(options(name))
	all := append([]*Tally{y}, into...)
	second := rapid.Int64Range(0, 5).Draw(t, "begin")
	for range rapid.IntRange(0, 60).Draw(t, "steps") {
		d := time.Duration(rapid.Int64Range(0, int64(2*time.Hour)).Draw(t, "d"))
		what := rapid.IntRange(0, 8).Draw(t, "what")
		if what == 0 {
			second += rapid.Int64Range(0, 3).Draw(t, "seconds")
		}
		for _, y := range all {
			switch what {
			case 0:
				y.Advance(start.Unix()*int64(time.Second) + second*int64(time.Second))
			case 1, 2, 3:
				y.Event(d, 100)
			case 4:
				y.Event(NoStamp, 10)
			case 5:
				y.Ready(d)
				y.Connected(d)
			case 6:
				y.Closed(Close{Stage: "live", By: "server", Reason: "slow_consumer", Code: 1008})
			case 7:
				y.Lag(d)
			case 8:
				y.Gap(d%2 == 0)
			}
		}
	}
	return y
}

func TestMergeIsExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		// A third tally takes down what both workers do, one after the other:
		// its figures of the run compare, its seconds do not.
		both := New(options("a"))
		a, b := drawTally(t, "a", both), drawTally(t, "b", both)
		end := start.Add(190 * time.Second)
		merged, err := Merge(roundTrip(t, a.Result(end)), roundTrip(t, b.Result(end)))
		if err != nil {
			t.Fatal(err)
		}
		if err := merged.validate(); err != nil {
			t.Fatal(err)
		}
		whole := both.Result(end)
		if merged.Totals != whole.Totals || !reflect.DeepEqual(merged.Closes, whole.Closes) || merged.Wanted != 20 {
			t.Fatalf("merged %+v, whole %+v", merged.Totals, whole.Totals)
		}
		for _, pair := range [][2]Histogram{{merged.Event, whole.Event}, {merged.Ready, whole.Ready}, {merged.Lag, whole.Lag}} {
			for _, p := range []float64{0, 1, 50, 90, 99, 99.9, 100} {
				if pair[0].Percentile(p) != pair[1].Percentile(p) || pair[0].Count() != pair[1].Count() {
					t.Fatalf("p%v: merged %v, whole %v", p, pair[0].Percentile(p), pair[1].Percentile(p))
				}
			}
		}
		var latencies int64
		for _, s := range merged.Seconds {
			latencies += s.Latency.Count()
		}
		if latencies != merged.Event.Count() {
			t.Fatalf("%d latencies in the seconds, %d in all", latencies, merged.Event.Count())
		}
	})
}

func roundTrip(t interface{ Fatal(...any) }, r Result) Result {
	var out bytes.Buffer
	if err := r.Write(&out); err != nil {
		t.Fatal(err)
	}
	read, err := Read(&out)
	if err != nil {
		t.Fatal(err)
	}
	return read
}

func TestMergeAlignsSeconds(t *testing.T) {
	a, b := New(options("a")), New(options("b"))
	used := map[string]ServerUsed{"edge": {}}
	for i, y := range []*Tally{a, b} {
		y.Sample(Sample{At: start, Open: 1, Servers: used})
		y.Ready(time.Millisecond)
		y.Advance(start.Add(time.Duration(1+i) * time.Second).UnixNano())
		y.Event(time.Duration(1+i)*time.Millisecond, 10)
	}
	// Both sampled the same server.
	used = map[string]ServerUsed{"edge": {CPU: time.Second, RSS: 7}}
	for _, y := range []*Tally{a, b} {
		y.Sample(Sample{At: start.Add(2 * time.Second), Open: 1, Servers: used})
	}
	r, err := Merge(a.Result(start.Add(2*time.Second)), b.Result(start.Add(4*time.Second)))
	if err != nil {
		t.Fatal(err)
	}
	var events []uint64
	var ready, open []int64
	for _, s := range r.Seconds {
		events, ready, open = append(events, s.Events), append(ready, s.Ready), append(open, s.Open)
	}
	if !slices.Equal(events, []uint64{0, 1, 1, 0, 0}) || !slices.Equal(ready, []int64{2, 2, 2, 1, 1}) || !slices.Equal(open, []int64{2, 2, 2, 1, 1}) {
		t.Errorf("events %v, ready %v, open %v", events, ready, open)
	}
	if got := r.Seconds[2].Servers["edge"]; got != (Usage{time.Second, 7}) {
		t.Errorf("got %+v", got)
	}
	if r.ReadyPeak != 2 || !r.End.Equal(start.Add(4*time.Second)) || len(r.Testers) != 2 {
		t.Errorf("got %+v", r)
	}
}

func TestMergeJudgesLossOnlyIfAllDid(t *testing.T) {
	a, b := New(options("a")), New(options("b"))
	a.Loss(Loss{Judged: true, Expected: 10, Received: 9, Missing: 1, Topics: []TopicLoss{{"T.A", 5, 1, 0}}})
	b.Loss(Loss{Judged: true, Expected: 20, Received: 18, Missing: 2, Topics: []TopicLoss{{"T.B", 9, 1, 0}, {"T.A", 5, 1, 0}}})
	r, err := Merge(a.Result(start), b.Result(start))
	if err != nil {
		t.Fatal(err)
	}
	want := Loss{Judged: true, Expected: 30, Received: 27, Missing: 3, Topics: []TopicLoss{{"T.A", 10, 2, 0}, {"T.B", 9, 1, 0}}}
	if !reflect.DeepEqual(r.Loss, want) {
		t.Errorf("got %+v", r.Loss)
	}
	b.Loss(Loss{})
	if r, _ = Merge(a.Result(start), b.Result(start)); r.Loss.Judged || r.Loss.Missing != 1 {
		t.Errorf("got %+v", r.Loss)
	}
}

func TestMergeRefuses(t *testing.T) {
	of := func(change func(*Options)) Result {
		o := options("b")
		change(&o)
		return New(o).Result(start)
	}
	a := New(options("a")).Result(start)
	for want, r := range map[string]Result{
		"scenarios":         of(func(o *Options) { o.Scenario = "storm" }),
		"stamps":            of(func(o *Options) { o.Stamp = "t" }),
		"of the tester \"a": of(func(o *Options) { o.Tester = "a" }),
	} {
		if _, err := Merge(a, r); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	if _, err := Merge(); err == nil {
		t.Error("nothing was merged")
	}
}

func TestReadRefuses(t *testing.T) {
	y := New(options("a"))
	y.Event(time.Millisecond, 1)
	var out bytes.Buffer
	if err := y.Result(start).Write(&out); err != nil {
		t.Fatal(err)
	}
	good := out.String()
	if _, err := Read(strings.NewReader(good)); err != nil {
		t.Fatal(err)
	}
	replace := func(old, with string) string {
		if !strings.Contains(good, old) {
			t.Fatalf("no %s in %s", old, good)
		}
		return strings.Replace(good, old, with, 1)
	}
	foreign := newHistogram(1)
	foreign.record(time.Second)
	odd, err := json.Marshal(foreign)
	if err != nil {
		t.Fatal(err)
	}
	testers := regexp.MustCompile(`"testers":.*"step"`)
	for want, text := range map[string]string{
		"not the JSON":          "{",
		"after top-level value": good + "{}",
		"schema 2":              replace(`"schema":1`, `"schema":2`),
		"schema 0":              "{}",
		"unknown field":         replace(`"wanted"`, `"wantd"`),
		"2 events":              replace(`"events":1`, `"events":2`),
		"no power of two":       replace(`"step":1`, `"step":3`),
		"out of line":           replace(`"seconds":[`, `"seconds":[{"at":1900000000,"latency":"","ready":0,"open":0},`),
		"before its start":      replace(`"end":"2027`, `"end":"2026`),
		"busy for longer":       replace(`"busy_ns":0`, `"busy_ns":1`),
		"names no tester":       testers.ReplaceAllString(good, `"testers":[],"step"`),
		"not a histogram":       replace(`"connect":""`, `"connect":"AAAA"`),
		"does not merge":        replace(`"connect":""`, `"connect":`+string(odd)),
		"has to be a string":    replace(`"connect":""`, `"connect":1`),
	} {
		if _, err := Read(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

func TestMetrics(t *testing.T) {
	a, b := New(options("a")), New(options("b"))
	for _, y := range []*Tally{a, b} {
		y.Ready(time.Millisecond)
		y.Event(3*time.Millisecond, 100)
		y.Advance(start.Add(time.Second).UnixNano())
		y.Event(30*time.Millisecond, 100)
	}
	state := func() Snapshot { return a.Snapshot(start.Add(time.Second)).Add(b.Snapshot(start.Add(time.Second))) }
	answer := httptest.NewRecorder()
	Metrics(state).ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for _, line := range []string{
		"loadtest_connections_wanted 20", "loadtest_connections_ready 2", "loadtest_events_total 4", "loadtest_event_bytes_total 400",
		`loadtest_event_latency_seconds_bucket{le="0.0025"} 0`, `loadtest_event_latency_seconds_bucket{le="0.005"} 2`,
		`loadtest_event_latency_seconds_bucket{le="0.05"} 4`, "loadtest_event_latency_seconds_count 4", `loadtest_gaps_total{announced="false"} 0`,
	} {
		if !strings.Contains(answer.Body.String(), line+"\n") {
			t.Errorf("no line %s in:\n%s", line, answer.Body)
		}
	}
	if problems, err := promlint.New(answer.Body).Lint(); err != nil || len(problems) > 0 {
		t.Errorf("%v %v", problems, err)
	}
}

func BenchmarkEvent(b *testing.B) {
	y := New(options("a"))
	b.ReportAllocs()
	for i := range b.N {
		y.Event(time.Duration(i%5000)*time.Microsecond, 135)
	}
}

func BenchmarkEndOfSecond(b *testing.B) {
	y := New(options("a"))
	for i := range b.N {
		for latency := range 2000 {
			y.Event(time.Duration(latency)*10*time.Microsecond, 135)
		}
		y.Advance(start.Add(time.Duration(i) * time.Second).UnixNano())
	}
}
