package upstream

import (
	"strings"
	"testing"

	"github.com/cutemarkets/relay/services/fanout/internal/calendar"
	"github.com/cutemarkets/relay/services/fanout/internal/router"
)

// FuzzStatus gives a session whatever a vendor may say: only the vendor's own
// words for a topic credit it.
func FuzzStatus(f *testing.F) {
	for _, seed := range []string{
		`{"ev":"status","status":"success","message":"subscribed to: T.A"}`,
		`{"ev":"status","status":"success","message":"subscribed to: T.B, T.A"},{"ev":"T","sym":"A"}`,
		`{"ev":"status","status":"success","message":"unsubscribed to: T.A"}`,
		`{"ev":"status","status":"error","message":"not authorized"}`,
		`{"ev":"status","status":"auth_failed","message":"authentication failed"}`,
		`{"ev":"status","status":"max_connections","message":"Maximum number of websocket connections exceeded. "}`,
		`{"ev":"status","status":5}`,
		`{"ev":"status","message":{}}`,
		`{"ev":"status","status":"success","message":"subscribed to: "}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		events, _ := router.Split([]byte("["+string(content)+"]"), nil)
		s := NewSession(&recorder{}, func() float64 { return 0 }, calendar.Never, nil, Limit{})
		s.Start(t0, []string{"T.A", "Q.A"})
		s.Dialed(t0)
		s.Status(t0, "connected", "")
		s.Status(t0, "auth_success", "")
		credited := false
		for _, e := range events {
			if status, message, ok := parseStatus(e.Raw); ok {
				s.Status(t0, status, message)
				credited = credited || strings.HasPrefix(message, "subscribed to:") && strings.Contains(message, "T.A")
			}
		}
		if s.topics.byName["T.A"].phase == topicAcked && !credited {
			t.Errorf("credited by %q", content)
		}
		s.Tick(t0.Add(ackWait))
	})
}
