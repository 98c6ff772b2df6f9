package market

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/gobwas/ws"
	"github.com/gobwas/ws/wsutil"

	"github.com/cutemarkets/relay/hack/feedsim/oddity"
	"github.com/cutemarkets/relay/hack/feedsim/session"
	"github.com/cutemarkets/relay/hack/feedsim/source"
	"github.com/cutemarkets/relay/hack/feedsim/tape"
	"github.com/cutemarkets/relay/hack/truth"
)

// BenchmarkFeed is the way of an event from the tape to the socket of one client
// that subscribed to everything and only counts bytes. One op is one tick. Run
// it with -cpu 1 for what one core does, the client included.
func BenchmarkFeed(b *testing.B) {
	for _, rate := range []int{10_000, 150_000, 1_000_000} {
		b.Run(fmt.Sprintf("rate=%d", rate), func(b *testing.B) { benchmarkFeed(b, rate, false) })
		b.Run(fmt.Sprintf("rate=%d,truth,stamp,number", rate), func(b *testing.B) { benchmarkFeed(b, rate, true) })
	}
}

// feed is a market with one client that subscribed to everything, and only
// reads.
type feed struct {
	*Market
	source source.Source
	conn   *conn
	now    time.Time
}

// newFeed makes the feed; with the ground truth, it goes to the file.
func newFeed(t testing.TB, rate int, out io.Writer) *feed {
	t.Helper()
	cfg := Config{
		Rules:          session.Rules{Market: tape.Stocks, Accept: func(session.Key) bool { return true }},
		Universe:       source.NewUniverse(tape.Tickers(tape.Stocks, 4000), false),
		MaxConnections: 1,
		OnLimit:        KickOldest,
		Buffer:         64 << 20,
		AuthTimeout:    time.Minute,
	}
	now := time.Now()
	cfg.Source = source.NewTape(tape.Config{Market: tape.Stocks, Symbols: 4000, Rate: rate, Seed: 1, Minute: 5 * time.Second}, time.Time{}, now)
	if out != nil {
		cfg.Stamp, cfg.Number, cfg.Truth = true, oddity.ByMarket, truth.NewWriter(out)
	}
	m := New(cfg, slog.New(slog.DiscardHandler))
	srv := httptest.NewServer(m)
	t.Cleanup(func() {
		m.stop()
		srv.Close()
	})
	client, early, _, err := ws.Dial(context.Background(), strings.Replace(srv.URL, "http", "ws", 1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	in := io.ReadWriter(client)
	if early != nil { // frames that came with the handshake
		in = bufio.NewReadWriter(early, bufio.NewWriter(client))
	}
	for _, message := range []string{
		`{"action":"auth","params":"any"}`,
		`{"action":"subscribe","params":"T.*,Q.*,A.*,AM.*,LULD.*,NOI.*,FMV.*"}`,
	} {
		if err := wsutil.WriteClientText(client, []byte(message)); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 { // connected, auth_success, the acknowledgements
		if _, err := wsutil.ReadServerText(in); err != nil {
			t.Fatal(err)
		}
	}
	go func() { _, _ = io.Copy(io.Discard, in) }()

	m.mu.Lock()
	defer m.mu.Unlock()
	return &feed{m, cfg.Source, m.active[0], now}
}

// tick sends the next tick.
func (f *feed) tick() {
	f.now = f.now.Add(tape.Interval)
	f.mu.Lock()
	defer f.mu.Unlock()
	events, _ := f.source.Next(f.now, true, source.All)
	f.settleLocked(f.now)
	f.sendLocked(events, f.now)
}

func (f *feed) drain(below int) {
	for f.conn.queued() > below {
		runtime.Gosched()
	}
}

func benchmarkFeed(b *testing.B, rate int, withTruth bool) {
	var out io.Writer
	if withTruth {
		file, err := os.Create(filepath.Join(b.TempDir(), "truth"))
		if err != nil {
			b.Fatal(err)
		}
		defer file.Close()
		out = file
	}
	f := newFeed(b, rate, out)
	b.ReportAllocs()
	for b.Loop() {
		f.tick()
		f.drain(f.cfg.Buffer / 8)
	}
	f.drain(0)
	s := f.Stats()
	if s.Sent != s.Generated {
		b.Fatalf("%d events sent of %d", s.Sent, s.Generated)
	}
	b.ReportMetric(float64(s.Sent)/b.Elapsed().Seconds(), "events/s")
}

// TestEventsDoNotAllocate sends events, with stamps, numbers and the ground truth. What a
// tick costs is that of its frame and its write, however many events it has.
func TestEventsDoNotAllocate(t *testing.T) {
	f := newFeed(t, 20_000, io.Discard)
	tick := func() {
		f.tick()
		f.drain(0)
	}
	for range 500 { // until the buffers have their size
		tick()
	}
	const perTick = 4 // of some 100 events
	if n := testing.AllocsPerRun(200, tick); n > perTick {
		t.Errorf("%v allocations per tick", n)
	}
}
