package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cutemarkets/relay/hack/cluster"
)

// TestPrograms runs programs of others, unchanged, against a relay: the vendor's
// JavaScript SDK, wscat and a browser. All print or post the frames they get.
func TestPrograms(t *testing.T) {
	t.Parallel()
	npm := exec.CommandContext(t.Context(), "npm", "install", "--prefix", "sdk", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
	if out, err := npm.CombinedOutput(); err != nil {
		t.Fatalf("install the vendor's SDK and wscat (see `make deps`): %v\n%s", err, out)
	}
	address, _, _ := startRedis(t)
	c := startCluster(t, cluster.Options{Redis: address})
	edge := c.Info().Edges[0]
	t.Run("the vendor's JavaScript SDK, given another base URL", func(t *testing.T) {
		t.Parallel()
		for _, market := range []string{"stocks", "options"} {
			received(t, market, program(t, "node", "sdk/client.mjs", edge+"/v1/ws", market, expert(t, c, market), "T.*,AM.*"))
		}
	})
	t.Run("the vendor's JavaScript SDK with a bad key", func(t *testing.T) {
		t.Parallel()
		frame := program(t, "node", "sdk/client.mjs", edge+"/v1/ws", "stocks", "cm_nobodyskey", "T.*")
		for _, want := range []string{connected, `"status":"auth_failed"`, "closed: 4401 invalid API key"} {
			if got := frame(); !strings.Contains(got, want) {
				t.Fatalf("got %s, want %s", got, want)
			}
		}
	})
	t.Run("wscat, by header", func(t *testing.T) {
		t.Parallel()
		received(t, "wscat", program(t, "sdk/node_modules/.bin/wscat", "--connect", edge+"/v1/ws/stocks/", "--header", bearer(expert(t, c, "stocks")),
			"--execute", `{"action":"subscribe","params":"T.*,AM.*"}`, "--wait=-1"))
	})
	t.Run("a page in a browser, by api_key", func(t *testing.T) {
		t.Parallel()
		received(t, "browser", browse(t, edge+"/v1/ws/stocks/?api_key="+url.QueryEscape(expert(t, c, "stocks")), "T.*,AM.*"))
	})
}

// program starts a program, with an input that stays open, and returns its
// lines, one at a call.
func program(t *testing.T, name string, args ...string) (line func() string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	var errs strings.Builder
	cmd.Stderr = &errs
	lines := make(chan string)
	start(t, cmd)
	go func() {
		defer close(lines)
		for scanner := bufio.NewScanner(out); scanner.Scan(); {
			select {
			case lines <- scanner.Text():
			case <-t.Context().Done():
				return
			}
		}
	}()
	return func() string {
		t.Helper()
		select {
		case text, more := <-lines:
			if !more {
				t.Fatalf("%s ended: %s", name, errs.String())
			}
			return text
		case <-time.After(patience):
			t.Fatalf("%s printed nothing more in %s", name, patience)
			return ""
		}
	}
}

// start starts a program and stops it and its children when the test ends.
func start(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start (see `make deps`): %v", err)
	}
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
	})
}

// received expects the greeting, the acceptance, the acknowledgement and then an
// event, each in a frame of its own.
func received(t *testing.T, who string, frame func() string) {
	t.Helper()
	const success = `{"ev":"status","status":"success","message":"subscribed to: `
	acknowledged := "[" + success + `T.*"},` + success + `AM.*"}]`
	for _, want := range []string{connected, authenticated, acknowledged} {
		if got := frame(); got != want {
			t.Fatalf("%s: got  %s\nwant %s", who, got, want)
		}
	}
	for {
		switch got := frame(); {
		case got == acknowledged:
		case strings.HasPrefix(got, `[{"ev":"T",`), strings.HasPrefix(got, `[{"ev":"AM",`):
			return
		default:
			t.Fatalf("%s: got %s, want an event", who, got)
		}
	}
}

// browse opens a page in headless Chromium that streams, and returns what it gets.
func browse(t *testing.T, stream, topics string) (frame func() string) {
	t.Helper()
	frames := make(chan string, 1024)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /", func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, "sdk/page.html") })
	mux.HandleFunc("POST /", func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if r.URL.Path != "/frame" {
			body = fmt.Appendf(nil, "%s: %s", r.URL.Path, body)
		}
		if err != nil {
			body = []byte(err.Error())
		}
		select {
		case frames <- string(body):
		default: // nobody reads any more
		}
	})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	profile, err := os.MkdirTemp("", "relay-e2e-browser-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(profile) })
	page := server.URL + "/?" + url.Values{"stream": {stream}, "topics": {topics}}.Encode()
	cmd := exec.CommandContext(t.Context(), "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
		"--disable-background-networking", "--disable-component-update", "--disable-sync", "--user-data-dir="+profile, page)
	log, err := os.Create(filepath.Join(t.TempDir(), "chromium.log"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = log.Close() })
	cmd.Stdout, cmd.Stderr = log, log
	start(t, cmd)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return func() string {
		t.Helper()
		select {
		case text := <-frames:
			return text
		case <-ctx.Done():
			tail(t, log.Name())
			t.Fatal("the browser sent nothing more")
			return ""
		}
	}
}
