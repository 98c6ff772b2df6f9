package engine

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	sdk "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"pgregory.net/rapid"

	"github.com/cutemarkets/relay/services/edge/internal/dialect"
	"github.com/cutemarkets/relay/services/edge/internal/frame"
)

// textFrame is a text message of the server.
func textFrame(text string) []byte { return frame.AppendText(nil, []byte(text)) }

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
		st := newStream(s, near, nil, frame.NewParser(1000))
		st.start(ref{3, 4})
		st.send(textFrame("in flight"))
		synctest.Wait()
		st.send(textFrame(strings.Repeat("a", largeBuffer)))
		st.send(textFrame("b"))
		st.pong([]byte("first"))
		st.pong([]byte("latest"))
		st.hasten(pingFrame)
		p.expect("in flight", "ping", "pong latest", strings.Repeat("a", largeBuffer))
		synctest.Wait() // "b" is in flight
		st.send(textFrame("c"))
		st.discard()
		st.send(textFrame("d"))
		st.close(frame.AppendClose(nil, 1000, "bye"))
		p.expect("b", "d", "close 1000 bye", "eof")
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

func TestStreamTellsWhatWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newBench(t, nil).shard
		near, far := net.Pipe()
		st := newStream(s, near, nil, frame.NewParser(1000))
		st.start(ref{0, 0})
		begin, sent := time.Now(), 0
		for range 100 {
			st.send(textFrame(strings.Repeat("x", 1000)))
			sent += 1004 + waitingCost
		}
		if bytes, since := st.backlog(); bytes != sent || !since.Equal(begin) {
			t.Errorf("%d bytes wait since %v, want %d since %v", bytes, since, sent, begin)
		}
		_ = far.Close()
		synctest.Wait()
		if got := reports(s); len(got) == 0 || got[0].kind != inputGone {
			t.Errorf("reports %+v", got)
		}
		if n := s.stats.queued.Load(); n != 0 {
			t.Errorf("%d bytes still queued", n)
		}
		st.close(nil)
		synctest.Wait()
		if got := reports(s); len(got) != 1 || got[0].kind != inputDone {
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
			st := newStream(s, server, nil, frame.NewParser(1000))
			st.start(ref{0, 0})
			if row.send {
				st.send(textFrame("stuck"))
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
		st := newStream(s, near, nil, frame.NewParser(1000))
		st.start(ref{0, 0})
		st.send(textFrame("stuck"))
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
			for b.post(input{kind: inputFrame}, []byte("x")) {
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
	rapid.Check(t, func(t *rapid.T) {
		var h timers
		start := rapid.Int64Range(1, 1<<33).Draw(t, "start") * tick
		due := map[int32]int64{}
		for range rapid.IntRange(1, 100).Draw(t, "steps") {
			slot := rapid.Int32Range(0, 19).Draw(t, "who")
			if rapid.IntRange(0, 3).Draw(t, "what") == 0 {
				h.remove(slot)
				delete(due, slot)
				continue
			}
			at := start + rapid.Int64Range(-1000*tick, 1000*tick).Draw(t, "at")
			h.set(slot, at, start)
			due[slot] = earlier(due[slot], max(at, start))
		}
		popped, last := 0, start
		for at := h.next(start); at != 0; at = h.next(start) {
			if slot, ok := h.pop(at - 1); ok && at > start {
				t.Fatalf("%d popped before its time", slot)
			}
			slot, _ := h.pop(at)
			if late := at - due[slot]; late < 0 || late >= tick || at < last {
				t.Fatalf("%d popped at %v after %v, want %v", slot, at, last, due[slot])
			}
			popped, last = popped+1, at
		}
		if popped != len(due) {
			t.Fatalf("%d popped of %d", popped, len(due))
		}
	})
}

func TestTimerBeyondTheHorizonIsDueThere(t *testing.T) {
	t.Parallel()
	var h timers
	h.set(3, 1<<62, 5*tick)
	if at := h.next(5 * tick); at != (5+horizon)*tick {
		t.Errorf("due at %v", at)
	}
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
		"smaller burst":  func(c *Config) { c.BurstBytes = DefaultQueueBytes - 1 },
		"negative":       func(c *Config) { c.UpstreamGrace = -1 },
		"unknown kind":   func(c *Config) { c.Kind = "kqueue" },
		"many shards":    func(c *Config) { c.Shards = maxShards + 1 },
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
	r := newRig(t, Auto, func(c *Config) { c.Meter = provider.Meter("test") })
	series := readSeries(t, reader)
	for _, reason := range dialect.Reasons() {
		if v, ok := series["relay_edge_closes reason="+reason.String()]; !ok || v != 0 {
			t.Errorf("closes for %s: %d, %v", reason, v, ok)
		}
	}
	for _, name := range []string{
		"relay_edge_connections market=stocks", "relay_edge_connections market=none", "relay_edge_connections_limit",
		"relay_edge_slow_clients action=closed", "relay_edge_slow_clients action=warned", "relay_edge_conflated_events", "relay_edge_commands", "relay_edge_frames", "relay_edge_events", "relay_edge_writes",
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
	await(t, func() bool {
		series = readSeries(t, reader)
		return series["relay_edge_connections market=stocks"] == 1 && series["relay_edge_commands"] == 1 && series["relay_edge_frames"] == 3
	})
	p.write(masked(0x88, ""))
	p.expect("close 0 ", "eof")
	if series = readSeries(t, reader); series["relay_edge_closes reason=client_closed"] != 1 || series["relay_edge_connection_duration_seconds"] != 1 {
		t.Errorf("%v", series)
	}
}

// await waits for what a shard shows at the end of its round.
func await(t *testing.T, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it does not come")
		}
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

// TestConnectionStaysSmall: what an idle connection has of its own. Its topics,
// its place in the shard and in the lists of its topics come to that.
func TestConnectionStaysSmall(t *testing.T) {
	t.Parallel()
	if size := unsafe.Sizeof(connection{}); size > 208 {
		t.Errorf("a connection has %d bytes", size)
	}
	if size := unsafe.Sizeof(slot{}); size > 32 {
		t.Errorf("a slot has %d bytes", size)
	}
}
