//go:build kubernetes

package kubernetes

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cutemarkets/relay/hack/feedsim"
	"github.com/cutemarkets/relay/hack/feedsim/market"
	"github.com/cutemarkets/relay/hack/watch"
	"github.com/cutemarkets/relay/hack/watch/judge"
)

var markets = []string{"stocks", "options"}

// summary is what the clients saw since the phase began.
func (k *kube) summary() (s judge.Summary) {
	k.t.Helper()
	if err := k.ask(http.MethodGet, "watch", "8090", "summary", &s); err != nil {
		k.t.Fatal(err)
	}
	return s
}

// mark begins a phase and returns what the clients saw in the one before.
func (k *kube) mark(phase string) (s judge.Summary) {
	k.t.Helper()
	if err := k.ask(http.MethodPost, "watch", "8090", "mark?phase="+phase, &s); err != nil {
		k.t.Fatal(err)
	}
	return s
}

// second opens a second socket of a client's user at an edge.
func (k *kube) second(client int, edge *pod) (end watch.Ending) {
	k.t.Helper()
	if err := k.ask(http.MethodPost, "watch", "8090", fmt.Sprintf("second?client=%d&address=%s:8080", client, edge.Status.PodIP), &end); err != nil {
		k.t.Fatal(err)
	}
	return end
}

// leader is the fanout pod that holds the Lease of a market.
func (k *kube) leader(market string) string {
	k.t.Helper()
	var lease struct {
		Spec struct {
			HolderIdentity string `json:"holderIdentity"`
		} `json:"spec"`
	}
	if err := json.Unmarshal([]byte(k.kubectl("get", "lease", "relay-fanout-"+market, "-o", "json")), &lease); err != nil {
		k.t.Fatal(err)
	}
	for _, p := range k.pods("fanout") {
		if strings.HasPrefix(lease.Spec.HolderIdentity, p.Metadata.Name+"_") {
			return p.Metadata.Name
		}
	}
	k.t.Fatalf("no fanout pod is the holder %q of the Lease of %s", lease.Spec.HolderIdentity, market)
	return ""
}

// metric reads a gauge of a market.
func metric(page, name, market string) (int, bool) {
	for line := range strings.Lines(page) {
		rest, is := strings.CutPrefix(line, name+"{")
		if !is || !strings.Contains(rest, `market="`+market+`"`) {
			continue
		}
		value, err := strconv.ParseFloat(strings.TrimSpace(rest[strings.LastIndexByte(rest, '}')+1:]), 64)
		return int(value), err == nil
	}
	return 0, false
}

// streams waits until every edge has a stream to every fanout pod, in each market,
// and returns how long that took. Both ends are asked: as many streams at each
// edge as there are fanouts, and as many edges at each fanout as there are edges.
func (k *kube) streams(within time.Duration) time.Duration {
	k.t.Helper()
	edges, fanouts := k.pods("edge"), k.pods("fanout")
	began := time.Now()
	for {
		wrong := slices.Concat(
			k.wrong(edges, "relay_edge_feed_streams", len(fanouts)),
			k.wrong(fanouts, "relay_fanout_edges", len(edges)))
		took := time.Since(began)
		if len(wrong) == 0 {
			return took
		}
		if took > within {
			k.t.Errorf("%d edges have no stream to each of %d fanout pods after %s: %s", len(edges), len(fanouts), took, strings.Join(wrong, "; "))
			return took
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func (k *kube) wrong(pods []pod, name string, want int) (complaints []string) {
	for i := range pods {
		pod := pods[i].Metadata.Name
		var page string
		if err := k.ask(http.MethodGet, pod, "9090", "metrics", &page); err != nil {
			complaints = append(complaints, err.Error())
			continue
		}
		for _, m := range markets {
			if n, known := metric(page, name, m); !known || n != want {
				complaints = append(complaints, fmt.Sprintf("%s of %s at %s is %d (known: %t), want %d", name, m, pod, n, known, want))
			}
		}
	}
	return complaints
}

// upstream is what feedsim says of its sockets.
func (k *kube) upstream() (history feedsim.History, stats feedsim.Stats) {
	k.t.Helper()
	pod := k.pods("feedsim")[0].Metadata.Name
	for path, into := range map[string]any{"sockets": &history, "stats": &stats} {
		if err := k.ask(http.MethodGet, pod, "7100", path, into); err != nil {
			k.t.Fatal(err)
		}
	}
	return history, stats
}

// absences are the times without an upstream socket since the first one.
func absences(changes []market.Change) (all []time.Duration) {
	for i := range changes {
		if changes[i].Authenticated == 0 && i+1 < len(changes) {
			all = append(all, changes[i+1].At.Sub(changes[i].At))
		}
	}
	return all
}

// oneUpstream checks that no market ever had two upstream sockets, has one now,
// and since the last call had none only in hand-overs; it returns the longest
// absence.
func (k *kube) oneUpstream(handOver bool) (longest time.Duration) {
	k.t.Helper()
	history, stats := k.upstream()
	for _, m := range []struct {
		name        string
		before, now []market.Change
		stats       market.Stats
	}{
		{"stocks", k.history.Stocks, history.Stocks, stats.Stocks},
		{"options", k.history.Options, history.Options, stats.Options},
	} {
		// With a limit of one, a second socket shows as a kick of the first.
		if m.stats.AuthenticatedMax != 1 || m.stats.Authenticated != 1 || m.stats.Closed["kicked"] != 0 || m.stats.Closed["rejected"] != 0 {
			k.t.Errorf("%s at feedsim: %d authenticated upstream sockets, %d at most, %d kicked: want 1, 1, 0",
				m.name, m.stats.Authenticated, m.stats.AuthenticatedMax, m.stats.Closed["kicked"])
		}
		for _, absence := range absences(m.now[max(0, len(m.before)-1):]) {
			longest = max(longest, absence)
			if !handOver {
				k.t.Errorf("%s at feedsim: no upstream socket for %s, and nobody handed over", m.name, absence)
			}
		}
	}
	k.history = history
	return longest
}
