//go:build !race

package session

import (
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/cutemarkets/relay/services/edge/internal/dialect"
	"github.com/cutemarkets/relay/services/edge/internal/dialect/cutemarkets"
	"github.com/cutemarkets/relay/services/edge/internal/principal"
	"github.com/cutemarkets/relay/services/internal/secret"
)

// nobody is a Host that does nothing.
type nobody struct{ about }

func (nobody) Send([]byte)                                      {}
func (nobody) Authenticate(string, secret.Secret)               {}
func (nobody) Refused(dialect.Reason)                           {}
func (nobody) Acquire(principal.Principal)                      {}
func (nobody) Release()                                         {}
func (nobody) Hold(_ string, least time.Duration) time.Duration { return least }
func (nobody) Live(string)                                      {}
func (nobody) Subscribe(string) string                          { return "" }
func (nobody) Unsubscribe(string)                               {}
func (nobody) Stop()                                            {}
func (nobody) Close(uint16, string, dialect.Reason)             {}

func liveSession() *Session {
	s := newSession(&nobody{}, newDialect(cutemarkets.Options{}), withKey)
	s.Start(start)
	s.Authenticated(start, principal.Principal{UserID: "u"}, dialect.OK)
	s.Acquired(start, dialect.OK)
	return &s
}

// TestCommandAllocations holds a command to one allocation per topic and one
// for the reply. The race detector makes pools forget, hence the build tag.
func TestCommandAllocations(t *testing.T) {
	for _, c := range []struct {
		name, message string
		most          float64
	}{
		{"one topic", `{"action":"subscribe","params":"T.AAPL"}`, 2},
		{"ten topics", `{"action":"unsubscribe","params":"T.A,T.B,T.C,T.D,T.E,T.F,T.G,T.H,T.I,T.J"}`, 11},
		{"malformed", `{"action":`, 3}, // the JSON error, and what counts it
		{"unknown action", `{"action":"dance"}`, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := liveSession()
			text := []byte(c.message)
			now := start
			got := testing.AllocsPerRun(1000, func() {
				now = now.Add(time.Minute)
				s.Message(now, text)
			})
			if got > c.most {
				t.Errorf("%v allocations, want at most %v", got, c.most)
			}
		})
	}
}

// BenchmarkIdle reports the live heap of a session that has been authenticated
// and has its lock, its user's name aside.
func BenchmarkIdle(b *testing.B) {
	const items = 10_000
	d := newDialect(cutemarkets.Options{})
	for b.Loop() {
		sessions := make([]*Session, items)
		before := liveHeap()
		for i := range sessions {
			s := newSession(&nobody{}, d, withKey)
			s.Start(start)
			s.Authenticated(start, principal.Principal{UserID: "u"}, dialect.OK)
			s.Acquired(start, dialect.OK)
			sessions[i] = &s
		}
		b.ReportMetric((liveHeap()-before)/items, "B/session")
		runtime.KeepAlive(sessions)
	}
}

func liveHeap() float64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc)
}

func BenchmarkMessage(b *testing.B) {
	thousand := make([]string, 1000)
	for i := range thousand {
		thousand[i] = "T.O:SPY260515C00" + string(rune('0'+i/100)) + string(rune('0'+i/10%10)) + string(rune('0'+i%10)) + "000"
	}
	for name, params := range map[string]string{"1": "T.AAPL", "1000": strings.Join(thousand, ",")} {
		b.Run(name, func(b *testing.B) {
			s := liveSession()
			text := []byte(`{"action":"subscribe","params":"` + params + `"}`)
			b.ReportAllocs()
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				s.Message(start, text)
			}
		})
	}
}
