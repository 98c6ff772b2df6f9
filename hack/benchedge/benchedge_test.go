//go:build linux

package benchedge

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// programs builds what a run needs, with the race detector if this test has it.
func programs(t *testing.T) (folder string) {
	t.Helper()
	folder = t.TempDir()
	args := []string{"build", "-o", folder + "/"}
	if raceEnabled {
		args = append(args, "-race")
	}
	args = append(args, "./services/auth/cmd/auth", "./services/fanout/cmd/fanout", "./services/edge/cmd/edge",
		"./hack/feedsim/cmd/feedsim", "./hack/benchedge/cmd/benchedge")
	cmd := exec.CommandContext(t.Context(), "go", args...)
	cmd.Dir = filepath.Join("..", "..")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the programs: %v\n%s", err, out)
	}
	return folder
}

// TestRun is a whole run, so short that its figures mean nothing.
func TestRun(t *testing.T) {
	t.Setenv("GORACE", "atexit_sleep_ms=0 "+os.Getenv("GORACE")) // else each program sleeps 1 s as it ends
	var out bytes.Buffer
	result, err := Run(t.Context(), Options{
		Parts: parts, Engine: engineAuto, Connections: 40, Rounds: 1, Shapes: []string{bareShape, "S2b400"},
		Window: 300 * time.Millisecond, WarmUp: 300 * time.Millisecond, Quiet: 10 * time.Millisecond, Ceiling: firstRate,
		Sockets: 60, MemoryWait: 10 * time.Millisecond, Pprof: true,
		SlowConnections: 2 * slowShare, SlowRate: 50, SlowWindow: 2 * time.Second, Dir: t.TempDir(),
	}, programs(t), &out)
	if err != nil {
		t.Fatalf("%v\n%s", err, out.Bytes())
	}
	if len(result.Ceilings) != 3 {
		t.Errorf("%d ceilings, want 3", len(result.Ceilings))
	}
	seen := map[string]bool{}
	for _, s := range result.Samples {
		seen[s.Server+" "+s.Shape] = true
		if s.Deliveries == 0 || s.CPU <= 0 || s.Latency.P50 <= 0 || s.HandshakeCPU <= 0 && s.Server != nameBare || (s.Writes > 0) != (s.Server == nameEdge) {
			t.Errorf("figures are missing: %+v", s)
		}
	}
	for _, want := range []string{
		"edge S1r10", "floor write S1r10", "floor writev S1r10", "bare loop S1r10", "edge S2b400", "floor write S2b400", "floor writev S2b400",
	} {
		if !seen[want] {
			t.Errorf("%s was not measured", want)
		}
	}
	checkParts(t, result)
	stored, err := filepath.Glob(filepath.Join(result.Options.Dir, "*", "result.json"))
	if err != nil || len(stored) != 1 {
		t.Fatalf("stored: %v, %v", stored, err)
	}
	b, err := os.ReadFile(stored[0])
	if err != nil {
		t.Fatal(err)
	}
	var read Result
	if err := json.Unmarshal(b, &read); err != nil || read.Version != version || len(read.Samples) != len(result.Samples) {
		t.Errorf("read back: version %d, %d samples, %v", read.Version, len(read.Samples), err)
	}
	t.Logf("%s", out.Bytes())
}

// checkParts looks whether the other parts have their figures.
func checkParts(t *testing.T, r *Result) {
	t.Helper()
	if len(r.Memory) != 2 || r.Memory[0].Topics != 1 || r.Memory[1].Topics != 20 {
		t.Fatalf("memory: %+v", r.Memory)
	}
	for _, m := range r.Memory {
		profile, err := os.Stat(m.Profile)
		if m.Few != 4 || m.Many != 60 || m.RSSMany == 0 || m.Live == 0 || len(m.Sites) == 0 || err != nil || profile.Size() == 0 {
			t.Errorf("figures are missing: %+v, %v", m, err)
		}
	}
	if len(r.Handshakes) != 2 || r.Handshakes[0].Known || !r.Handshakes[1].Known {
		t.Fatalf("handshakes: %+v", r.Handshakes)
	}
	for _, h := range r.Handshakes {
		if h.CPU <= 0 || h.PerSecond <= 0 || h.Known && h.Hits < 40 {
			t.Errorf("%+v", h)
		}
	}
	if len(r.Storms) != 1 || r.Storms[0].Half <= 0 || r.Storms[0].Most < r.Storms[0].Half || r.Storms[0].All < r.Storms[0].Most {
		t.Errorf("storms: %+v", r.Storms)
	}
	if len(r.Slow) != 2 || r.Slow[0].Slow || !r.Slow[1].Slow {
		t.Fatalf("slow: %+v", r.Slow)
	}
	for _, s := range r.Slow {
		if s.Latency.P50 <= 0 || s.Served == 0 || s.Classes[stalled].Clients != 2 || s.Classes[trickling].Clients != 2 {
			t.Errorf("%+v", s)
		}
	}
	// What nobody reads stays on the edge's side once the clients' side is full.
	if c := r.Slow[1].Classes[stalled]; c.KernelMost < 16<<10 {
		t.Errorf("stalled clients held %d bytes in the kernel", c.KernelMost)
	}
}
