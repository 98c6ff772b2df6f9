package oddity

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/cutemarkets/relay/hack/feedsim/source"
	"github.com/cutemarkets/relay/hack/feedsim/tape"
)

var now = time.Unix(0, 1_700_000_000_000_000_000)

func event(data string) []source.Event {
	return []source.Event{{Kind: tape.Trade, Topic: "T.BRK.A", Data: []byte(data)}}
}

func TestApply(t *testing.T) {
	t.Parallel()
	const stamp = `,"ts":1700000000000000000}`
	for name, c := range map[string]struct {
		set    Settings
		data   string
		want   []string
		counts Counts
	}{
		"nothing":  {Settings{}, `{"ev":"T"}`, []string{`{"ev":"T"}`}, Counts{}},
		"stamp":    {Settings{Stamp: true}, `{"ev":"T"}`, []string{`{"ev":"T"` + stamp}, Counts{}},
		"numbers":  {Settings{Numbers: true}, `{"z":12,"s":1200}`, []string{`{"z":12.0,"s":12e2}`}, Counts{Numbers: 1}},
		"zero":     {Settings{Numbers: true}, `{"s":0,"z":0}`, []string{`{"s":0e0,"z":0.0}`}, Counts{Numbers: 1}},
		"small":    {Settings{Numbers: true}, `{"s":7}`, []string{`{"s":7e0}`}, Counts{Numbers: 1}},
		"no int":   {Settings{Numbers: true}, `{"z":1.5,"s":"12","x":"\"z\":1"}`, []string{`{"z":1.5,"s":"12","x":"\"z\":1"}`}, Counts{}},
		"repeated": {Settings{Sequence: Repeated}, `{"q":5,"z":1}`, []string{`{"q":1000,"z":1}`}, Counts{Sequence: 1}},
		"falling":  {Settings{Sequence: Falling}, `{"q":5}`, []string{`{"q":1099511627775}`}, Counts{Sequence: 1}},
		"no q":     {Settings{Sequence: Falling}, `{"p":5}`, []string{`{"p":5}`}, Counts{}},
		"keys":     {Settings{Keys: true}, `{"ev":"T"}`, []string{`{"ev":"T"` + unknownKeys}, Counts{Keys: 1}},
		"types": {Settings{Types: 1, Stamp: true}, `{"ev":"T"}`,
			[]string{`{"ev":"T"` + stamp, `{"ev":"ZB","sym":"BRK.A","i":1,"ts":1700000000000000001}`}, Counts{Types: 1}},
		"number": {Settings{Number: ByMarket, Last: 41}, `{"ev":"T"}`, []string{`{"ev":"T","n":42}`}, Counts{}},
		"numbers of what is added": {Settings{Types: 1, Stamp: true, Number: ByMarket}, `{"ev":"T"}`,
			[]string{`{"ev":"T","ts":1700000000000000000,"n":1}`, `{"ev":"ZB","sym":"BRK.A","i":1,"ts":1700000000000000001,"n":2}`}, Counts{Types: 1}},
		"huge": {Settings{Huge: 100}, `{"ev":"T"}`,
			[]string{hugeHead + strings.Repeat("x", 100-len(hugeHead)-len(hugeTail)) + hugeTail, `{"ev":"T"}`}, Counts{}},
	} {
		var o Oddity
		events, counts := o.Apply(event(c.data), now, c.set)
		if len(events) != len(c.want) || counts != c.counts {
			t.Errorf("%s: %d events, %+v", name, len(events), counts)
			continue
		}
		for i, e := range events {
			if string(e.Data) != c.want[i] || !json.Valid(e.Data) {
				t.Errorf("%s: %s, want %s", name, e.Data, c.want[i])
			}
		}
	}
}

// TestNumber: each topic is counted by itself, over all calls.
func TestNumber(t *testing.T) {
	t.Parallel()
	var o Oddity
	var got []string
	for _, topics := range [][]string{{"T.A", "Q.A", "T.A"}, {"T.A", "T.B"}} {
		var events []source.Event
		for _, topic := range topics {
			events = append(events, source.Event{Topic: topic, Data: []byte(`{}`)})
		}
		events, _ = o.Apply(events, now, Settings{Number: ByTopic, Types: 5})
		for _, e := range events {
			got = append(got, string(e.Data))
		}
	}
	want := `{,"n":1} {,"n":1} {,"n":2} {,"n":3} {,"n":1} {"ev":"ZB","sym":"B","i":1}`
	if strings.Join(got, " ") != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// TestTape applies everything to invented events of both markets.
func TestTape(t *testing.T) {
	t.Parallel()
	for _, m := range []tape.Market{tape.Stocks, tape.Options} {
		printed := source.NewTape(tape.Config{Market: m, Symbols: 100, Rate: 4_000, Seed: 1, Minute: time.Second}, time.Time{}, now)
		var o Oddity
		last := int64(0)
		for range 250 {
			events, _ := printed.Next(now, true, source.All)
			events, _ = o.Apply(events, now, Settings{Stamp: true, Numbers: true, Keys: true, Types: 7, Sequence: Falling})
			for _, e := range events {
				var stamp struct {
					TS int64 `json:"ts"`
				}
				if err := json.Unmarshal(e.Data, &stamp); err != nil || stamp.TS <= last {
					t.Fatalf("after the stamp %d (%v): %s", last, err, e.Data)
				}
				last = stamp.TS
			}
		}
		if o.added == 0 || o.fallen == 0 {
			t.Errorf("%s: %d added, %d sequence numbers", m, o.added, o.fallen)
		}
	}
}
