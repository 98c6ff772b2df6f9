package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cutemarkets/relay/hack/cluster"
)

// binaries is the folder of the programs under test.
var binaries string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if err := os.Setenv("GORACE", "atexit_sleep_ms=0 "+os.Getenv("GORACE")); err != nil { // else each program sleeps 1 s as it ends
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	dir, err := os.MkdirTemp("", "relay-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := build(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	binaries = dir
	return m.Run()
}

// build compiles the programs, with the race detector if this test has it.
func build(dir string) error {
	args := []string{"build", "-o", dir + "/"}
	if raceEnabled {
		args = append(args, "-race")
	}
	args = append(args, "./services/auth/cmd/auth", "./services/fanout/cmd/fanout", "./services/edge/cmd/edge",
		"./hack/feedsim/cmd/feedsim", "./hack/e2e/clients/go")
	cmd := exec.Command("go", args...)
	cmd.Dir = filepath.Join("..", "..")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the programs: %w\n%s", err, out)
	}
	return nil
}

// startRedis runs a real redis-server until the test ends. stop ends it at once,
// start brings it back on the same port, empty.
func startRedis(t *testing.T) (address string, stop, start func()) {
	t.Helper()
	binary, err := exec.LookPath("redis-server")
	if err != nil {
		t.Fatal("redis-server is not installed: run `make deps`")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address = l.Addr().String()
	_, port, _ := net.SplitHostPort(address)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	var server *exec.Cmd
	start = func() {
		t.Helper()
		server = exec.Command(binary, "--port", port, "--bind", "127.0.0.1", "--save", "", "--dir", t.TempDir())
		if err := server.Start(); err != nil {
			t.Fatalf("start redis-server: %v", err)
		}
		client := redis.NewClient(&redis.Options{Addr: address})
		defer func() { _ = client.Close() }()
		eventually(t, "redis-server answers", func() bool { return client.Ping(t.Context()).Err() == nil })
	}
	stop = func() {
		if server == nil {
			return
		}
		_ = server.Process.Kill()
		_ = server.Wait()
		server = nil
	}
	start()
	t.Cleanup(func() { stop() })
	return address, stop, start
}

// startCluster runs a cluster of real processes until the test ends. It fails
// the test if a part ends by itself.
func startCluster(t *testing.T, o cluster.Options) *cluster.Cluster {
	t.Helper()
	o.Processes, o.Binaries, o.Dir = true, binaries, t.TempDir()
	if o.Edges == 0 {
		o.Edges = 2
	}
	if o.Fanouts == 0 {
		o.Fanouts = 1
	}
	if o.Rate == 0 {
		o.Rate = 200
	}
	if o.LogLevel == "" {
		o.LogLevel = "debug"
	}
	c, err := cluster.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := c.Stop(ctx); err != nil {
			t.Errorf("stop the cluster: %v", err)
		}
		select {
		case err := <-c.Failed():
			t.Errorf("a part failed: %v", err)
		default:
		}
		if t.Failed() {
			logs, _ := filepath.Glob(filepath.Join(o.Dir, "*.log"))
			for _, l := range logs {
				tail(t, l)
			}
		}
	})
	return c
}

// tail shows the end of a part's log when a test has failed.
func tail(t *testing.T, path string) {
	const most = 1500
	text, err := os.ReadFile(path)
	if err != nil {
		t.Log(err)
		return
	}
	if len(text) > most {
		text = text[len(text)-most:]
	}
	t.Logf("%s:\n%s", filepath.Base(path), text)
}

var userNumber atomic.Int64

// newUser makes a user of its own, so that tests do not meet at the lock, nor a
// test the users of its cluster.
func newUser(t *testing.T, c *cluster.Cluster, product, plan string) (user, key string) {
	t.Helper()
	user = fmt.Sprintf("test-%d", userNumber.Add(1))
	key, err := c.User(t.Context(), user, product, plan)
	if err != nil {
		t.Fatal(err)
	}
	return user, key
}

func expert(t *testing.T, c *cluster.Cluster, product string) string {
	t.Helper()
	_, key := newUser(t, c, product, "expert")
	return key
}

// keyOf makes a further key of a user.
func keyOf(t *testing.T, c *cluster.Cluster, user, product, plan string) string {
	t.Helper()
	key, err := c.User(t.Context(), user, product, plan)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", patience, what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// post calls feedsim's control API.
func post(t *testing.T, url string) { call(t, http.MethodPost, url) }

// get returns the body of a page.
func get(t *testing.T, url string) string { return call(t, http.MethodGet, url) }

func call(t *testing.T, method, url string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	if res.StatusCode/100 != 2 {
		t.Fatalf("%s %s: status %d: %s", method, url, res.StatusCode, body)
	}
	return string(body)
}

type service struct {
	Status    string   `json:"status"`
	LatencyMS *float64 `json:"latency_ms"`
}

type statusPage struct {
	Status    string             `json:"status"`
	RequestID string             `json:"request_id"`
	Services  map[string]service `json:"services"`
}

func status(t *testing.T, edge string) statusPage {
	t.Helper()
	var page statusPage
	if err := json.Unmarshal([]byte(get(t, "http://"+host(edge)+"/v1/status/")), &page); err != nil {
		t.Fatal(err)
	}
	return page
}

func contains(list []string, part string) bool {
	for _, s := range list {
		if strings.Contains(s, part) {
			return true
		}
	}
	return false
}
