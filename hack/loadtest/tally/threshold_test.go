package tally

import (
	"strings"
	"testing"
	"time"
)

func judgedResult() Result {
	y := New(options("a"))
	for i := 1; i <= 100; i++ {
		y.Ready(time.Duration(i) * time.Millisecond)
	}
	for second := range 5 {
		y.Advance(start.Add(time.Duration(second) * time.Second).UnixNano())
		for i := 1; i <= 1000; i++ {
			y.Event(time.Duration(i)*time.Microsecond*100, 2048)
		}
	}
	y.Closed(Close{Stage: "live", By: "server", Reason: "slow_consumer", Code: 1008})
	y.Closed(Close{Stage: "live", By: "us", Reason: "done", Code: 1000})
	y.Closed(Close{Stage: "connect", By: "network", Reason: "refused"})
	y.Gap(true)
	y.Gap(false)
	y.Loss(Loss{Judged: true, Expected: 100, Received: 98, Missing: 1, MissingAnnounced: 1})
	return y.Result(start.Add(5 * time.Second))
}

func TestJudge(t *testing.T) {
	r := judgedResult()
	for text, crossed := range map[string]bool{
		"p99>99ms": true, "p99 > 100ms": false, "p50<=50.1ms": true, "max>=100ms": true, "mean>51ms": false, "p99.9>50ms": true,
		"ready.p90>80ms": true, "ready.max>101ms": false,
		"ready<100": false, "ready<101": true, "failed>0": true, "failed.connect>=1": true, "failed.auth>0": false,
		"closes>2": false, "closes>1": true, "closes.1008>0": true, "closes.1000>0": false, "closes.4409>0": false,
		"loss>1": true, "missing>1": false, "missing.announced>0": true, "duplicates>0": false, "misframed>0": false,
		"gaps>1": true, "gaps.unannounced>0": true, "gaps.announced>1": false,
		"events/s<1000": false, "events/s<1001": true, "bytes/s>1.9MiB": true, "bytes/s>2MiB": false, "bytes/s>2000KiB": false,
		"events<5000":    false,
		"connect.p99>1h": true, "lag.p99>1s": true, "server.cpu/event>1s": true, "saturated>0": true, // not measured
	} {
		threshold, err := ParseThreshold(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if v := r.Judge([]Threshold{threshold})[0]; v.Crossed != crossed {
			t.Errorf("%s: %+v", text, v)
		}
	}
}

func TestVerdictsSayTheValue(t *testing.T) {
	for text, want := range map[string]string{
		"p50>1s": "50.004ms", "bytes/s>1GiB": "1.95MiB", "events/s<1": "1000", "connect.p99>1s": "not measured", "ready<1": "100",
	} {
		threshold, err := ParseThreshold(text)
		if err != nil {
			t.Fatal(err)
		}
		if v := judgedResult().Judge([]Threshold{threshold})[0]; v.Value != want || v.Threshold != text {
			t.Errorf("%+v, want %s", v, want)
		}
	}
}

func TestLossThatWasNotJudgedCrosses(t *testing.T) {
	threshold, err := ParseThreshold("loss>0")
	if err != nil {
		t.Fatal(err)
	}
	verdicts := New(options("a")).Result(start).Judge([]Threshold{threshold})
	if !Crossed(verdicts) || !strings.Contains(verdicts[0].Value, "not judged") {
		t.Errorf("%+v", verdicts)
	}
}

func TestParseThresholdRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"":                    "is no threshold",
		"p99":                 "is no threshold",
		"p99=5ms":             "is no threshold",
		"p99>>5ms":            "no duration such as",
		"p99>5":               "no duration such as",
		"p99>-5ms":            "no duration such as",
		"p100>5ms":            "there is no figure \"p100\"",
		"p0>5ms":              "there is no figure",
		"latency>5ms":         "closes closes.CODE", // the list of those there are
		"connect.p99>1e3":     "no duration such as",
		"loss>x":              "no number such as",
		"loss>NaN":            "no number such as",
		"closes.99>0":         "there is no figure",
		"failed.live>0":       "there is no figure",
		"nothing.p99>5ms":     "there is no figure",
		"bytes/s>5MB":         "no number of bytes such as",
		"server.rss>5 KiB":    "is no threshold",
		"ready<15000;loss>0":  "no number such as",
		"loss.by.topic.T.A>0": "there is no figure",
	} {
		if _, err := ParseThreshold(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestGrammarNamesEveryFigure(t *testing.T) {
	for name := range figures {
		if !strings.Contains(Grammar, name) {
			t.Errorf("%s is not documented", name)
		}
	}
}
