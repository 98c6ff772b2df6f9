package publisher

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cutemarkets/relay/hack/benchedge/shape"
)

// recorder keeps what is written, and when; a write may take a while.
type recorder struct {
	begin  time.Time
	writes [][]byte
	at     []time.Duration
	slow   time.Duration
	err    error
}

func (r *recorder) Write(b []byte) (int, error) {
	r.writes, r.at = append(r.writes, bytes.Clone(b)), append(r.at, time.Since(r.begin))
	time.Sleep(r.slow)
	return len(b), r.err
}

func publish(t *testing.T, name string, framing Framing, r *recorder, d time.Duration) *Publisher {
	t.Helper()
	s, _ := shape.ByName(name)
	return publishShape(t, s, framing, r, d)
}

func publishShape(t *testing.T, s shape.Shape, framing Framing, r *recorder, d time.Duration) *Publisher {
	t.Helper()
	fanOut := make([]int, s.Topics)
	for i := range fanOut {
		fanOut[i] = 3
	}
	var measured atomic.Bool
	measured.Store(true)
	p := New(s, fanOut, framing, r, &measured)
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	r.begin = time.Now()
	if err := p.Run(ctx); !errors.Is(err, r.err) {
		t.Fatal(err)
	}
	return p
}

func TestEven(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r recorder
		p := publish(t, "S1r10", Lines, &r, time.Second-time.Millisecond)
		events, deliveries := p.Sent()
		if len(r.writes) != 10 || events != 10 || deliveries != 30 {
			t.Fatalf("%d writes, %d events, %d deliveries", len(r.writes), events, deliveries)
		}
		for i, at := range r.at {
			if at != time.Duration(i)*100*time.Millisecond {
				t.Errorf("write %d after %s", i, at)
			}
			want := append(shape.AppendEvent([]byte("S0000 "), 0, i, r.begin.Add(at).UnixNano()), '\n')
			if !bytes.Equal(r.writes[i], want) {
				t.Errorf("got  %s\nwant %s", r.writes[i], want)
			}
		}
		if lag := p.Lag(100); lag > 1 {
			t.Errorf("a lag of %s", lag)
		}
	})
}

func TestBurstsAsFrames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r recorder
		publish(t, "S2b400", Vendor, &r, 100*time.Millisecond-1)
		if len(r.writes) != 2 {
			t.Fatalf("%d writes", len(r.writes))
		}
		for _, b := range r.writes {
			if b[0] != 0x81 || b[1] != 126 || int(binary.BigEndian.Uint16(b[2:])) != len(b)-4 {
				t.Fatalf("not one text frame: % x", b[:4])
			}
			var events []struct{ Ev, Sym string }
			if err := json.Unmarshal(b[4:], &events); err != nil || len(events) != 20 || events[0].Ev != "T" {
				t.Errorf("%d events, %v", len(events), err)
			}
		}
	})
}

// TestBallast: it comes behind the events of its moment, and is not counted.
func TestBallast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r recorder
		s, _ := shape.ByName("S1r10")
		s.Ballast = 2
		p := publishShape(t, s, Lines, &r, 200*time.Millisecond-1)
		events, deliveries := p.Sent()
		if len(r.writes) != 2 || events != 2 || deliveries != 6 {
			t.Fatalf("%d writes, %d events, %d deliveries", len(r.writes), events, deliveries)
		}
		var symbols []string
		for line := range bytes.Lines(bytes.Join(r.writes, nil)) {
			symbols = append(symbols, string(line[:shape.SymbolSize]))
		}
		if want := []string{"S0000", "S9999", "S9999", "S0000", "S9999", "S9999"}; !slices.Equal(symbols, want) {
			t.Errorf("%v, want %v", symbols, want)
		}
	})
}

// TestLate: what is late is caught up with, in one write, and recorded.
func TestLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := recorder{slow: 450 * time.Millisecond}
		p := publish(t, "S1r10", Lines, &r, time.Second)
		lines := 0
		for _, b := range r.writes {
			lines += bytes.Count(b, []byte{'\n'})
		}
		if len(r.writes) != 3 || bytes.Count(r.writes[1], []byte{'\n'}) != 4 || lines != 10 {
			t.Errorf("%d writes with %d lines", len(r.writes), lines)
		}
		if lag := p.Lag(100); lag < 400*time.Millisecond || lag > 405*time.Millisecond {
			t.Errorf("a lag of %s, want 400ms", lag)
		}
	})
}

func TestError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := recorder{err: errors.New("broken")}
		publish(t, "S1r10", Lines, &r, time.Second)
		if len(r.writes) != 1 {
			t.Errorf("%d writes", len(r.writes))
		}
	})
}

func TestHeader(t *testing.T) {
	for length, want := range map[int][]byte{
		125:    {0x81, 125},
		126:    {0x81, 126, 0, 126},
		65_536: {0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0},
	} {
		if got := appendHeader(nil, length); !bytes.Equal(got, want) {
			t.Errorf("%d: % x", length, got)
		}
	}
}
