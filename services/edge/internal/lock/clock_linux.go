package lock

import (
	"time"

	"golang.org/x/sys/unix"
)

// monotonic is a clock that goes on while the machine is suspended, which the
// clock of package time does not.
func monotonic() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic("lock: read CLOCK_BOOTTIME: " + err.Error())
	}
	return time.Duration(t.Nano())
}
