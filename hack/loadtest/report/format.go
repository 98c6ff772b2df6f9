package report

import (
	"strconv"
	"strings"
	"time"
)

// number writes n with commas.
func number[N ~int | ~int64 | ~uint64](n N) string {
	digits := strconv.FormatInt(int64(n), 10)
	sign := ""
	if digits[0] == '-' {
		sign, digits = "-", digits[1:]
	}
	var parts []string
	for len(digits) > 3 {
		parts = append([]string{digits[len(digits)-3:]}, parts...)
		digits = digits[:len(digits)-3]
	}
	return sign + strings.Join(append([]string{digits}, parts...), ",")
}

// significant writes x with three significant digits, or all before the point.
func significant(x float64) string {
	decimals := 2
	for limit := 10.0; decimals > 0 && x >= limit-limit/2000; limit *= 10 {
		decimals--
	}
	if x >= 1000 {
		return number(int64(x + 0.5))
	}
	return strconv.FormatFloat(x, 'f', decimals, 64)
}

// duration writes d in the unit in which it is best read.
func duration(d time.Duration) string {
	switch {
	case d == 0:
		return "0"
	case d < time.Microsecond:
		return number(d) + " ns"
	case d < time.Millisecond:
		return significant(float64(d)/float64(time.Microsecond)) + " µs"
	case d < time.Second:
		return significant(float64(d)/float64(time.Millisecond)) + " ms"
	default:
		return significant(d.Seconds()) + " s"
	}
}

// size writes a number of bytes in the unit in which it is best read.
func size(bytes float64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	i := 0
	for bytes >= 1024 && i < len(units)-1 {
		bytes /= 1024
		i++
	}
	if i == 0 {
		return strconv.FormatFloat(bytes, 'f', 0, 64) + " B"
	}
	return significant(bytes) + " " + units[i]
}

// share writes part of whole in percent.
func share(part, whole float64) string {
	if whole == 0 {
		return "–"
	}
	return significant(100*part/whole) + " %"
}

// clock writes d as minutes and seconds.
func clock(d time.Duration) string {
	seconds := int(d / time.Second)
	return strconv.Itoa(seconds/60) + ":" + pad2(seconds%60)
}

func pad2(n int) string {
	if n < 10 {
		return "0" + strconv.Itoa(n)
	}
	return strconv.Itoa(n)
}
