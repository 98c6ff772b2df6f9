package recording

import (
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/cutemarkets/relay/hack/feedsim/source"
	"github.com/cutemarkets/relay/hack/feedsim/tape"
)

// Speed is how many times faster than recorded a file is played.
type Speed float64

// Full is the speed of the sockets.
var Full = Speed(math.Inf(1))

const maxSpeed = 1_000_000

// UnmarshalText reads 1x, 2.5x or max.
func (s *Speed) UnmarshalText(text []byte) error {
	if string(text) == "max" {
		*s = Full
		return nil
	}
	number, times := strings.CutSuffix(string(text), "x")
	f, err := strconv.ParseFloat(number, 64)
	if err != nil || !times || !(f > 0) || f > maxSpeed {
		return fmt.Errorf("speed %q: want 1x, another number of times, or max", text)
	}
	*s = Speed(f)
	return nil
}

// Source plays the frames of one market once. Messages about the connection
// (ev "status") and frames that are no array of events are left out.
type Source struct {
	// Static after construction.
	market   tape.Market
	speed    Speed
	universe *source.Universe

	// Owned by the caller; not thread-safe.
	reader   *reader
	began    time.Time     // when the first line was due
	held     time.Time     // zero: playing
	at       time.Duration // of the events in rest, as recorded
	elements []element
	events   []source.Event
	rest     []source.Event
	topics   map[string]string // by itself, to have each once
	ended    bool
	err      error
}

// NewSource plays in; the first frame of the file is due now.
func NewSource(in io.Reader, m tape.Market, speed Speed, u *source.Universe, now time.Time) *Source {
	return &Source{
		market: m, speed: speed, universe: u,
		reader: newReader(in, string(m)), began: now, topics: map[string]string{},
	}
}

// Next implements source.Source. It gives the events of one frame at a time.
func (s *Source) Next(now time.Time, ahead bool, most int) ([]source.Event, bool) {
	s.play(now)
	for len(s.rest) == 0 && !s.ended {
		s.read()
	}
	if s.ended {
		return nil, false
	}
	if !ahead && !s.Unpaced() && now.Sub(s.began) < time.Duration(float64(s.at)/float64(s.speed)) {
		return nil, false
	}
	n := min(most, len(s.rest))
	events := s.rest[:n]
	s.rest = s.rest[n:]
	return events, true
}

// Hold implements source.Source: what is due later is due later by that time.
func (s *Source) Hold(now time.Time) {
	if s.held.IsZero() {
		s.held = now
	}
}

func (s *Source) play(now time.Time) {
	if !s.held.IsZero() {
		s.began = s.began.Add(now.Sub(s.held))
		s.held = time.Time{}
	}
}

// Unpaced implements source.Source.
func (s *Source) Unpaced() bool { return s.speed == Full }

// Skipped implements source.Source.
func (*Source) Skipped() time.Duration { return 0 }

// Err implements source.Source.
func (s *Source) Err() error { return s.err }

// read takes the next frame.
func (s *Source) read() {
	at, frame, err := s.reader.next()
	if err != nil {
		s.ended = true
		if !errors.Is(err, io.EOF) {
			s.err = err
		}
		return
	}
	s.at = at
	s.events = s.events[:0]
	s.elements, _ = split(frame, s.elements[:0])
	for _, e := range s.elements {
		if len(e.kind) > 0 && string(e.kind) != "status" {
			s.events = append(s.events, s.event(e))
		}
	}
	s.rest = s.events
}

func (s *Source) event(e element) source.Event {
	topic := make([]byte, 0, 64)
	topic = append(append(append(topic, e.kind...), '.'), e.ticker...)
	name, known := s.topics[string(topic)]
	if !known {
		name = string(topic)
		s.topics[name] = name
	}
	kind, known := tape.ParseKind(s.market, string(e.kind))
	symbol, numbered := s.universe.Number(e.ticker)
	if !known || !numbered {
		kind = source.Foreign
	}
	return source.Event{Kind: kind, Symbol: symbol, Topic: name, Data: e.raw}
}
