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
		Connections: 40, Rounds: 1, Shapes: []string{bareShape, "S2b400"},
		Window: 300 * time.Millisecond, WarmUp: 300 * time.Millisecond, Quiet: 10 * time.Millisecond,
		Ceiling: firstRate, Dir: t.TempDir(),
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
		if s.Deliveries == 0 || s.CPU <= 0 || s.Latency.P50 <= 0 || s.HandshakeCPU <= 0 && s.Server != nameBare {
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
