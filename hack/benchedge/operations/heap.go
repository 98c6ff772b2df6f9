package operations

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Heap is what a service's Go heap holds.
type Heap struct {
	Live  int64  // bytes of objects, those that nothing refers to any more included if they came after the last collection
	Sites []Site // where it was allocated, the most bytes first; an estimate from samples
}

// Site is a function and what it allocated that is still in use.
type Site struct {
	Function string `json:"function"`
	Bytes    int64  `json:"bytes"`
	Objects  int64  `json:"objects"`
}

// Heap collects garbage twice and returns what is left: what the first
// collection finalizes, the second one frees, and a profile is as old as the
// last collection.
func (l Listener) Heap(ctx context.Context) (Heap, error) {
	const path = "/debug/pprof/heap?gc=1&debug=1"
	if _, err := l.get(ctx, path); err != nil {
		return Heap{}, err
	}
	page, err := l.get(ctx, path)
	if err != nil {
		return Heap{}, err
	}
	return parseHeap(page)
}

// parseHeap reads a heap profile in its text form: records of the form
//
//	OBJECTS: BYTES [OBJECTS: BYTES] @ ADDRESS...
//	#	ADDRESS	FUNCTION+OFFSET	FILE:LINE
//
// and, behind them, the runtime's statistics.
func parseHeap(page []byte) (Heap, error) {
	h := Heap{Live: -1}
	sites := map[string]Site{}
	var rate, objects, bytesInUse float64
	pending := false // a record has not been given to a function yet
	for line := range bytes.Lines(page) {
		text := strings.TrimRight(string(line), "\n")
		switch {
		case strings.HasPrefix(text, "heap profile: "):
			_, after, _ := strings.Cut(text, "@ heap/")
			twice, err := strconv.ParseFloat(after, 64)
			if err != nil {
				return h, fmt.Errorf("operations: the rate of the heap profile: %w", err)
			}
			rate = twice / 2
		case strings.HasPrefix(text, "#\t0x"):
			fields := strings.Split(text, "\t")
			if !pending || len(fields) < 3 {
				continue
			}
			pending = false
			name := fields[2][:max(strings.LastIndexByte(fields[2], '+'), 0)]
			s := sites[name]
			scale := unsampled(bytesInUse/objects, rate)
			sites[name] = Site{name, s.Bytes + int64(bytesInUse*scale), s.Objects + int64(objects*scale)}
		case strings.HasPrefix(text, "# HeapAlloc = "):
			live, err := strconv.ParseInt(strings.TrimPrefix(text, "# HeapAlloc = "), 10, 64)
			if err != nil {
				return h, fmt.Errorf("operations: the live heap: %w", err)
			}
			h.Live = live
		case text != "" && text[0] != '#':
			if _, err := fmt.Sscanf(text, "%f: %f [", &objects, &bytesInUse); err != nil {
				return h, fmt.Errorf("operations: a record of the heap profile: %w", err)
			}
			pending = objects > 0
		}
	}
	if rate == 0 || h.Live < 0 {
		return h, errors.New("operations: this is no heap profile in text form")
	}
	for _, s := range sites {
		h.Sites = append(h.Sites, s)
	}
	slices.SortFunc(h.Sites, func(a, b Site) int {
		if a.Bytes != b.Bytes {
			return int(max(min(b.Bytes-a.Bytes, 1), -1))
		}
		return strings.Compare(a.Function, b.Function)
	})
	return h, nil
}

// unsampled is by what a record is to be multiplied whose objects are of this
// size: the runtime takes a sample each rate bytes, at random.
func unsampled(size, rate float64) float64 {
	if rate <= 1 {
		return 1
	}
	return 1 / (1 - math.Exp(-size/rate))
}
