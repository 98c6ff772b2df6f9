// Package recording has the file of recorded frames: one line each, with the
// time in unix nanoseconds, the market and the frame, separated by tabs. Writer
// makes it, Source plays it.
//
// It starts no goroutine. A Writer under overload waits for the file beneath
// it; a Source holds one line, of 16 MiB at most.
package recording

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"
)

const (
	maxLine     = 16 << 20
	writeBuffer = 256 << 10
)

// errLine is the error of a line that is no recorded frame.
var errLine = errors.New("want a time in unix nanoseconds, a market and a frame, with tabs between them")

// Writer writes a file. It is safe for concurrent use.
type Writer struct {
	mu  sync.Mutex
	out *bufio.Writer // keeps the first error
	buf []byte
}

// NewWriter returns a Writer on top of w.
func NewWriter(w io.Writer) *Writer { return &Writer{out: bufio.NewWriterSize(w, writeBuffer)} }

// Frame notes a frame, which is compact JSON and so has no line break.
func (w *Writer) Frame(market string, at time.Time, frame []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buf = strconv.AppendInt(w.buf[:0], at.UnixNano(), 10)
	w.buf = append(append(append(w.buf, '\t'), market...), '\t')
	_, _ = w.out.Write(w.buf)
	_, _ = w.out.Write(frame)
	_ = w.out.WriteByte('\n')
}

// Flush writes out what is buffered and returns the first error there was.
func (w *Writer) Flush() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.out.Flush(); err != nil {
		return fmt.Errorf("recording: %w", err)
	}
	return nil
}

// reader reads the frames of one market.
type reader struct {
	lines  *bufio.Scanner
	market string
	number int
	first  int64 // time of the file's first line, whatever its market
}

func newReader(r io.Reader, market string) *reader {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 64<<10), maxLine)
	return &reader{lines: lines, market: market}
}

// next returns the next frame and its time after the file's first; io.EOF at
// the end. The frame is valid until the next call.
func (r *reader) next() (time.Duration, []byte, error) {
	for r.lines.Scan() {
		r.number++
		at, rest, _ := bytes.Cut(r.lines.Bytes(), []byte("\t"))
		market, frame, whole := bytes.Cut(rest, []byte("\t"))
		nanos, err := strconv.ParseInt(string(at), 10, 64)
		if err != nil || !whole {
			return 0, nil, fmt.Errorf("recording: line %d: %w", r.number, errLine)
		}
		if r.number == 1 {
			r.first = nanos
		}
		if string(market) == r.market {
			return time.Duration(nanos - r.first), frame, nil
		}
	}
	if err := r.lines.Err(); err != nil {
		return 0, nil, fmt.Errorf("recording: line %d: %w", r.number+1, err)
	}
	return 0, nil, io.EOF
}
