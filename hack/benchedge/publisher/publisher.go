// Package publisher sends the events of a shape at their times: for a floor as
// lines, for a relay as the vendor's frames.
//
// A Publisher runs on the goroutine that calls Run and starts none. Times are
// those of the schedule, not those of the last event: what is late is sent at
// once, up to maxTicks moments in one write, and how late it was is recorded.
// Nothing is queued; a server that does not read delays what comes after.
package publisher

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/cutemarkets/relay/hack/benchedge/shape"
)

// Framing says how events are put on the wire.
type Framing uint8

// The framings.
const (
	Lines  Framing = iota // "SYMBOL EVENT\n" each
	Vendor                // the events of a moment as a JSON array in a WebSocket frame
)

// maxTicks is how many moments are caught up with at once.
const maxTicks = 256

// Lags of more than maxLag count as maxLag.
const maxLag = 10 * time.Minute

// Publisher is one run of a shape.
type Publisher struct {
	// Static after construction.
	shape    shape.Shape
	fanOut   []int
	framing  Framing
	out      io.Writer
	measured *atomic.Bool

	events     atomic.Uint64
	deliveries atomic.Uint64

	// Owned by Run; not thread-safe.
	choice shape.Choice
	ticks  int
	frame  []byte
	buf    []byte
	lag    *hdrhistogram.Histogram
}

// New makes a publisher. fanOut is the number of subscribers of each topic;
// lags are recorded while measured is set.
func New(s shape.Shape, fanOut []int, framing Framing, out io.Writer, measured *atomic.Bool) *Publisher {
	return &Publisher{
		shape: s, fanOut: fanOut, framing: framing, out: out, measured: measured,
		choice: s.Choice(), lag: hdrhistogram.New(1, int64(maxLag), 2),
	}
}

// Sent returns how many events were written so far, and how many deliveries
// they ask for, both without ballast. It may be called from any goroutine.
func (p *Publisher) Sent() (events, deliveries uint64) {
	return p.events.Load(), p.deliveries.Load()
}

// Lag returns how late events were while measured; call it after Run.
func (p *Publisher) Lag(quantile float64) time.Duration {
	return time.Duration(p.lag.ValueAtQuantile(quantile))
}

// Run publishes until ctx is done, which is no error.
func (p *Publisher) Run(ctx context.Context) error {
	start, interval := time.Now(), p.shape.Interval()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		timer.Reset(time.Until(start.Add(time.Duration(p.ticks) * interval)))
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		p.buf = p.buf[:0]
		events, deliveries := uint64(0), uint64(0)
		for range maxTicks {
			late := time.Since(start.Add(time.Duration(p.ticks) * interval))
			if late < 0 {
				break
			}
			if p.measured.Load() {
				_ = p.lag.RecordValue(int64(min(late, maxLag))) // within its range
			}
			deliveries += uint64(p.tick())
			events += uint64(p.shape.Burst)
		}
		if _, err := p.out.Write(p.buf); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("publisher: %w", err)
		}
		p.events.Add(events)
		p.deliveries.Add(deliveries)
	}
	return nil
}

// tick appends the events of the next moment and returns how many deliveries
// they ask for.
func (p *Publisher) tick() (deliveries int) {
	count := p.shape.Burst + p.shape.Ballast
	first := p.ticks * count
	p.ticks++
	p.frame = p.frame[:0]
	for i := range count {
		topic := shape.BallastTopic
		if i < p.shape.Burst {
			topic = p.choice.Next()
			deliveries += p.fanOut[topic]
		}
		if p.framing == Lines {
			p.buf = append(shape.AppendSymbol(p.buf, topic), ' ')
			p.buf = append(shape.AppendEvent(p.buf, topic, first+i, time.Now().UnixNano()), '\n')
			continue
		}
		separator := byte(',')
		if i == 0 {
			separator = '['
		}
		p.frame = shape.AppendEvent(append(p.frame, separator), topic, first+i, time.Now().UnixNano())
	}
	if p.framing == Vendor {
		p.frame = append(p.frame, ']')
		p.buf = append(appendHeader(p.buf, len(p.frame)), p.frame...)
	}
	return deliveries
}

// appendHeader appends the header of a text frame of a server.
func appendHeader(dst []byte, length int) []byte {
	const final, short, long = 0x81, 126, 127
	switch {
	case length < short:
		return append(dst, final, byte(length))
	case length <= 0xffff:
		return binary.BigEndian.AppendUint16(append(dst, final, short), uint16(length))
	default:
		return binary.BigEndian.AppendUint64(append(dst, final, long), uint64(length))
	}
}
