package upstream

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/cutemarkets/relay/services/fanout/internal/router"
	"github.com/cutemarkets/relay/services/internal/telemetry"
)

func TestMetrics(t *testing.T) {
	tel := telemetry.Discard()
	r := router.New("stocks", 1<<20, router.RingBounds{})
	u := New(Config{URL: "ws://localhost", KeyFile: "", Slots: map[string]int{"Q": 1000}}, r, tel.Logger)
	if err := Observe(tel.Meter("test"), []*Upstream{u}); err != nil {
		t.Fatal(err)
	}
	if err := router.Observe(tel.Meter("test"), []*router.Router{r}); err != nil {
		t.Fatal(err)
	}
	u.lost[CauseStolen].Add(2)
	u.lag.Store(int64(250 * time.Millisecond))
	u.silenceLimit.Store(int64(3500 * time.Millisecond))
	answer := httptest.NewRecorder()
	tel.MetricsHandler().ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for _, want := range []string{
		`relay_fanout_upstream_state{market="stocks"} 0`,
		`relay_fanout_upstream_last_message_timestamp_seconds{market="stocks"} 0`,
		`relay_fanout_upstream_disconnects_total{cause="stolen",market="stocks"} 2`,
		`relay_fanout_upstream_disconnects_total{cause="slow",market="stocks"} 0`,
		`relay_fanout_upstream_disconnects_total{cause="stalled",market="stocks"} 0`,
		`relay_fanout_upstream_silence_limit_seconds{market="stocks"} 3.5`,
		`relay_fanout_upstream_lag_seconds{market="stocks"} 0.25`,
		`relay_fanout_topic_slots{ev="Q",market="stocks"} 1000`,
		`relay_fanout_topic_slots_used{ev="Q",market="stocks"} 0`,
		`relay_fanout_topics_refused_total{market="stocks"} 0`,
		`relay_fanout_malformed_total{market="stocks",reason="syntax"} 0`,
		`relay_fanout_events_total{ev="T",market="stocks"} 0`,
		`relay_fanout_events_total{ev="other",market="stocks"} 0`,
		`relay_fanout_gaps_total{market="stocks"} 0`,
		`relay_fanout_interest_topics{market="stocks"} 0`,
		`relay_fanout_edges{market="stocks"} 0`,
		`relay_fanout_edge_queue_bytes{market="stocks"} 0`,
	} {
		if !strings.Contains(answer.Body.String(), want+"\n") {
			t.Errorf("no %s in\n%s", want, answer.Body)
		}
	}
}
