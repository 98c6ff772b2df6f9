package fleet

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cutemarkets/relay/hack/loadtest/fleet/wire"
)

// TestIdleMemory bounds what an idle connection takes. The server is another
// process.
func TestIdleMemory(t *testing.T) {
	const count, most = 2000, 320
	url := writer(t, 0)
	c := &counter{ready: make(chan struct{}, count)}
	f := start(t, c, Options{})
	connect(t, f, c, url, 10)
	heap, rss := memory(t)
	connect(t, f, c, url, count)
	heapAfter, rssAfter := memory(t)
	perConn := (heapAfter - heap) / count
	t.Logf("%d bytes of heap and stacks, %d bytes of RSS per connection", perConn, (rssAfter-rss)/count)
	if perConn > most {
		t.Errorf("%d bytes per connection, want at most %d", perConn, most)
	}
}

// memory returns the bytes of heap and stacks in use, and the resident ones.
func memory(t testing.TB) (heap, rss int) {
	t.Helper()
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	statm, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Fatal(err)
	}
	var size, resident int
	if _, err := fmt.Sscan(string(statm), &size, &resident); err != nil {
		t.Fatal(err)
	}
	return int(m.HeapAlloc + m.StackInuse), resident * os.Getpagesize()
}

// stamps is a Handler that reads the stamp of each event, and its number where
// there is one.
type stamps struct {
	counter

	ts, n wire.Field
	sum   int64
}

func (s *stamps) Event(_ *Conn, raw []byte, received int64) {
	stamp, _ := wire.Stamp(raw, s.ts)
	s.sum += received - stamp
	if s.n != "" {
		number, _ := wire.Stamp(raw, s.n)
		s.sum += number
	}
}

// TestEventsNeedNoMemory takes frames in pieces, as reads bring them.
func TestEventsNeedNoMemory(t *testing.T) {
	h := &stamps{ts: wire.NewField("ts"), n: wire.NewField("n")}
	f := start(t, h, Options{})
	c := &Conn{fd: -1, stage: StageLive}
	one := text("[" + strings.Repeat(`{"ev":"T","sym":"S0001","ts":1700000000000000001,"n":17},`, perFrame-1) + `{"ev":"T","ts":1700000000000000001,"n":18}]`)
	stream := []byte(strings.Repeat(one, 7))
	own := &Fleet{handler: h, options: f.options, headroom: f.headroom, buf: make([]byte, f.headroom+readSize)}
	piece := func(b []byte) {
		copy(own.buf[own.headroom:], b)
		own.take(c, len(b))
	}
	if n := testing.AllocsPerRun(200, func() {
		for rest := stream; len(rest) > 0; {
			n := min(len(one)*3/4, len(rest))
			piece(rest[:n])
			rest = rest[n:]
		}
	}); n != 0 {
		t.Errorf("%v allocations for %d events", n, 7*perFrame)
	}
	if own.counts.Events == 0 || own.counts.Events%(7*perFrame) != 0 || h.sum == 0 || bytes.Contains(own.buf[:10], []byte("x")) {
		t.Errorf("%d events", own.counts.Events)
	}
}

// cpu is what this process has used.
func cpu(t testing.TB) time.Duration {
	t.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		t.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// BenchmarkReceive receives frames of 20 events of 135 bytes from the raw
// writer, which is another process, and looks the stamp up in each event.
// One op is three seconds of it.
func BenchmarkReceive(b *testing.B) {
	for _, c := range []struct {
		name            string
		conns           int
		framesPerSecond int
	}{
		{"flood,conns=1000", 1000, 100_000_000},
		{"1M/s,conns=1000", 1000, 50_000},
		{"1M/s,conns=5000", 5000, 50_000},
		{"200k/s,conns=5000", 5000, 10_000},
	} {
		b.Run(c.name, func(b *testing.B) {
			h := &stamps{counter: counter{ready: make(chan struct{}, c.conns)}, ts: wire.NewField("ts")}
			f := start(b, h, Options{})
			connect(b, f, &h.counter, writer(b, c.framesPerSecond), c.conns)
			before, began, cpuBefore := f.Stats(), time.Now(), cpu(b)
			for b.Loop() {
				<-time.After(3 * time.Second)
			}
			after, took, used := f.Stats(), time.Since(began), cpu(b)-cpuBefore
			events := float64(after.Events - before.Events)
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(events/took.Seconds(), "events/s")
			b.ReportMetric(used.Seconds()*1e6/events, "CPU-µs/event")
			b.ReportMetric(float64(after.Reads-before.Reads)/events, "reads/event")
			b.ReportMetric((after.Busy-before.Busy).Seconds()/took.Seconds(), "busy")
		})
	}
}

// BenchmarkHold opens as many connections as a process has descriptors for, up
// to 18,000, and tells what each takes while it is idle. One op is all of them.
func BenchmarkHold(b *testing.B) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		b.Fatal(err)
	}
	count := min(18_000, int(limit.Cur)-500)
	for b.Loop() {
		url := writer(b, 0)
		c := &counter{ready: make(chan struct{}, count)}
		f, err := New(c, Options{})
		if err != nil {
			b.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- f.Run(ctx) }()
		heap, rss := memory(b)
		began, cpuBefore := time.Now(), cpu(b)
		connect(b, f, c, url, count)
		took, used := time.Since(began), cpu(b)-cpuBefore
		heapAfter, rssAfter := memory(b)
		b.ReportMetric(0, "ns/op")
		b.ReportMetric(float64(count)/took.Seconds(), "handshakes/s")
		b.ReportMetric(used.Seconds()*1e6/float64(count), "CPU-µs/handshake")
		b.ReportMetric(float64(heapAfter-heap)/float64(count), "heap-B/conn")
		b.ReportMetric(float64(rssAfter-rss)/float64(count), "RSS-B/conn")
		cancel()
		if err := <-done; err != nil || c.closed != count {
			b.Errorf("%d ended, %v", c.closed, err)
		}
	}
}
