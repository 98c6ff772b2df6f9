package market

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/gobwas/ws"
	"github.com/gobwas/ws/wsutil"

	"github.com/cutemarkets/relay/hack/feedsim/session"
	"github.com/cutemarkets/relay/hack/feedsim/tape"
)

// BenchmarkFeed is the way of an event from the tape to the socket of one client
// that subscribed to everything and only counts bytes. One op is one tick. Run
// it with -cpu 1 for what one core does, the client included.
func BenchmarkFeed(b *testing.B) {
	for _, rate := range []int{10_000, 150_000, 1_000_000} {
		b.Run(fmt.Sprintf("rate=%d", rate), func(b *testing.B) { benchmarkFeed(b, rate) })
	}
}

func benchmarkFeed(b *testing.B, rate int) {
	m := New(Config{
		Rules:          session.Rules{Market: tape.Stocks, Accept: func(session.Key) bool { return true }},
		Tape:           tape.Config{Market: tape.Stocks, Symbols: 4000, Rate: rate, Seed: 1, Minute: 5 * time.Second},
		MaxConnections: 1,
		OnLimit:        KickOldest,
		Buffer:         64 << 20,
		AuthTimeout:    time.Minute,
	}, slog.New(slog.DiscardHandler))
	srv := httptest.NewServer(m)
	defer srv.Close()
	defer m.stop()
	client, early, _, err := ws.Dial(context.Background(), strings.Replace(srv.URL, "http", "ws", 1))
	if err != nil {
		b.Fatal(err)
	}
	defer client.Close()
	in := io.ReadWriter(client)
	if early != nil { // frames that came with the handshake
		in = bufio.NewReadWriter(early, bufio.NewWriter(client))
	}
	for _, message := range []string{
		`{"action":"auth","params":"any"}`,
		`{"action":"subscribe","params":"T.*,Q.*,A.*,AM.*,LULD.*,NOI.*,FMV.*"}`,
	} {
		if err := wsutil.WriteClientText(client, []byte(message)); err != nil {
			b.Fatal(err)
		}
	}
	for range 3 { // connected, auth_success, the acknowledgements
		if _, err := wsutil.ReadServerText(in); err != nil {
			b.Fatal(err)
		}
	}
	go func() { _, _ = io.Copy(io.Discard, in) }()

	m.mu.Lock()
	c := m.active[0]
	m.mu.Unlock()
	drain := func(below int) {
		for c.queued() > below {
			runtime.Gosched()
		}
	}
	now := time.Now()
	b.ReportAllocs()
	for b.Loop() {
		now = now.Add(tape.Interval)
		m.tick(now)
		drain(m.cfg.Buffer / 8)
	}
	drain(0)
	if s := m.Stats(); s.Sent != s.Generated {
		b.Fatalf("%d events sent of %d", s.Sent, s.Generated)
	}
	b.ReportMetric(float64(m.sent.Load())/b.Elapsed().Seconds(), "events/s")
}

// queued is the number of bytes that wait for the client.
func (c *conn) queued() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.out.Len() + c.writing
}
