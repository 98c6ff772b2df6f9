//go:build linux

package benchfanout

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cutemarkets/relay/hack/benchedge/process"
)

// programs builds what a run needs.
func programs(t *testing.T) (folder string) {
	t.Helper()
	folder = t.TempDir()
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", folder+"/", "./services/auth/cmd/auth", "./services/fanout/cmd/fanout",
		"./services/edge/cmd/edge", "./hack/feedsim/cmd/feedsim", "./hack/benchfanout/cmd/benchfanout")
	cmd.Dir = filepath.Join("..", "..")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the programs: %v\n%s", err, out)
	}
	return folder
}

// TestRun is a whole run, so short that its figures mean nothing.
func TestRun(t *testing.T) {
	o := Options{
		Subjects: subjects, Rates: []int{5000}, Rounds: 1, Duration: 500 * time.Millisecond, WarmUp: 200 * time.Millisecond, Dir: t.TempDir(),
	}
	if err := o.Validate(); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	result, err := Run(t.Context(), o, programs(t), &out)
	if err != nil {
		t.Fatalf("%v\n%s", err, out.Bytes())
	}
	if len(result.Samples) != len(subjects) {
		t.Fatalf("%d samples, want %d", len(result.Samples), len(subjects))
	}
	for _, s := range result.Samples {
		if s.Events == 0 || s.Received == 0 || s.reading() <= 0 || s.cost("feedsim") <= 0 || (s.behind() > 0) != (s.Subject != subjectReader) {
			t.Errorf("figures are missing: %+v", s)
		}
		if len(result.Ratios(s.Subject, 5000)) != 1 {
			t.Errorf("%s has no ratio", s.Subject)
		}
	}
	t.Logf("%s", out.Bytes())
}

func TestValidate(t *testing.T) {
	good := Options{Subjects: subjects, Rates: []int{1, 2}, Rounds: 1, Duration: time.Second}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for flag, spoil := range map[string]func(*Options){
		"--subjects":  func(o *Options) { o.Subjects = []string{"pigeons"} },
		"--rates":     func(o *Options) { o.Rates = []int{2, 1} },
		"--rates: 0":  func(o *Options) { o.Rates = []int{0} },
		"--rounds":    func(o *Options) { o.Rounds = 0 },
		"--duration ": func(o *Options) { o.Duration = 0 },
	} {
		o := good
		spoil(&o)
		if err := o.Validate(); err == nil || !strings.Contains(err.Error(), flag) {
			t.Errorf("%s: %v", flag, err)
		}
	}
}

// at is a mark with the counters of fanout and two stand-ins.
func at(second int, sent uint64, skipped uint64, received ...float64) mark {
	busy := process.CPU{Run: time.Duration(second) * 500 * time.Millisecond}
	return mark{
		at: time.Unix(int64(second), 0), sent: sent, skipped: skipped,
		cpu:      map[string]process.CPU{"fanout-0": busy, "feedsim": busy},
		received: map[string]float64{"stand-in-0": received[0], "stand-in-1": received[1]},
		troubles: map[string]float64{"gaps": received[2]},
	}
}

func TestSample(t *testing.T) {
	from := at(10, 1000, 0, 900, 1000, 1)
	for _, row := range []struct {
		name      string
		to        mark
		sustained bool
		limit     string
	}{
		{"all came", at(20, 101_000, 0, 100_900, 100_000, 1), true, "All rates"},
		{"one got fewer", at(20, 101_000, 0, 100_900, 90_000, 1), false, "behind feedsim"},
		{"a gap", at(20, 101_000, 0, 100_900, 101_000, 2), false, "behind feedsim"},
		{"time was skipped", at(20, 101_000, 1000, 100_900, 101_000, 1), false, "feedsim, which skipped 1000 ms"},
		{"fewer were made", at(20, 81_000, 0, 80_900, 81_000, 1), false, "behind feedsim"},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := newSample(subjectStandIns, 10_000, from, row.to)
			if s.Sustained() != row.sustained {
				t.Errorf("sustained: %v; %s", s.Sustained(), s)
			}
			r := Result{Cores: 2, Samples: []Sample{s}}
			if text := r.limit(); !strings.Contains(text, row.limit) {
				t.Errorf("%q, want %q", text, row.limit)
			}
		})
	}
	s := newSample(subjectStandIns, 10_000, from, at(20, 101_000, 0, 100_900, 100_000, 1))
	if s.Seconds != 10 || s.Events != 100_000 || s.Received != 99_000 || s.reading() != 50 || s.cpu("") != 10 {
		t.Errorf("%+v", s)
	}
}
