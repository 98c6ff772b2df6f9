package lease

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The test binary runs itself as a holder, to be paused and killed.
const addressVariable = "LEASE_TEST_REDIS"

func init() {
	if address := os.Getenv(addressVariable); address != "" {
		holdFor(address)
	}
}

// holdFor prints "leads <epoch>", "proven false" and "proven true", and "told
// <cause>", until it is killed.
func holdFor(address string) {
	c := quick
	c.Name, c.Holder, c.Done = "stocks", "child", func(error) {}
	l, err := New(c, at(address), slog.New(slog.DiscardHandler))
	if err != nil {
		panic(err)
	}
	err = l.Run(context.Background(), func(ctx context.Context, epoch uint64, proof *Proof) error {
		fmt.Println("leads", epoch)
		watchProof(ctx, proof, func(proven bool) { fmt.Println("proven", proven) })
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

// await reads until a line that begins with a text.
func (c *child) await(text string) {
	c.Helper()
	for c.lines.Scan() {
		if strings.HasPrefix(c.lines.Text(), text) {
			return
		}
	}
	c.Fatalf("the process ended before %q: %v", text, c.lines.Err())
}

func (c *child) signal(s syscall.Signal) {
	if err := c.command.Process.Signal(s); err != nil {
		c.Error(err)
	}
}

// A process that stood still for longer than the TTL knows at once that it has no
// proof, hears that the lease is another's, and can have it again.
func TestProcessStandsStill(t *testing.T) {
	t.Parallel()
	a, s := newArena(t), startUsed(t)
	c := startChild(t, s.Address)
	c.await("leads")
	c.signal(syscall.SIGSTOP)
	y := a.join("y", quick, s.Address)
	a.await("y leads")
	c.signal(syscall.SIGCONT)
	begun := time.Now()
	c.await("proven false")
	c.await("told " + ErrTaken.Error())
	if took := time.Since(begun); took > quick.Margin {
		t.Errorf("told after %v", took)
	}
	y.end()
	c.await("leads")
}

func TestProcessKilled(t *testing.T) {
	t.Parallel()
	a, s := newArena(t), startUsed(t)
	c := startChild(t, s.Address)
	c.await("leads")
	y := a.join("y", quick, s.Address)
	c.signal(syscall.SIGKILL)
	begun := time.Now()
	a.await("y leads")
	if took := time.Since(begun); took < quick.TTL/2 || took > quick.TTL+500*time.Millisecond {
		t.Errorf("the next one has the lease after %v", took)
	}
	y.end()
}
