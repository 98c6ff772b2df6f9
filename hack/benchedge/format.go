//go:build linux

package benchedge

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
)

func decimals(n int) func(float64) string {
	return func(v float64) string { return strconv.FormatFloat(v, 'f', n, 64) }
}

// short has three digits that count, more or less.
func short(v float64) string {
	switch {
	case v >= 100:
		return decimals(0)(v)
	case v >= 10:
		return decimals(1)(v)
	default:
		return decimals(2)(v)
	}
}

// thousands is a whole number with commas.
func thousands(v float64) string {
	digits, sign := decimals(0)(math.Abs(v)), ""
	if v <= -0.5 {
		sign = "-"
	}
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return sign + digits
}

// seconds is a time, or says that what was waited for did not happen.
func seconds(v float64) string {
	if v == never {
		return "never"
	}
	return decimals(2)(v)
}

// spread is min / median / max of some values, or the only one; none: nothing.
func spread(values []float64, format func(float64) string) string {
	s := NewSpread(values)
	switch len(values) {
	case 0:
		return ""
	case 1:
		return format(s.Median)
	default:
		return format(s.Min) + " / " + format(s.Median) + " / " + format(s.Max)
	}
}

// list has counts by name, to be put behind a line; nothing, if there are none.
func list(before string, counts map[string]int) string {
	var all []string
	for _, what := range slices.Sorted(maps.Keys(counts)) {
		all = append(all, fmt.Sprintf("%s: %s", what, thousands(float64(counts[what]))))
	}
	if len(all) == 0 {
		return ""
	}
	return before + strings.Join(all, ", ")
}
