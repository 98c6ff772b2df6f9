package truth

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestWritesTheFormat(t *testing.T) {
	var file bytes.Buffer
	w := NewWriter(&file)
	at := time.Unix(1, 500)
	w.Event("stocks", 1, at, "T.AAPL", []byte(`{"ev":"T","x":"	"}`))
	w.Down("stocks", at)
	w.Up("options", at)
	if file.Len() != 0 {
		t.Error("written before it was flushed")
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	want := "E\tstocks\t1\t1000000500\tT.AAPL\t{\"ev\":\"T\",\"x\":\"\t\"}\nD\tstocks\t1000000500\nU\toptions\t1000000500\n"
	if file.String() != want {
		t.Errorf("got  %q\nwant %q", &file, want)
	}
}

func TestReadsWhatWasWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var file bytes.Buffer
		w := NewWriter(&file)
		type entry struct {
			kind       Kind
			market     string
			seq        uint64
			at         int64
			topic, raw string
		}
		text := rapid.StringMatching(`[^\t\n]{0,40}`)
		wrote := rapid.SliceOf(rapid.Custom(func(t *rapid.T) entry {
			e := entry{
				kind:   rapid.SampledFrom([]Kind{Event, Down, Up}).Draw(t, "kind"),
				market: rapid.SampledFrom([]string{"stocks", "options"}).Draw(t, "market"),
				at:     rapid.Int64().Draw(t, "at"),
			}
			if e.kind == Event {
				e.seq, e.topic, e.raw = rapid.Uint64().Draw(t, "seq"), text.Draw(t, "topic"), text.Draw(t, "raw")
			}
			return e
		})).Draw(t, "lines")
		for _, e := range wrote {
			switch e.kind {
			case Event:
				w.Event(e.market, e.seq, time.Unix(0, e.at), e.topic, []byte(e.raw))
			case Down:
				w.Down(e.market, time.Unix(0, e.at))
			case Up:
				w.Up(e.market, time.Unix(0, e.at))
			}
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		r := NewReader(&file)
		for _, want := range wrote {
			line, err := r.Next()
			if err != nil {
				t.Fatal(err)
			}
			got := entry{line.Kind, line.Market, line.Sequence, line.At.UnixNano(), string(line.Topic), string(line.Raw)}
			if got != want {
				t.Fatalf("got %v, want %v", got, want)
			}
		}
		if _, err := r.Next(); !errors.Is(err, io.EOF) {
			t.Fatalf("after the last line: %v", err)
		}
	})
}

func TestReaderRefuses(t *testing.T) {
	for _, text := range []string{
		"\n", "X\tstocks\t1\n", "D\tstocks\n", "D\tstocks\tx\n", "D\t\t1\n", "EE\tstocks\t1\n",
		"E\tstocks\t1\t1\tT.A\n", "E\tstocks\t-1\t1\tT.A\t{}\n", "E\tstocks\t1\t\tT.A\t{}\n", "U\tstocks\t1",
	} {
		if line, err := NewReader(strings.NewReader(text)).Next(); !errors.Is(err, ErrFormat) {
			t.Errorf("%q: %v, %v", text, line, err)
		}
	}
}

func TestWriterRefusesWhatBreaksTheFormat(t *testing.T) {
	for _, row := range [][2]string{{"T\t.A", "{}"}, {"T.A\n", "{}"}, {"T.A", "{\n}"}} {
		w := NewWriter(io.Discard)
		w.Event("stocks", 1, time.Now(), row[0], []byte(row[1]))
		if err := w.Flush(); !errors.Is(err, ErrUnfit) {
			t.Errorf("%q: %v", row, err)
		}
	}
}

type wholeLinesOnly struct {
	bytes.Buffer
	t *testing.T
}

func (w *wholeLinesOnly) Write(p []byte) (int, error) {
	if len(p) == 0 || p[len(p)-1] != '\n' {
		w.t.Errorf("%d bytes that end within a line", len(p))
	}
	return w.Buffer.Write(p)
}

func TestConcurrentWritersWriteWholeLines(t *testing.T) {
	const writers, events = 4, 2000
	file := wholeLinesOnly{t: t}
	w := NewWriter(&file)
	var group sync.WaitGroup
	for i := range writers {
		group.Go(func() {
			for n := range events {
				w.Event(fmt.Sprint("market-", i), uint64(n+1), time.Now(), "T.AAPL", []byte(`{"ev":"T","sym":"AAPL"}`))
			}
		})
	}
	group.Wait()
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	last := map[string]uint64{}
	for r := NewReader(&file); ; {
		line, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if line.Sequence != last[line.Market]+1 {
			t.Fatalf("%s: %d follows %d", line.Market, line.Sequence, last[line.Market])
		}
		last[line.Market] = line.Sequence
	}
	if len(last) != writers || last["market-0"] != events {
		t.Errorf("read %v", last)
	}
}

var errDisk = errors.New("disk full")

type fullDisk struct{ writes int }

func (d *fullDisk) Write([]byte) (int, error) {
	d.writes++
	return 0, errDisk
}

func TestErrorsStick(t *testing.T) {
	disk := &fullDisk{}
	w := NewWriter(disk)
	for range 3 {
		w.Up("stocks", time.Now())
		if err := w.Flush(); !errors.Is(err, errDisk) {
			t.Errorf("%v", err)
		}
	}
	if disk.writes != 1 {
		t.Errorf("%d writes, want none after the first error", disk.writes)
	}
}

func TestEventNeedsNoMemory(t *testing.T) {
	w, now, raw := NewWriter(io.Discard), time.Now(), []byte(`{"ev":"T","sym":"AAPL"}`)
	if n := testing.AllocsPerRun(10_000, func() { w.Event("stocks", 1, now, "T.AAPL", raw) }); n != 0 {
		t.Errorf("%v allocations per event", n)
	}
}

func BenchmarkWriter(b *testing.B) {
	w, now, raw := NewWriter(io.Discard), time.Now(), bytes.Repeat([]byte("x"), 108)
	for i := 0; b.Loop(); i++ {
		w.Event("stocks", uint64(i), now, "T.AAPL", raw)
	}
}

func BenchmarkReader(b *testing.B) {
	var file bytes.Buffer
	w := NewWriter(&file)
	for i := range 10_000 {
		w.Event("stocks", uint64(i), time.Now(), "T.AAPL", bytes.Repeat([]byte("x"), 108))
	}
	if err := w.Flush(); err != nil {
		b.Fatal(err)
	}
	text := file.Bytes()
	b.ReportAllocs()
	r := NewReader(bytes.NewReader(text))
	for b.Loop() {
		if _, err := r.Next(); errors.Is(err, io.EOF) {
			r = NewReader(bytes.NewReader(text))
		}
	}
}
