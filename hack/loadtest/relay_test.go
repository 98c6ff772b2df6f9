package loadtest

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cutemarkets/relay/hack/cluster"
	"github.com/cutemarkets/relay/hack/loadtest/tally"
)

// relay is a whole relay in this process, with a ground truth.
type relay struct {
	*cluster.Cluster
	keyring

	flags string // that all runs have
	truth string
}

func startRelay(t *testing.T, users, rate int) *relay {
	t.Helper()
	r := &relay{truth: filepath.Join(t.TempDir(), "truth")}
	c, err := cluster.Start(t.Context(), cluster.Options{
		Edges: 2, Fanouts: 1, Users: users, Rate: rate, Binaries: binaries, Dir: t.TempDir(), LogLevel: "warn",
		Args: map[string][]string{"feedsim": {"--stamp", "--number=market", "--truth=" + r.truth}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := c.Stop(ctx); err != nil {
			t.Errorf("stop the relay: %v", err)
		}
	})
	info := c.Info()
	r.Cluster, r.keys = c, info.Users
	for _, edge := range info.Edges {
		r.flags += " --target " + edge
	}
	r.flags += " --truth " + r.truth + " --metrics-url " + info.Operations["edge-0"] + "/metrics"
	return r
}

// run does a run to its end.
func (r *relay) run(t *testing.T, connections, status int, args string, more ...string) tally.Result {
	t.Helper()
	args += fmt.Sprintf(" -n %d --rate 200 --keys %s %s", connections, r.take(t, connections), r.flags)
	return start(t, args, more...).wait(status)
}

// sound checks what has to be so in each run in which nothing goes wrong.
func sound(t *testing.T, r tally.Result, connections int) {
	t.Helper()
	if r.ReadyPeak != int64(connections) || r.BecameReady < uint64(connections) || r.Lost > 0 || r.Failed > 0 {
		t.Errorf("%d ready, %d became so, %d lost, %d failed: %+v", r.ReadyPeak, r.BecameReady, r.Lost, r.Failed, r.Closes)
	}
	if len(r.Servers()) != 1 || r.Servers()[0].RSSPeak == 0 {
		t.Errorf("servers %+v", r.Servers())
	}
	if l := r.Loss; r.Events > 0 && (!l.Judged || l.Expected != l.Received || l.Received == 0 || l.Received > r.Events || l.Missing+l.Duplicates+l.Disordered > 0) {
		t.Errorf("%d events, %+v", r.Events, l)
	}
	if uint64(r.Event.Count()) != r.Events || r.Unstamped > 0 || r.Event.Max() > time.Minute {
		t.Errorf("%d latencies of %d events", r.Event.Count(), r.Events)
	}
}

// TestScenarios runs the program against a relay.
func TestScenarios(t *testing.T) {
	const connections = 50
	r := startRelay(t, 12*connections, 2000)
	for name, args := range map[string]string{
		"ramp":   "ramp --duration 5s --key-in query",
		"step":   "ramp --duration 5s --shape step --steps 4 --topics T.AAPL",
		"spike":  "ramp --duration 5s --shape spike --topics T.AAPL --deflate",
		"storm":  "storm --duration 5s --source 127.0.0.0/8",
		"idle":   "idle --duration 5s",
		"stream": "stream --duration 5s --topics T.AAPL,AM.* --workers 2",
		"soak":   "soak --duration 5s --topics T.AAPL",
	} {
		t.Run(name, func(t *testing.T) {
			result := r.run(t, connections, 0, args, "--fail-if", "ready<50", "--fail-if", "closes>0")
			sound(t, result, connections)
			if topics := strings.Contains(args, "--topics"); topics != (result.Events > 0) {
				t.Errorf("%d events", result.Events)
			}
		})
	}
	t.Run("zipf", func(t *testing.T) {
		result := r.run(t, connections, 0, "stream --duration 5s --topics-per-connection 2 --symbols "+lines(t, []string{"SPY", "AAPL", "NVDA", "TSLA"}))
		sound(t, result, connections)
		if result.Events == 0 {
			t.Error("no event")
		}
	})
	t.Run("churn", func(t *testing.T) {
		result := r.run(t, connections, 0, "churn --duration 6s --percent 10 --back-off 500ms --topics T.AAPL", "--fail-if", "reconnect.p99>1m")
		if left := ends(result, "closed"); left < 20 || result.Reconnect.Count() < int64(left)/2 || !result.Loss.Judged || result.Loss.Missing > 0 {
			t.Errorf("%d left, %d came back, %+v", left, result.Reconnect.Count(), result.Loss)
		}
	})
}

// TestSlow: clients that do not read are ended, with or without a close frame,
// and that crosses the threshold.
func TestSlow(t *testing.T) {
	const connections = 10
	r := startRelay(t, 2*connections, 10_000)
	result := r.run(t, connections, 99, "slow --percent 20 --read-rate 0 --duration 10s --topics T.*,Q.*", "--fail-if", "closes>0", "--fail-if", "missing>0")
	if ends(result, "slow_consumer")+ends(result, "lost") != 2 || result.ReadyPeak != connections {
		t.Errorf("%+v", result.Closes)
	}
	if v := result.Thresholds; len(v) != 2 || !v[0].Crossed || v[1].Crossed {
		t.Errorf("%+v", v)
	}
}

// TestDrain replaces an edge under clients that come back, while the metrics of
// the run are served.
func TestDrain(t *testing.T) {
	const connections = 30
	r := startRelay(t, connections, 1000)
	metrics := free(t)
	run := start(t, fmt.Sprintf("drain -n %d --keys %s --duration 5m --back-off 500ms --topics T.AAPL --prometheus %s %s",
		connections, r.take(t, connections), metrics, r.flags))
	serves := func(line string) func() bool {
		return func() bool {
			return strings.Contains(call(t, http.MethodGet, "http://"+metrics+"/metrics"), "\n"+line+"\n")
		}
	}
	eventually(t, "all are ready", serves("loadtest_connections_ready 30"))
	if err := r.StopPart(t.Context(), "edge-0"); err != nil {
		t.Fatal(err)
	}
	if err := r.RestartPart(t.Context(), "edge-0"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "those of the edge are ready again", serves("loadtest_connections_became_ready_total 45"))
	if err := run.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	result := run.wait(0)
	if ends(result, "draining") != connections/2 || result.Reconnect.Count() != connections/2 {
		t.Errorf("%d came back, %+v", result.Reconnect.Count(), result.Closes)
	}
	if took := result.End.Sub(result.Start); took > 4*time.Minute || !result.Loss.Judged || result.Loss.Missing > 0 {
		t.Errorf("%s, %+v", took, result.Loss)
	}
}

// TestLoss: what the vendor's outage cost is announced, and found to the event.
func TestLoss(t *testing.T) {
	const connections = 20
	r := startRelay(t, connections, 1000)
	metrics := free(t)
	run := start(t, fmt.Sprintf("stream -n %d --keys %s --duration 5m --topics T.* --workers 2 --prometheus %s %s",
		connections, r.take(t, connections), metrics, r.flags), "--fail-if", "missing>0", "--fail-if", "loss>0")
	scrape := func() string { return call(t, http.MethodGet, "http://"+metrics+"/metrics") }
	events := func() (n float64) {
		_, line, _ := strings.Cut(scrape(), "\nloadtest_events_total ")
		_, _ = fmt.Sscan(line, &n) // none while nobody answers
		return n
	}
	// Losses are judged from 2 s after the connections are ready on.
	eventually(t, "three seconds of events", func() bool { return events() > 20_000 })
	call(t, http.MethodPost, r.Info().Feedsim+"/outage?market=stocks&for=2s")
	eventually(t, "all are told of the gap", func() bool { return strings.Contains(scrape(), "\nloadtest_gaps_total{announced=\"true\"} 20\n") })
	told := events()
	eventually(t, "all get events again", func() bool { return events() > told+10_000 })
	if err := run.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	result := run.wait(99)
	l := result.Loss
	if !l.Judged || l.MissingAnnounced == 0 || l.MissingAnnounced%connections != 0 || l.Missing > 0 ||
		l.Expected != l.Received+l.MissingAnnounced || l.Received > result.Events {
		t.Errorf("%d events, %+v", result.Events, l)
	}
	if v := result.Thresholds; len(v) != 2 || v[0].Crossed || !v[1].Crossed {
		t.Errorf("%+v", v)
	}
}
