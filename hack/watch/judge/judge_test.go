package judge

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

var epoch = time.Unix(1_800_000_000, 0).UTC()

// at is a moment of the tests, in milliseconds.
func at(ms int) time.Time { return epoch.Add(time.Duration(ms) * time.Millisecond) }

func object(topic string, n, ms int) string {
	kind, symbol, _ := strings.Cut(topic, ".")
	return fmt.Sprintf(`{"ev":"%s","sym":"%s","c":[1,"]}"],"n":%d,"ts":%d}`, kind, symbol, n, at(ms).UnixNano())
}

// notice is a gap; to -1: it lasts.
func notice(from, to int, topics string) string {
	end := "null"
	if to >= 0 {
		end = `"` + at(to).Format(time.RFC3339Nano) + `"`
	}
	if topics != "" {
		topics = `,"topics":["` + topics + `"]`
	}
	return fmt.Sprintf(`{"ev":"status","status":"gap","message":"m","market":"stocks","from":"%s","to":%s%s}`,
		at(from).Format(time.RFC3339Nano), end, topics)
}

// step is something that happens to a client: a frame of these objects, or what
// the first word says.
type step struct {
	ms      int
	objects []string
}

func play(t *testing.T, steps []step) *Client {
	t.Helper()
	c := New(at(0))
	c.Opened(at(0))
	c.Subscribed(at(0))
	for _, s := range steps {
		switch word, rest, _ := strings.Cut(s.objects[0], " "); word {
		case "close":
			var code int
			if _, err := fmt.Sscan(rest, &code); err != nil {
				t.Fatal(err)
			}
			c.Closed(code, at(s.ms))
		case "open":
			c.Opened(at(s.ms))
			c.Subscribed(at(s.ms))
		case "refused":
			c.Refused(rest)
		case "mark":
			c.Mark(at(s.ms))
		default:
			if _, err := c.Frame([]byte("["+strings.Join(s.objects, ",")+"]"), at(s.ms)); err != nil {
				t.Fatal(err)
			}
		}
	}
	return c
}

func frame(ms int, objects ...string) step { return step{ms, objects} }

func TestMissing(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		steps                                           []step
		announced, silent, away, duplicates, disordered int64
		notices                                         int
	}{
		"nothing":              {steps: []step{frame(10, object("T.A", 7, 10), object("Q.A", 1, 10)), frame(20, object("T.A", 8, 20))}},
		"hole, nobody said so": {steps: []step{frame(10, object("T.A", 7, 10)), frame(20, object("T.A", 10, 20))}, silent: 2},
		"hole, announced": {
			steps:     []step{frame(10, object("T.A", 7, 10)), frame(40, notice(5, 40, ""), object("T.A", 10, 40))},
			announced: 2, notices: 1,
		},
		"hole, announced when it is over": {
			steps:  []step{frame(10, object("T.A", 7, 10)), frame(40, object("T.A", 10, 40), notice(5, 40, ""))},
			silent: 2, notices: 1,
		},
		"hole of a sparse topic": {
			steps: []step{
				frame(10, object("T.A", 7, 10)), frame(500, notice(400, 450, "")),
				frame(510, object("Q.A", 1, 500)), frame(900, object("T.A", 9, 900)),
			},
			announced: 1, notices: 1,
		},
		"notice of another time": {
			steps: []step{frame(10, object("T.A", 7, 10)), frame(20, notice(0, 5, "")), frame(40, object("T.A", 9, 40))}, silent: 1, notices: 1,
		},
		"notice of a time to come": {
			steps: []step{frame(10, object("T.A", 7, 10)), frame(40, notice(50, 60, ""), object("T.A", 9, 40))}, silent: 1, notices: 1,
		},
		"notice without an end": {
			steps: []step{frame(10, object("T.A", 7, 10)), frame(40, notice(5, -1, ""), object("T.A", 9, 40))}, announced: 1,
		},
		"notice that got its end before the hole": {
			steps: []step{
				frame(10, object("T.A", 7, 10)), frame(20, notice(5, -1, "")), frame(30, notice(5, 25, ""), object("T.A", 8, 30)),
				frame(90, object("T.A", 10, 90)),
			},
			announced: 0, notices: 1, silent: 1,
		},
		"notice of the topic": {
			steps:     []step{frame(10, object("T.A", 7, 10)), frame(40, notice(5, 40, "T.A"), object("T.A", 9, 40))},
			announced: 1, notices: 1,
		},
		"notice of the wildcard": {
			steps:     []step{frame(10, object("AM.A", 7, 10)), frame(40, notice(5, 40, "AM.*"), object("AM.A", 9, 40))},
			announced: 1, notices: 1,
		},
		"notice of another topic": {
			steps:  []step{frame(10, object("T.A", 7, 10)), frame(40, notice(5, 40, "T.B"), object("T.A", 9, 40))},
			silent: 1, notices: 1,
		},
		"duplicate": {steps: []step{frame(10, object("T.A", 7, 10)), frame(20, object("T.A", 7, 10))}, duplicates: 1},
		"disorder":  {steps: []step{frame(10, object("T.A", 7, 10), object("T.A", 5, 9), object("T.A", 8, 11))}, disordered: 1},
		"away": {
			steps: []step{frame(10, object("T.A", 7, 10)), {20, []string{"close 1012"}}, {30, []string{"open"}}, frame(40, object("T.A", 10, 40))},
			away:  2,
		},
		"back before the events": {
			steps: []step{frame(10, object("T.A", 7, 10)), {20, []string{"close 1012"}}, {30, []string{"open"}}, frame(40, object("T.A", 6, 9), object("T.A", 7, 10))},
		},
		"a notice dies with its socket": {
			steps: []step{
				frame(10, object("T.A", 7, 10), notice(5, -1, "")), {20, []string{"close 1012"}}, {30, []string{"open"}},
				frame(40, object("T.A", 8, 40)), frame(50, object("T.A", 10, 50)),
			},
			silent: 1,
		},
		"a mark leaves the places": {
			steps: []step{frame(10, object("T.A", 7, 10)), {20, []string{"mark"}}, frame(30, object("T.A", 9, 30))}, silent: 1,
		},
		"a mark takes the figures": {
			steps: []step{frame(10, object("T.A", 7, 10)), frame(20, object("T.A", 9, 20)), {30, []string{"mark"}}},
		},
	} {
		f := play(t, c.steps).Figures(at(100))
		if f.Announced != c.announced || f.Silent != c.silent || f.Away != c.away || f.Duplicates != c.duplicates ||
			f.Disordered != c.disordered || f.Notices != c.notices {
			t.Errorf("%s: %+v", name, f)
		}
	}
}

func TestTimes(t *testing.T) {
	t.Parallel()
	a := func(ms, n int) step { return frame(ms, object("T.A", n, ms)) }
	for name, c := range map[string]struct {
		steps                     []step
		silence, resume, restored int
		streaming                 bool
	}{
		"steady":             {[]step{a(100, 1), a(300, 2), a(9_800, 3), a(9_900, 4)}, 9_500, 0, 9_800, true},
		"short silences":     {[]step{a(100, 1), a(800, 2), a(1_700, 3), {1_800, []string{"mark"}}, a(2_600, 4), a(3_500, 5), a(9_900, 6)}, 6_400, 0, 8_100, true},
		"silent now":         {[]step{a(100, 1), a(200, 2)}, 9_800, 0, 100, false},
		"closed":             {[]step{a(9_000, 1), {9_400, []string{"close 1012"}}}, 400, 600, 9_000, false},
		"back":               {[]step{a(9_000, 1), {9_100, []string{"close 1012"}}, {9_300, []string{"open"}}, a(9_700, 2)}, 300, 600, 9_700, true},
		"refused in between": {[]step{a(9_000, 1), {9_100, []string{"close 1012"}}, {9_200, []string{"open"}}, {9_300, []string{"close 4409"}}, {9_400, []string{"open"}}, a(9_800, 2)}, 200, 700, 9_800, true},
	} {
		f := play(t, c.steps).Figures(at(10_000))
		ms := func(d time.Duration) int { return int(d.Milliseconds()) }
		if ms(f.Silence) != c.silence || ms(f.Resume) != c.resume || ms(f.Restored) != c.restored || f.Streaming != c.streaming {
			t.Errorf("%s: %+v", name, f)
		}
	}
}

func TestSum(t *testing.T) {
	t.Parallel()
	one := play(t, []step{
		frame(10, object("T.A", 1, 10)), frame(1_510, notice(10, 1_500, ""), object("T.A", 3, 1_510)), {1_600, []string{"close 1012"}},
		{1_700, []string{"refused 503"}}, {1_800, []string{"open"}}, frame(2_000, object("T.A", 5, 2_000)),
	})
	two := play(t, []step{frame(10, object("T.A", 1, 10)), frame(20, object("T.A", 1, 10)), {30, []string{"close 4409"}}})
	s := Sum("p", at(0), at(2_100), []Figures{one.Figures(at(2_100)), two.Figures(at(2_100))})
	want := Summary{
		Phase: "p", LastedMS: 2_100, Clients: 2, Streaming: 1, Events: 5, Announced: 1, Away: 1, Duplicates: 1,
		SilenceMaxMS: 1_500, SilenceMedianMS: 1_500, Interrupted: 1, Told: 1, Notices: 1, NoticeSpanMS: 1_490,
		ResumeMaxMS: 2_070, ResumeMedianMS: 2_070, RestoredMS: 2_000,
		Closes: map[string]int{"1012": 1, "4409": 1}, Refusals: map[string]int{"503": 1},
	}
	if got := fmt.Sprintf("%+v", s); got != fmt.Sprintf("%+v", want) {
		t.Errorf("got  %s\nwant %+v", got, want)
	}
}

func TestBadFrames(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"", "[", "[{]", `{"ev":"T"`, `[{"ev":"T","sym":"A","ts":1}]`, `[{"ev":"T","sym":"A","n":1}]`, `[{"ev":"T","n":1,"ts":1}]`,
		`[{"x":1}]`, `[{"ev":"T","sym":"A","n":x,"ts":1}]`, `[{"ev":"status","status":1}]`,
	} {
		c := New(at(0))
		c.Opened(at(0))
		if _, err := c.Frame([]byte(text), at(0)); err == nil {
			t.Errorf("no error of %q", text)
		}
	}
}

func TestStatuses(t *testing.T) {
	t.Parallel()
	c := New(at(0))
	c.Opened(at(0))
	statuses, err := c.Frame([]byte(`[{"ev":"status","status":"success","message":"subscribed to: T.A"},`+object("T.A", 1, 1)+`]`), at(1))
	if err != nil || len(statuses) != 1 || statuses[0].Message != "subscribed to: T.A" {
		t.Errorf("%+v, %v", statuses, err)
	}
}

func BenchmarkFrame(b *testing.B) {
	frames := make([][]byte, 100)
	for i := range frames {
		frames[i] = []byte("[" + object("T.AAPL", i+1, i) + "," + object("Q.AAPL", i+1, i) + "]")
	}
	b.ReportAllocs()
	c := New(at(0))
	c.Opened(at(0))
	for i := range b.N {
		if _, err := c.Frame(frames[i%len(frames)], at(i)); err != nil {
			b.Fatal(err)
		}
	}
}
