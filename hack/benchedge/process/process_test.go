//go:build linux

package process

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestUsage(t *testing.T) {
	pid := os.Getpid()
	before, err := Usage(pid)
	if err != nil {
		t.Fatal(err)
	}
	const spent = 50 * time.Millisecond
	used := CPU{}
	for used.Run < spent || used.User == 0 {
		now, err := Usage(pid)
		if err != nil {
			t.Fatal(err)
		}
		used = now.Sub(before)
	}
	if share := used.UserShare(); share <= 0 || share > 1 {
		t.Errorf("user share %v", share)
	}
	if (CPU{}).UserShare() != 0 {
		t.Error("a share of nothing")
	}
}

func TestRSS(t *testing.T) {
	pid := os.Getpid()
	before, err := RSS(pid)
	if err != nil {
		t.Fatal(err)
	}
	memory := make([]byte, 64<<20)
	for i := 0; i < len(memory); i += 4096 {
		memory[i] = 1
	}
	after, err := RSS(pid)
	if err != nil {
		t.Fatal(err)
	}
	if grown := after - before; grown < 32<<20 {
		t.Errorf("64 MiB more were %d bytes", grown)
	}
	memory[0]++
}

func TestNoProcess(t *testing.T) {
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	if _, err := Usage(cmd.Process.Pid); err == nil {
		t.Error("usage of a process that is gone")
	}
	if _, err := RSS(cmd.Process.Pid); err == nil {
		t.Error("memory of a process that is gone")
	}
	if Pin(cmd.Process.Pid, 0) == nil {
		t.Error("pinned a process that is gone")
	}
}

// TestPin leaves this test process on one core.
func TestPin(t *testing.T) {
	cores, err := Cores()
	if err != nil || len(cores) == 0 {
		t.Fatalf("cores %v, %v", cores, err)
	}
	last := cores[len(cores)-1]
	if err := Pin(0, last); err != nil {
		t.Fatal(err)
	}
	if now, err := Cores(); err != nil || len(now) != 1 || now[0] != last {
		t.Errorf("cores %v, %v", now, err)
	}
}

func TestLower(t *testing.T) {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		before, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
		if err == nil {
			err = Lower()
		}
		if after, _ := unix.Getpriority(unix.PRIO_PROCESS, 0); err == nil && after >= before && after > 1 {
			err = fmt.Errorf("priority %d, before %d", after, before)
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
