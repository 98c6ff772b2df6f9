package upstream

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"

	feedv1 "github.com/cutemarkets/relay/proto/feed/v1"
	"github.com/cutemarkets/relay/services/fanout/internal/calendar"
	"github.com/cutemarkets/relay/services/fanout/internal/leader"
	"github.com/cutemarkets/relay/services/fanout/internal/router"
	"github.com/cutemarkets/relay/services/internal/lease"
)

// pipe is a connection in memory, so that time can be virtual.
type pipe struct{ net.Conn }

// CloseWrite implements halfCloser. A pipe has no half.
func (p pipe) CloseWrite() error { return p.Close() }

// tireless is a vendor in memory that answers everything and sends an event of
// each topic at equal distances, unless told not to.
type tireless struct {
	dialed chan net.Conn
	every  time.Duration

	mu sync.Mutex
	// Guarded by mu.
	dials  []time.Time
	silent bool
}

func (v *tireless) dial(context.Context, string, string) (net.Conn, error) {
	ours, theirs := net.Pipe()
	v.dialed <- pipe{theirs}
	return pipe{ours}, nil
}

// The methods of net.Listener.

func (v *tireless) Accept() (net.Conn, error) {
	conn, ok := <-v.dialed
	if !ok {
		return nil, net.ErrClosed
	}
	return conn, nil
}

func (v *tireless) Close() error   { close(v.dialed); return nil }
func (v *tireless) Addr() net.Addr { return &net.UnixAddr{Name: "vendor"} }

func (v *tireless) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	conn, err := websocket.Accept(w, r, nil)
	if err != nil {
		return
	}
	defer conn.CloseNow()
	v.mu.Lock()
	v.dials = append(v.dials, time.Now())
	v.mu.Unlock()
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	say := func(text string) {
		if conn.Write(ctx, websocket.MessageText, []byte(text)) != nil {
			cancel()
		}
	}
	say(`[{"ev":"status","status":"connected"}]`)
	go func() {
		defer cancel()
		for {
			_, message, err := conn.Read(ctx)
			if err != nil {
				return
			}
			if topics, ok := strings.CutPrefix(string(message), `{"action":"subscribe","params":"`); ok {
				say(`[{"ev":"status","status":"success","message":"subscribed to: ` + strings.TrimSuffix(topics, `"}`) + `"}]`)
			} else {
				say(`[{"ev":"status","status":"auth_success"}]`)
			}
		}
	}()
	ticker := time.NewTicker(v.every)
	defer ticker.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-ticker.C:
			if !v.isSilent() {
				say(`[{"ev":"T","sym":"AAPL","p":1}]`)
			}
		}
	}
}

func (v *tireless) isSilent() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.silent
}

func (v *tireless) be(silent bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.silent = silent
}

// reconnects are the moments of all dials but the first.
func (v *tireless) reconnects() []time.Time {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.dials[1:]
}

// virtually runs an upstream with a vendor in virtual time, from a moment on.
func virtually(t *testing.T, from string, hours calendar.Hours, every time.Duration, script func(v *tireless)) {
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, []byte(canary), 0o600); err != nil {
		t.Fatal(err)
	}
	start, err := time.Parse("2006-01-02 15:04 -0700", from)
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Until(start))
		v := &tireless{dialed: make(chan net.Conn), every: every}
		server := &http.Server{Handler: v, ReadHeaderTimeout: time.Minute}
		r := router.New("stocks", 32<<20, router.RingBounds{})
		edge := r.Attach("edge")
		if err := edge.Change(nil, []*feedv1.Topic{{Id: 1, Name: "T.AAPL"}}); err != nil {
			t.Fatal(err)
		}
		u := New(Config{URL: "ws://vendor", KeyFile: key, Hours: hours}, r, slog.New(slog.NewTextHandler(io.Discard, nil)))
		u.dial = v.dial
		ctx, cancel := context.WithCancel(t.Context())
		var done sync.WaitGroup
		done.Go(func() { _ = server.Serve(v) })
		done.Go(func() {
			_ = u.Run(ctx, leader.Leadership{Epoch: leader.Epoch{Generation: 1, Term: 1}, Proof: lease.NewProof()})
		})
		script(v)
		cancel()
		time.Sleep(time.Minute)
		_ = server.Close()
		done.Wait()
	})
}

// TestQuietHours: eight hours of silence outside of trading, in which the vendor
// answers pings, cause no reconnect, though events came until then; nor does the
// end of trading.
func TestQuietHours(t *testing.T) {
	for _, tt := range []struct {
		name string
		from string // ten minutes before the silence
	}{
		{"a night", "2026-11-19 19:50 -0500"},
		{"a weekend", "2026-11-21 09:30 -0500"},
		{"a holiday", "2026-11-26 09:30 -0500"},
		{"a half day's afternoon", "2026-11-27 16:50 -0500"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			virtually(t, tt.from, calendar.Stocks, 200*time.Millisecond, func(v *tireless) {
				time.Sleep(10 * time.Minute)
				v.be(true)
				time.Sleep(8 * time.Hour)
				if r := v.reconnects(); len(r) != 0 {
					t.Errorf("reconnects at %v", r)
				}
			})
		})
	}
}

// TestSilentStall: in trading a vendor that answers and sends no events is left
// within 10 s, and then ever more rarely.
func TestSilentStall(t *testing.T) {
	for _, tt := range []struct {
		name  string
		from  string
		hours calendar.Hours
	}{
		{"regular", "2026-11-20 11:00 -0500", calendar.Stocks},
		{"pre-market", "2026-11-20 05:00 -0500", calendar.Stocks},
		{"a half day", "2026-11-27 12:00 -0500", calendar.Stocks},
		{"options", "2026-07-10 15:00 -0400", calendar.Options},
	} {
		t.Run(tt.name, func(t *testing.T) {
			virtually(t, tt.from, tt.hours, 200*time.Millisecond, func(v *tireless) {
				time.Sleep(5 * time.Minute)
				v.be(true)
				began := time.Now()
				time.Sleep(10 * time.Minute)
				want := []float64{3, 13, 33, 73, 153, 313} // seconds
				r := v.reconnects()
				if len(r) != len(want) {
					t.Fatalf("%d reconnects in ten minutes, want %d", len(r), len(want))
				}
				for i, at := range r {
					if d := at.Sub(began).Seconds() - want[i]; d < -1 || d > 1 {
						t.Errorf("reconnect %v after the last event, want %v s", at.Sub(began), want[i])
					}
				}
				v.be(false)
				time.Sleep(10 * time.Minute)
				if n := len(v.reconnects()); n != len(want) {
					t.Errorf("%d reconnects after the stall", n-len(want))
				}
			})
		})
	}
}

// TestSparseFlow: an event in 30 s says nothing about the next one.
func TestSparseFlow(t *testing.T) {
	virtually(t, "2026-11-20 09:30 -0500", calendar.Stocks, 30*time.Second, func(v *tireless) {
		time.Sleep(3 * time.Hour)
		v.be(true)
		time.Sleep(3 * time.Hour)
		if r := v.reconnects(); len(r) != 0 {
			t.Errorf("reconnects at %v", r)
		}
	})
}
