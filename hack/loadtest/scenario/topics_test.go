package scenario

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func symbols(n int) []string {
	var all []string
	for i := range n {
		all = append(all, fmt.Sprintf("S%d", i))
	}
	return all
}

func TestTopicsOfAList(t *testing.T) {
	p := plan(t, func(s *Settings) { s.Topics = Topics{List: "T.A,AM.*"} })
	if p.Topics(0) != "T.A,AM.*" || p.Topics(9) != "T.A,AM.*" {
		t.Errorf("%q, %q", p.Topics(0), p.Topics(9))
	}
	if none := plan(t, func(*Settings) {}).Topics(0); none != "" {
		t.Errorf("%q without topics", none)
	}
}

// TestTopicsOfSymbols: as many as asked for, all different, the same each time.
func TestTopicsOfSymbols(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := symbols(rapid.IntRange(1, 200).Draw(t, "symbols"))
		each := rapid.IntRange(1, len(all)).Draw(t, "each")
		p, err := New(settings(func(s *Settings) {
			s.Topics = Topics{Symbols: all, Prefix: "Q", Each: each, Zipf: rapid.Float64Range(0, 10).Draw(t, "zipf")}
		}))
		if err != nil {
			t.Fatal(err)
		}
		connection := rapid.IntRange(0, 1<<20).Draw(t, "connection")
		list := p.Topics(connection)
		topics := strings.Split(list, ",")
		for _, topic := range topics {
			symbol, found := strings.CutPrefix(topic, "Q.")
			if !found || !slices.Contains(all, symbol) {
				t.Fatalf("topic %s", topic)
			}
		}
		slices.Sort(topics)
		if len(slices.Compact(topics)) != each || p.Topics(connection) != list {
			t.Fatalf("%s, want %d", list, each)
		}
	})
}

// TestZipf: with exponent 1 the first symbol is drawn twice as often as the
// second and ten times as often as the tenth; with 0 all are alike.
func TestZipf(t *testing.T) {
	const connections = 200_000
	draws := func(zipf float64) map[string]float64 {
		p := plan(t, func(s *Settings) { s.Topics = Topics{Symbols: symbols(100), Prefix: "T", Each: 1, Zipf: zipf} })
		counts := map[string]float64{}
		for i := range connections {
			counts[p.Topics(i)]++
		}
		return counts
	}
	steep, flat := draws(1), draws(0)
	near := func(got, want float64) bool { return got > 0.9*want && got < 1.1*want }
	if !near(steep["T.S0"]/steep["T.S1"], 2) || !near(steep["T.S0"]/steep["T.S9"], 10) {
		t.Errorf("%v %v %v", steep["T.S0"], steep["T.S1"], steep["T.S9"])
	}
	if !near(flat["T.S0"], connections/100) || !near(flat["T.S99"], connections/100) {
		t.Errorf("%v %v", flat["T.S0"], flat["T.S99"])
	}
}
