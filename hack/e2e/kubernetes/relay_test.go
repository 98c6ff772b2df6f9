//go:build kubernetes

package kubernetes

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cutemarkets/relay/hack/watch/judge"
)

const (
	plannedGap  = 3 * time.Second
	crashGap    = 15 * time.Second
	backWithin  = 30 * time.Second // after an edge roll
	streamsIn   = 5 * time.Second  // after the deployments say that they are complete
	barsIn      = 6 * time.Second  // AM events come each 5 s
	noCode      = ""
	restartCode = "1012"
)

// phase is something done to a relay that streams, and what clients may see of it.
type phase struct {
	name     string
	do       func(k *kube) // returns when the pods are as they shall be
	gap      time.Duration // data gap at most
	closes   string        // the only close code there may be
	handOver bool          // a market may be without its upstream socket for a while
	calm     bool          // no client is told of a gap
}

var phases = []phase{
	{"nothing", func(k *kube) { quiet(k, 10*time.Second) }, plannedGap, noCode, false, true},
	{"delete the leader", func(k *kube) { remove(k) }, plannedGap, noCode, true, false},
	{"delete the leader, grace 0", func(k *kube) { remove(k, "--grace-period=0", "--force") }, crashGap, noCode, true, false},
	{"roll edge", func(k *kube) { roll(k, "edge", 2) }, plannedGap, restartCode, false, false},
	{"roll fanout", func(k *kube) { roll(k, "fanout", 2) }, plannedGap, noCode, true, false},
	{"roll auth", func(k *kube) { roll(k, "auth", 1) }, plannedGap, noCode, false, false},
	{"edge 2 to 3", func(k *kube) { scale(k, "edge", 3) }, plannedGap, noCode, false, false},
	{"edge 3 to 2", func(k *kube) { scale(k, "edge", 2) }, plannedGap, restartCode, false, false},
	{"fanout 2 to 3", func(k *kube) { scale(k, "fanout", 3) }, plannedGap, noCode, false, false},
	{"fanout 3 to 2", func(k *kube) { scale(k, "fanout", 2) }, plannedGap, noCode, true, false},
	{"API server away for 60 s", (*kube).pauseAPI, plannedGap, noCode, false, true},
}

func TestKubernetes(t *testing.T) {
	s := readSettings(t)
	k := install(t, s)
	mayOnly(k)
	t.Log("helm test relay")
	if out, err := command(t.Context(), "", "helm", "-n", k.namespace, "test", "relay", "--timeout", "2m"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	k.streams(streamsIn)
	t.Logf("starting %d clients", clients)
	k.watch(s)
	k.until(time.Minute, "all clients stream", func() bool { return k.summary().Streaming == clients })
	oneSocket(k)
	rows := []string{header}
	for _, p := range phases {
		rows = append(rows, p.run(k, "after-"+strings.ReplaceAll(p.name, " ", "-")))
		t.Logf("\n%s\n%s", header, rows[len(rows)-1])
	}
	t.Logf("\n%s", strings.Join(rows, "\n"))
}

const header = "phase                       lasted  data gap: max   p50  interrupted  gaps told to  span max  missing: told  silent  away  dup  disorder  " +
	"closes          4409  back after  streams  no upstream"

// run does it and checks what clients saw, until the next phase begins: no time
// lies between two.
func (p *phase) run(k *kube, next string) string {
	began := time.Now()
	p.do(k)
	did := time.Since(began)
	streams := k.streams(time.Minute) // from the moment the pods are ready
	for _, component := range []string{"edge", "fanout", "auth"} {
		k.kubectl("rollout", "status", "deploy/relay-"+component, "--timeout=60s")
	}
	k.streams(streamsIn)
	k.until(time.Minute, "all clients stream after "+p.name, func() bool { return k.summary().Streaming == clients })
	quiet(k, barsIn) // the holes of sparse topics show when their next event comes
	s := k.mark(next)
	p.check(k, &s, did)
	absence := k.oneUpstream(p.handOver)
	after := max(0, time.Duration(s.RestoredMS)*time.Millisecond-did)
	return fmt.Sprintf("%-26s %5.1f s  %8d ms %5d  %11d  %12d  %5d ms  %13d  %6d  %4d  %3d  %8d  %-14s  %4d  %8.1f s  %5.1f s  %8d ms",
		p.name, did.Seconds(), s.SilenceMaxMS, s.SilenceMedianMS, s.Interrupted, s.Told, s.NoticeSpanMS, s.Announced, s.Silent, s.Away,
		s.Duplicates, s.Disordered, codes(s.Closes, s.Refusals), s.Closes["4409"], after.Seconds(), streams.Seconds(), absence.Milliseconds())
}

func (p *phase) check(k *kube, s *judge.Summary, did time.Duration) {
	wrong := func(is bool, format string, args ...any) {
		if is {
			k.t.Errorf(p.name+": "+format, args...)
		}
	}
	gap := time.Duration(s.SilenceMaxMS) * time.Millisecond
	wrong(gap > p.gap, "a client got nothing for %s, want %s at most", gap, p.gap)
	wrong(s.Silent > 0, "%d events are missing without a gap notice", s.Silent)
	wrong(p.calm && s.Told > 0, "%d clients were told of a gap", s.Told)
	wrong(s.Told < s.Interrupted, "%d clients were interrupted, only %d were told of a gap", s.Interrupted, s.Told)
	wrong(s.Duplicates+s.Disordered > 0, "%d duplicates, %d events in disorder", s.Duplicates, s.Disordered)
	for code, n := range s.Closes {
		wrong(code != p.closes, "%d sockets were closed with %s", n, code)
	}
	if back := time.Duration(s.RestoredMS)*time.Millisecond - did; back > backWithin {
		k.t.Errorf("%s: the last client was back after %s, want %s at most", p.name, back, backWithin)
	}
}

func codes(closes, refusals map[string]int) string {
	var all []string
	for _, m := range []map[string]int{closes, refusals} {
		for _, code := range slices.Sorted(maps.Keys(m)) {
			all = append(all, fmt.Sprintf("%d×%s", m[code], code))
		}
	}
	if len(all) == 0 {
		return "none"
	}
	return strings.Join(all, ", ")
}

// quiet lets the clients stream and does nothing.
func quiet(k *kube, d time.Duration) {
	until := time.Now().Add(d)
	k.until(2*d, "time goes by", func() bool { return time.Now().After(until) })
}

// remove deletes the fanout pod that leads the stocks.
func remove(k *kube, how ...string) {
	leader := k.leader("stocks")
	k.kubectl(append([]string{"delete", "pod", leader}, how...)...)
	k.settled("fanout", 2, leader)
}

func roll(k *kube, component string, replicas int) {
	var old []string
	for _, p := range k.pods(component) {
		old = append(old, p.Metadata.Name)
	}
	k.kubectl("rollout", "restart", "deploy/relay-"+component)
	k.kubectl("rollout", "status", "deploy/relay-"+component, "--timeout=180s")
	k.settled(component, replicas, old...)
}

func scale(k *kube, component string, replicas int) {
	k.kubectl("scale", "deploy/relay-"+component, fmt.Sprintf("--replicas=%d", replicas))
	k.settled(component, replicas)
}

// oneSocket: a user that streams gets 4409 for a second socket, whichever edge it
// is at, and the first goes on.
func oneSocket(k *kube) {
	k.t.Helper()
	k.mark("second-sockets")
	for _, client := range []int{0, clients / 2} {
		for _, edge := range k.settled("edge", 2) {
			if end := k.second(client, &edge); end.Code != 4409 || !contains(end.Statuses, "max_connections") {
				k.t.Errorf("second socket of a user at %s: %+v, want max_connections and 4409", edge.Metadata.Name, end)
			}
		}
	}
	if s := k.mark("phases"); len(s.Closes) > 0 || s.Streaming != clients {
		k.t.Errorf("the first sockets were disturbed: %+v", s)
	}
	k.oneUpstream(true) // since feedsim is there, fanout has begun to lead
}
