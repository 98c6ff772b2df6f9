package tape

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

var start = time.Date(2026, 5, 15, 13, 30, 0, 0, time.UTC)

// play calls do with the events of each of n ticks.
func play(cfg Config, from time.Time, n int, do func(tick int, events []Event)) {
	tape := New(cfg)
	for i := range n {
		do(i, tape.Tick(from.Add(time.Duration(i)*Interval)))
	}
}

func config(m Market) Config {
	return Config{Market: m, Symbols: 300, Rate: 4_000, Seed: 7, Minute: 2 * time.Second}
}

func TestReproducible(t *testing.T) {
	t.Parallel()
	tapeText := func(cfg Config, from time.Time) string {
		var text bytes.Buffer
		play(cfg, from, 2*ticksPerSecond+1, func(tick int, events []Event) {
			for _, e := range events {
				fmt.Fprintf(&text, "%d %s\n", tick, e.Data)
			}
		})
		return text.String()
	}
	for _, m := range []Market{Stocks, Options} {
		first := tapeText(config(m), start)
		if tapeText(config(m), start) != first {
			t.Errorf("%s: the same seed and times print another tape", m)
		}
		other := config(m)
		other.Seed++
		if tapeText(other, start) == first {
			t.Errorf("%s: another seed prints the same tape", m)
		}
		times := regexp.MustCompile(`"(t|trft|s|e)":\d{13,}`)
		later := tapeText(config(m), start.Add(1234*time.Millisecond))
		if later == first || times.ReplaceAllString(later, "") != times.ReplaceAllString(first, "") {
			t.Errorf("%s: the time changes more than the times", m)
		}
	}
}

// Types of fields on the wire.
var (
	text     = regexp.MustCompile(`^"[^"]+"$`)
	integer  = regexp.MustCompile(`^\d+$`)
	double   = regexp.MustCompile(`^\d+(\.\d*[1-9])?$`) // without trailing zeros
	integers = regexp.MustCompile(`^\[\d+(,\d+)*\]$`)
	decimals = regexp.MustCompile(`^"\d+(\.\d+)?"$`) // a decimal in a string
	digits   = regexp.MustCompile(`^"\d+"$`)
	millis   = regexp.MustCompile(`^17\d{11}$`)
	nanos    = regexp.MustCompile(`^17\d{17}$`)
	yes      = regexp.MustCompile(`^true$`)
	tapeID   = regexp.MustCompile(`^[123]$`)
	auction  = regexp.MustCompile(`^(930|1600)$`)
	phase    = regexp.MustCompile(`^"[OMHCPR]"$`)
)

// schema has the fields of an event; a "?" marks those that may be absent.
type schema map[string]*regexp.Regexp

var (
	barFields = schema{"ev": text, "sym": text, "v": integer, "av": integer, "op": double, "vw": double, "o": double, "c": double,
		"h": double, "l": double, "a": double, "z": integer, "s": millis, "e": millis}
	stockBar = merge(barFields, schema{"dv": digits, "dav": digits, "otc?": yes})
	fairFMV  = schema{"ev": text, "sym": text, "fmv": double, "t": nanos}
)

var schemas = map[Market]map[Kind]schema{
	Stocks: {
		Trade: {"ev": text, "sym": text, "x": integer, "i": text, "z": tapeID, "p": double, "s": integer, "c?": integers,
			"t": millis, "q": integer, "trfi?": integer, "trft?": millis, "ds": decimals},
		Quote: {"ev": text, "sym": text, "bx": integer, "bp": double, "bs": integer, "ax": integer, "ap": double, "as": integer,
			"c": integer, "i?": integers, "t": millis, "q": integer, "z": tapeID},
		SecondBar: stockBar,
		MinuteBar: stockBar,
		LimitBand: {"ev": text, "T": text, "h": double, "l": double, "i": integers, "z": tapeID, "t": nanos, "q": integer},
		Imbalance: {"ev": text, "T": text, "t": nanos, "at": auction, "a": phase, "i": integer, "x": integer,
			"o": integer, "p": integer, "b": double},
		FairValue: fairFMV,
	},
	Options: {
		Trade: {"ev": text, "sym": text, "x": integer, "p": double, "s": integer, "c?": integers, "t": millis, "q": integer},
		Quote: {"ev": text, "sym": text, "bx": integer, "ax": integer, "bp": double, "ap": double, "bs": integer, "as": integer,
			"t": millis, "q": integer},
		SecondBar: barFields,
		MinuteBar: barFields,
		FairValue: fairFMV,
	},
}

func merge(a, b schema) schema {
	out := schema{}
	for _, s := range []schema{a, b} {
		for k, v := range s {
			out[k] = v
		}
	}
	return out
}

// TestSchemas checks every event of some seconds against the table of the
// vendor's fields, and that optional fields are both given and left out.
func TestSchemas(t *testing.T) {
	t.Parallel()
	for market, kinds := range schemas {
		t.Run(string(market), func(t *testing.T) {
			t.Parallel()
			tickers := Tickers(market, config(market).Symbols)
			seen := map[Kind]map[string]int{} // per kind: how often each field, and "" for the events
			play(config(market), start, 5*ticksPerSecond, func(_ int, events []Event) {
				for _, e := range events {
					fields, known := kinds[e.Kind]
					if !known {
						t.Fatalf("%s has no %s: %s", market, e.Kind, e.Data)
					}
					if seen[e.Kind] == nil {
						seen[e.Kind] = map[string]int{}
					}
					seen[e.Kind][""]++
					checkFields(t, e, fields, seen[e.Kind])
					symbol := "sym"
					if e.Kind == LimitBand || e.Kind == Imbalance {
						symbol = "T"
					}
					head := fmt.Sprintf(`{"ev":%q,%q:%q,`, e.Kind, symbol, tickers[e.Symbol])
					if !bytes.HasPrefix(e.Data, []byte(head)) {
						t.Fatalf("said to be %s.%s: %s", e.Kind, tickers[e.Symbol], e.Data)
					}
				}
			})
			for kind, fields := range kinds {
				total := seen[kind][""]
				for name := range fields {
					name, optional := strings.CutSuffix(name, "?")
					n := seen[kind][name]
					if n == 0 || optional == (n == total) {
						t.Errorf("%s: field %s in %d of %d events", kind, name, n, total)
					}
				}
			}
		})
	}
}

func checkFields(t *testing.T, e Event, fields schema, seen map[string]int) {
	t.Helper()
	var compact bytes.Buffer
	if err := json.Compact(&compact, e.Data); err != nil || !bytes.Equal(compact.Bytes(), e.Data) {
		t.Fatalf("no compact JSON (%v): %s", err, e.Data)
	}
	var got map[string]json.RawMessage
	if err := json.Unmarshal(e.Data, &got); err != nil {
		t.Fatalf("%v: %s", err, e.Data)
	}
	for name, pattern := range fields {
		name, optional := strings.CutSuffix(name, "?")
		value, present := got[name]
		switch {
		case present && !pattern.Match(value):
			t.Fatalf("field %s is no %s: %s", name, pattern, e.Data)
		case present:
			seen[name]++
			delete(got, name)
		case !optional:
			t.Fatalf("field %s is missing: %s", name, e.Data)
		}
	}
	if len(got) > 0 {
		t.Fatalf("unknown fields: %s", e.Data)
	}
}

// TestValues checks that the numbers make sense beside each other.
func TestValues(t *testing.T) {
	t.Parallel()
	for _, m := range []Market{Stocks, Options} {
		sequences, ends := map[string]float64{}, map[string]float64{}
		var volume, barred float64
		play(config(m), start, 6*ticksPerSecond+1, func(tick int, events []Event) {
			for _, e := range events {
				var fields map[string]any // no struct: "T" and "t" would collide
				if err := json.Unmarshal(e.Data, &fields); err != nil {
					t.Fatal(err)
				}
				number := func(name string) float64 { f, _ := fields[name].(float64); return f }
				symbol, _ := fields["sym"].(string)
				switch e.Kind {
				case Trade, Quote:
					if number("q") <= sequences[symbol] {
						t.Fatalf("q does not rise: %s", e.Data)
					}
					sequences[symbol] = number("q")
					if e.Kind == Trade && tick < 6*ticksPerSecond {
						volume += number("s")
					}
					if e.Kind == Quote && number("bp") >= number("ap") {
						t.Fatalf("crossed: %s", e.Data)
					}
				case SecondBar, MinuteBar:
					key := e.Kind.String() + symbol
					window := map[Kind]float64{SecondBar: 1000, MinuteBar: 2000}[e.Kind]
					from, to := number("s"), number("e")
					if to-from != window || from < ends[key] || int64(to)%1000 != 0 {
						t.Fatalf("window after one to %.0f: %s", ends[key], e.Data)
					}
					ends[key] = to
					if number("l") > min(number("o"), number("c"), number("vw")) || number("h") < max(number("o"), number("c"), number("vw")) {
						t.Fatalf("prices outside the bar: %s", e.Data)
					}
					if e.Kind == SecondBar {
						barred += number("v")
					}
				}
			}
		})
		if volume == 0 || volume != barred {
			t.Errorf("%s: %v traded, %v in bars", m, volume, barred)
		}
	}
}

func TestRateAndBursts(t *testing.T) {
	t.Parallel()
	for _, rate := range []int{1, 200, 3_000} {
		cfg := config(Stocks)
		cfg.Rate = rate
		const seconds = 120
		var sizes []int
		total, mixed := 0, 0
		play(cfg, start, seconds*ticksPerSecond, func(_ int, events []Event) {
			kinds := map[Kind]bool{}
			for _, e := range events {
				kinds[e.Kind] = true
			}
			if len(kinds) > 1 {
				mixed++
			}
			sizes = append(sizes, len(events))
			total += len(events)
		})
		mean := float64(total) / seconds
		if mean < 0.9*float64(rate) || mean > 1.1*float64(rate) {
			t.Errorf("rate %d: %.1f events/s", rate, mean)
		}
		slices.Sort(sizes)
		median, top := sizes[len(sizes)/2], sizes[len(sizes)*999/1000]
		if rate >= 200 && (top < 5*max(median, 1) || mixed < 100) {
			t.Errorf("rate %d: no bursts: median %d events in a tick, top %d, %d ticks of several kinds", rate, median, top, mixed)
		}
	}
}

func TestPopularity(t *testing.T) {
	t.Parallel()
	counts := make([]int, 4000)
	total := 0
	cfg := Config{Market: Stocks, Symbols: len(counts), Rate: 20_000, Seed: 3, Minute: time.Minute}
	play(cfg, start, 10*ticksPerSecond, func(_ int, events []Event) {
		for _, e := range events {
			counts[e.Symbol]++
			total++
		}
	})
	head, silent := 0, 0
	for i, n := range counts {
		if i < 100 {
			head += n
		}
		if n == 0 {
			silent++
		}
	}
	if share := float64(head) / float64(total); share < 0.3 || share > 0.8 {
		t.Errorf("the first 100 tickers have %.2f of the events", share)
	}
	if counts[0] < 10*counts[300] || silent > len(counts)/10 {
		t.Errorf("first ticker %d events, the 300th %d; %d tickers without any", counts[0], counts[300], silent)
	}
}

func TestTickers(t *testing.T) {
	t.Parallel()
	forms := map[Market]*regexp.Regexp{
		Stocks:  regexp.MustCompile(`^[A-Z]{1,5}(\.[AB])?$`),
		Options: regexp.MustCompile(`^O:[A-Z]+\d{6}[CP]\d{8}$`),
	}
	wanted := map[Market][]string{
		Stocks:  {"AAPL", "MSFT", "SPY", "NVDA", "TSLA", "BRK.A", "BRK.B"},
		Options: {"O:SPY260515C00500000", "O:AAPL260515P00230000", "O:TSLA261218C00250000"},
	}
	for m, form := range forms {
		all := Tickers(m, MaxSymbols)
		seen := map[string]bool{}
		for _, ticker := range all {
			if seen[ticker] || !form.MatchString(ticker) || strings.HasPrefix(ticker, "ZZ") {
				t.Fatalf("%s: bad or double ticker %s", m, ticker)
			}
			seen[ticker] = true
		}
		if len(all) != MaxSymbols || !slices.Equal(Tickers(m, 500), all[:500]) {
			t.Errorf("%s: %d tickers, or the short list is no prefix of the long one", m, len(all))
		}
		for _, ticker := range wanted[m] {
			if !slices.Contains(all[:500], ticker) {
				t.Errorf("%s: no %s", m, ticker)
			}
		}
	}
}

func TestKinds(t *testing.T) {
	t.Parallel()
	for i := range Kinds {
		k := Kind(i)
		if got, ok := ParseKind(Stocks, k.String()); !ok || got != k {
			t.Errorf("stocks: %s parses as %s, %v", k, got, ok)
		}
		_, ok := ParseKind(Options, k.String())
		if _, has := schemas[Options][k]; ok != has {
			t.Errorf("options: %s known: %v", k, ok)
		}
	}
	for _, p := range []string{"", "t", "ZZ", "LV", "AM "} {
		if _, ok := ParseKind(Stocks, p); ok {
			t.Errorf("prefix %q is known", p)
		}
	}
}

func TestTickDoesNotAllocate(t *testing.T) {
	tape := New(config(Stocks))
	now := start
	tick := func() {
		now = now.Add(Interval)
		tape.Tick(now)
	}
	for range 20 * ticksPerSecond { // until the buffers have their size
		tick()
	}
	if n := testing.AllocsPerRun(2*ticksPerSecond, tick); n > 0 {
		t.Errorf("%v allocations per tick", n)
	}
}

// BenchmarkTick reports what one core prints.
func BenchmarkTick(b *testing.B) {
	for _, m := range []Market{Stocks, Options} {
		b.Run(string(m), func(b *testing.B) {
			tape := New(Config{Market: m, Symbols: 4000, Rate: 150_000, Seed: 1, Minute: 5 * time.Second})
			now, events, size := start, 0, 0
			b.ReportAllocs()
			for b.Loop() {
				now = now.Add(Interval)
				for _, e := range tape.Tick(now) {
					events++
					size += len(e.Data)
				}
			}
			b.ReportMetric(float64(events)/b.Elapsed().Seconds(), "events/s")
			b.ReportMetric(float64(size)/float64(events), "B/event")
		})
	}
}
