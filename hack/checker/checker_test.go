package checker

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cutemarkets/relay/hack/truth"
)

var epoch = time.Unix(1_800_000_000, 0)

func second(n float64) time.Time { return epoch.Add(time.Duration(n * float64(time.Second))) }

// tape is a truth in memory. An event's bytes tell its topic and a tag.
type tape struct {
	file bytes.Buffer
	w    *truth.Writer
	seq  uint64
}

func newTape() *tape {
	p := &tape{}
	p.w = truth.NewWriter(&p.file)
	return p
}

func raw(topic, tag string) []byte { return fmt.Appendf(nil, `{"topic":%q,"tag":%q}`, topic, tag) }

// event adds an event generated at a second.
func (p *tape) event(at float64, topic, tag string) {
	p.seq++
	p.w.Event("stocks", p.seq, second(at), topic, raw(topic, tag))
}

func (p *tape) check(t testing.TB, ck *Checker) Report {
	t.Helper()
	if err := p.w.Flush(); err != nil {
		t.Fatal(err)
	}
	report, err := ck.Check(truth.NewReader(bytes.NewReader(p.file.Bytes())))
	if err != nil {
		t.Fatal(err)
	}
	return report
}

// TestFigures compares clients with one truth: trades of A and B at seconds 1
// to 8, in turn; nobody is connected between 4.5 and 5.5.
func TestFigures(t *testing.T) {
	type action func(c *Client)
	sub := func(topic string) action { return func(c *Client) { c.Subscribed(topic, time.Time{}) } }
	from := func(topic string, at float64) action {
		return func(c *Client) { c.Subscribed(topic, second(at)) }
	}
	unsub := func(topic string) action { return func(c *Client) { c.Unsubscribed(topic) } }
	get := func(tags ...string) action {
		return func(c *Client) {
			for _, tag := range tags {
				c.Event(raw("T."+tag[:1], tag))
			}
		}
	}
	gap := func(from, to float64, topics ...string) action {
		return func(c *Client) { c.Gap(second(from), second(to), topics...) }
	}
	lasting := func(from float64) action { return func(c *Client) { c.Gap(second(from), time.Time{}) } }
	cut := func(from, to float64) action { return func(c *Client) { c.Cut(second(from), second(to)) } }
	until := func(at float64) action { return func(c *Client) { c.Until(second(at)) } }
	good := gap(4.4, 5.6)

	for _, row := range []struct {
		name    string
		actions []action
		want    Figures // without Received and Bytes
	}{
		{"wildcard", []action{sub("T.*"), get("A1", "B2", "A3", "B4"), good, get("B6", "A7", "B8")}, Figures{Expected: 8, MissingInGaps: 1, Gaps: 1, Outages: 1}},
		{"a cut of the way", []action{sub("T.*"), cut(1.6, 2.4), get("A1"), gap(1.5, 2.5), get("A3", "B4"), good, get("B6")}, Figures{Expected: 6, MissingInGaps: 2, Gaps: 2, Outages: 2}},
		{"a cut that begins before the outage", []action{sub("T.*"), cut(3.5, 4.8), get("A1", "B2", "A3"), gap(3.4, 5.6), get("B6")}, Figures{Expected: 6, MissingInGaps: 2, Gaps: 1, Outages: 1}},
		{"a cut that is not told", []action{sub("T.*"), cut(1.6, 2.4), get("A1", "A3", "B4"), good, get("B6")}, Figures{Expected: 6, Missing: 1, MissingInGaps: 1, Gaps: 1, Outages: 2, OutagesNotSpanned: 1}},
		{"exact", []action{sub("T.A"), get("A1", "A3"), good, get("A7")}, Figures{Expected: 4, MissingInGaps: 1, Gaps: 1, Outages: 1}},
		{"exact and wildcard: once", []action{sub("T.A"), sub("T.*"), get("A1", "B2", "A3")}, Figures{Expected: 3}},
		{"from the first one received", []action{sub("T.*"), get("A3", "B4")}, Figures{Expected: 2}},
		{"nothing received", []action{sub("T.*")}, Figures{}},
		{"from an explicit moment", []action{from("T.*", 1.5), get("A3", "B4")}, Figures{Expected: 3, Missing: 1}},
		{"until a moment", []action{sub("T.*"), get("A1"), until(3.5)}, Figures{Expected: 3, Missing: 2}},
		{"another topic is not expected", []action{sub("T.A"), sub("Q.*"), get("A1", "A3")}, Figures{Expected: 2}},
		{"topics are not prefixes", []action{sub("T."), sub("T.A*"), sub("T.AB"), get("A1")}, Figures{Unasked: 1}},
		{"unsubscribed", []action{sub("T.A"), sub("T.B"), get("A1", "B2"), unsub("T.A"), get("B4"), gap(4.4, 5.6), get("B6")}, Figures{Expected: 4, Gaps: 1, Outages: 1}},
		{"events in flight", []action{sub("T.*"), get("A1"), unsub("T.*"), get("B2", "A3")}, Figures{Expected: 1}},
		{"subscribed anew", []action{sub("T.*"), get("A1"), unsub("T.*"), sub("T.*"), get("B4")}, Figures{Expected: 2}},
		{"missing", []action{sub("T.*"), get("A1", "B4")}, Figures{Expected: 4, Missing: 2}},
		{"altered", []action{sub("T.*"), get("A1", "B2'", "A3")}, Figures{Expected: 3, Missing: 1, Altered: 1}},
		{"duplicate", []action{sub("T.*"), get("A1", "B2", "A1", "A3")}, Figures{Expected: 3, Duplicates: 1}},
		{"disordered over topics", []action{sub("T.*"), get("A1", "A3", "B2", "B4")}, Figures{Expected: 4, Disordered: 1}},
		{"disordered within a topic", []action{sub("T.*"), get("A1", "B4", "B2", "A3")}, Figures{Expected: 4, Disordered: 1, DisorderedInTopic: 1}},
		{"not asked for", []action{sub("T.A"), get("A1", "B2", "A3")}, Figures{Expected: 2, Unasked: 1}},
		{"outage without a gap", []action{sub("T.*"), get("A1", "B2", "A3", "B4", "B6")}, Figures{Expected: 6, Missing: 1, Outages: 1, OutagesNotSpanned: 1}},
		{"gap before the outage", []action{sub("T.*"), get("A1"), gap(2.5, 3.5), get("B4")}, Figures{Expected: 4, Missing: 1, MissingInGaps: 1, Gaps: 1, GapsUnfounded: 1}},
		{"gap that ends too early", []action{sub("T.*"), get("A3", "B4"), gap(4.4, 4.9), get("B6")}, Figures{Expected: 4, Missing: 1, Gaps: 1, Outages: 1, OutagesNotSpanned: 1}},
		{"gap too long", []action{sub("T.*"), get("A1", "B2"), gap(2.9, 5.6), get("B6")}, Figures{Expected: 6, MissingInGaps: 3, Gaps: 1, Outages: 1, GapsTooLong: 1}},
		{"two gaps for one outage", []action{sub("T.*"), get("A3", "B4"), good, good, get("B6")}, Figures{Expected: 4, MissingInGaps: 1, Gaps: 2, Outages: 1}},
		{"late: a gap that lasts and then ends", []action{lasting(4.4), sub("T.*"), good, get("B6")}, Figures{Expected: 1, Gaps: 1, Outages: 1}},
		{"late: a gap from before the feed", []action{sub("T.*"), func(c *Client) { c.Gap(time.Time{}, second(5.6)) }, get("B6")}, Figures{Expected: 1, Gaps: 1, Outages: 1}},
		{"gap that never ends", []action{sub("T.*"), get("B4"), lasting(4.4), get("B6")}, Figures{Expected: 3, MissingInGaps: 1, Gaps: 1, Outages: 1, GapsTooLong: 1}},
		{"gap of some topics", []action{sub("T.*"), get("B4"), gap(4.4, 5.6, "T.B"), get("B6")}, Figures{Expected: 3, Missing: 1, Gaps: 1, Outages: 1, OutagesNotSpanned: 1}},
		{"left during the outage", []action{sub("T.*"), get("A3", "B4")}, Figures{Expected: 2}},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := newTape()
			p.w.Up("stocks", second(0))
			for i, tag := range []string{"A1", "B2", "A3", "B4", "A5", "B6", "A7", "B8"} {
				switch tag {
				case "A5":
					p.w.Down("stocks", second(4.5))
					p.w.Down("stocks", second(4.6))
				case "B6":
					p.w.Up("stocks", second(5.5))
				}
				p.event(float64(i+1), "T."+tag[:1], tag)
			}
			ck := New()
			c := ck.Client("client", "stocks")
			for _, do := range row.actions {
				do(c)
			}
			report := p.check(t, ck)
			got := report.Clients[0].Figures
			if report.Total != got {
				t.Errorf("total %+v", report.Total)
			}
			if got.Received != len(c.received) || (got.Bytes == 0) != (got.Received == 0) {
				t.Errorf("received %d, %d bytes", got.Received, got.Bytes)
			}
			got.Received, got.Bytes = 0, 0
			if got != row.want {
				t.Errorf("got  %+v\nwant %+v\n%s", got, row.want, report)
			}
			if faults := len(row.want.faults()) > 0; faults != (report.Err() != nil) || faults && !errors.Is(report.Err(), ErrFault) {
				t.Errorf("error: %v", report.Err())
			}
		})
	}
}

// TestSameBytes has events with the same bytes; those received are told apart
// by their neighbours.
func TestSameBytes(t *testing.T) {
	for _, row := range []struct {
		name, sent, received string // one letter an event; | a gap of second 3.5 to 4.5 in truth and notice
		want                 Figures
	}{
		{"all", "XAXXBX", "XAXXBX", Figures{Expected: 6}},
		{"one too many", "XAXB", "XAXXB", Figures{Expected: 4, Duplicates: 1}},
		{"one missing", "XAXXB", "XAXB", Figures{Expected: 5, Missing: 1}},
		{"first one was before the subscription", "XABXC", "ABXC", Figures{Expected: 4}},
		{"the later one before the anchor", "XABXCD", "XCD", Figures{Expected: 3}},
		{"no anchor", "XYXY", "XYXY", Figures{Expected: 4}},
		{"after a gap", "ABC|XXD", "ABC|XD", Figures{Expected: 6, MissingInGaps: 1, Gaps: 1, Outages: 1}},
		{"before a gap", "ABX|XCD", "ABX|CD", Figures{Expected: 6, MissingInGaps: 1, Gaps: 1, Outages: 1}},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := newTape()
			for i, letter := range strings.Replace(row.sent, "|", "", 1) {
				at := float64(i + 1)
				if row.sent[min(i, len(row.sent)-1)] == '|' {
					p.w.Down("stocks", second(at-0.5))
					p.w.Up("stocks", second(at+0.5))
				}
				p.event(at, "T.A", string(letter))
			}
			ck := New()
			c := ck.Client("client", "stocks")
			c.Subscribed("T.*", time.Time{})
			for _, letter := range row.received {
				if letter == '|' {
					c.Gap(second(3.5), second(4.5))
					continue
				}
				c.Event(raw("T.A", string(letter)))
			}
			report := p.check(t, ck)
			got := report.Clients[0].Figures
			got.Received, got.Bytes = 0, 0
			if got != row.want {
				t.Errorf("got  %+v\nwant %+v\n%s", got, row.want, report)
			}
		})
	}
}

func TestTruthWithAHole(t *testing.T) {
	p := newTape()
	p.event(1, "T.A", "a")
	p.seq++
	p.event(2, "T.A", "b")
	if err := p.w.Flush(); err != nil {
		t.Fatal(err)
	}
	if _, err := New().Check(truth.NewReader(&p.file)); !errors.Is(err, ErrTruth) {
		t.Errorf("%v", err)
	}
}

func TestReportIsReadable(t *testing.T) {
	p := newTape()
	for i := range 100 {
		p.event(float64(i), "T.A", fmt.Sprint(i))
	}
	ck := New()
	for i := range 30 {
		c := ck.Client(fmt.Sprintf("client-%d", i), "stocks")
		c.Subscribed("T.A", time.Time{})
		for n := range 100 {
			if i != 25 || n%10 != 5 {
				c.Event(raw("T.A", fmt.Sprint(n)))
			}
		}
	}
	text := p.check(t, ck).String()
	lines := strings.Split(text, "\n")
	for i, want := range []string{"client  market", "client-25", "client-0"} {
		if !strings.Contains(lines[i], want) {
			t.Errorf("line %d is %q, want %q", i, lines[i], want)
		}
	}
	for _, want := range []string{"10 more", "total", "client-25 (stocks): 10 missing outside announced gaps", "missing: T.A, number 6 in the truth, of 2027-01-15T08:00:05Z"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if n := strings.Count(text, "missing: "); n != 5 {
		t.Errorf("%d examples", n)
	}
}

func BenchmarkEvent(b *testing.B) {
	c := New().Client("client", "stocks")
	event := bytes.Repeat([]byte("x"), 108)
	b.ReportAllocs()
	for b.Loop() {
		c.Event(event)
	}
}

// BenchmarkCheck compares three clients with a truth of a million events.
func BenchmarkCheck(b *testing.B) {
	const events = 1_000_000
	p := newTape()
	ck := New()
	var clients []*Client
	for _, topics := range [][]string{{"T.*"}, {"T.1", "T.*"}, {"T.1", "T.2", "T.3"}} {
		c := ck.Client(strings.Join(topics, ","), "stocks")
		for _, topic := range topics {
			c.Subscribed(topic, time.Time{})
		}
		clients = append(clients, c)
	}
	for i := range events {
		topic, tag := fmt.Sprint("T.", i%4000), fmt.Sprint(i)
		p.event(float64(i)/1e5, topic, tag)
		event := raw(topic, tag)
		clients[0].Event(event)
		clients[1].Event(event)
		if n := i % 4000; n >= 1 && n <= 3 {
			clients[2].Event(event)
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := p.check(b, ck).Err(); err != nil {
			b.Fatal(err)
		}
	}
}
