package shape

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// The facts of the reference measurements, with 5,000 connections.
func TestFacts(t *testing.T) {
	s, ok := ByName("S2r95")
	if !ok {
		t.Fatal("no S2r95")
	}
	subscriptions := s.Subscriptions(5000)
	fan := s.FanOut(subscriptions)
	total := 0
	for _, n := range fan {
		total += n
	}
	sorted := slices.Sorted(slices.Values(fan))
	z := newZipf(s.Topics, 0)
	mean, last := 0.0, 0.0
	for i, sum := range z.sums {
		mean += (sum - last) / z.sums[len(z.sums)-1] * float64(fan[i])
		last = sum
	}
	got := fmt.Sprintf("total %d mean %.1f largest %d share %.3f median %d smallest %d",
		total, mean, sorted[len(sorted)-1], z.sums[0]/z.sums[len(z.sums)-1], sorted[len(sorted)/2], sorted[0])
	const want = "total 100000 mean 524.6 largest 3427 share 0.054 median 23 smallest 5"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	for i, topics := range subscriptions {
		if slices.Sort(topics); len(slices.Compact(topics)) != 20 {
			t.Fatalf("connection %d has duplicates", i)
		}
	}
}

func TestChoice(t *testing.T) {
	s, _ := ByName("S2b400")
	fan := s.FanOut(s.Subscriptions(5000))
	a, b := s.Choice(), s.Choice()
	const events = 100_000
	sum := 0
	for range events {
		topic := a.Next()
		if topic != b.Next() {
			t.Fatal("the sequence is not always the same")
		}
		sum += fan[topic]
	}
	if mean := float64(sum) / events; mean < 515 || mean > 535 {
		t.Errorf("mean fan-out %.1f, want about 525", mean)
	}
}

func TestEvent(t *testing.T) {
	at := time.Date(2026, 5, 15, 13, 30, 0, 1, time.UTC).UnixNano()
	for _, test := range []struct {
		topic, n int
		want     string
	}{
		{1, 1, `{"ev":"T","sym":"S0001","x":4,"i":"12345","z":3,"p":187.231,"s":100,"c":[14,41],"t":1700000000000,"q":1000001,"ts":1778851800000000001}`},
		{1999, numbers, `{"ev":"T","sym":"S1999","x":4,"i":"12345","z":3,"p":187.231,"s":100,"c":[14,41],"t":1700000000000,"q":1000000,"ts":1778851800000000001}`},
	} {
		got := AppendEvent(nil, test.topic, test.n, at)
		if string(got) != test.want || len(got) != EventSize {
			t.Errorf("got  %s (%d bytes)\nwant %s", got, len(got), test.want)
		}
		if stamp, ok := Stamp(got); !ok || stamp != at {
			t.Errorf("stamp %d, %v", stamp, ok)
		}
	}
	if _, ok := Stamp([]byte("{}")); ok {
		t.Error("a stamp of what is no event")
	}
}

func TestSymbols(t *testing.T) {
	for topic := range MaxTopics {
		got, ok := ParseSymbol(AppendSymbol(nil, topic))
		if !ok || got != topic {
			t.Fatalf("topic %d came back as %d, %v", topic, got, ok)
		}
	}
	for _, bad := range []string{"", "S", "S000", "X0000", "S00a0"} {
		if _, ok := ParseSymbol([]byte(bad)); ok {
			t.Errorf("%q is no symbol", bad)
		}
	}
	if got := TopicList([]int{0, 1999}); got != "T.S0000,T.S1999" {
		t.Errorf("got %s", got)
	}
}

func TestInterval(t *testing.T) {
	for name, want := range map[string]time.Duration{"S1r10": 100 * time.Millisecond, "S2b400": 50 * time.Millisecond, "S2r400": 2500 * time.Microsecond} {
		if s, _ := ByName(name); s.Interval() != want {
			t.Errorf("%s: %s", name, s.Interval())
		}
	}
}

func TestAllocations(t *testing.T) {
	s, _ := ByName("S2r95")
	choice, event := s.Choice(), make([]byte, 0, EventSize)
	if n := testing.AllocsPerRun(1000, func() {
		event = AppendEvent(event[:0], choice.Next(), 1, 1778851800000000001)
	}); n != 0 {
		t.Errorf("%v allocations per event", n)
	}
}
