package feedsim

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/cutemarkets/relay/hack/feedsim/recording"
	"github.com/cutemarkets/relay/hack/truth"
)

func truthFile(t *testing.T) string { return filepath.Join(t.TempDir(), "truth") }

func equal(a, b []string) bool { return slices.Equal(a, b) }

// emit orders events and wants as many.
func (r *rig) emit(market string, count int) {
	r.t.Helper()
	stocks, options, err := r.tryEmit(market, count)
	if err != nil || stocks+options != count {
		r.t.Errorf("%d and %d events emitted, want %d: %v", stocks, options, count, err)
	}
}

// emitting orders events and does not wait; the returned function does.
func (r *rig) emitting(market string, count int) (wait func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.emit(market, count)
	}()
	return func() { <-done }
}

func (r *rig) tryEmit(market string, count int) (stocks, options int, err error) {
	url := fmt.Sprintf("http://%s/emit?market=%s&count=%d", r.ControlAddr(), market, count)
	response, err := http.Post(url, "", nil)
	if err != nil {
		return 0, 0, err
	}
	defer response.Body.Close()
	var body struct{ Stocks, Options int }
	err = json.NewDecoder(response.Body).Decode(&body)
	return body.Stocks, body.Options, err
}

// lines reads a file of the ground truth.
func lines(t *testing.T, name, market string) (all []truth.Line) {
	t.Helper()
	file, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	reader := truth.NewReader(file)
	for {
		line, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		if line.Market == market {
			line.Raw, line.Topic = slices.Clone(line.Raw), slices.Clone(line.Topic)
			all = append(all, line)
		}
	}
}

// events are the bytes of the events in the ground truth.
func events(t *testing.T, name, market string) (raws []string) {
	t.Helper()
	for _, line := range lines(t, name, market) {
		if line.Kind == truth.Event {
			raws = append(raws, string(line.Raw))
		}
	}
	return raws
}

// TestTruth holds what two clients of one market, and one of the other, received
// against the file, byte by byte.
func TestTruth(t *testing.T) {
	t.Parallel()
	file := truthFile(t)
	r := quiesced(t, func(o *Options) {
		o.Truth, o.Stamp, o.Number, o.MaxConnections, o.Rate.Stocks = file, true, "market", 2, 50_000
	})
	const count = 20_000
	all := "T.*,Q.*,A.*,AM.*,FMV.*,NOI.*,LULD.*"
	whole, part := r.subscribe("/stocks", all), r.subscribe("/stocks", "T.AAPL,Q.SPY")
	other := r.subscribe("/options", "T.*,A.*,AM.*")
	emitted := make(chan struct{})
	go func() {
		defer close(emitted)
		if stocks, options, err := r.tryEmit("", count); stocks != count || options != count || err != nil {
			t.Errorf("emitted %d and %d events: %v", stocks, options, err)
		}
	}()
	got := whole.events(count)
	<-emitted
	r.emit("stocks", 1)

	began := time.Now()
	stocks := lines(t, file, "stocks")
	n := uint64(0)
	var wantAll, wantPart []string
	for _, line := range stocks {
		if line.Kind != truth.Event {
			continue
		}
		n++
		if line.Sequence != n || began.Sub(line.At) > patience {
			t.Fatalf("line %d of the events: %+v", n, line)
		}
		var e map[string]any
		if err := json.Unmarshal(line.Raw, &e); err != nil {
			t.Fatal(err)
		}
		symbol, ok := e["sym"].(string)
		if !ok {
			symbol, _ = e["T"].(string)
		}
		if topic := fmt.Sprintf("%s.%s", e["ev"], symbol); topic != string(line.Topic) {
			t.Fatalf("topic %s of %s", line.Topic, line.Raw)
		}
		if !strings.Contains(string(line.Raw), `,"ts":1`) {
			t.Fatalf("no stamp in %s", line.Raw)
		}
		if !strings.HasSuffix(string(line.Raw), fmt.Sprintf(`,"n":%d}`, n)) {
			t.Fatalf("not numbered %d: %s", n, line.Raw)
		}
		wantAll = append(wantAll, string(line.Raw))
		if topic := string(line.Topic); topic == "T.AAPL" || topic == "Q.SPY" {
			wantPart = append(wantPart, string(line.Raw))
		}
	}
	if n != count+1 || r.Stats().Stocks.Generated != n {
		t.Errorf("%d events, want %d", n, count+1)
	}
	for i, e := range got {
		if e.raw != wantAll[i] {
			t.Fatalf("event %d: %s, in the truth %s", i, e.raw, wantAll[i])
		}
	}
	for i, e := range part.events(len(wantPart)) {
		if e.raw != wantPart[i] {
			t.Fatalf("event %d: %s, in the truth %s", i, e.raw, wantPart[i])
		}
	}
	var wantOther []string
	for _, line := range lines(t, file, "options") {
		if line.Kind == truth.Event && line.Topic[0] != 'Q' && line.Topic[0] != 'F' {
			wantOther = append(wantOther, string(line.Raw))
		}
	}
	for i, e := range other.events(len(wantOther)) {
		if e.raw != wantOther[i] {
			t.Fatalf("event %d: %s, in the truth %s", i, e.raw, wantOther[i])
		}
	}
}

// TestUpAndDown reads when a market's feed broke and came back.
func TestUpAndDown(t *testing.T) {
	t.Parallel()
	file := truthFile(t)
	r := quiesced(t, func(o *Options) { o.Truth = file })
	expect := func(what, want string) {
		t.Helper()
		r.post("/fault/quiesce") // which writes out the file
		if got := strippedKinds(t, file); got != want {
			t.Errorf("%s: %s, want %s", what, got, want)
		}
	}
	r.dial("/stocks")
	c := r.login("/stocks")
	r.emit("stocks", 1)
	expect("no subscription", "E")
	c.say("subscribe", "T.*,Q.*,FMV.*,LULD.*,NOI.*")
	c.expect(ack("T.*", "Q.*", "FMV.*", "LULD.*", "NOI.*"))
	expect("subscribed", "EU")
	c.say("subscribe", "A.*")
	c.expect(ack("A.*"))
	expect("subscribed more", "EU")
	r.post("/drop")
	expect("dropped", "EUD")
	r.post("/drop")
	expect("dropped twice", "EUD")
	r.subscribe("/stocks", "T.*")
	r.subscribe("/stocks", "T.*")
	expect("kicked", "EUDUDU")
	r.post("/pause")
	r.post("/pause?for=10m")
	expect("stalled", "EUDUDUD")
	r.post("/drop")
	expect("dropped in a stall", "EUDUDUD")
	r.subscribe("/stocks", "T.*")
	r.emit("stocks", 1)
	expect("subscribed in a stall", "EUDUDUDE")
	r.post("/resume")
	expect("resumed", "EUDUDUDEU")
	r.post("/pause?for=1ms")
	r.until("over", func(Stats) bool { return strings.HasSuffix(kinds(t, file), "DU") })
	expect("a stall that ends", "EUDUDUDEUDU")
	r.post("/fault/close?code=1008")
	expect("closed", "EUDUDUDEUDUD")
	last := r.subscribe("/stocks", "T.*")
	_ = last.Close(websocket.StatusNormalClosure, "")
	r.until("gone", func(s Stats) bool { return s.Stocks.Connections == 0 })
	expect("closed by the client", "EUDUDUDEUDUDUD")
	r.subscribe("/stocks", "T.*")
	r.stop()
	if got := strippedKinds(t, file); got != "EUDUDUDEUDUDUDUD" {
		t.Errorf("at the end: %s", got)
	}
}

func kinds(t *testing.T, file string) (text string) {
	t.Helper()
	for _, line := range lines(t, file, "stocks") {
		text += string(rune(line.Kind))
	}
	return text
}

// strippedKinds leaves out the events after the resume of TestUpAndDown: how many
// come before the next quiesce is a matter of time.
func strippedKinds(t *testing.T, file string) string {
	t.Helper()
	got := kinds(t, file)
	resumed := min(len(got), len("EUDUDUDE"))
	return got[:resumed] + strings.ReplaceAll(got[resumed:], "E", "")
}

// TestTruthIsComplete: all is in the file when Run has returned.
func TestTruthIsComplete(t *testing.T) {
	t.Parallel()
	file := truthFile(t)
	r := serve(t, func(o *Options) { o.Truth, o.Rate.Stocks = file, 100_000 })
	c := r.subscribe("/stocks", "T.*")
	c.events(100)
	r.stop()
	if got, want := len(events(t, file, "stocks")), r.Stats().Stocks.Generated; uint64(got) != want || want == 0 {
		t.Errorf("%d events in the truth of %d", got, want)
	}
}

// TestEmitWaits: events ahead of their time do not make a client too slow.
func TestEmitWaits(t *testing.T) {
	t.Parallel()
	r := quiesced(t, func(o *Options) { o.Buffer, o.Rate.Stocks = minBuffer, 100_000 })
	c := r.subscribe("/stocks", "T.*,Q.*,A.*,AM.*,FMV.*,NOI.*,LULD.*")
	const count = 100_000
	wait := r.emitting("stocks", count)
	r.until("the buffer is filled", func(s Stats) bool { return s.Stocks.Generated > 1000 })
	for n := 0; n < count; {
		n += strings.Count(c.frame(), `{"ev":`)
	}
	wait()
	if s := r.Stats().Stocks; s.Generated != count || s.Sent != count || s.Closed["slow"] != 0 {
		t.Errorf("%+v", s)
	}
}

// TestScript runs random faults twice; the times of the log tell that they are
// the same.
func TestScript(t *testing.T) {
	t.Parallel()
	script := filepath.Join(t.TempDir(), "script")
	text := "+0s stall market=options\nrandom limit count=20 within=200ms rule=reject-newest market=stocks\n"
	if err := os.WriteFile(script, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	r := serve(t, func(o *Options) { o.Script = script })
	r.until("the script is over", func(s Stats) bool {
		return s.Stocks.Faults["limit"] == 20 && s.Options.Faults["stall"] == 1 && len(s.Options.Faults) == 1
	})
	o := defaults()
	o.Script = script
	first, err := o.script()
	if err != nil || len(first) != 21 {
		t.Fatalf("%v, %v", first, err)
	}
	again, _ := o.script()
	o.Seed++
	other, _ := o.script()
	for i := range first {
		if first[i].At != again[i].At {
			t.Errorf("step %d: at %s and at %s", i, first[i].At, again[i].At)
		}
	}
	if first[20].At == other[20].At {
		t.Error("another seed has the same times")
	}
}

// TestReplay records what a client got, and plays it to another.
func TestReplay(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "frames")
	const topics, count = "T.*,Q.*,A.*,AM.*,FMV.*,NOI.*,LULD.*", 5_000
	r := quiesced(t, func(o *Options) { o.Record, o.Rate.Stocks = file, 50_000 })
	c := r.subscribe("/stocks", topics)
	wait := r.emitting("stocks", count)
	recorded := c.events(count)
	wait()
	r.stop()

	for _, speed := range []recording.Speed{recording.Full, 1, 3} {
		truth := truthFile(t)
		r := quiesced(t, func(o *Options) { o.Replay, o.ReplaySpeed, o.Truth, o.Symbols = file, speed, truth, 1 })
		c := r.subscribe("/stocks", topics)
		r.post("/resume")
		for i, e := range c.events(count) {
			if e.raw != recorded[i].raw {
				t.Fatalf("event %d: %s, recorded %s", i, e.raw, recorded[i].raw)
			}
		}
		if stocks, _, err := r.tryEmit("stocks", 1); stocks != 0 || err != nil {
			t.Errorf("%d events behind the end: %v", stocks, err)
		}
		if got := events(t, truth, "stocks"); len(got) != count || got[count-1] != recorded[count-1].raw {
			t.Errorf("%d events in the truth", len(got))
		}
		r.stop()
	}

	// Subscriptions choose, tickers of no list too, and /emit counts.
	r = quiesced(t, func(o *Options) { o.Replay, o.ReplaySpeed, o.Symbols = file, recording.Full, 1 })
	c = r.subscribe("/stocks", "T.AAPL")
	r.emit("stocks", count/2)
	r.emit("stocks", count/2)
	var wanted []event
	for _, e := range recorded {
		if e.Ev == "T" && e.Sym == "AAPL" {
			wanted = append(wanted, e)
		}
	}
	for i, e := range c.events(len(wanted)) {
		if e.raw != wanted[i].raw {
			t.Fatalf("%s, want %s", e.raw, wanted[i].raw)
		}
	}
}

func TestBrokenFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	broken := filepath.Join(dir, "broken")
	if err := os.WriteFile(broken, []byte("this is no line\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Options){
		"no script":     func(o *Options) { o.Script = filepath.Join(dir, "none") },
		"broken script": func(o *Options) { o.Script = broken },
		"no recording":  func(o *Options) { o.Replay, o.ReplaySpeed = filepath.Join(dir, "none"), 1 },
		"truth":         func(o *Options) { o.Truth = dir },
		"record":        func(o *Options) { o.Record = dir },
	} {
		o := defaults()
		change(&o)
		if _, err := New(o, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: %v", name, err)
		}
	}
	o := defaults()
	o.Replay, o.ReplaySpeed = broken, 1
	s, err := New(o, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "line 1") {
		t.Errorf("a broken recording: %v", err)
	}
}
