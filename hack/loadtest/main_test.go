package loadtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cutemarkets/relay/hack/loadtest/tally"
)

// binaries is the folder of the programs under test.
var binaries string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "relay-loadtest-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	cmd := exec.Command("go", "build", "-o", dir+"/", "./services/auth/cmd/auth", "./hack/loadtest/cmd/loadtest")
	cmd.Dir = filepath.Join("..", "..")
	if out, err := cmd.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the programs: %v\n%s", err, out)
		return 1
	}
	binaries = dir
	return m.Run()
}

// tester is a run of the program.
type tester struct {
	t      *testing.T
	cmd    *exec.Cmd
	json   string
	stdout bytes.Buffer
	stderr bytes.Buffer
}

// start runs the program; args are split at spaces.
func start(t *testing.T, args string, more ...string) *tester {
	t.Helper()
	r := &tester{t: t, json: filepath.Join(t.TempDir(), "result.json")}
	r.cmd = exec.Command(filepath.Join(binaries, "loadtest"), slices.Concat(strings.Fields(args), more, []string{"--json", r.json})...)
	r.cmd.Stdout, r.cmd.Stderr = &r.stdout, &r.stderr
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.cmd.Process.Kill() })
	return r
}

// wait awaits its end with this exit status, and reads the result.
func (r *tester) wait(status int) tally.Result {
	r.t.Helper()
	err := r.cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		r.t.Fatal(err)
	}
	if got := r.cmd.ProcessState.ExitCode(); got != status {
		r.t.Fatalf("exit status %d, want %d\n%s\n%s", got, status, r.stdout.String(), r.stderr.String())
	}
	result, err := readResult(r.json)
	if err != nil {
		r.t.Fatalf("%v\n%s", err, r.stderr.String())
	}
	return result
}

// refused runs the program and returns what it complains of.
func refused(t *testing.T, program string, args ...string) string {
	t.Helper()
	out, err := exec.Command(program, args...).CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() == 99 {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

const patience = time.Minute

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(patience)
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("not within %s: %s", patience, what)
		case <-ticker.C:
		}
	}
}

// call calls a URL and returns its body; "" when nobody answers.
func call(t *testing.T, method, url string) string {
	t.Helper()
	request, err := http.NewRequestWithContext(context.WithoutCancel(t.Context()), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return ""
	}
	defer response.Body.Close()
	var body bytes.Buffer
	if _, err := body.ReadFrom(response.Body); err != nil || response.StatusCode/100 != 2 {
		t.Fatalf("%s %s: %d %v %s", method, url, response.StatusCode, err, body.String())
	}
	return body.String()
}

// free is an address that is free at the moment.
func free(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// lines writes a file with a line of each.
func lines(t *testing.T, all []string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "lines")
	if err := os.WriteFile(name, []byte(strings.Join(all, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// keyring gives each test keys that no other has.
type keyring struct{ keys []string }

func (k *keyring) take(t *testing.T, n int) string {
	t.Helper()
	if len(k.keys) < n {
		t.Fatal("not enough keys")
	}
	file := lines(t, k.keys[:n])
	k.keys = k.keys[n:]
	return file
}

// ends is how many connections ended for this reason.
func ends(r tally.Result, reason string) (n uint64) {
	for _, c := range r.Closes {
		if c.Reason == reason {
			n += c.Count
		}
	}
	return n
}
