package engine

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls below never block, so they need not tell the runtime's scheduler of
// themselves: that would cost as much again as the rest of a write does outside
// the kernel.

// pollNow is epoll_wait that does not wait; it returns the number of events.
func pollNow(fd int, events []unix.EpollEvent) int {
	n, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(fd), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), 0, 0, 0) //nolint:gosec // G103: the kernel fills events during the call
	if errno != 0 {
		if errno == unix.EINTR {
			return 0
		}
		panic("engine: epoll_pwait: " + errno.Error())
	}
	return int(n)
}

// writeNow writes to a non-blocking socket what it takes at once.
func writeNow(fd int32, data []byte) (int, syscall.Errno) {
	for {
		n, _, errno := syscall.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(data))), uintptr(len(data))) //nolint:gosec // G103: data is used during the call only
		if errno != unix.EINTR {
			if errno != 0 {
				n = 0
			}
			return int(n), errno
		}
	}
}

// readNow reads from a non-blocking socket what there is.
func readNow(fd int32, data []byte) (int, syscall.Errno) {
	for {
		n, _, errno := syscall.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(data))), uintptr(len(data))) //nolint:gosec // G103: data is used during the call only
		if errno != unix.EINTR {
			if errno != 0 {
				n = 0
			}
			return int(n), errno
		}
	}
}
