package e2e

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/cutemarkets/relay/hack/cluster"
)

// TestReplay plays a recording of feedsim over and over at full speed: nothing
// holds the vendor back but the relay's own reading, and nobody misses an event.
// It prints how fast that was, and which part needed most time for an event. It
// runs before the tests that run side by side, for it takes all processors.
func TestReplay(t *testing.T) {
	file, events := loop(t, filepath.Join("testdata", "frames.tsv"), replayLoops())
	s := startStage(t, cluster.Options{}, "--replay="+file, "--replay-speed=max")
	ws, edges := newWitnesses(s), s.Info().Edges
	for i, who := range []struct{ market, topics string }{
		{"stocks", "T.*,Q.*,A.*,AM.*,LULD.*,NOI.*"}, {"stocks", "T.*,T.AAPL,AM.*"}, {"stocks", "Q.SPY,T.SPY,T.NVDA,Q.NVDA,A.*," + markTopic},
		{"options", "T.*,A.*,AM.*"},
	} {
		ws.add(edges[i%len(edges)], who.market, len(ws.of(who.market)), who.topics)
	}
	ws.begin("stocks")
	ws.begin("options")
	var marks []int
	for _, w := range ws.all {
		w.mu.Lock()
		marks = append(marks, w.marks)
		w.mu.Unlock()
	}
	before, began := usage(t, s.Cluster), time.Now()
	s.order("resume")
	for i, w := range ws.all {
		w.await("the end of the recording", func() bool { return w.marks > marks[i] })
	}
	took := time.Since(began)
	after := usage(t, s.Cluster)
	ws.leave()
	expectPerfect(t, s.Cluster, ws.ck, s.truth)
	for _, w := range ws.all {
		if len(w.gaps) > 0 {
			t.Errorf("%s was told of %q", w.name, raws(w.gaps))
		}
	}
	t.Logf("%d events in %.2f s: %.0f events/s", events, took.Seconds(), float64(events)/took.Seconds())
	limit := ""
	for _, name := range slices.Sorted(maps.Keys(after)) {
		spent := after[name] - before[name]
		t.Logf("%-12s %6.2f s of processor time, %5.2f µs for an event", name, spent.Seconds(), float64(spent.Microseconds())/float64(events))
		if limit == "" || spent > after[limit]-before[limit] {
			limit = name
		}
	}
	t.Logf("the limit was %s", limit)
}

func replayLoops() int {
	if raceEnabled {
		return 50
	}
	return 400
}

// loop makes a recording of many times another one, with a mark at the end of
// each market.
func loop(t *testing.T, file string, times int) (looped string, events int) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(text) {
		fields := bytes.SplitN(bytes.TrimSpace(line), []byte("\t"), 3)
		err := splitFrame(fields[2], func([]byte) error {
			events += times
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	many := bytes.Repeat(text, times)
	for _, market := range []string{"stocks", "options"} {
		many = fmt.Appendf(many, "0\t%s\t[%s,\"p\":1}]\n", market, markHead)
	}
	looped = filepath.Join(t.TempDir(), "frames.tsv")
	if err := os.WriteFile(looped, many, 0o600); err != nil {
		t.Fatal(err)
	}
	return looped, events
}

// usage is the processor time that each part of the path has used; the clients
// are this process.
func usage(t *testing.T, c *cluster.Cluster) map[string]time.Duration {
	t.Helper()
	const tick = time.Second / 100 // USER_HZ
	used := map[string]time.Duration{}
	pids := c.Info().Pids
	pids["the clients"] = os.Getpid()
	for name, pid := range pids {
		if name == "auth" {
			continue
		}
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			t.Fatal(err)
		}
		_, behind, _ := bytes.Cut(stat, []byte(") ")) // the name of the program may have spaces
		fields := bytes.Fields(behind)
		for _, field := range fields[11:13] { // utime and stime
			ticks, err := strconv.Atoi(string(field))
			if err != nil {
				t.Fatal(err)
			}
			used[name] += time.Duration(ticks) * tick
		}
	}
	return used
}
