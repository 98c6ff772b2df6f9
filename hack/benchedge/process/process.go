//go:build linux

// Package process reads what a process has used of the machine, and says on
// which core it may run. It starts no goroutine and holds nothing.
package process

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// CPU is processor time.
type CPU struct {
	Run    time.Duration // of all threads, exact
	Wait   time.Duration // all threads together, ready to run while others ran
	User   time.Duration // in the code of the process, by clock ticks
	System time.Duration // in the kernel, by clock ticks
}

// Sub returns what was used since an earlier time.
func (c CPU) Sub(earlier CPU) CPU {
	return CPU{Run: c.Run - earlier.Run, Wait: c.Wait - earlier.Wait, User: c.User - earlier.User, System: c.System - earlier.System}
}

// UserShare is the part of the time that was spent in the code of the process,
// 0 to 1.
func (c CPU) UserShare() float64 {
	if c.User+c.System == 0 {
		return 0
	}
	return float64(c.User) / float64(c.User+c.System)
}

// tick is the unit of /proc/PID/stat on every architecture of Linux.
const tick = 10 * time.Millisecond

// Usage returns what a process has used since its start. Threads that have
// ended no longer count in Run and Wait.
func Usage(pid int) (CPU, error) {
	var c CPU
	tasks, err := tasks(pid)
	if err != nil {
		return c, err
	}
	for _, task := range tasks {
		b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "task", strconv.Itoa(task), "schedstat"))
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // ended meanwhile
		}
		if err != nil {
			return c, fmt.Errorf("process: %w", err)
		}
		var run, wait time.Duration
		if _, err := fmt.Sscan(string(b), &run, &wait); err != nil {
			return c, fmt.Errorf("process: schedstat: %w", err)
		}
		c.Run += run
		c.Wait += wait
	}
	c.User, c.System, err = ticks(pid)
	return c, err
}

// ticks reads the fields 14 and 15 of /proc/PID/stat; the second, a name in
// parentheses, may have spaces.
func ticks(pid int) (user, system time.Duration, err error) {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return 0, 0, fmt.Errorf("process: %w", err)
	}
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	const utime, stime = 11, 12 // behind the name
	if len(fields) <= stime {
		return 0, 0, errors.New("process: /proc/PID/stat is too short")
	}
	u, err := strconv.ParseInt(string(fields[utime]), 10, 64)
	if err != nil {
		return 0, 0, fmt.Errorf("process: stat: %w", err)
	}
	k, err := strconv.ParseInt(string(fields[stime]), 10, 64)
	if err != nil {
		return 0, 0, fmt.Errorf("process: stat: %w", err)
	}
	return time.Duration(u) * tick, time.Duration(k) * tick, nil
}

// RSS returns the resident memory of a process, in bytes.
func RSS(pid int) (int64, error) {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "smaps_rollup"))
	if err != nil {
		return 0, fmt.Errorf("process: %w", err)
	}
	for line := range bytes.Lines(b) {
		rest, found := bytes.CutPrefix(line, []byte("Rss:"))
		if fields := bytes.Fields(rest); found && len(fields) == 2 {
			kib, err := strconv.ParseInt(string(fields[0]), 10, 64)
			return kib << 10, err
		}
	}
	return 0, errors.New("process: smaps_rollup has no Rss")
}

// Pin binds all threads of a process, and those they will start, to a core; pid
// 0 is this process.
func Pin(pid, core int) error {
	if pid == 0 {
		pid = os.Getpid()
	}
	var set unix.CPUSet
	set.Set(core)
	pinned := map[int]bool{}
	for {
		tasks, err := tasks(pid)
		if err != nil {
			return err
		}
		before := len(pinned)
		for _, task := range tasks {
			if pinned[task] {
				continue
			}
			if err := unix.SchedSetaffinity(task, &set); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("process: pin to core %d: %w", core, err)
			}
			pinned[task] = true
		}
		if len(pinned) == before {
			return nil
		}
	}
}

// Lower makes the calling thread give way to the others of its core as soon as
// they have something to do.
func Lower() error {
	const step = 10
	raw, err := unix.Getpriority(unix.PRIO_PROCESS, 0) // 20 less the niceness
	if err == nil {
		err = unix.Setpriority(unix.PRIO_PROCESS, 0, 20-raw+step)
	}
	if err != nil {
		return fmt.Errorf("process: lower the priority: %w", err)
	}
	return nil
}

// Cores returns the cores on which this process may run.
func Cores() ([]int, error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil, fmt.Errorf("process: cores: %w", err)
	}
	var cores []int
	for core := range len(set) * strconv.IntSize {
		if set.IsSet(core) {
			cores = append(cores, core)
		}
	}
	return cores, nil
}

func tasks(pid int) ([]int, error) {
	entries, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(pid), "task"))
	if err != nil {
		return nil, fmt.Errorf("process: %w", err)
	}
	tasks := make([]int, 0, len(entries))
	for _, e := range entries {
		task, err := strconv.Atoi(e.Name())
		if err != nil {
			return nil, fmt.Errorf("process: task: %w", err)
		}
		tasks = append(tasks, task)
	}
	return tasks, nil
}
