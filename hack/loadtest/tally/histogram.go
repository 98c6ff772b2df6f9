package tally

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// What histograms hold. Durations above longest count as longest.
const (
	shortest     = time.Microsecond
	longest      = time.Hour
	digits       = 3 // significant digits of the figures of a run
	secondDigits = 2 // and of those of a second, which there are many of
)

// Histogram counts durations, from 1 µs to 1 h, to three significant digits
// (those of a Second: two). The zero value is empty. In JSON it is a string,
// an HdrHistogram V2 compressed, in base64; an empty one is "".
type Histogram struct {
	packed *hdrhistogram.PackedHistogram
}

func newHistogram(digits int) Histogram {
	return Histogram{hdrhistogram.NewPacked(int64(shortest), int64(longest), digits)}
}

// Count is how many durations were counted.
func (h Histogram) Count() int64 {
	if h.packed == nil {
		return 0
	}
	return h.packed.TotalCount()
}

// Percentile is the duration that percent (0 to 100) of those counted do not
// exceed, 0 when there are none.
func (h Histogram) Percentile(percent float64) time.Duration {
	if h.packed == nil {
		return 0
	}
	return time.Duration(h.packed.ValueAtPercentile(percent))
}

// Max is the longest duration counted, 0 when there are none.
func (h Histogram) Max() time.Duration {
	return h.Percentile(100)
}

// Mean is the mean of the durations counted, 0 when there are none.
func (h Histogram) Mean() time.Duration {
	if h.packed == nil {
		return 0
	}
	return time.Duration(h.packed.Mean())
}

// UpTo adds to counts, for each of the rising bounds, the durations that do
// not exceed it.
func (h Histogram) UpTo(bounds []time.Duration, counts []uint64) {
	if h.packed == nil {
		return
	}
	for value, count := range h.packed.ForEachBucket {
		for i := len(bounds) - 1; i >= 0 && time.Duration(value) <= bounds[i]; i-- {
			counts[i] += uint64(count)
		}
	}
}

func (h Histogram) record(d time.Duration) {
	// Neither a negative nor a longer duration is left, so there is no error.
	_ = h.packed.RecordValue(int64(min(max(d, 0), longest)))
}

func (h Histogram) clone() Histogram {
	if h.Count() == 0 {
		return Histogram{}
	}
	return Histogram{h.packed.Clone()}
}

// merged counts what h and other counted; neither is changed.
func (h Histogram) merged(other Histogram) Histogram {
	if h.Count() == 0 {
		return other.clone()
	}
	sum := h.clone()
	if other.Count() > 0 {
		sum.packed.Merge(other.packed)
	}
	return sum
}

// MarshalJSON implements json.Marshaler.
func (h Histogram) MarshalJSON() ([]byte, error) {
	if h.Count() == 0 {
		return []byte(`""`), nil
	}
	encoded, err := h.packed.EncodeV2()
	if err != nil {
		return nil, fmt.Errorf("tally: encoding a histogram: %w", err)
	}
	return json.Marshal(string(encoded))
}

// UnmarshalJSON implements json.Unmarshaler. It refuses histograms that do not
// have the form of those made here, because they would not merge exactly.
func (h *Histogram) UnmarshalJSON(data []byte) error {
	var encoded string
	if err := json.Unmarshal(data, &encoded); err != nil {
		return fmt.Errorf("a histogram has to be a string: %w", err)
	}
	if encoded == "" {
		*h = Histogram{}
		return nil
	}
	packed, err := hdrhistogram.DecodePacked([]byte(encoded))
	if err != nil {
		return fmt.Errorf("not a histogram: %w", err)
	}
	low, high, significant := packed.LowestTrackableValue(), packed.HighestTrackableValue(), packed.SignificantFigures()
	if low != int64(shortest) || high != int64(longest) || significant != digits && significant != secondDigits {
		return fmt.Errorf("a histogram from %d to %d ns with %d digits does not merge exactly with those from %d to %d ns with %d or %d",
			low, high, significant, shortest, longest, digits, secondDigits)
	}
	*h = Histogram{packed}
	return nil
}
