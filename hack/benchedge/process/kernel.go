//go:build linux

package process

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
)

// Kernel is what the kernel holds for the TCP sockets of the whole machine, in
// bytes.
type Kernel struct {
	Buffers int64 // what is on its way, and what is set aside for it
	Objects int64 // of the sockets themselves and of their epoll entries; -1: the system does not tell
}

// objects are the kernel's names of what a socket is made of.
var objects = []string{"TCP", "TCPv6", "sock_inode_cache", "filp", "eventpoll_epi", "eventpoll_pwq"}

// KernelTCP reads what the kernel holds.
func KernelTCP() (Kernel, error) {
	var k Kernel
	b, err := os.ReadFile("/proc/net/sockstat")
	if err != nil {
		return k, fmt.Errorf("process: %w", err)
	}
	if k.Buffers, err = tcpPages(b); err != nil {
		return k, err
	}
	k.Buffers *= int64(os.Getpagesize())
	b, err = os.ReadFile("/proc/slabinfo")
	switch {
	case errors.Is(err, fs.ErrPermission), errors.Is(err, fs.ErrNotExist):
		k.Objects = -1
		return k, nil
	case err != nil:
		return k, fmt.Errorf("process: %w", err)
	}
	k.Objects, err = slabs(b)
	return k, err
}

// tcpPages finds the memory in /proc/net/sockstat: "TCP: inuse 1 … mem 3".
func tcpPages(sockstat []byte) (int64, error) {
	for line := range bytes.Lines(sockstat) {
		fields := bytes.Fields(line)
		i := slices.IndexFunc(fields, func(f []byte) bool { return string(f) == "mem" })
		if len(fields) > 0 && string(fields[0]) == "TCP:" && i > 0 && i+1 < len(fields) {
			return strconv.ParseInt(string(fields[i+1]), 10, 64)
		}
	}
	return 0, fmt.Errorf("process: /proc/net/sockstat has no memory of TCP")
}

// slabs adds up the live objects of /proc/slabinfo: name, live objects, all
// objects, bytes of one.
func slabs(slabinfo []byte) (int64, error) {
	sum := int64(0)
	for line := range bytes.Lines(slabinfo) {
		fields := bytes.Fields(line)
		if len(fields) < 4 || !slices.Contains(objects, string(fields[0])) {
			continue
		}
		live, err := strconv.ParseInt(string(fields[1]), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("process: slabinfo: %w", err)
		}
		size, err := strconv.ParseInt(string(fields[3]), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("process: slabinfo: %w", err)
		}
		sum += live * size
	}
	return sum, nil
}

// Descriptors counts the files that a process has open.
func Descriptors(pid int) (int, error) {
	entries, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(pid), "fd"))
	if err != nil {
		return 0, fmt.Errorf("process: %w", err)
	}
	return len(entries), nil
}
