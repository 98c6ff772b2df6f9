package recording

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/cutemarkets/relay/hack/feedsim/source"
	"github.com/cutemarkets/relay/hack/feedsim/tape"
)

var began = time.Unix(1_700_000_000, 0)

// file has frames of two markets, a second apart.
func file(t testing.TB) *bytes.Buffer {
	t.Helper()
	var out bytes.Buffer
	w := NewWriter(&out)
	for i, frame := range []string{
		`[{"ev":"status","status":"connected"}]`,
		`[{"ev":"T","sym":"BRK.A","p":1},{"ev":"LULD","T":"SPY","t":5}]`,
		`[ { "sym" : "A\u0042" , "T":"x", "ev" : "Q" , "n":{"ev":"T","sym":"X"},"s":"a]}\"" } , 12 , [ {} ] , {} ]`,
		`[`,
		`{"ev":"T","sym":"A"}`,
		`[{"ev":"ZB","sym":"A"},{"ev":"T","sym":"A"}]`,
	} {
		market := "stocks"
		if i == 4 {
			market = "options"
		}
		w.Frame(market, began.Add(time.Duration(i)*time.Second), []byte(frame))
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return &out
}

func TestSource(t *testing.T) {
	t.Parallel()
	type step struct {
		after time.Duration
		ahead bool
		most  int
		want  string
	}
	const first, second, third = "T.BRK.A 0;LULD.SPY 4;", `Q.A\u0042 1;`, "ZB.A 7;T.A 0;"
	for name, c := range map[string]struct {
		speed Speed
		steps []step
	}{
		"as recorded": {1, []step{
			{0, false, source.All, ""},
			{999 * time.Millisecond, false, source.All, ""},
			{time.Second, false, source.All, first},
			{time.Second, false, source.All, ""},
			{10 * time.Second, false, source.All, second},
			{10 * time.Second, false, source.All, third},
			{10 * time.Second, false, source.All, "end"},
		}},
		"twice as fast": {2, []step{
			{499 * time.Millisecond, false, source.All, ""},
			{500 * time.Millisecond, false, source.All, first},
			{time.Second, false, source.All, second},
			{2499 * time.Millisecond, false, source.All, ""},
			{2500 * time.Millisecond, false, source.All, third},
		}},
		"full speed":    {Full, []step{{0, false, source.All, first}, {0, false, source.All, second}, {0, false, source.All, third}, {0, false, 1, "end"}}},
		"ahead, by one": {1, []step{{0, true, 1, "T.BRK.A 0;"}, {0, true, 1, "LULD.SPY 4;"}, {0, false, source.All, ""}, {0, true, 9, second}}},
		"held": {1, []step{
			{0, false, -1, ""},
			{10 * time.Second, false, source.All, ""}, // 10 s later
			{10999 * time.Millisecond, false, source.All, ""},
			{11 * time.Second, false, source.All, first},
		}},
	} {
		s := NewSource(file(t), tape.Stocks, c.speed, source.NewUniverse(nil, true), began)
		for i, step := range c.steps {
			if step.most < 0 {
				s.Hold(began.Add(step.after))
				continue
			}
			events, _ := s.Next(began.Add(step.after), step.ahead, step.most)
			got := ""
			for _, e := range events {
				got += fmt.Sprintf("%s %d;", e.Topic, e.Kind)
			}
			if s.ended {
				got = "end"
			}
			if got != step.want {
				t.Errorf("%s, step %d: %s, want %s", name, i, got, step.want)
			}
		}
		if s.Err() != nil {
			t.Error(s.Err())
		}
	}
}

func TestBrokenFile(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"\n", "1\tstocks\n", "soon\tstocks\t[]\n", "1\toptions\t[]\nx\n", strings.Repeat("1", maxLine+1)} {
		s := NewSource(strings.NewReader(text), tape.Stocks, Full, source.NewUniverse(nil, true), began)
		if _, more := s.Next(began, true, 1); more || s.Err() == nil {
			t.Errorf("%.20q: no error", text)
		}
	}
}

var errFull = errors.New("full")

type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, errFull }

func TestFullDisk(t *testing.T) {
	t.Parallel()
	w := NewWriter(fullDisk{})
	w.Frame("stocks", began, []byte("[]"))
	if err := w.Flush(); !errors.Is(err, errFull) {
		t.Errorf("got %v", err)
	}
}

func TestSpeed(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]Speed{"1x": 1, "2.5x": 2.5, "max": Full, "100x": 100} {
		var s Speed
		if err := s.UnmarshalText([]byte(text)); err != nil || s != want {
			t.Errorf("%s: %v, %v", text, s, err)
		}
	}
	for _, text := range []string{"", "1", "x", "0x", "-1x", "NaNx", "Infx", "2000000x", "MAX"} {
		var s Speed
		if err := s.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is taken as %v", text, s)
		}
	}
}

// TestSplit holds the scanner against encoding/json.
func TestSplit(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		piece := rapid.SampledFrom([]string{
			`{"ev":"T","sym":"A"}`, `{"ev":"LULD", "T":"B\"}"}`, `{}`, `[]`, `12`, `"]"`, `{"a":[{"ev":"Q"}],"sym":"S","T":"T"}`,
			` `, `,`, `[`, `]`, `null`, `-1.5e3`, `{"ev":7}`, `{"T":{"sym":"x"}}`, `tru`,
		})
		frame := []byte("[" + strings.Join(rapid.SliceOfN(piece, 0, 6).Draw(t, "pieces"), rapid.SampledFrom([]string{",", " , ", ""}).Draw(t, "comma")) + "]")
		elements, ok := split(frame, nil)
		var objects []json.RawMessage
		if err := json.Unmarshal(frame, &objects); (err == nil) != ok {
			t.Fatalf("%s: %v, %v", frame, ok, err)
		}
		i := 0
		for _, o := range objects {
			if o[0] != '{' {
				continue
			}
			var fields map[string]any
			if err := json.Unmarshal(o, &fields); err != nil {
				t.Fatal(err)
			}
			e := elements[i]
			i++
			kind, _ := fields["ev"].(string)
			ticker, ok := fields["sym"].(string)
			if !ok {
				ticker, _ = fields["T"].(string)
			}
			var unquoted string
			if err := json.Unmarshal([]byte(`"`+string(e.ticker)+`"`), &unquoted); err != nil {
				t.Fatal(err)
			}
			if string(e.raw) != string(o) || string(e.kind) != kind || unquoted != ticker {
				t.Fatalf("%s: %s %s of %s", frame, e.kind, e.ticker, e.raw)
			}
		}
		if i != len(elements) {
			t.Fatalf("%d elements of %s", len(elements), frame)
		}
	})
}
