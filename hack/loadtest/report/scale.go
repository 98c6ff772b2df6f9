package report

import (
	"math"
	"strconv"
)

// tick is a labelled place of an axis.
type tick struct {
	value float64
	label string
}

// scale maps values to places from 0 to 1 on an axis.
type scale struct {
	low, high float64
	log       bool
	ticks     []tick
}

func (s scale) at(value float64) float64 {
	if s.log {
		return (math.Log10(max(value, s.low)) - math.Log10(s.low)) / (math.Log10(s.high) - math.Log10(s.low))
	}
	return (value - s.low) / (s.high - s.low)
}

// linear is a scale from 0 to high or a little more, with about so many ticks.
func linear(high float64, ticks int) scale {
	if high <= 0 {
		high = 1
	}
	decade := math.Pow(10, math.Floor(math.Log10(high/float64(ticks))))
	step := decade
	for _, factor := range []float64{2, 5, 10} {
		if high/step > float64(ticks) {
			step = factor * decade
		}
	}
	s := scale{high: math.Ceil(high/step-1e-9) * step}
	for i := 0; float64(i)*step <= s.high+step/2; i++ {
		value := float64(i) * step
		s.ticks = append(s.ticks, tick{value, axisNumber(value)})
	}
	return s
}

// whole is a linear scale of counts: ticks are whole numbers.
func whole(high float64) scale {
	if high <= 5 {
		s := scale{high: max(1, math.Ceil(high))}
		for i := 0.0; i <= s.high; i++ {
			s.ticks = append(s.ticks, tick{i, axisNumber(i)})
		}
		return s
	}
	return linear(high, 6)
}

// logarithmic is a scale of durations in nanoseconds: whole decades around low
// and high, with ticks at 2 and 5 where there are few.
func logarithmic(low, high float64) scale {
	if low <= 0 || high < low {
		low, high = 1e6, 1e7
	}
	first, last := math.Floor(math.Log10(low)), math.Ceil(math.Log10(high))
	if last <= first {
		last = first + 1
	}
	s := scale{low: math.Pow(10, first), high: math.Pow(10, last), log: true}
	factors := []float64{1}
	if last-first <= 2 {
		factors = []float64{1, 2, 5}
	}
	for decade := first; decade <= last; decade++ {
		for _, factor := range factors {
			if value := factor * math.Pow(10, decade); value <= s.high*1.0001 {
				s.ticks = append(s.ticks, tick{value, axisDuration(value)})
			}
		}
	}
	return s
}

// percentiles is the scale on which each further nine takes as much room:
// values are -log10(1-p). It reaches to that of so many.
func percentiles(count int64) scale {
	s := scale{high: max(1, math.Log10(float64(max(1, count))))}
	s.ticks = []tick{{0, "0"}, {percentilePlace(50), "50"}}
	for nines := 1; float64(nines) <= s.high+1e-9 && nines <= 9; nines++ {
		label := "90"
		if nines > 1 {
			label = "99"
			if nines > 2 {
				label = strconv.FormatFloat(100-math.Pow(10, float64(2-nines)), 'f', nines-2, 64)
			}
		}
		s.ticks = append(s.ticks, tick{float64(nines), label})
	}
	return s
}

func percentilePlace(percent float64) float64 { return -math.Log10(1 - percent/100) }

// times is a scale of seconds since the start, and the unit of its labels.
func times(high float64) (s scale, unit string) {
	steps := []float64{1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400}
	step := steps[len(steps)-1]
	for _, candidate := range steps {
		if high/candidate <= 8 {
			step = candidate
			break
		}
	}
	for high/step > 8 {
		step *= 2
	}
	s.high, unit = max(high, 1), "min:s"
	if step >= 1800 {
		unit = "h:min"
	}
	for at := 0.0; at <= s.high; at += step {
		minutes, seconds := int(at)/60, int(at)%60
		label := strconv.Itoa(minutes) + ":" + pad2(seconds)
		if unit == "h:min" {
			label = strconv.Itoa(minutes/60) + ":" + pad2(minutes%60)
		}
		s.ticks = append(s.ticks, tick{at, label})
	}
	return s, unit
}

// axisNumber writes a tick's value, which has few digits.
func axisNumber(value float64) string {
	switch {
	case value >= 1e9:
		return strconv.FormatFloat(value/1e9, 'g', 6, 64) + "G"
	case value >= 1e6:
		return strconv.FormatFloat(value/1e6, 'g', 6, 64) + "M"
	case value >= 1000:
		return number(int64(math.Round(value)))
	default:
		return strconv.FormatFloat(value, 'g', 6, 64)
	}
}

// axisDuration writes a tick's value, in nanoseconds.
func axisDuration(value float64) string {
	switch {
	case value >= 1e9*0.999:
		return axisNumber(value/1e9) + " s"
	case value >= 1e6*0.999:
		return axisNumber(value/1e6) + " ms"
	case value >= 1e3*0.999:
		return axisNumber(value/1e3) + " µs"
	default:
		return axisNumber(value) + " ns"
	}
}
