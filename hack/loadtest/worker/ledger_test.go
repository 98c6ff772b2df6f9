package worker

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cutemarkets/relay/hack/loadtest/fleet/wire"
	"github.com/cutemarkets/relay/hack/loadtest/judge"
	"github.com/cutemarkets/relay/hack/loadtest/scenario"
	"github.com/cutemarkets/relay/hack/loadtest/tally"
	"github.com/cutemarkets/relay/hack/truth"
)

// truthFile has events of T.A, numbered from 1, each some time after the one before.
func truthFile(t *testing.T, count uint64, start time.Time, apart time.Duration, tail string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "truth")
	file, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	w := truth.NewWriter(file)
	for n := uint64(1); n <= count; n++ {
		w.Event("stocks", n, start.Add(time.Duration(n-1)*apart), "T.A", []byte("{}"))
		w.Event("options", n, start.Add(time.Duration(n-1)*apart), "T.O:A", []byte("{}"))
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if _, err := file.WriteString(tail); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestReadTruthUpToTheLastWholeLine(t *testing.T) {
	for _, tail := range []string{"", "E\tsto", strings.Repeat("x", 200<<10)} {
		ground, clock, err := readTruth(truthFile(t, 100, time.Unix(1000, 0), 100*time.Millisecond, tail), "stocks")
		if err != nil || ground.Last() != 100 || len(clock) != 100 {
			t.Errorf("tail of %d bytes: %v, %d moments", len(tail), err, len(clock))
		}
	}
	if ground, _, err := readTruth(truthFile(t, 0, time.Unix(1, 0), 1, "E"), "stocks"); err != nil || ground.Last() != 0 {
		t.Error(err)
	}
}

func TestClock(t *testing.T) {
	start := time.Unix(1000, 0)
	_, clock, err := readTruth(truthFile(t, 100, start, 100*time.Millisecond, ""), "stocks")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		after        time.Duration
		since, until uint64
	}{
		{-time.Second, 1, 0}, {0, 1, 1}, {50 * time.Millisecond, 2, 1}, {5 * time.Second, 51, 51}, {time.Hour, 0, 100},
	} {
		at := start.Add(c.after).UnixNano()
		if since, until := clock.since(at), clock.until(at); since != c.since || until != c.until {
			t.Errorf("after %s: since %d, until %d, want %d, %d", c.after, since, until, c.since, c.until)
		}
	}
}

// TestJudge: a connection answers for what was sent while it was there, also
// before the first and behind the last event that came, and if none came at all.
func TestJudge(t *testing.T) {
	const perSecond = 10
	start := time.Unix(1_700_000_000, 0)
	file := truthFile(t, 60*perSecond, start, time.Second/perSecond, "")
	for name, c := range map[string]struct {
		from, to time.Duration // of the connection
		came     [][2]uint64
		numbers  bool
		want     tally.Loss
		note     string
	}{
		"all": {10 * time.Second, 30 * time.Second, [][2]uint64{{101, 300}}, true,
			tally.Loss{Judged: true, Expected: 180, Received: 180}, ""},
		"a hole": {10 * time.Second, 30 * time.Second, [][2]uint64{{101, 150}, {161, 300}}, true,
			tally.Loss{Judged: true, Expected: 180, Received: 170, Missing: 10}, ""},
		"a hole before it is settled": {10 * time.Second, 30 * time.Second, [][2]uint64{{101, 103}, {111, 300}}, true,
			tally.Loss{Judged: true, Expected: 180, Received: 180}, ""},
		"nothing": {10 * time.Second, 30 * time.Second, nil, true,
			tally.Loss{Judged: true, Expected: 131, Missing: 131}, ""}, // from 2 s after its begin to 5 s before its end
		"silent from the begin on": {10 * time.Second, 30 * time.Second, [][2]uint64{{131, 300}}, true,
			tally.Loss{Judged: true, Expected: 180, Received: 170, Missing: 10}, ""},
		"silent at the end": {10 * time.Second, 30 * time.Second, [][2]uint64{{101, 200}}, true,
			tally.Loss{Judged: true, Expected: 131, Received: 80, Missing: 51}, ""},
		"too short to get any": {10 * time.Second, 12 * time.Second, nil, true,
			tally.Loss{Judged: true}, ""},
		"without numbers": {10 * time.Second, 30 * time.Second, [][2]uint64{{101, 110}}, false,
			tally.Loss{}, "run feedsim with --number=market"},
		"of another run": {10 * time.Second, 30 * time.Second, [][2]uint64{{601, 610}}, true,
			tally.Loss{}, "before the last event"},
	} {
		l := newLedger("n", 2*time.Second)
		l.patience = 0
		s := l.begin(0, start.Add(c.from))
		for _, came := range c.came {
			for n := came[0]; n <= came[1]; n++ {
				raw := `{"ts":1}`
				if c.numbers {
					raw = `{"n":` + strconv.FormatUint(n, 10) + `}`
				}
				l.event(s, []byte(raw), start.Add(time.Duration(n-1)*time.Second/perSecond).UnixNano())
			}
		}
		s.end(start.Add(c.to))
		settings := scenario.Settings{Name: scenario.Stream, Connections: 1, Rate: 1, Topics: scenario.Topics{List: "T.*"}}
		plan, err := scenario.New(settings)
		if err != nil {
			t.Fatal(err)
		}
		y := tally.New(tally.Options{Run: tally.Run{Start: start}})
		loss, notes := l.judge(t.Context(), Assignment{Truth: file, Market: "stocks", Number: "n"}, plan, y)
		if gaps := y.Result(start).GapsUnannounced; (gaps > 0) != (c.want.Missing > 0) {
			t.Errorf("%s: %d gaps", name, gaps)
		}
		loss.Topics = nil
		if c.want.Judged != loss.Judged || c.want.Judged && !equal(loss, c.want) {
			t.Errorf("%s:\n got %+v\nwant %+v", name, loss, c.want)
		}
		if note := strings.Join(notes, " "); (note != "") != (c.note != "") || !strings.Contains(note, c.note) {
			t.Errorf("%s: %q", name, note)
		}
	}
}

func equal(a, b tally.Loss) bool {
	return a.Judged == b.Judged && a.Expected == b.Expected && a.Received == b.Received && a.Missing == b.Missing &&
		a.MissingAnnounced == b.MissingAnnounced && a.Duplicates == b.Duplicates && a.Disordered == b.Disordered
}

func TestStampsInAllUnits(t *testing.T) {
	received := time.Unix(1_700_000_000, 250_000_000).UnixNano()
	c := &crowd{stamp: wire.NewField("t"), stamped: true}
	for text, want := range map[string]time.Duration{
		`{"t":1700000000000}`:       250 * time.Millisecond,
		`{"t":1700000000000000}`:    250 * time.Millisecond,
		`{"t":1700000000000000000}`: 250 * time.Millisecond,
		`{"t":1700000000300}`:       -50 * time.Millisecond,
		`{"x":1}`:                   tally.NoStamp,
	} {
		if got := c.latency([]byte(text), received); got != want {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
	}
	if got := new(crowd).latency([]byte(`{"t":1}`), received); got != tally.NoStamp {
		t.Errorf("%s without a field", got)
	}
}

// TestEventsNeedNoMemory: what is done for each event allocates nothing.
func TestEventsNeedNoMemory(t *testing.T) {
	c := &crowd{stamp: wire.NewField("ts"), stamped: true, ledger: newLedger("n", 0), tally: tally.New(tally.Options{Run: tally.Run{Start: time.Now()}})}
	s := c.ledger.begin(0, time.Unix(0, 0))
	raw := []byte(`{"ev":"T","sym":"A","ts":1700000000000000000,"n":17}`)
	received := time.Now().UnixNano()
	if n := testing.AllocsPerRun(1000, func() {
		c.tally.Event(c.latency(raw, received), len(raw))
		c.ledger.event(s, raw, received)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if v := s.account.Verdict(nil, judge.Topics{}, judge.Span{}); v.Received != 1 || v.Duplicates == 0 {
		t.Errorf("%+v", v)
	}
}
