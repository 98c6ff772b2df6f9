package judge

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
	"unsafe"

	"pgregory.net/rapid"

	"github.com/cutemarkets/relay/hack/truth"
)

// groundTruth writes events of these topics, numbered from 1.
func groundTruth(t interface{ Fatal(...any) }, topics []string) *Truth {
	var file bytes.Buffer
	w := truth.NewWriter(&file)
	w.Event("options", 1, time.Now(), topics[0], []byte("{}"))
	w.Up("stocks", time.Now())
	for i, topic := range topics {
		w.Event("stocks", uint64(i+1), time.Now(), topic, []byte("{}"))
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	read, err := ReadTruth(truth.NewReader(&file), "stocks")
	if err != nil {
		t.Fatal(err)
	}
	return read
}

func account(numbers ...int) *Account {
	a := &Account{}
	for _, n := range numbers {
		if n == gap {
			a.Gap()
		} else {
			a.Event(uint64(n))
		}
	}
	return a
}

const gap = -1

func TestVerdict(t *testing.T) {
	ten := groundTruth(t, strings.Fields("T.A T.A T.A T.A T.A T.A T.A T.A T.A T.A"))
	for name, c := range map[string]struct {
		a    *Account
		span Span
		want Verdict
	}{
		"all":                 {account(1, 2, 3), Span{}, Verdict{Judged: true, Expected: 3, Received: 3}},
		"begins late":         {account(5, 6), Span{}, Verdict{Judged: true, Expected: 2, Received: 2}},
		"begins late, known":  {account(5, 6), Span{From: 3}, Verdict{Judged: true, Expected: 4, Received: 2, Missing: 2}},
		"ends early, known":   {account(1, 2), Span{Through: 10}, Verdict{Judged: true, Expected: 10, Received: 2, Missing: 8}},
		"nothing":             {account(), Span{}, Verdict{}},
		"nothing, known":      {account(), Span{1, 10}, Verdict{Judged: true, Expected: 10, Missing: 10}},
		"nothing, announced":  {account(gap), Span{1, 10}, Verdict{Judged: true, Expected: 10, MissingAnnounced: 10}},
		"missing":             {account(1, 2, 5), Span{}, Verdict{Judged: true, Expected: 5, Received: 3, Missing: 2}},
		"announced":           {account(1, 2, gap, 5), Span{}, Verdict{Judged: true, Expected: 5, Received: 3, MissingAnnounced: 2}},
		"told twice":          {account(1, 2, gap, gap, 5, 7), Span{}, Verdict{Judged: true, Expected: 7, Received: 4, MissingAnnounced: 2, Missing: 1}},
		"announced for none":  {account(1, 2, gap, 3, 5), Span{}, Verdict{Judged: true, Expected: 5, Received: 4, Missing: 1}},
		"announced, begin":    {account(gap, 5), Span{From: 2}, Verdict{Judged: true, Expected: 4, Received: 1, MissingAnnounced: 3}},
		"announced, end":      {account(1, 3, gap), Span{Through: 10}, Verdict{Judged: true, Expected: 10, Received: 2, Missing: 1, MissingAnnounced: 7}},
		"twice":               {account(1, 2, 2, 3, 1), Span{}, Verdict{Judged: true, Expected: 3, Received: 3, Duplicates: 2}},
		"late":                {account(1, 3, 2, 4), Span{}, Verdict{Judged: true, Expected: 4, Received: 4, Disordered: 1}},
		"late, first":         {account(2, 1, 3), Span{}, Verdict{Judged: true, Expected: 3, Received: 3, Disordered: 1}},
		"late and then twice": {account(1, 3, 2, 2), Span{}, Verdict{Judged: true, Expected: 3, Received: 3, Disordered: 1, Duplicates: 1}},
		"late in a hole":      {account(1, gap, 5, 3), Span{}, Verdict{Judged: true, Expected: 5, Received: 3, Disordered: 1, MissingAnnounced: 2}},
		"another run":         {account(9, 10, 11, 12), Span{}, Verdict{Judged: true, Expected: 2, Received: 4, Unexpected: 2}},
		"a number is zero":    {account(1, 0, 2), Span{}, Verdict{Received: 2, Unnumbered: 1}},
	} {
		if got := c.a.Verdict(ten, ParseTopics("T.A"), c.span); got != c.want {
			t.Errorf("%s:\n got %+v\nwant %+v", name, got, c.want)
		}
	}
	if v := account(1, 2).Verdict(nil, ParseTopics("T.A"), Span{}); v != (Verdict{Received: 2}) {
		t.Errorf("without a truth: %+v", v)
	}
}

func TestBeyondTheWindow(t *testing.T) {
	a := &Account{}
	for n := uint64(1); n <= 100; n++ {
		if n != 60 {
			a.Event(n)
		}
	}
	if !a.Event(60) || a.Event(60) || a.beyond != 1 || a.disordered != 1 || a.duplicates != 1 {
		t.Errorf("%+v", a)
	}
	if a.Event(70) {
		t.Error("a duplicate at the edge of the window is new")
	}
	if !a.Event(50) || a.beyond != 2 {
		t.Errorf("a duplicate beyond the window: %+v", a)
	}
}

func TestForgetsGapsBeyondTheBound(t *testing.T) {
	a := &Account{}
	topics := make([]string, 0, 2*MaxHoles+10)
	for i := range MaxHoles + 5 {
		a.Event(uint64(2*i + 1))
		a.Gap()
		topics = append(topics, "T.A", "T.A")
	}
	v := a.Verdict(groundTruth(t, topics), ParseTopics("T.*"), Span{})
	if v.MissingAnnounced != MaxHoles || v.Forgotten != 4 || v.Missing != 4 {
		t.Errorf("%+v", v)
	}
}

func TestTopics(t *testing.T) {
	truth := groundTruth(t, strings.Fields("T.A Q.A T.B T.BRK.A AM.A T.A"))
	for list, want := range map[string]uint64{
		"": 0, "T.A": 2, "T.A,T.A": 2, "T.A, Q.A ,": 3, "T.*": 4, "T.*,T.A": 4, "T.A,T.*,T.*": 4, "T.BRK.A": 1, "X.*,T": 0, "T.*,Q.*,AM.*": 6,
	} {
		if n := truth.Expected(ParseTopics(list), 1, 6); n != want {
			t.Errorf("%q: %d, want %d", list, n, want)
		}
	}
	if n := truth.Expected(ParseTopics("T.*"), 3, 4); n != 2 {
		t.Errorf("%d between 3 and 4", n)
	}
	if truth.Last() != 6 {
		t.Error(truth.Last())
	}
}

func TestReadTruthRefuses(t *testing.T) {
	for text, want := range map[string]error{
		"E\tstocks\t1\t1\tT.A\t{}\nE\tstocks\t1\t1\tT.A\t{}\n": ErrRuns,
		"E\tstocks\t1": truth.ErrFormat,
	} {
		if _, err := ReadTruth(truth.NewReader(strings.NewReader(text)), "stocks"); !errors.Is(err, want) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// client is a connection of the model, which keeps every number.
type client struct {
	topics  string
	account Account
	span    Span
	want    Verdict
	missing map[string]uint64 // not announced, by exact topic
}

func matches(list, topic string) bool {
	for want := range strings.SplitSeq(list, ",") {
		if want == topic || want == prefixOf(topic)+".*" {
			return true
		}
	}
	return false
}

// play sends the events of the truth to a client, with random faults, and keeps
// the score in a plain way.
func (c *client) play(t *rapid.T, topics []string, counts *Counts) {
	var own []uint64
	for i, topic := range topics {
		if matches(c.topics, topic) {
			own = append(own, uint64(i+1))
		}
	}
	deliver := func(n uint64) {
		if c.account.Event(n) {
			counts.Add(n)
		}
	}
	var late []uint64
	fates := rapid.SliceOfN(rapid.IntRange(0, 9), len(own), len(own)).Draw(t, "fates")
	for i, n := range own {
		if i == 0 || i == len(own)-1 {
			fates[i] = 9 // the ends are certain
		}
		switch fates[i] {
		case 0:
			c.want.Missing++
			c.missing[topics[n-1]]++
			continue
		case 1: // announced, and what is lost beside it
			c.account.Gap()
			c.want.MissingAnnounced++
			// What was lost since the last event in order counts as announced too.
			for j := i - 1; fates[j] == 0; j-- {
				c.want.Missing--
				c.want.MissingAnnounced++
				c.missing[topics[own[j]-1]]--
			}
			for fates[i+1] == 0 {
				fates[i+1] = 1 // behind the notice there is no loss that is not announced
			}
			continue
		case 2:
			if fates[i-1] >= 2 && fates[i+1] >= 2 && len(late) < 3 { // no loss beside it, so that it is in no hole
				late = append(late, n)
				c.want.Disordered++
				fates[i+1] = 9
				continue
			}
		case 3:
			deliver(n)
			c.want.Duplicates++
		}
		deliver(n)
		for _, n := range late {
			deliver(n)
		}
		late = nil
	}
	c.want.Judged = true
	c.want.Expected = uint64(len(own))
	c.want.Received = c.want.Expected - c.want.Missing - c.want.MissingAnnounced
	if len(own) > 0 && rapid.Bool().Draw(t, "known") {
		c.span = Span{From: 1, Through: uint64(len(topics))}
	}
	c.want.Judged = len(own) > 0
}

// TestModel holds several connections with random topics and faults against
// what the model counted.
func TestModel(t *testing.T) {
	lists := []string{"T.A", "T.*", "T.*,T.A", "T.A,T.B,Q.A", "Q.*,T.A", "Q.A,Q.*,T.*", "AM.Z"}
	rapid.Check(t, func(t *rapid.T) {
		topics := rapid.SliceOfN(rapid.SampledFrom([]string{"T.A", "T.B", "Q.A", "Q.C"}), 1, 200).Draw(t, "topics")
		ground := groundTruth(t, topics)
		counts, coverage := &Counts{}, NewCoverage(ground)
		missing := map[string]uint64{}
		for i := range rapid.IntRange(1, 4).Draw(t, "clients") {
			c := client{topics: rapid.SampledFrom(lists).Draw(t, "list"), missing: missing}
			own := &Counts{}
			c.play(t, topics, own)
			counts.Merge(own)
			parsed := ParseTopics(c.topics)
			if got := c.account.Verdict(ground, parsed, c.span); got != c.want {
				t.Fatalf("client %d, %s:\n got %+v\nwant %+v", i, c.topics, got, c.want)
			}
			coverage.Add(&c.account, parsed, c.span)
		}
		for _, loss := range coverage.ByTopic(counts, 10) {
			if loss.Missing() != missing[loss.Topic] {
				t.Fatalf("%+v, want %d missing", loss, missing[loss.Topic])
			}
			delete(missing, loss.Topic)
		}
		for topic, n := range missing {
			if n > 0 {
				t.Fatalf("%s is not told", topic)
			}
		}
	})
}

func TestByTopic(t *testing.T) {
	ground := groundTruth(t, strings.Fields("T.A T.B T.A T.B Q.C T.B"))
	counts, coverage := &Counts{}, NewCoverage(ground)
	for _, list := range []string{"T.*", "T.B,Q.C"} {
		a := &Account{}
		for _, n := range []uint64{1, 3} {
			if list == "T.*" && a.Event(n) {
				counts.Add(n)
			}
		}
		coverage.Add(a, ParseTopics(list), Span{1, 6})
	}
	counts.Add(MaxCounts + 1)
	if got := fmt.Sprint(coverage.ByTopic(counts, 2)); got != "[{T.B 6 0} {Q.C 1 0}]" {
		t.Error(got)
	}
}

func TestAdd(t *testing.T) {
	sum := Verdict{Judged: true}
	one := Verdict{true, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10}
	sum.Add(one)
	if sum != one {
		t.Errorf("%+v", sum)
	}
	sum.Add(Verdict{})
	if sum.Judged {
		t.Error("judged with one that was not")
	}
}

func TestEventNeedsNoMemory(t *testing.T) {
	var a Account
	n := uint64(0)
	if allocs := testing.AllocsPerRun(10_000, func() { n++; a.Event(n) }); allocs != 0 {
		t.Errorf("%v allocations per event", allocs)
	}
	if size := unsafe.Sizeof(a); size > 400 {
		t.Errorf("%d bytes for an account", size)
	}
}

func BenchmarkEvent(b *testing.B) {
	var a Account
	for n := uint64(1); b.Loop(); n++ {
		a.Event(n)
	}
}
