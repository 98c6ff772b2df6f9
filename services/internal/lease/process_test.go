package lease

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.opentelemetry.io/otel/metric/noop"
)

// The test binary runs itself as a holder, to be paused and killed.
const addressVariable = "LEASE_TEST_REDIS"

func init() {
	if address := os.Getenv(addressVariable); address != "" {
		holdFor(address)
	}
}

// holdFor prints "leads <epoch>", "valid <ns>" as often as it can, with the time
// before it asked, and "told <cause>", until it is killed.
func holdFor(address string) {
	c := quick
	c.Name, c.Holder = "stocks", "child"
	l, err := New(c, redis.NewUniversalClient(options(address)), noop.Meter{}, slog.New(slog.DiscardHandler))
	if err != nil {
		panic(err)
	}
	err = l.Run(context.Background(), func(ctx context.Context, epoch uint64) error {
		fmt.Println("leads", epoch)
		for ctx.Err() == nil {
			if now := time.Now(); l.Valid() {
				fmt.Println("valid", now.UnixNano())
			}
			time.Sleep(time.Millisecond)
		}
		fmt.Println("told", context.Cause(ctx))
		return nil
	})
	panic(err)
}

// child is such a holder.
type child struct {
	testing.TB
	command *exec.Cmd
	lines   *bufio.Scanner
	valid   int64 // the last time it told
}

func startChild(t testing.TB, address string) *child {
	t.Helper()
	c := &child{TB: t, command: exec.Command(os.Args[0], "-test.run=^$")}
	c.command.Env = append(os.Environ(), addressVariable+"="+address)
	out, err := c.command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.lines = bufio.NewScanner(out)
	if err := c.command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.command.Process.Kill()
		_ = c.command.Wait()
	})
	return c
}

// await reads until a line that begins with a word.
func (c *child) await(word string) {
	c.Helper()
	for c.lines.Scan() {
		kind, rest, _ := strings.Cut(c.lines.Text(), " ")
		if kind == "valid" {
			c.valid, _ = strconv.ParseInt(rest, 10, 64)
		}
		if kind == word {
			return
		}
	}
	c.Fatalf("the process ended before %q: %v", word, c.lines.Err())
}

func (c *child) signal(s syscall.Signal) {
	if err := c.command.Process.Signal(s); err != nil {
		c.Error(err)
	}
}

// A process that stood still for longer than the TTL knows at once that it holds
// the lease no more.
func TestProcessStandsStill(t *testing.T) {
	t.Parallel()
	a, s := newArena(t), startRedis(t)
	s.client()
	c := startChild(t, s.address)
	c.await("valid")
	c.signal(syscall.SIGSTOP)
	y := a.join("y", quick, s.client())
	a.await("y leads")
	taken := time.Now()
	c.signal(syscall.SIGCONT)
	c.await("told")
	if c.valid >= taken.UnixNano() {
		t.Errorf("valid %v after another had it", time.Unix(0, c.valid).Sub(taken))
	}
	y.end()
	c.await("leads")
}

func TestProcessKilled(t *testing.T) {
	t.Parallel()
	a, s := newArena(t), startRedis(t)
	s.client()
	c := startChild(t, s.address)
	c.await("valid")
	y := a.join("y", quick, s.client())
	c.signal(syscall.SIGKILL)
	begun := time.Now()
	a.await("y leads")
	if took := time.Since(begun); took < quick.TTL/2 || took > quick.TTL+500*time.Millisecond {
		t.Errorf("the next one has the lease after %v", took)
	}
	y.end()
}
