//go:build linux

package benchedge

import (
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cutemarkets/relay/hack/benchedge/process"
	"github.com/cutemarkets/relay/hack/benchedge/shape"
	"github.com/cutemarkets/relay/hack/loadtest/fleet"
)

func TestTake(t *testing.T) {
	sh, _ := shape.ByName("S2b400")
	at := time.Unix(1, 0)
	from := mark{at: at, cpu: process.CPU{Run: time.Second, Wait: time.Second, User: 1, System: 1}, stats: fleet.Stats{Events: 10, Reads: 5, Busy: time.Second}, events: 1, deliveries: 100}
	to := mark{
		at:     at.Add(2 * time.Second),
		cpu:    process.CPU{Run: 2 * time.Second, Wait: 3 * time.Second, User: 251, System: 751},
		stats:  fleet.Stats{Events: 500_010, Reads: 250_005, Busy: 2 * time.Second},
		events: 1001, deliveries: 500_100,
	}
	var s Sample
	s.take(from, to, sh)
	want := Sample{
		Seconds: 2, Events: 1000, Due: 500_000, Deliveries: 500_000, Reads: 250_000, CPU: 2, UserCPU: 0.5,
		ServerShare: 0.5, WaitShare: 1, ClientShare: 0.5, perMoment: 10_000,
	}
	if !equal(s, want) {
		t.Errorf("got  %+v\nwant %+v", s, want)
	}
	if s.Served() != 1 || s.ReadsPerDelivery() != 0.5 || s.DeliveriesPerSecond() != 250_000 {
		t.Errorf("served %v, reads %v, %v/s", s.Served(), s.ReadsPerDelivery(), s.DeliveriesPerSecond())
	}
}

func equal(a, b Sample) bool {
	return a.Seconds == b.Seconds && a.Events == b.Events && a.Due == b.Due && a.Deliveries == b.Deliveries && a.Reads == b.Reads &&
		math.Abs(a.CPU-b.CPU) < 1e-9 && math.Abs(a.UserCPU-b.UserCPU) < 1e-9 && a.ServerShare == b.ServerShare && a.WaitShare == b.WaitShare &&
		a.ClientShare == b.ClientShare && a.perMoment == b.perMoment
}

func TestHeldUp(t *testing.T) {
	for _, test := range []struct {
		deliveries      uint64
		share           float64
		held, elsewhere bool
	}{
		{1000, 0.5, false, false},
		{970, 0.5, false, false},
		{871, 0.5, false, false}, // one moment is on its way
		{869, 0.5, true, true},
		{869, 0.95, true, false},
		{0, 0, true, true},
	} {
		s := Sample{Due: 1000, Deliveries: test.deliveries, ServerShare: test.share, perMoment: 100}
		if s.heldUp() != test.held || s.elsewhere() != test.elsewhere {
			t.Errorf("%+v: %v, %v", test, s.heldUp(), s.elsewhere())
		}
	}
}

func TestSpread(t *testing.T) {
	for _, test := range []struct {
		values []float64
		want   Spread
	}{
		{nil, Spread{}},
		{[]float64{2}, Spread{2, 2, 2}},
		{[]float64{3, 1}, Spread{1, 2, 3}},
		{[]float64{9, 1, 2}, Spread{1, 2, 9}},
	} {
		if got := NewSpread(test.values); got != test.want {
			t.Errorf("%v: %v", test.values, got)
		}
	}
}

// TestRatios: figures of the same round are compared, also when one is missing.
func TestRatios(t *testing.T) {
	r := Result{Samples: []Sample{
		{Server: nameEdge, Shape: "S1r10", Round: 0, CPU: 10},
		{Server: nameWrite, Shape: "S1r10", Round: 0, CPU: 5},
		{Server: nameWrite, Shape: "S1r10", Round: 2, CPU: 2},
		{Server: nameEdge, Shape: "S1r10", Round: 1, CPU: 7},
		{Server: nameEdge, Shape: "S1r10", Round: 2, CPU: 6},
		{Server: nameEdge, Shape: "S2r95", Round: 0, CPU: 99},
	}}
	if got := r.Ratios("S1r10", nameEdge, nameWrite, func(s Sample) float64 { return s.CPU }); !slices.Equal(got, []float64{2, 3}) {
		t.Errorf("got %v", got)
	}
}

func TestPrint(t *testing.T) {
	held := Sample{Seconds: 1, Deliveries: 50_000, Due: 50_000, CPU: 6, ServerShare: 0.3}
	failed := Sample{Seconds: 1, Deliveries: 50_000, Due: 100_000, CPU: 6, ServerShare: 0.3, Troubles: map[string]int{"lost: reset": 2}}
	r := Result{
		Options: Options{Connections: 5000, Shapes: []string{"S1r10"}},
		Notes:   []string{"there is one core only"},
		Samples: []Sample{
			{Server: nameEdge, Shape: "S1r10", CPU: 12, Seconds: 3, Due: 100, Deliveries: 50, ServerShare: 0.5, WaitShare: 0.25, MemoryPerConnection: 9000, PublisherLag: Lag{P99: 40}, Troubles: map[string]int{"refused at first: pod_full": 1000}},
			{Server: nameWrite, Shape: "S1r10", CPU: 6, Seconds: 3, Due: 100, Deliveries: 100, MemoryPerConnection: 100},
			{Server: nameBare, Shape: "S1r10", CPU: 5, Seconds: 3, Due: 100, Deliveries: 100},
			{Server: nameEdge, Shape: "S1r10", Round: 1, CPU: 15, Seconds: 3, Due: 100, Deliveries: 100, MemoryPerConnection: 9100},
			{Server: nameWrite, Shape: "S1r10", Round: 1, CPU: 5, Seconds: 3, Due: 100, Deliveries: 100, MemoryPerConnection: 100},
			{Server: nameBare, Shape: "S1r10", Round: 1, CPU: 4, Seconds: 3, Due: 100, Deliveries: 100},
		},
		Ceilings: []Ceiling{{Server: nameEdge, Held: &held, Failed: &failed}, {Server: nameWrite}},
	}
	var b strings.Builder
	r.Print(&b)
	text := strings.Join(strings.Fields(b.String()), " ")
	for _, want := range []string{
		"S1r10: 5,000 connections, topics: 1, each connection: 1, events/s: 10 evenly",
		"edge 12.00 / 13.50 / 15.00",
		"edge ÷ floor write 2.00 / 2.50 / 3.00",
		"floor write ÷ bare loop 1.20 / 1.23 / 1.25",
		"An idle connection, topics: 1.",
		"edge 9000 / 9050 / 9100",
		"edge 50,000 6.00 0.00 0.00 30 0 0.50 of 100,000/s, with the server's core 30 % busy: something else was the limit",
		"lost: reset (2)",
		"floor write less than the first step",
		"Note: there is one core only",
		"Note: Other work took the server's core while the server was ready to run in 1 of 6 measurements, by up to 25.0 % of the time",
		"Note: The publisher was late in 1 of 6 measurements, by up to 40.0 ms (p99).",
		"Note: A server fell behind with its core less than 90 % busy, so something else was the limit, in 1 of 6 measurements, by up to 50.0 % of what was due.",
		"Note: edge, refused at first: pod_full: 1,000 in all.",
		"Note: floor write costs 1.23 times a bare loop of write, more than 1.10",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
	if strings.Contains(b.String(), nameWritev) {
		t.Error("a row of what was not measured")
	}
}

func TestNumbers(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 999: "999", 1000: "1,000", 1234567.4: "1,234,567"} {
		if got := thousands(v); got != want {
			t.Errorf("%v: %s", v, got)
		}
	}
	for v, want := range map[float64]string{0.123: "0.12", 12.34: "12.3", 123.4: "123"} {
		if got := short(v); got != want {
			t.Errorf("%v: %s", v, got)
		}
	}
}

func TestOptions(t *testing.T) {
	good := Options{Connections: 1, Rounds: 1, Window: 1, Shapes: []string{"S2b400"}}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	bad := good
	bad.Shapes = []string{"S3"}
	if bad.Validate() == nil {
		t.Error("an unknown shape was taken")
	}
	bad = good
	bad.Connections = 0
	if bad.Validate() == nil {
		t.Error("no connections were taken")
	}
}
