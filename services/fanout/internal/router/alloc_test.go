package router

import (
	"fmt"
	"testing"
	"time"

	feedv1 "github.com/cutemarkets/relay/proto/feed/v1"
)

// TestRouteDoesNotAllocate routes events to edges whose open batches have room.
func TestRouteDoesNotAllocate(t *testing.T) {
	r := New("stocks", 1<<30, testRing)
	r.Lead(epoch1, t0)
	edges := make([]*Edge, 4)
	for i := range edges {
		edges[i] = attach(t, r, fmt.Sprint(i), "T.S1", "T.*", "Q.S1")
		edges[i].room = [2]int{maxPayload, 4096}
	}
	events, _ := Split(tradeFrame(10), nil)
	for range 2000 { // until the ring is full
		r.Route(events)
		for _, e := range edges {
			e.Next(t0)
			e.room = [2]int{maxPayload, 4096}
		}
	}
	r.Route(events)
	if n := testing.AllocsPerRun(100, func() { r.Route(events) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkRoute(b *testing.B) {
	for _, n := range []int{1, 10, 100} {
		for _, edges := range []int{1, 2, 16} {
			for _, topics := range []int{10, 10_000} {
				b.Run(fmt.Sprintf("events=%d/edges=%d/topics=%d", n, edges, topics), func(b *testing.B) {
					benchmarkRoute(b, n, edges, topics)
				})
			}
		}
	}
}

// benchmarkRoute splits and routes a frame and takes the batches of every edge;
// all events have interest by their exact topics, a tenth of them where there are
// ten topics and a hundred tickers.
func benchmarkRoute(b *testing.B, n, edges, topics int) {
	r := New("stocks", 1<<30, RingBounds{Age: 10 * time.Second, Bytes: 64 << 20})
	r.Lead(epoch1, t0)
	var attached []*Edge
	for i := range edges {
		e := r.Attach(fmt.Sprint(i))
		interest := make([]*feedv1.Topic, topics)
		for k := range interest {
			interest[k] = &feedv1.Topic{Id: uint32(k + 1), Name: fmt.Sprintf("T.S%d", k)}
		}
		if err := e.Change(nil, interest); err != nil {
			b.Fatal(err)
		}
		e.Start(t0)
		e.Next(t0)
		attached = append(attached, e)
	}
	frame := tradeFrame(n)
	var events []Event
	b.SetBytes(int64(len(frame)))
	b.ReportAllocs()
	for b.Loop() {
		events, _ = Split(frame, events[:0])
		r.Route(events)
		for _, e := range attached {
			for e.Next(t0) != nil {
			}
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/event")
}
