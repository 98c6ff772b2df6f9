package report

import (
	"bytes"
	"flag"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/cutemarkets/relay/hack/loadtest/tally"
)

var update = flag.Bool("update", false, "write the sample report anew")

const samplePage = "../../../docs/loadtest-sample.html"

var sampleOnce = sync.OnceValues(sampleResult)

func sample(t *testing.T) tally.Result {
	t.Helper()
	r, err := sampleOnce()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func htmlOf(t *testing.T, r tally.Result) []byte {
	t.Helper()
	var page bytes.Buffer
	if err := HTML(&page, r); err != nil {
		t.Fatal(err)
	}
	return page.Bytes()
}

func TestSampleIsFreshAndSmall(t *testing.T) {
	page := htmlOf(t, sample(t))
	if *update {
		if err := os.WriteFile(samplePage, page, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if kept, err := os.ReadFile(samplePage); err != nil || !bytes.Equal(kept, page) {
		t.Errorf("docs/loadtest-sample.html is not what the report writes now (%v); go test -update writes it anew", err)
	}
	if len(page) >= 300_000 {
		t.Errorf("%d bytes", len(page))
	}
}

func TestPageNeedsNothingElse(t *testing.T) {
	page := string(htmlOf(t, sample(t)))
	for _, outside := range []string{"http:", "https:", "src=", "href=", "url(", "@import", "<script", "<link"} {
		if strings.Contains(page, outside) {
			t.Errorf("the page has %s", outside)
		}
	}
}

func TestSummary(t *testing.T) {
	var text bytes.Buffer
	if err := Summary(&text, sample(t)); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		`scenario +stream`, `wanted +15,000`, `event, from stamp to arrival +[\d,]+( +[\d.]+ ms){4} +[\d.]+ s`,
		`missing, not announced +6`, `live +server +draining +1012 +– +3,000`, `upgrade +server +refused +– +429 +74`,
		`edge \(pid 4711\) +[\d.]+ s +[\d.]+ µs`, `missing>0 +CROSSED +6`, `p99>100ms +held`,
	} {
		if !regexp.MustCompile(line).Match(text.Bytes()) {
			t.Errorf("no line %s in:\n%s", line, &text)
		}
	}
	for line := range strings.Lines(text.String()) {
		if utf8.RuneCountInString(line) > 121 && !strings.Contains(line, ". ") {
			t.Errorf("a line of %d columns: %s", utf8.RuneCountInString(line), line)
		}
	}
}

func TestSummaryOfNothing(t *testing.T) {
	var text bytes.Buffer
	if err := Summary(&text, bareResult()); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Loss was not judged", "No connection ended.", "No process of the server was sampled.", "None were set.", "whether it was the limit is not known"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("%q is missing in:\n%s", want, &text)
		}
	}
	if regexp.MustCompile(`missing, not announced|duplicates`).Match(text.Bytes()) {
		t.Errorf("figures of a loss that was not judged:\n%s", &text)
	}
}

func TestSummaryWarnsFirst(t *testing.T) {
	var text bytes.Buffer
	if err := Summary(&text, crowdedResult()); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(text.String(), "WARNING: The tester itself was the limit") || !strings.Contains(text.String(), "WARNING: 8,000 events arrived before") {
		t.Error(text.String()[:500])
	}
}

func TestFormats(t *testing.T) {
	for want, got := range map[string]string{
		"0": number(0), "999": number(999), "1,000": number(1000), "-1,234,567": number(-1234567),
		"0.00": significant(0), "1.23": significant(1.234), "12.3": significant(12.34), "123": significant(123.4), "10.0": significant(9.999),
		"100": significant(99.97), "12,346": significant(12345.6),
		"512 ns": duration(512), "1.50 µs": duration(1500), "12.0 ms": duration(12 * time.Millisecond), "90.0 s": duration(90 * time.Second),
		"1.00 s": duration(time.Second), "900 B": size(900), "1.50 KiB": size(1536), "2.00 GiB": size(2 << 30),
		"–": share(1, 0), "50.0 %": share(1, 2), "2:05": clock(125 * time.Second),
	} {
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestScales(t *testing.T) {
	labels := func(s scale) string {
		var all []string
		for _, tick := range s.ticks {
			all = append(all, tick.label)
		}
		return strings.Join(all, " ")
	}
	short, shortUnit := times(90)
	long, longUnit := times(30_000)
	for want, got := range map[string]string{
		"0 1":                          labels(linear(0, 1)),
		"0 0.5 1 1.5 2 2.5 3":          labels(linear(3, 6)),
		"0 10,000 20,000 30,000":       labels(linear(29_000, 4)),
		"0 2M 4M 6M":                   labels(linear(5.5e6, 4)),
		"0 1 2 3":                      labels(whole(3)),
		"100 µs 1 ms 10 ms 100 ms 1 s": labels(logarithmic(3e5, 7e8)),
		"1 µs 2 µs 5 µs 10 µs":         labels(logarithmic(2000, 3000)),
		"10 ms 20 ms 50 ms 100 ms":     labels(logarithmic(1e7, 1e7)),
		"0 50 90 99 99.9 99.99":        labels(percentiles(10_000)),
		"0 50 90":                      labels(percentiles(1)),
		"0:00 0:15 0:30 0:45 1:00 1:15 1:30 min:s": labels(short) + " " + shortUnit,
		"0:00 2:00 4:00 6:00 8:00 h:min":           labels(long) + " " + longUnit,
	} {
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestProgress(t *testing.T) {
	y := tally.New(tally.Options{Run: tally.Run{Start: start, Wanted: 200}})
	for range 100 {
		y.Ready(time.Millisecond)
		y.Event(2*time.Millisecond, 1024)
	}
	show := func(terminal bool) string {
		var out bytes.Buffer
		p := newProgress(&out, terminal, 10*time.Second)
		for second := 1; second <= 11; second++ {
			if err := p.Show(y.Snapshot(start.Add(time.Duration(second) * time.Second))); err != nil {
				t.Fatal(err)
			}
		}
		return out.String()
	}
	lines := show(false)
	if strings.Count(lines, "\n") != 3 || !strings.HasPrefix(lines, "0:01 ready 100/200 opening 0 failed 0 lost 0, 100 events/s, 100 KiB/s, p50 2.01 ms, p99 2.01 ms\n") ||
		strings.Contains(lines, "\x1b") {
		t.Errorf("got %q", lines)
	}
	y = tally.New(tally.Options{Run: tally.Run{Start: start, Wanted: 200}})
	y.Ready(time.Millisecond)
	bars := show(true)
	if !strings.HasPrefix(bars, "\r\x1b[Ktime   [###---") || strings.Count(bars, "\x1b[4A") != 10 || !strings.Contains(bars, "] 0:10 of 0:10") {
		t.Errorf("got %q", bars)
	}
	for line := range strings.Lines(bars) {
		if columns := utf8.RuneCountInString(line) - strings.Count(line, "\x1b")*4; columns > 79 {
			t.Errorf("%d columns: %q", columns, line)
		}
	}
}

func TestProgressOfAFileIsLines(t *testing.T) {
	file, err := os.Create(t.TempDir() + "/log")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if NewProgress(file, 0).terminal {
		t.Error("a file is no terminal")
	}
}
