package truth

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"
)

// maxLine bounds a line, and with it the memory of a Reader.
const maxLine = 4 << 20

// ErrFormat is the error of a line that no Writer wrote, or that is cut off.
var ErrFormat = errors.New("truth: not a line of the ground truth")

// Reader reads a file of the ground truth line by line.
type Reader struct {
	lines   *bufio.Scanner
	number  int
	markets map[string]string // so that a line's market needs no memory of its own
}

// NewReader returns a Reader of r.
func NewReader(r io.Reader) *Reader {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 64<<10), maxLine)
	lines.Split(wholeLines)
	return &Reader{lines: lines, markets: map[string]string{}}
}

// wholeLines splits at line breaks and refuses a last line without one.
func wholeLines(data []byte, atEOF bool) (advance int, token []byte, err error) {
	if i := bytes.IndexByte(data, '\n'); i >= 0 {
		return i + 1, data[:i], nil
	}
	if atEOF && len(data) > 0 {
		return 0, nil, fmt.Errorf("%w: the last line is cut off", ErrFormat)
	}
	return 0, nil, nil
}

// Next returns the next line, or io.EOF after the last. The line's Topic and Raw
// are valid until the next call.
func (r *Reader) Next() (Line, error) {
	if !r.lines.Scan() {
		if err := r.lines.Err(); err != nil {
			return Line{}, fmt.Errorf("truth: line %d: %w", r.number+1, err)
		}
		return Line{}, io.EOF
	}
	r.number++
	line, ok := r.parse(r.lines.Bytes())
	if !ok {
		return Line{}, fmt.Errorf("%w: line %d", ErrFormat, r.number)
	}
	return line, nil
}

func (r *Reader) parse(text []byte) (line Line, ok bool) {
	kind, text, _ := bytes.Cut(text, tab)
	market, text, ok := bytes.Cut(text, tab)
	if len(kind) != 1 || len(market) == 0 || !ok {
		return Line{}, false
	}
	line = Line{Kind: Kind(kind[0]), Market: r.market(market)}
	switch line.Kind {
	case Event:
		sequence, rest, _ := bytes.Cut(text, tab)
		at, rest, _ := bytes.Cut(rest, tab)
		topic, raw, whole := bytes.Cut(rest, tab)
		n, err := strconv.ParseUint(string(sequence), 10, 64)
		line.Sequence, line.Topic, line.Raw = n, topic, raw
		return line, whole && err == nil && line.setTime(at)
	case Down, Up:
		return line, line.setTime(text)
	default:
		return Line{}, false
	}
}

func (l *Line) setTime(text []byte) bool {
	ns, err := strconv.ParseInt(string(text), 10, 64)
	l.At = time.Unix(0, ns)
	return err == nil
}

func (r *Reader) market(name []byte) string {
	market, ok := r.markets[string(name)]
	if !ok {
		market = string(name)
		r.markets[market] = market
	}
	return market
}

var tab = []byte{'\t'}
