//go:build linux

package benchedge

import (
	"math"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cutemarkets/relay/hack/benchedge/operations"
	"github.com/cutemarkets/relay/hack/benchedge/process"
	"github.com/cutemarkets/relay/hack/benchedge/shape"
	"github.com/cutemarkets/relay/hack/benchedge/sockets"
	"github.com/cutemarkets/relay/hack/loadtest/fleet"
)

func TestTake(t *testing.T) {
	sh, _ := shape.ByName("S2b400")
	at := time.Unix(1, 0)
	from := mark{at: at, cpu: process.CPU{Run: time.Second, Wait: time.Second, User: 1, System: 1}, stats: fleet.Stats{Events: 10, Reads: 5, Busy: time.Second}, events: 1, deliveries: 100, counted: counts{writes: 10, events: 10}}
	to := mark{
		at:     at.Add(2 * time.Second),
		cpu:    process.CPU{Run: 2 * time.Second, Wait: 3 * time.Second, User: 251, System: 751},
		stats:  fleet.Stats{Events: 500_010, Reads: 250_005, Busy: 2 * time.Second},
		events: 1001, deliveries: 500_100, counted: counts{writes: 40_010, events: 100_010},
	}
	var s Sample
	s.take(from, to, sh)
	want := Sample{
		Seconds: 2, Events: 1000, Due: 500_000, Deliveries: 500_000, Reads: 250_000, CPU: 2, UserCPU: 0.5,
		ServerShare: 0.5, WaitShare: 1, ClientShare: 0.5, perMoment: 10_000, Writes: 0.4,
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
		a.ClientShare == b.ClientShare && a.perMoment == b.perMoment && a.Writes == b.Writes
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
		Options: Options{Connections: 5000, Shapes: []string{"S1r10"}, Sockets: 15_000, MemoryWait: time.Minute, SlowConnections: 10_000, SlowRate: 50},
		Notes:   []string{"there is one core only"},
		Samples: []Sample{
			{Server: nameEdge, Shape: "S1r10", CPU: 12, Seconds: 3, Due: 100, Deliveries: 50, ServerShare: 0.5, WaitShare: 0.25, MemoryPerConnection: 9000, PublisherLag: Lag{P99: 40}, Troubles: map[string]int{"refused at first: pod_full": 1000}},
			{Server: nameWrite, Shape: "S1r10", CPU: 6, Seconds: 3, Due: 100, Deliveries: 100, MemoryPerConnection: 100},
			{Server: nameBare, Shape: "S1r10", CPU: 5, Seconds: 3, Due: 100, Deliveries: 100},
			{Server: nameEdge, Shape: "S1r10", Round: 1, CPU: 15, Seconds: 3, Due: 100, Deliveries: 100, MemoryPerConnection: 9100, Writes: 0.4, Latency: Latency{P50: 1, P99: 3, P999: 8}},
			{Server: nameWrite, Shape: "S1r10", Round: 1, CPU: 5, Seconds: 3, Due: 100, Deliveries: 100, MemoryPerConnection: 100, Latency: Latency{P50: 1, P99: 2, P999: 4}},
			{Server: nameBare, Shape: "S1r10", Round: 1, CPU: 4, Seconds: 3, Due: 100, Deliveries: 100},
		},
		Ceilings: []Ceiling{{Server: nameEdge, Held: &held, Failed: &failed}, {Server: nameWrite}},
		Memory: []Memory{
			{Topics: 1, Few: 1000, Many: 15_000, RSSFew: 30e6, RSSMany: 44e6, RSS: 1000, Heap: 400, Goroutines: 2, KernelObjects: 8200, Live: 1000, Profile: "heap-1.pb.gz",
				Sites: []operations.Site{{Function: "a.b", Bytes: 250, Objects: 3}}},
			{Topics: 20, RSS: 2000, KernelObjects: -1, Troubles: map[string]int{"lost: reset": 1}},
		},
		Handshakes: []Handshakes{{CPU: 40, PerSecond: 2000}, {Known: true, CPU: 30, Hits: 5000}, {Round: 1, CPU: 44}, {Round: 1, Known: true, CPU: 32}},
		Storms:     []Storm{{Half: 1, Most: 1.5, All: 2, Refused: 3, Reasons: map[string]int{"refused at first: http_503": 3}}},
		Slow: []Slow{
			{Latency: Latency{P50: 2, P99: 10, P999: 20}},
			{Slow: true, Latency: Latency{P50: 2, P99: 11, P999: 30}, RSS: 20 << 20, Queue: 10 << 20, Actions: map[string]int{"warned": 200, "closed": 150}, Closed: 150, FirstClosed: 4, LastClosed: 9, Classes: map[class]SlowClass{
				stalled: {Clients: 100, Warned: 100, Kernel: 2048, KernelMost: 4096, Statuses: map[string]int{"error slow consumer": 100}, Ends: map[string]int{"slow_consumer (1008)": 100}},
			}},
		},
	}
	var b strings.Builder
	r.Print(&b)
	text := strings.Join(strings.Fields(b.String()), " ")
	for _, want := range []string{
		"S1r10: 5,000 connections, topics: 1, each connection: 1, events/s: 10 evenly",
		"edge 12.00 / 13.50 / 15.00",
		"edge ÷ floor write 2.00 / 2.50 / 3.00 1.00 1.50 2.00",
		"floor write ÷ bare loop 1.20 / 1.23 / 1.25",
		"An idle connection, topics: 1.",
		"edge 9000 / 9050 / 9100",
		"edge 50,000 6.00 0.00 0.00 30 0 0.50 of 100,000/s, with the server's core 30 % busy: something else was the limit",
		"lost: reset (2)",
		"floor write less than the first step",
		"growth from 1,000 to 15,000, 1m0s after the last handshake",
		"1 1,000 400 0 2.00 8,200 0 30.0 44.0",
		"20 2,000 0 0 0.00 not readable 0",
		"topics: 1; 1,000 bytes live (heap-1.pb.gz)",
		"250 25.0 % 3 objects a.b",
		"unknown keys 40.0 / 42.0 / 44.0",
		"known keys 30.0 / 31.0 / 32.0",
		"1.00 1.50 2.00 0.0 3",
		"Refused in all storms: refused at first: http_503: 3",
		"none slow 2.00 10.0 20.0 0.00 0 0 0 0",
		"some slow 2.00 11.0 30.0 0.00 0 102 51 150 4 9",
		"some ÷ none 1.00 1.10 1.50",
		"Slow by the edge's own count, with slow ones: closed: 150, warned: 200",
		"Who reads nothing: 100 in all, 100 got a status: error slow consumer: 100; ends: slow_consumer (1008): 100; the kernel held 2 KiB for each, 4 KiB at most for one",
		"Note: memory, topics: 20, lost: reset: 1 in all.",
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
	for v, want := range map[float64]string{0: "0", 999: "999", 1000: "1,000", 1234567.4: "1,234,567", -121: "-121", -1500: "-1,500", -0.2: "0"} {
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

func TestMemory(t *testing.T) {
	m := Memory{Few: 1000, Many: 3000}
	m.take(
		footprint{rss: 10e6, heap: 1e6, stacks: 2e6, goroutines: 100, kernel: process.Kernel{Buffers: 5e6, Objects: 1e6}},
		footprint{rss: 12e6, heap: 2e6, stacks: 6e6, goroutines: 4100, kernel: process.Kernel{Buffers: 5e6, Objects: 9e6}},
	)
	want := Memory{Few: 1000, Many: 3000, RSSFew: 10e6, RSSMany: 12e6, RSS: 1000, Heap: 500, Stacks: 2000, Goroutines: 2, KernelObjects: 4000}
	if !reflect.DeepEqual(m, want) {
		t.Errorf("got  %+v\nwant %+v", m, want)
	}
	if m.take(footprint{kernel: process.Kernel{Objects: -1}}, footprint{kernel: process.Kernel{Objects: -1}}); m.KernelObjects >= 0 {
		t.Errorf("%v bytes of what is not readable", m.KernelObjects)
	}
}

// TestSlowClass: the sockets of one moment count together, and the greatest of
// several moments.
func TestSlowClass(t *testing.T) {
	of := func(source netip.Addr, sends ...int64) []sockets.Socket {
		var all []sockets.Socket
		for _, n := range sends {
			all = append(all, sockets.Socket{Peer: netip.AddrPortFrom(source, 1), Send: n})
		}
		return all
	}
	var c SlowClass
	c.take(append(of(sources[stalled], 10, 30), of(sources[trickling], 1000)...), sources[stalled])
	c.take(of(sources[stalled], 5, 25), sources[stalled])
	c.take(nil, sources[stalled])
	if c.Kernel != 20 || c.KernelMost != 30 {
		t.Errorf("%+v", c)
	}
}

func TestOptions(t *testing.T) {
	good := Options{
		Parts: parts, Connections: 1, Rounds: 1, Window: 1, Shapes: []string{"S2b400"}, Ceiling: firstRate,
		Sockets: fewerSockets, SlowConnections: slowShare, SlowRate: 1, SlowWindow: 1,
	}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	for name, spoil := range map[string]func(o *Options){
		"part":             func(o *Options) { o.Parts = []string{"all"} },
		"no part":          func(o *Options) { o.Parts = nil },
		"shape":            func(o *Options) { o.Shapes = []string{"S3"} },
		"connections":      func(o *Options) { o.Connections = 0 },
		"rounds":           func(o *Options) { o.Rounds = 0 },
		"window":           func(o *Options) { o.Window = 0 },
		"wait":             func(o *Options) { o.MemoryWait = -1 },
		"ceiling":          func(o *Options) { o.Ceiling = firstRate - 1 },
		"sockets":          func(o *Options) { o.Sockets = fewerSockets - 1 },
		"slow connections": func(o *Options) { o.SlowConnections = slowShare - 1 },
		"slow rate":        func(o *Options) { o.SlowRate = 0 },
	} {
		bad := good
		if spoil(&bad); bad.Validate() == nil {
			t.Errorf("a wrong %s was taken", name)
		}
	}
	for _, test := range []struct {
		parts []string
		want  int
	}{
		{[]string{partDelivery}, 5}, {[]string{partCeiling, partMemory}, 20}, {[]string{partHandshakes}, 20}, {[]string{partSlow}, 300}, {parts, 300},
	} {
		o := Options{Parts: test.parts, Connections: 5, Sockets: 20, SlowConnections: 300}
		if got := o.users(); got != test.want {
			t.Errorf("%v: %d users, want %d", test.parts, got, test.want)
		}
	}
}
