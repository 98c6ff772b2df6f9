package truth

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"
)

// flushAt is the size from which lines are written out without a Flush.
const flushAt = 64 << 10

// ErrUnfit is the error of a field that would break the format.
var ErrUnfit = errors.New("a field has a tab or a line break")

// Writer writes a file of the ground truth. Only whole lines reach the writer
// beneath it, so that a file can be read while it grows. It is safe for
// concurrent use.
type Writer struct {
	// Static after construction.
	out io.Writer

	// Guarded by mu.
	mu     sync.Mutex
	buffer []byte
	err    error // the first one; nothing is written after it
}

// NewWriter returns a Writer on top of w.
func NewWriter(w io.Writer) *Writer {
	return &Writer{out: w, buffer: make([]byte, 0, flushAt+4<<10)}
}

// Event notes an event. seq counts the events of the market from 1.
func (w *Writer) Event(market string, seq uint64, at time.Time, topic string, raw []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if strings.ContainsAny(topic, "\t\n") || bytes.IndexByte(raw, '\n') >= 0 {
		w.fail(fmt.Errorf("%w: event %d of %s", ErrUnfit, seq, market))
		return
	}
	w.begin(Event, market)
	w.buffer = strconv.AppendUint(append(w.buffer, '\t'), seq, 10)
	w.time(at)
	w.buffer = append(append(w.buffer, '\t'), topic...)
	w.buffer = append(append(w.buffer, '\t'), raw...)
	w.end()
}

// Down notes that the socket which carried the market's data was lost.
func (w *Writer) Down(market string, at time.Time) { w.mark(Down, market, at) }

// Up notes that the market's events reach a client again.
func (w *Writer) Up(market string, at time.Time) { w.mark(Up, market, at) }

// Flush writes out what is buffered and returns the first error there was.
func (w *Writer) Flush() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.flush()
	return w.err
}

func (w *Writer) mark(kind Kind, market string, at time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.begin(kind, market)
	w.time(at)
	w.end()
}

func (w *Writer) begin(kind Kind, market string) {
	w.buffer = append(append(w.buffer, byte(kind), '\t'), market...)
}

func (w *Writer) time(at time.Time) {
	w.buffer = strconv.AppendInt(append(w.buffer, '\t'), at.UnixNano(), 10)
}

func (w *Writer) end() {
	w.buffer = append(w.buffer, '\n')
	if len(w.buffer) >= flushAt {
		w.flush()
	}
}

func (w *Writer) flush() {
	if w.err == nil && len(w.buffer) > 0 {
		if _, err := w.out.Write(w.buffer); err != nil {
			w.fail(err)
		}
	}
	w.buffer = w.buffer[:0]
}

func (w *Writer) fail(err error) {
	if w.err == nil {
		w.err = fmt.Errorf("truth: %w", err)
	}
}
