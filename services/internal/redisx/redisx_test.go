package redisx

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"github.com/cutemarkets/relay/services/internal/redisx/redistest"
)

// A pool of go-redis that could not dial looks after a second whether it is closed.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/redis/go-redis/v9/internal/pool.(*ConnPool).tryDial"))
}

func TestOptions(t *testing.T) {
	for name, o := range map[string]Options{
		"no address":        {},
		"CA without TLS":    {Address: []string{"a:1"}, TLSCAFile: "x"},
		"user, no password": {Address: []string{"a:1"}, Username: "u"},
		"no password file":  {Address: []string{"a:1"}, PasswordFile: "/nonexistent"},
		"no CA file":        {Address: []string{"a:1"}, TLS: true, TLSCAFile: "/nonexistent"},
	} {
		if _, err := NewClient(o, Config{Timeout: time.Second}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestGenerations(t *testing.T) {
	g := generations{runs: map[string]string{}}
	for n, in := range []struct {
		server, run string
		want        bool
	}{
		{"", "a", false}, {"", "a", false}, {"", "b", true}, {"", "", false}, {"", "b", false}, {"", "a", true},
		{"host:1", "c", false}, {"host:2", "d", false}, {"host:1", "c", false}, {"host:2", "e", true},
	} {
		before := g.changes.Load()
		if got := g.changed(in.server, in.run); got != in.want || got != (g.changes.Load() > before) {
			t.Errorf("step %d: %q at %q changes the generation: %v", n, in.run, in.server, got)
		}
	}
}

func TestRunOf(t *testing.T) {
	for info, want := range map[string]string{
		"# Server\r\nredis_version:7.0.15\r\nredis_mode:standalone\r\nrun_id:0a1b\r\ntcp_port:6379\r\n": "0a1b",
		"redis_mode:cluster\r\nrun_id:0a1b\r\n":                                                         "0a1b",
		"redis_mode:sentinel\r\nrun_id:0a1b\r\n":                                                        "",
		"run_id:0a1b\r\nredis_mode:sentinel\r\n":                                                        "",
		"redis_version:7.0.15\r\nredis_mode:standalone\r\n":                                             "",
		"": "",
	} {
		if got := runOf(info); got != want {
			t.Errorf("runOf(%q) = %q, want %q", info, got, want)
		}
	}
}

func connect(t *testing.T, o Options) *Client {
	t.Helper()
	c, err := NewClient(o, Config{Name: "relay-test", Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// A server that is another process than before is noticed before it is used.
func TestNewGeneration(t *testing.T) {
	server := redistest.Start(t)
	c := connect(t, Options{Address: []string{server.Address}})
	if err := c.Reach(t.Context()); err != nil || c.Generation() != 0 {
		t.Fatalf("generation %d, %v", c.Generation(), err)
	}
	before := c.OfGeneration(t.Context())
	server.Kill()
	server.Restart()
	var err error
	redistest.Eventually(t, "the new process is noticed", func() bool {
		err = c.Set(t.Context(), "key", 1, 0).Err()
		return c.Generation() == 1
	})
	if !errors.Is(err, ErrGeneration) || !Refused(err) {
		t.Errorf("the command that noticed it: %v", err)
	}
	if err := c.Set(before, "key", 1, 0).Err(); !errors.Is(err, ErrGeneration) {
		t.Errorf("a command of the generation before: %v", err)
	}
	if n := redistest.Client(t, server.Address).Exists(t.Context(), "key").Val(); n != 0 {
		t.Error("it was carried out")
	}
	if err := c.Set(c.OfGeneration(t.Context()), "key", 1, 0).Err(); err != nil {
		t.Errorf("the next command: %v", err)
	}
}

// The nodes of a Cluster are told apart.
func TestCluster(t *testing.T) {
	server := redistest.Start(t, "--cluster-enabled", "yes")
	server.Cluster()
	c := connect(t, Options{Address: []string{server.Address, server.Address}})
	if err := c.Reach(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.generations.mu.Lock()
	defer c.generations.mu.Unlock()
	if c.generations.runs[server.Address] == "" || c.Generation() != 0 {
		t.Fatalf("run ids %v, generation %d", c.generations.runs, c.Generation())
	}
}

// Where INFO is not permitted all generations are alike.
func TestWithoutInfo(t *testing.T) {
	server := redistest.Start(t)
	admin := redistest.Client(t, server.Address)
	if err := admin.ACLSetUser(t.Context(), "relay", "on", ">s3cret", "~*", "-@all", "+ping", "+hello", "+client|setname").Err(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte("s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := connect(t, Options{Address: []string{server.Address}, Username: "relay", PasswordFile: file})
	if err := c.Reach(t.Context()); err != nil || c.Generation() != 0 {
		t.Fatalf("generation %d, %v", c.Generation(), err)
	}
	if err := c.Get(t.Context(), "key").Err(); !Refused(err) {
		t.Errorf("a command that is not permitted: %v", err)
	}
}

func TestRefused(t *testing.T) {
	server := redistest.Start(t)
	p := redistest.NewProxy(t, server.Address)
	c := connect(t, Options{Address: []string{p.Address}})
	p.CutAfter("KEY", 1)
	if err := c.Set(t.Context(), "key", 1, 0).Err(); err == nil || Refused(err) {
		t.Errorf("a reply that is lost: %v", err)
	}
	p.Close()
	redistest.Eventually(t, "nobody listens", func() bool { return errors.Is(c.Ping(t.Context()).Err(), syscall.ECONNREFUSED) })
	if err := c.Ping(t.Context()).Err(); !Refused(err) {
		t.Errorf("nobody listens: %v", err)
	}
	_ = c.Close()
	if err := c.Ping(t.Context()).Err(); !Refused(err) {
		t.Errorf("a client that is closed: %v", err)
	}
	for err, want := range map[error]bool{
		redis.Nil:                true,
		redis.ErrPoolTimeout:     true,
		io.EOF:                   false,
		context.DeadlineExceeded: false,
		&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}: true,
		&net.OpError{Op: "read", Err: syscall.ECONNRESET}:   false,
	} {
		if Refused(err) != want {
			t.Errorf("Refused(%v) = %v", err, !want)
		}
	}
}
