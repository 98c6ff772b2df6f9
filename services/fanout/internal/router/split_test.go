package router

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

type split struct{ kind, symbol, raw string }

func splitAll(frame string) ([]split, Faults) {
	events, faults := Split([]byte(frame), nil)
	var got []split
	for _, e := range events {
		got = append(got, split{string(e.Kind), string(e.Symbol), string(e.Raw)})
	}
	return got, faults
}

func TestSplit(t *testing.T) {
	trade := `{"ev":"T","sym":"AAPL","p":1.5e-3,"c":[12,37],"t":1}`
	luld := `{"ev":"LULD","T":"BRK.A","t":1601923200000000000,"i":[1]}`
	deep := strings.Repeat("[", maxDepth-1) + strings.Repeat("]", maxDepth-1)
	for _, tt := range []struct {
		name   string
		frame  string
		want   []split
		faults Faults
	}{
		{"one", `[` + trade + `]`, []split{{"T", "AAPL", trade}}, Faults{}},
		{"mixed", `[` + trade + `,` + luld + `]`, []split{{"T", "AAPL", trade}, {"LULD", "BRK.A", luld}}, Faults{}},
		{"white space", " [\n" + trade + "\t, \r" + luld + " ] ", []split{{"T", "AAPL", trade}, {"LULD", "BRK.A", luld}}, Faults{}},
		{"white space inside", `[{ "ev" : "T" , "sym" : "A" }]`, []split{{"T", "A", `{ "ev" : "T" , "sym" : "A" }`}}, Faults{}},
		{"keys in any order", `[{"t":1,"sym":"A","x":{"sym":"B","ev":"Q"},"ev":"T"}]`, []split{{"T", "A", `{"t":1,"sym":"A","x":{"sym":"B","ev":"Q"},"ev":"T"}`}}, Faults{}},
		{"nested only", `[{"x":[{"ev":"T"}],"sym":"A"}]`, nil, Faults{FaultNoKind: 1}},
		{"braces in strings", `[{"ev":"T","sym":"A","i":"}],[{\"\\"}]`, []split{{"T", "A", `{"ev":"T","sym":"A","i":"}],[{\"\\"}`}}, Faults{}},
		{"T as a number", `[{"ev":"LULD","T":5}]`, []split{{"LULD", "", `{"ev":"LULD","T":5}`}}, Faults{}},
		{"sym before T", `[{"T":"X","ev":"Z","sym":"A"}]`, []split{{"Z", "A", `{"T":"X","ev":"Z","sym":"A"}`}}, Faults{}},
		{"t is not T", `[{"ev":"NOI","t":"X"}]`, []split{{"NOI", "", `{"ev":"NOI","t":"X"}`}}, Faults{}},
		{"last of two keys", `[{"ev":"Q","sym":"B","ev":"T","sym":"A"}]`, []split{{"T", "A", `{"ev":"Q","sym":"B","ev":"T","sym":"A"}`}}, Faults{}},
		{"escapes", `[{"\u0065v":"\u0054","sym":"BRK\u002eA"}]`, []split{{"T", "BRK.A", `{"\u0065v":"\u0054","sym":"BRK\u002eA"}`}}, Faults{}},
		{"status", `[{"ev":"status","status":"connected"}]`, []split{{"status", "", `{"ev":"status","status":"connected"}`}}, Faults{}},
		{"empty array", `[ ]`, nil, Faults{}},
		{"no array", trade, nil, Faults{FaultSyntax: 1}},
		{"nothing", ``, nil, Faults{FaultSyntax: 1}},
		{"not objects", `[1,"a",null,[{}],true,` + trade + `]`, []split{{"T", "AAPL", trade}}, Faults{FaultNotObject: 5}},
		{"no ev", `[{},{"ev":5},{"ev":""},` + trade + `]`, []split{{"T", "AAPL", trade}}, Faults{FaultNoKind: 3}},
		{"cut off", `[` + trade + `,{"ev":"T","sym":"A`, []split{{"T", "AAPL", trade}}, Faults{FaultSyntax: 1}},
		{"not closed", `[` + trade, []split{{"T", "AAPL", trade}}, Faults{FaultSyntax: 1}},
		{"trailing comma", `[` + trade + `,]`, []split{{"T", "AAPL", trade}}, Faults{FaultSyntax: 1}},
		{"something behind", `[` + trade + `]x`, []split{{"T", "AAPL", trade}}, Faults{FaultSyntax: 1}},
		{"something behind nothing", `[]]`, nil, Faults{FaultSyntax: 1}},
		{"broken object", `[{"ev":"T",}]`, nil, Faults{FaultSyntax: 1}},
		{"broken number", `[{"ev":"T","p":01}]`, nil, Faults{FaultSyntax: 1}},
		{"control character", "[{\"ev\":\"T\n\"}]", nil, Faults{FaultSyntax: 1}},
		{"not UTF-8", "[{\"ev\":\"T\",\"sym\":\"\xff\"}," + trade + "]", []split{{"T", "AAPL", trade}}, Faults{FaultEncoding: 1}},
		{"deep", `[{"ev":"T","x":` + deep + `}]`, []split{{"T", "", `{"ev":"T","x":` + deep + `}`}}, Faults{}},
		{"too deep", `[{"ev":"T","x":[` + deep + `]}]`, nil, Faults{FaultSyntax: 1}},
		{"too big", `[{"ev":"T","x":"` + strings.Repeat("a", maxEvent) + `"},` + trade + `]`, []split{{"T", "AAPL", trade}}, Faults{FaultOversize: 1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, faults := splitAll(tt.frame)
			if !slices.Equal(got, tt.want) || faults != tt.faults {
				t.Errorf("got %v, faults %v\nwant %v, faults %v", got, faults, tt.want, tt.faults)
			}
		})
	}
}

func FuzzSplit(f *testing.F) {
	for _, seed := range []string{
		`[{"ev":"T","sym":"AAPL","x":4,"i":"52983525029461","z":3,"p":115.55,"s":25,"c":[14,41],"t":1536036818784,"q":3}]`,
		`[{"ev":"Q","sym":"O:SPY241220P00720000","bx":302,"ax":302,"bp":9.71,"ap":9.81,"bs":17,"as":24,"t":1644506128351}]`,
		`[{"ev":"LULD","T":"MSFT","h":218.94,"l":198.08,"i":[2],"z":3,"t":1601923200000000000,"q":1},{"ev":"NOI","T":"NTEST.Q","t":1,"at":930,"a":"M"}]`,
		`[{"ev":"status","status":"success","message":"subscribed to: T.AAPL"},{"ev":"A","sym":"B","z":12.0}]`,
		`[ {"ev" : "T" , "sym" : "\u0041\"\\" , "n":{"sym":"x","a":[{}, [] ,-0.5E+3,true,false,null]}} , 1, "x" ]`,
		`[]`, `[`, `{}`, `[{"ev":"T"}`, `[{"ev":"T",}]`, "[{\"ev\":\"\xff\"}]", `[{"e\u0076":"T","T":"a"}]`, `[{"ev":"T"}]]`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		events, faults := Split(frame, nil)
		for _, e := range events {
			if !json.Valid(e.Raw) || !utf8.Valid(e.Raw) || len(e.Kind) == 0 {
				t.Fatalf("event %q of kind %q", e.Raw, e.Kind)
			}
		}
		var elements []json.RawMessage
		if json.Unmarshal(frame, &elements) != nil || elements == nil {
			if faults[FaultSyntax] == 0 {
				t.Fatalf("%q is not an array, but no fault", frame)
			}
			return
		}
		if faults[FaultSyntax] > 0 { // the one limit that encoding/json has not
			if depth(frame) <= maxDepth {
				t.Fatalf("%q is an array, but faulty", frame)
			}
			return
		}
		var want []split
		for _, element := range elements {
			if kind, symbol := oracle(element); kind != "" && len(element) <= maxEvent && utf8.Valid(element) {
				want = append(want, split{kind, symbol, string(element)})
			}
		}
		var got []split
		for _, e := range events {
			got = append(got, split{string(e.Kind), string(e.Symbol), string(e.Raw)})
		}
		if !slices.Equal(got, want) {
			t.Fatalf("%q:\n got %q\nwant %q", frame, got, want)
		}
	})
}

// oracle reads an element with encoding/json.
func oracle(element json.RawMessage) (kind, symbol string) {
	var object map[string]json.RawMessage
	if json.Unmarshal(element, &object) != nil {
		return "", ""
	}
	text := func(key string) (s string) {
		if raw := object[key]; len(raw) > 0 && raw[0] == '"' {
			_ = json.Unmarshal(raw, &s)
		}
		return s
	}
	if symbol = text("sym"); symbol == "" {
		symbol = text("T")
	}
	return text("ev"), symbol
}

// depth is at least the nesting of a frame's elements.
func depth(frame []byte) int {
	return max(bytes.Count(frame, []byte("[")), bytes.Count(frame, []byte("{"))) +
		min(bytes.Count(frame, []byte("[")), bytes.Count(frame, []byte("{")))
}

func TestSplitDoesNotAllocate(t *testing.T) {
	frame := tradeFrame(100)
	events := make([]Event, 0, 100)
	if n := testing.AllocsPerRun(100, func() {
		if got, _ := Split(frame, events); len(got) != 100 {
			panic("not split")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// tradeFrame is a frame of n trades of as many tickers.
func tradeFrame(n int) []byte {
	frame := []byte{'['}
	for i := range n {
		if i > 0 {
			frame = append(frame, ',')
		}
		frame = fmt.Appendf(frame, `{"ev":"T","sym":"S%d","x":4,"i":"52983525029461","z":3,"p":115.55,"s":25,"c":[14,41],"t":1536036818784,"q":%d}`, i, i)
	}
	return append(frame, ']')
}

func BenchmarkSplit(b *testing.B) {
	for _, n := range []int{1, 10, 100} {
		b.Run(fmt.Sprintf("events=%d", n), func(b *testing.B) {
			frame := tradeFrame(n)
			events := make([]Event, 0, n)
			b.SetBytes(int64(len(frame)))
			b.ReportAllocs()
			for b.Loop() {
				_, _ = Split(frame, events)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/event")
		})
	}
}
