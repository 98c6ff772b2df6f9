package lifecycle

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// What ends a process is tested on one: the test binary runs itself with a role.
const roleVariable = "LIFECYCLE_TEST_ROLE"

type coded struct{}

func (coded) Error() string { return "wrong flag" }
func (coded) ExitCode() int { return 2 }

func init() {
	switch os.Getenv(roleVariable) {
	case "go panics":
		Go("the root", func() { panic("canary") })
		select {}
	case "part panics":
		g := NewGroup(slog.New(slog.DiscardHandler))
		g.Add("the root", func(context.Context) error { panic(errors.New("canary")) })
		_ = g.Run(context.Background())
		select {}
	case "main fails":
		os.Exit(Main("relay-test", func(context.Context) error { return errors.New("canary") }))
	case "main misused":
		os.Exit(Main("relay-test", func(context.Context) error { return fmt.Errorf("parse: %w", coded{}) }))
	case "main stops":
		os.Exit(Main("relay-test", func(ctx context.Context) error {
			fmt.Println("ready")
			<-ctx.Done()
			return nil
		}))
	case "main hangs":
		os.Exit(Main("relay-test", func(ctx context.Context) error {
			fmt.Println("ready")
			<-ctx.Done()
			fmt.Println("stopping")
			select {}
		}))
	}
}

// child runs this binary in a role; line is called with each line it prints.
func child(t *testing.T, role string, line func(p *os.Process, text string)) (*os.ProcessState, string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), roleVariable+"="+role)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		line(cmd.Process, lines.Text())
	}
	_ = cmd.Wait() // The state tells more.
	return cmd.ProcessState, stderr.String()
}

func silent(*os.Process, string) {}

func TestPanicIsLoggedAndRaised(t *testing.T) {
	for _, role := range []string{"go panics", "part panics"} {
		t.Run(role, func(t *testing.T) {
			state, stderr := child(t, role, silent)
			if state.Success() {
				t.Fatal("the process survived")
			}
			logged, raised, _ := strings.Cut(stderr, "\n")
			var record struct{ Level, Msg, Component, Goroutine, Panic, Build, Stack string }
			if err := json.Unmarshal([]byte(logged), &record); err != nil {
				t.Fatalf("%v in %s", err, stderr)
			}
			if record.Level != "ERROR" || record.Msg != "panic" || record.Component != "lifecycle" || record.Goroutine != "the root" || record.Panic != "canary" {
				t.Errorf("record %+v", record)
			}
			if !strings.Contains(record.Stack, "process_test.go") {
				t.Errorf("the stack does not show where it happened: %s", record.Stack)
			}
			if !strings.Contains(record.Build, "go1.") {
				t.Errorf("build %q", record.Build)
			}
			if !strings.Contains(raised, "panic: ") || !strings.Contains(raised, "canary") {
				t.Errorf("not raised again: %s", raised)
			}
		})
	}
}

func TestCrash(t *testing.T) {
	var buf bytes.Buffer
	raised := func() (v any) {
		defer func() { v = recover() }()
		func() {
			defer Crash(slog.New(slog.NewTextHandler(&buf, nil)), "/auth.v1/X")
			panic("canary")
		}()
		return nil
	}()
	if raised != "canary" {
		t.Errorf("raised %v", raised)
	}
	if s := buf.String(); !strings.Contains(s, "goroutine=/auth.v1/X panic=canary") {
		t.Errorf("logged %s", s)
	}
	buf.Reset()
	func() { defer Crash(slog.New(slog.NewTextHandler(&buf, nil)), "quiet") }()
	if buf.Len() > 0 {
		t.Errorf("logged without a panic: %s", buf.String())
	}
}

func TestMainStatus(t *testing.T) {
	for role, want := range map[string]struct {
		status int
		stderr string
	}{
		"main fails":   {1, "relay-test: canary\n"},
		"main misused": {2, "relay-test: parse: wrong flag\n"},
	} {
		state, stderr := child(t, role, silent)
		if state.ExitCode() != want.status || stderr != want.stderr {
			t.Errorf("%s: status %d, %q", role, state.ExitCode(), stderr)
		}
	}
}

func TestFirstSignalStops(t *testing.T) {
	for _, sig := range []os.Signal{syscall.SIGINT, syscall.SIGTERM} {
		state, stderr := child(t, "main stops", func(p *os.Process, _ string) {
			if err := p.Signal(sig); err != nil {
				t.Error(err)
			}
		})
		if !state.Success() {
			t.Errorf("%v: %v, %s", sig, state, stderr)
		}
	}
}

func TestSecondSignalEndsAtOnce(t *testing.T) {
	state, _ := child(t, "main hangs", func(p *os.Process, _ string) {
		if err := p.Signal(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
	})
	if status, ok := state.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGTERM {
		t.Errorf("the process ended with %v", state)
	}
}
