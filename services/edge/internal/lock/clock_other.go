//go:build !linux

package lock

import "time"

var origin = time.Now()

func monotonic() time.Duration { return time.Since(origin) }
