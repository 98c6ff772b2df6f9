package loadtest

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/gobwas/ws"

	"github.com/cutemarkets/relay/hack/loadtest/scripted"
	"github.com/cutemarkets/relay/hack/loadtest/tally"
	"github.com/cutemarkets/relay/hack/truth"
)

// startScript serves a script with known faults; it returns the flags for it.
func startScript(t *testing.T) (server *scripted.Server, flags string) {
	t.Helper()
	script := &scripted.Script{
		Market: "stocks", Topics: []string{"T.A", "T.B", "Q.A"}, Events: 3000, PerFrame: 20, Code: ws.StatusCode(1012),
		Fault: func(n uint64) scripted.Fault {
			switch {
			case n < 100 || n > 2900:
				return scripted.None
			case n%101 == 5:
				return scripted.Drop
			case n%103 == 7:
				return scripted.Duplicate
			case n%107 == 9:
				return scripted.Late
			case n%501 == 11:
				return scripted.Bare
			}
			return scripted.None
		},
	}
	file, err := os.Create(filepath.Join(t.TempDir(), "truth"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := script.WriteTruth(truth.NewWriter(file)); err != nil {
		t.Fatal(err)
	}
	server = scripted.New(script)
	ctx, cancel := context.WithCancel(context.Background())
	listener := httptest.NewUnstartedServer(http.Handler(server))
	listener.Config.BaseContext = func(net.Listener) context.Context { return ctx }
	listener.Start()
	t.Cleanup(func() {
		cancel()
		listener.Close()
	})
	return server, "--target " + strings.Replace(listener.URL, "http", "ws", 1) + " --truth " + file.Name() + " --number-field n --settle 0s --topics T.*,Q.*"
}

func manyKeys(n int) []string {
	var all []string
	for i := range n {
		all = append(all, fmt.Sprintf("cm_secret-%d", i))
	}
	return all
}

// figures are those of a result that do not depend on how fast it went.
type figures struct {
	totals tally.Totals
	loss   string
	closes string
	counts [4]int64
}

func figuresOf(r tally.Result) figures {
	f := figures{totals: r.Totals, loss: fmt.Sprintf("%+v", r.Loss), closes: fmt.Sprint(r.Closes)}
	f.counts = [4]int64{r.Connect.Count(), r.Upgrade.Count(), r.Ready.Count(), r.Event.Count()}
	return f
}

// TestWorkersAndShardsAreAsOne: one process, two, and two shards merged report the
// same, and that is what the server did. No argument of a process has a key.
func TestWorkersAndShardsAreAsOne(t *testing.T) {
	t.Parallel()
	const connections = 60
	var all []figures
	var server *scripted.Server
	keys := lines(t, manyKeys(connections))
	common := fmt.Sprintf(" -n %d --rate 1000 --duration 6s --keys %s ", connections, keys)
	for _, workers := range []string{"--workers 1", "--workers 3"} {
		var flags string
		server, flags = startScript(t)
		run := start(t, "stream "+workers+common+flags)
		if workers == "--workers 3" {
			pid := run.cmd.Process.Pid
			var children []string
			eventually(t, "three children", func() bool {
				text, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
				children = nil
				for _, name := range text {
					list, _ := os.ReadFile(name)
					children = append(children, strings.Fields(string(list))...)
				}
				return len(children) == 3
			})
			for _, child := range children {
				if line, err := os.ReadFile("/proc/" + child + "/cmdline"); err != nil || strings.Contains(string(line), "cm_") {
					t.Errorf("arguments of a worker: %q, %v", line, err)
				}
			}
		}
		result := run.wait(0)
		if text := run.stdout.String() + run.stderr.String(); strings.Contains(text, "cm_secret") {
			t.Errorf("a key was printed: %s", text)
		}
		if v, did := result.Loss, server.Did; v.Missing != did(scripted.Drop)+did(scripted.Bare) || v.Duplicates != did(scripted.Duplicate) ||
			v.Disordered != did(scripted.Late) || v.Misframed != did(scripted.Bare) || v.Expected != 3000*connections || !v.Judged {
			t.Errorf("%s: %+v", workers, v)
		}
		all = append(all, figuresOf(result))
	}
	_, flags := startScript(t)
	shards := []*tester{start(t, "stream --shard 0/2"+common+flags), start(t, "stream --shard 1/2"+common+flags)}
	var files []string
	for _, s := range shards {
		if r := s.wait(0); r.Wanted != connections/2 {
			t.Errorf("a shard of %d connections", r.Wanted)
		}
		files = append(files, s.json)
	}
	page := filepath.Join(t.TempDir(), "page.html")
	merged := start(t, "merge --html "+page, append(files, "--fail-if", "loss>0")...).wait(99)
	all = append(all, figuresOf(merged))
	if merged.Wanted != connections || !strings.HasPrefix(merged.Thresholds[0].Threshold, "loss") {
		t.Errorf("%d wanted, %+v", merged.Wanted, merged.Thresholds)
	}
	if html, err := os.ReadFile(page); err != nil || !strings.Contains(string(html), "</html>") {
		t.Errorf("%d bytes of a page, %v", len(html), err)
	}
	for _, f := range all[1:] {
		if f != all[0] {
			t.Errorf("\n got %+v\nwant %+v", f, all[0])
		}
	}
}

// TestWorkersEndWithTheirParent: nothing is left when the program is killed.
func TestWorkersEndWithTheirParent(t *testing.T) {
	t.Parallel()
	_, flags := startScript(t)
	run := start(t, "soak --workers 2 -n 10 --keys "+lines(t, manyKeys(10))+" "+flags)
	var children []string
	eventually(t, "two children", func() bool {
		children = nil
		names, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", run.cmd.Process.Pid))
		for _, name := range names {
			list, _ := os.ReadFile(name)
			children = append(children, strings.Fields(string(list))...)
		}
		return len(children) == 2
	})
	if err := run.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = run.cmd.Wait()
	eventually(t, "no child", func() bool {
		return !slices.ContainsFunc(children, func(pid string) bool {
			line, err := os.ReadFile("/proc/" + pid + "/cmdline")
			return err == nil && len(line) > 0 // a zombie has none
		})
	})
}

// TestRefusals: what cannot be is refused before the run, with what to do.
func TestRefusals(t *testing.T) {
	t.Parallel()
	program := filepath.Join(binaries, "loadtest")
	few, many := lines(t, manyKeys(10)), lines(t, manyKeys(70_000))
	for want, args := range map[string]string{
		"missing flags: --target=URL":                  "idle --keys " + few,
		"missing flags: --keys=FILE":                   "idle --target ws://127.0.0.1:1",
		"100 connections need as many keys":            "idle --target ws://127.0.0.1:1 --keys " + few,
		"auth keys create --user load --numbered 100":  "idle --target ws://127.0.0.1:1 --keys " + few,
		`"http://x" is no target`:                      "idle --target http://x -n 1 --keys " + few,
		"net.ipv4.ip_local_port_range":                 "storm --target ws://127.0.0.1:1 -n 70000 --keys " + many,
		"neither an address nor a network":             "idle --target ws://127.0.0.1:1 -n 1 --source x --keys " + few,
		"raise --rate or --duration":                   "idle --target ws://127.0.0.1:1 -n 10 --rate 1 --duration 2s --keys " + few,
		"there is no figure":                           "idle --target ws://127.0.0.1:1 -n 1 --fail-if p98x>1 --keys " + few,
		"too few for 20 workers":                       "idle --target ws://127.0.0.1:1 -n 10 --workers 20 --keys " + few,
		`"2/2" is no shard`:                            "idle --target ws://127.0.0.1:1 -n 10 --shard 2/2 --keys " + few,
		"--truth needs --number-field":                 "idle --target ws://127.0.0.1:1 -n 1 --number-field= --truth " + few + " --keys " + few,
		"--ca: " + few + " has no certificate":         "idle --target wss://127.0.0.1:1 -n 1 --ca " + few + " --keys " + few,
		"must be one of \"linear\",\"step\",\"spike\"": "ramp --shape x --target ws://127.0.0.1:1 -n 1 --keys " + few,
	} {
		if got := refused(t, program, strings.Fields(args)...); !strings.Contains(got, want) {
			t.Errorf("%s:\n%s\nwant %s", args, got, want)
		}
	}
	got := refused(t, "sh", "-c", `ulimit -n 100 && exec "$0" storm --target ws://127.0.0.1:1 --keys "$1" -n 200`, program, many)
	if !strings.Contains(got, "200 connections need 264 open files in a process, and the hard limit is 100") {
		t.Error(got)
	}
}

// TestNobodyListens: connections that fail are counted, in each stage's figure.
func TestNobodyListens(t *testing.T) {
	t.Parallel()
	r := start(t, "ramp --duration 1s -n 10 --target ws://"+free(t)+" --keys "+lines(t, manyKeys(10)), "--fail-if", "failed.connect>=10").wait(99)
	if r.Failed != 10 || ends(r, "refused") != 10 {
		t.Errorf("%+v", r.Closes)
	}
}
