package engine

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	sdk "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"pgregory.net/rapid"

	"github.com/cutemarkets/relay/services/edge/internal/dialect"
	"github.com/cutemarkets/relay/services/edge/internal/frame"
)

func textBuffer(text string, events bool) *buffer {
	b := getBuffer(len(text) + 16)
	b.data = frame.AppendText(b.data, []byte(text))
	if events {
		b.events = len(b.data)
	}
	return b
}

// reports drains what a stream told its shard.
func reports(s *shard) []input {
	inputs, _ := s.clients.take(nil, nil)
	return inputs
}

func TestControlFramesDoNotWaitBehindData(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newBench(t, nil).shard
		near, far := net.Pipe()
		p := &peer{t: t, conn: far}
		st := newStream(s, near, nil, 1000)
		st.start(ref{3, 4})
		st.send(textBuffer("in flight", true))
		synctest.Wait()
		st.send(textBuffer(strings.Repeat("a", largeBuffer), true))
		st.send(textBuffer("b", false))
		st.send(textBuffer("c", false))
		st.pong([]byte("first"))
		st.pong([]byte("latest"))
		st.ping()
		p.expect("in flight", "pong latest", "ping", strings.Repeat("a", largeBuffer))
		synctest.Wait() // "b" and "c" are one write, which is in flight
		st.send(textBuffer("d", true))
		st.send(textBuffer("e", false))
		st.close(frame.AppendClose(nil, 1000, "bye"))
		p.expect("b", "c", "e", "close 1000 bye", "eof") // "d" is dropped, though it waits together with "e"
		synctest.Wait()
		if got := reports(s); len(got) != 1 || got[0].kind != inputDone || got[0].ref != (ref{3, 4}) {
			t.Errorf("reports %+v", got)
		}
		if n := s.stats.queued.Load(); n != 0 {
			t.Errorf("%d bytes counted as queued", n)
		}
		if n := s.stats.discarded.Load(); n != 3 {
			t.Errorf("%d bytes counted as discarded", n)
		}
	})
}

func TestQueueIsBoundedAndAStuckWriteIsReported(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newBench(t, func(c *Config) { c.QueueBytes = MinQueueBytes }).shard
		near, far := net.Pipe()
		st := newStream(s, near, nil, 1000)
		st.start(ref{0, 0})
		sent := 0
		for b := textBuffer(strings.Repeat("x", 1000), true); st.send(b); b = textBuffer(strings.Repeat("x", 1000), true) {
			sent += 1004
		}
		if sent > MinQueueBytes || sent < MinQueueBytes-1004 {
			t.Errorf("%d bytes taken", sent)
		}
		time.Sleep(DefaultWriteTimeout)
		synctest.Wait()
		if got := reports(s); len(got) != 1 || got[0].kind != inputBroken || got[0].reason != dialect.SlowConsumer {
			t.Errorf("reports %+v", got)
		}
		if n := s.stats.queued.Load(); n != 0 {
			t.Errorf("%d bytes still queued", n)
		}
		st.close(nil)
		synctest.Wait()
		_ = far.Close()
		if got := reports(s); len(got) != 1 || got[0].kind != inputDone {
			t.Errorf("reports %+v", got)
		}
	})
}

// TestMemoryOfTheQueueIsBounded fills the queue of a client that takes nothing
// with messages of one size and another in turn.
func TestMemoryOfTheQueueIsBounded(t *testing.T) {
	t.Parallel()
	for name, sizes := range map[string][2]int{
		"replies and events": {20, 100},
		"just too large":     {10, largeBuffer - 10},
		"half a buffer":      {largeBuffer/2 + 1, largeBuffer/2 + 1},
		"a third":            {largeBuffer/3 + 1, largeBuffer/3 + 1},
		"half a large one":   {maxFrame/2 + 1<<10, maxFrame/2 + 1<<10},
		"all sizes":          {1, maxFrame},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := newBench(t, nil).shard
			near, far := net.Pipe()
			st := newStream(s, near, nil, 1000)
			st.start(ref{0, 0})
			st.send(textBuffer("in flight", true))
			synctest.Wait()
			sent := 0
			for b := textBuffer(strings.Repeat("x", sizes[0]), true); st.send(b); {
				sent++
				b = textBuffer(strings.Repeat("x", sizes[sent%2]), sent%2 == 0)
			}
			if least := (DefaultQueueBytes - maxFrame - 100) / (sizes[0] + sizes[1]) * 2; sent < least {
				t.Errorf("%s: %d messages taken, want at least %d", name, sent, least)
			}
			st.mu.Lock()
			held, buffers := 0, len(st.queue)
			for _, b := range st.queue {
				held += cap(b.data)
			}
			st.mu.Unlock()
			if most := DefaultQueueBytes + DefaultQueueBytes/7 + frameBuffer; held > most {
				t.Errorf("%s: %d bytes of memory held, at most %d", name, held, most)
			}
			if most := 2*DefaultQueueBytes/largeBuffer + 2; buffers > most {
				t.Errorf("%s: %d buffers, at most %d", name, buffers, most)
			}
			st.close(nil)
			_ = far.Close()
			synctest.Wait()
			if n := s.stats.queued.Load(); n != 0 {
				t.Errorf("%s: %d bytes counted as queued in the end", name, n)
			}
		})
	}
}

func TestClientThatTakesLittleButSteadilyIsNotCut(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newBench(t, nil).shard
		near, far := net.Pipe()
		st := newStream(s, near, nil, 1000)
		st.start(ref{0, 0})
		defer func() {
			st.close(nil)
			_ = far.Close()
		}()
		begin := time.Now()
		b := textBuffer(strings.Repeat("x", maxFrame), true)
		left := len(b.data)
		st.send(b)
		for buf := make([]byte, 1<<10); left > 0; time.Sleep(time.Second) {
			_ = far.SetReadDeadline(time.Now().Add(time.Second))
			n, err := far.Read(buf)
			if err != nil {
				t.Fatalf("cut with %d bytes to go, after %v: %v", left, time.Since(begin), err)
			}
			left -= n
		}
		if took := time.Since(begin); took < 2*DefaultWriteTimeout {
			t.Fatalf("it took %v only", took)
		}
		if got := reports(s); len(got) != 0 {
			t.Errorf("reports %+v", got)
		}
	})
}

// TestStalledTLSClientDelaysTheCloseNoMoreThanAnother ends connections whose
// clients take nothing, not even the alert that ends TLS.
func TestStalledTLSClientDelaysTheCloseNoMoreThanAnother(t *testing.T) {
	t.Parallel()
	certificate := newCertificate(t)
	for name, row := range map[string]struct {
		send  bool
		limit time.Duration
	}{
		"with a write in flight": {true, closeWait},
		"with nothing to write":  {false, closeWait + lingerWait},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := newBench(t, nil).shard
			near, far := net.Pipe()
			defer func() { _ = far.Close() }()
			server := tls.Server(near, &tls.Config{Certificates: []tls.Certificate{certificate}, SessionTicketsDisabled: true})
			shaken := make(chan error, 1)
			go func() { shaken <- tls.Client(far, &tls.Config{InsecureSkipVerify: true}).Handshake() }()
			if err := errors.Join(server.Handshake(), <-shaken); err != nil {
				t.Fatal(err)
			}
			st := newStream(s, server, nil, 1000)
			st.start(ref{0, 0})
			if row.send {
				st.send(textBuffer("stuck", false))
				synctest.Wait()
			}
			begin := time.Now()
			st.close(nil)
			<-s.wake
			if took := time.Since(begin); took > row.limit {
				t.Errorf("%s: closed after %v, want at most %v", name, took, row.limit)
			}
			if got := reports(s); len(got) != 1 || got[0].kind != inputDone {
				t.Errorf("%s: reports %+v", name, got)
			}
		})
	}
}

func newCertificate(t *testing.T) tls.Certificate {
	t.Helper()
	server := httptest.NewTLSServer(nil)
	defer server.Close()
	return server.TLS.Certificates[0]
}

func TestClosingTakesASecondAtMostWithAStuckClient(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newBench(t, nil).shard
		near, far := net.Pipe()
		defer func() { _ = far.Close() }()
		st := newStream(s, near, nil, 1000)
		st.start(ref{0, 0})
		st.send(textBuffer("stuck", false))
		synctest.Wait()
		begin := time.Now()
		st.close(frame.AppendClose(nil, 1000, ""))
		<-s.wake
		if took := time.Since(begin); took > closeWait {
			t.Errorf("closed after %v", took)
		}
	})
}

func TestInboxMakesItsSendersWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newInbox(3*inputCost, make(chan struct{}, 1))
		posted := 0
		go func() {
			for b.post(input{kind: inputPing}, []byte("x")) {
				posted++
			}
		}()
		synctest.Wait()
		if posted != 2 {
			t.Errorf("%d posted into a full inbox", posted)
		}
		if !b.force(input{kind: inputDone}) {
			t.Error("what must not wait was refused")
		}
		inputs, arena := b.take(nil, nil)
		if len(inputs) != 3 || string(arena) != "xx" {
			t.Errorf("took %d inputs, %q", len(inputs), arena)
		}
		synctest.Wait()
		if posted != 4 {
			t.Errorf("%d posted after there was room", posted)
		}
		b.close()
		if b.force(input{}) {
			t.Error("a closed inbox took something")
		}
	})
}

func TestOneInputLargerThanTheInboxPasses(t *testing.T) {
	t.Parallel()
	b := newInbox(10, make(chan struct{}, 1))
	if !b.post(input{}, make([]byte, 1000)) {
		t.Error("refused")
	}
}

func TestAllowanceKeepsRateAndBurst(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		interval := time.Duration(rapid.IntRange(1, 1000).Draw(t, "interval"))
		burst := rapid.IntRange(1, 50).Draw(t, "burst")
		var a allowance
		var taken []time.Duration
		now := time.Duration(0)
		for _, step := range rapid.SliceOfN(rapid.IntRange(0, 2000), 1, 200).Draw(t, "steps") {
			now += time.Duration(step)
			if a.take(now, interval, burst) {
				taken = append(taken, now)
			}
		}
		for i := range taken {
			for j := i; j < len(taken); j++ {
				if most := burst + int((taken[j]-taken[i])/interval); j-i+1 > most {
					t.Fatalf("%d taken in %v, at most %d", j-i+1, taken[j]-taken[i], most)
				}
			}
		}
		if len(taken) == 0 {
			t.Fatal("none taken")
		}
	})
	var unlimited allowance
	for range 1000 {
		if !unlimited.take(time.Second, 0, 0) {
			t.Fatal("a rate of zero is no limit")
		}
	}
}

func TestTimersPopInOrder(t *testing.T) {
	t.Parallel()
	start := time.Now()
	rapid.Check(t, func(t *rapid.T) {
		var h timers
		all := make([]*connection, 20)
		due := map[*connection]time.Time{}
		for i := range all {
			all[i] = &connection{timer: -1}
		}
		for range rapid.IntRange(1, 100).Draw(t, "steps") {
			c := all[rapid.IntRange(0, len(all)-1).Draw(t, "who")]
			if rapid.IntRange(0, 3).Draw(t, "what") == 0 {
				h.remove(c)
				delete(due, c)
				continue
			}
			at := start.Add(time.Duration(rapid.IntRange(0, 1000).Draw(t, "at")))
			h.set(c, at)
			if was, ok := due[c]; !ok || at.Before(was) {
				due[c] = at
			}
		}
		var order []time.Time
		for c := h.pop(start.Add(time.Hour)); c != nil; c = h.pop(start.Add(time.Hour)) {
			if c.timer != -1 || !due[c].Equal(c.wakeAt) {
				t.Fatalf("popped at %v, want %v", c.wakeAt, due[c])
			}
			order = append(order, c.wakeAt)
		}
		if len(order) != len(due) || !slices.IsSortedFunc(order, time.Time.Compare) || !h.next().IsZero() {
			t.Fatalf("%d popped of %d", len(order), len(due))
		}
	})
}

func TestConfigIsChecked(t *testing.T) {
	t.Parallel()
	good := func() Config {
		var c Config
		newEngine(t, &anyone{}, newTable(), func(made *Config) { c = *made })
		return c
	}
	for name, spoil := range map[string]func(c *Config){
		"no markets":     func(c *Config) { c.Markets = nil },
		"no backend":     func(c *Config) { c.Backend = nil },
		"no meter":       func(c *Config) { c.Meter = nil },
		"no logger":      func(c *Config) { c.Logger = nil },
		"no connections": func(c *Config) { c.MaxConnections = 0 },
		"small queue":    func(c *Config) { c.QueueBytes = MinQueueBytes - 1 },
		"negative":       func(c *Config) { c.UpstreamGrace = -1 },
	} {
		c := good()
		spoil(&c)
		if _, err := New(c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestEverySeriesIsThereFromTheStart reads the metrics of an engine that has
// done nothing, and then of one with a client.
func TestEverySeriesIsThereFromTheStart(t *testing.T) {
	t.Parallel()
	reader := sdk.NewManualReader()
	provider := sdk.NewMeterProvider(sdk.WithReader(reader))
	r := newRig(t, func(c *Config) { c.Meter = provider.Meter("test") })
	series := readSeries(t, reader)
	for _, reason := range dialect.Reasons() {
		if v, ok := series["relay_edge_closes reason="+reason.String()]; !ok || v != 0 {
			t.Errorf("closes for %s: %d, %v", reason, v, ok)
		}
	}
	for _, name := range []string{
		"relay_edge_connections market=stocks", "relay_edge_connections market=none", "relay_edge_connections_limit",
		"relay_edge_slow_clients action=closed", "relay_edge_commands", "relay_edge_frames", "relay_edge_events", "relay_edge_writes",
		"relay_edge_sent_bytes", "relay_edge_discarded_bytes", "relay_edge_oversized_events", "relay_edge_gap_notices", "relay_edge_send_queue_bytes",
	} {
		if _, ok := series[name]; !ok {
			t.Errorf("%s is missing", name)
		}
	}
	p := r.dial()
	p.expect("hello", "welcome")
	p.say("sub T.A")
	p.expect("ok T.A")
	series = readSeries(t, reader)
	if series["relay_edge_connections market=stocks"] != 1 || series["relay_edge_commands"] != 1 || series["relay_edge_frames"] != 3 {
		t.Errorf("%v", series)
	}
	p.write(masked(0x88, ""))
	p.expect("close 0 ", "eof")
	if series = readSeries(t, reader); series["relay_edge_closes reason=client_closed"] != 1 || series["relay_edge_connection_duration_seconds"] != 1 {
		t.Errorf("%v", series)
	}
}

func readSeries(t *testing.T, reader sdk.Reader) map[string]int64 {
	t.Helper()
	var all metricdata.ResourceMetrics
	if err := reader.Collect(context.Background(), &all); err != nil {
		t.Fatal(err)
	}
	series := make(map[string]int64)
	add := func(name string, points []metricdata.DataPoint[int64]) {
		for _, p := range points {
			key := name
			for _, kv := range p.Attributes.ToSlice() {
				key += " " + string(kv.Key) + "=" + kv.Value.String()
			}
			series[key] = p.Value
		}
	}
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			switch data := m.Data.(type) {
			case metricdata.Sum[int64]:
				add(m.Name, data.DataPoints)
			case metricdata.Gauge[int64]:
				add(m.Name, data.DataPoints)
			case metricdata.Histogram[float64]:
				for _, p := range data.DataPoints {
					series[m.Name] += int64(p.Count)
				}
			}
		}
	}
	return series
}
