package leader

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"k8s.io/client-go/rest"

	"github.com/cutemarkets/relay/services/internal/lease"
	"github.com/cutemarkets/relay/services/internal/telemetry"
)

func TestMetrics(t *testing.T) {
	k, err := NewKubernetes(&rest.Config{Host: "http://api"}, config, []string{"stocks", "options"}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	tel := telemetry.Discard()
	if err := k.Observe(tel.Meter("test")); err != nil {
		t.Fatal(err)
	}
	proof := lease.NewProof()
	proof.Set(false)
	k.candidates["stocks"].proof.Store(proof)
	k.candidates["stocks"].change(changeLost)
	k.candidates["options"].errors[ReasonMissing].Add(3)
	answer := httptest.NewRecorder()
	tel.MetricsHandler().ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for _, want := range []string{
		`relay_fanout_leader{market="stocks"} 1`,
		`relay_fanout_leader{market="options"} 0`,
		`relay_fanout_leader_degraded{market="stocks"} 1`,
		`relay_fanout_leader_degraded{market="options"} 0`,
		`relay_fanout_leader_changes_total{change="lost",market="stocks"} 1`,
		`relay_fanout_leader_changes_total{change="acquired",market="options"} 0`,
		`relay_fanout_leader_changes_total{change="released",market="stocks"} 0`,
		`relay_fanout_lease_errors_total{market="options",reason="missing"} 3`,
		`relay_fanout_lease_errors_total{market="stocks",reason="unreachable"} 0`,
	} {
		if !strings.Contains(answer.Body.String(), want+"\n") {
			t.Errorf("no %s in\n%s", want, answer.Body)
		}
	}
	for r := ReasonNone + 1; r < reasonEnd; r++ {
		if r.String() == "" || kubernetesAdvice[r] == "" && r != ReasonConflict {
			t.Errorf("reason %d has no label or advice", r)
		}
	}
}
