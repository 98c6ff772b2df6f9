//go:build !race

package deflate

import (
	"errors"
	"runtime"
	"testing"
)

// The race detector makes pools forget, hence the build tag.

func TestAppendAllocatesNothing(t *testing.T) {
	message := events(100)
	dst := make([]byte, 0, len(message))
	if n := testing.AllocsPerRun(100, func() { dst = Append(dst[:0], message) }); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}

func TestInflateAllocatesNothing(t *testing.T) {
	message := events(20)
	payload := Append(nil, message)
	dst := make([]byte, 0, len(message))
	if n := testing.AllocsPerRun(100, func() {
		var err error
		if dst, err = Inflate(dst[:0], payload, len(message)); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}

// TestBombAllocatesTheLimit lets 8 KiB inflate to 8 MiB: what is allocated on
// the way, buffers that proved too small included, is at most twice the limit.
func TestBombAllocatesTheLimit(t *testing.T) {
	const limit, rounds = 64 << 10, 100
	payload := bomb(t)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range rounds {
		if _, err := Inflate(nil, payload, limit); !errors.Is(err, ErrTooBig) {
			t.Fatal(err)
		}
	}
	runtime.ReadMemStats(&after)
	if got := (after.TotalAlloc - before.TotalAlloc) / rounds; got > 2*limit+4<<10 {
		t.Fatalf("%d bytes allocated for a limit of %d", got, limit)
	}
}
