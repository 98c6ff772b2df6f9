// Package redistest gives tests a real redis-server, and a proxy that makes the way
// to it fail.
//
// A proxy has one goroutine that accepts, and two per connection; a server one
// that reads its log. All end with the test.
package redistest

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// The ports of servers: below those that Linux gives to connections, as is that
// of a Cluster's node for other nodes, 10,000 above.
const (
	firstPort = 20000
	ports     = 2700
)

// Server is a redis-server, which writes nothing to disk.
type Server struct {
	// Static after construction.
	Address string
	t       testing.TB
	args    []string

	// Owned by the test; not thread-safe.
	command *exec.Cmd
}

// Start starts a redis-server until the test ends. Its port is not one of those
// that the system gives to connections, so it is free again for Restart.
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	dir := t.TempDir()
	var err error
	for range 10 {
		port := strconv.Itoa(firstPort + rand.IntN(ports))
		s := &Server{t: t, Address: net.JoinHostPort("127.0.0.1", port)}
		s.args = append([]string{"--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", dir}, args...)
		if err = s.start(); err == nil {
			t.Cleanup(s.Kill)
			return s
		}
	}
	t.Fatal(err)
	return nil
}

// Restart starts the server after Kill, with nothing in it, and waits until it
// serves.
func (s *Server) Restart() {
	s.t.Helper()
	if err := s.start(); err != nil {
		s.t.Fatal(err)
	}
}

func (s *Server) start() error {
	binary, err := exec.LookPath("redis-server")
	if err != nil {
		return fmt.Errorf("redis-server (7.0 or later) is not installed: run `make deps`: %w", err)
	}
	s.command = exec.Command(binary, s.args...)
	out, err := s.command.StdoutPipe()
	if err != nil {
		return err
	}
	if err := s.command.Start(); err != nil {
		return err
	}
	ready := make(chan error, 1)
	go func() {
		var log strings.Builder
		for lines := bufio.NewScanner(out); lines.Scan(); {
			log.WriteString(lines.Text() + "\n")
			if strings.Contains(lines.Text(), "Ready to accept connections") {
				ready <- nil
				_, _ = io.Copy(io.Discard, out)
				return
			}
		}
		ready <- fmt.Errorf("redis-server did not start:\n%s", log.String())
	}()
	if err := <-ready; err != nil {
		s.Kill()
		return err
	}
	return nil
}

// Kill ends the server at once.
func (s *Server) Kill() {
	_ = s.command.Process.Kill()
	_ = s.command.Wait()
}

// Signal sends the server a signal.
func (s *Server) Signal(signal syscall.Signal) {
	if err := s.command.Process.Signal(signal); err != nil {
		s.t.Error(err)
	}
}

// Cluster makes a Cluster of one node of a server that was started with
// --cluster-enabled yes.
func (s *Server) Cluster() {
	s.t.Helper()
	look := Client(s.t, s.Address)
	if err := look.ClusterAddSlotsRange(s.t.Context(), 0, 16383).Err(); err != nil {
		s.t.Fatal(err)
	}
	Eventually(s.t, "the Cluster is whole", func() bool {
		return strings.HasPrefix(look.ClusterInfo(s.t.Context()).Val(), "cluster_state:ok")
	})
}

// RunID is what tells this process of the server from others.
func (s *Server) RunID() string {
	s.t.Helper()
	id, err := Client(s.t, s.Address).Eval(s.t.Context(), `return string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')`, nil).Text()
	if err != nil {
		s.t.Fatal(err)
	}
	return id
}

// Client is a client for looking at Redis from outside, until the test ends.
func Client(t testing.TB, address string) *redis.Client {
	c := redis.NewClient(&redis.Options{Addr: address})
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// Eventually waits until ok holds, looking every 5 ms.
func Eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never happened: %s", what)
		}
	}
}
