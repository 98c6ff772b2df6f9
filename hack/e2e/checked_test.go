package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gobwas/ws"

	"github.com/cutemarkets/relay/hack/checker"
	"github.com/cutemarkets/relay/hack/cluster"
	"github.com/cutemarkets/relay/hack/feedsim"
	"github.com/cutemarkets/relay/hack/truth"
)

// stage is a cluster whose vendor makes events only when told to and writes the
// ground truth.
type stage struct {
	*cluster.Cluster
	t     *testing.T
	truth string
	keys  map[string][]string // of different users, by market
}

// startStage runs a cluster with room for bursts in every queue.
func startStage(t *testing.T, o cluster.Options, feedsimArgs ...string) *stage {
	t.Helper()
	file := filepath.Join(t.TempDir(), "truth.tsv")
	o.Redis, _, _ = startRedis(t)
	o.LogLevel = "info"
	args := map[string][]string{
		"feedsim": append([]string{"--truth=" + file, "--quiesced", "--stamp"}, feedsimArgs...),
		"fanout":  {"--edge-queue-bytes=268435456"},
		"edge":    {"--queue-bytes=268435456", "--max-option-quotes=1000"},
	}
	for part, more := range o.Args {
		args[part] = append(args[part], more...)
	}
	o.Args = args
	s := &stage{Cluster: startCluster(t, o), t: t, truth: file, keys: map[string][]string{}}
	for market, plans := range s.Info().Keys {
		s.keys[market] = slices.Concat(plans["expert"], plans["commercial"])
	}
	return s
}

// key returns the key of the n-th user of a market.
func (s *stage) key(market string, n int) string {
	s.t.Helper()
	for len(s.keys[market]) <= n {
		s.keys[market] = append(s.keys[market], expert(s.t, s.Cluster, market))
	}
	return s.keys[market][n]
}

// order calls feedsim's control API.
func (s *stage) order(format string, args ...any) {
	s.t.Helper()
	post(s.t, s.Info().Feedsim+"/"+fmt.Sprintf(format, args...))
}

// emit makes events and waits until they have left feedsim.
func (s *stage) emit(market string, count int) {
	s.t.Helper()
	s.order("emit?market=%s&count=%d", market, count)
}

func (s *stage) stats() (stats feedsim.Stats) {
	s.t.Helper()
	if err := json.Unmarshal([]byte(get(s.t, s.Info().Feedsim+"/stats")), &stats); err != nil {
		s.t.Fatal(err)
	}
	return stats
}

// metric returns a metric of a part, added up over the lines with these labels.
func (s *stage) metric(part, name string, labels ...string) float64 {
	s.t.Helper()
	sum := 0.0
	for line := range strings.Lines(get(s.t, s.Info().Operations[part]+"/metrics")) {
		labelled, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		bare, given, _ := strings.Cut(labelled, "{")
		if bare != name || !containsAll(given, labels) {
			continue
		}
		n, err := strconv.ParseFloat(value, 64)
		if err != nil {
			s.t.Fatal(err)
		}
		sum += n
	}
	return sum
}

func containsAll(text string, parts []string) bool {
	for _, part := range parts {
		if !strings.Contains(text, part) {
			return false
		}
	}
	return true
}

// check compares witnesses with what feedsim has sent so far.
func (s *stage) check(ck *checker.Checker) checker.Report {
	s.t.Helper()
	s.emit("stocks", 1) // all that was sent before it is in the file then
	f, err := os.Open(s.truth)
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	report, err := ck.Check(truth.NewReader(f))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Logf("\n%s", report)
	return report
}

// markTopic is the topic of the event that `fault/huge` adds.
const markTopic = "T.ZZHUGE"

var markHead = []byte(`{"ev":"T","sym":"ZZHUGE"`)

// witnesses are clients that take down for a checker all they receive.
type witnesses struct {
	stage *stage
	ck    *checker.Checker
	all   []*witness
}

func newWitnesses(s *stage) *witnesses { return &witnesses{stage: s, ck: checker.New()} }

// witness is one of them.
type witness struct {
	t      *testing.T
	name   string
	market string
	socket *client
	done   chan struct{} // closed when read has ended

	// Owned by read; not thread-safe.
	notes *checker.Client

	mu       sync.Mutex
	begun    bool          // all its topics are served: from now on each event counts
	pulse    *pulse        // nil: the times of events do not matter
	changed  chan struct{} // closed at the next frame
	events   int
	marks    int
	kinds    map[string]int // events by "ev"
	gaps     []event
	statuses []event // without gaps and successes
	acks     int
	err      error // of the end
}

// add joins as the n-th user of a market and subscribes.
func (ws *witnesses) add(edge, market string, n int, topics string) *witness {
	ws.stage.t.Helper()
	s := join(ws.stage.t, edge, market, ws.stage.key(market, n))
	if err := s.conn.SetDeadline(time.Time{}); err != nil { // each read has its own
		ws.stage.t.Fatal(err)
	}
	name := fmt.Sprintf("%d %.30s", len(ws.all), topics)
	w := &witness{
		t: ws.stage.t, name: name, market: market, socket: s, done: make(chan struct{}), notes: ws.ck.Client(name, market),
		changed: make(chan struct{}), kinds: map[string]int{},
	}
	ws.all = append(ws.all, w)
	go w.read()
	s.subscribe(topics)
	count := strings.Count(topics, ",") + 1
	w.await("the acknowledgements", func() bool { return w.acks == count })
	return w
}

// read notes what comes until the socket ends.
func (w *witness) read() {
	defer close(w.done) // also if the client gives up the test
	for {
		text, err := w.socket.next(2 * time.Minute)
		if err == nil {
			err = w.frame([]byte(text))
		}
		if err != nil {
			w.mu.Lock()
			w.err = err
			w.mu.Unlock()
			return
		}
	}
}

var statusHead = []byte(`{"ev":"status"`)

func (w *witness) frame(frame []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	err := splitFrame(frame, func(raw []byte) error {
		if !bytes.HasPrefix(raw, statusHead) {
			if w.begun {
				w.notes.Event(raw)
			}
			if w.pulse != nil {
				w.pulse.beat(raw, time.Now())
			}
			w.events++
			w.kinds[kindOf(raw)]++
			if bytes.HasPrefix(raw, markHead) {
				w.marks++
			}
			return nil
		}
		e := event{raw: string(raw)}
		if err := json.Unmarshal(raw, &e); err != nil {
			return fmt.Errorf("%w in %s", err, raw)
		}
		note(w.notes, e)
		switch e.Status {
		case "gap":
			w.gaps = append(w.gaps, e)
		case "success":
			w.acks++
		default:
			w.statuses = append(w.statuses, e)
		}
		return nil
	})
	close(w.changed)
	w.changed = make(chan struct{})
	return err
}

// kindOf returns the ev of an event that begins with it, as the vendor's do.
func kindOf(raw []byte) string {
	_, rest, _ := bytes.Cut(raw, []byte(`{"ev":"`))
	kind, _, _ := bytes.Cut(rest, []byte(`"`))
	return string(kind)
}

var errNoArray = errors.New("the frame is no array of objects")

// splitFrame calls each for the objects of an array without spaces, unread.
func splitFrame(frame []byte, each func(raw []byte) error) error {
	if len(frame) < 2 || frame[0] != '[' {
		return errNoArray
	}
	start, depth, quoted := 1, 0, false
	for i := 1; i < len(frame); i++ {
		switch c := frame[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			depth++
		case c == '}' || c == ']' && depth > 0:
			depth--
		case depth == 0 && (c == ',' || c == ']'):
			if err := each(frame[start:i]); err != nil {
				return err
			}
			if c == ']' && i == len(frame)-1 {
				return nil
			}
			start = i + 1
		}
	}
	return errNoArray
}

// forbearance is longer than the greatest back-off of the upstream.
const forbearance = 45 * time.Second

// await waits until what the witness has seen satisfies ok, which is called with
// mu held.
func (w *witness) await(what string, ok func() bool) {
	w.t.Helper()
	if !w.within(forbearance, ok) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.t.Fatalf("%s: waiting for %s: not seen in %s; end: %v; %d events, %d marks, gaps %q, other statuses %q",
			w.name, what, forbearance, w.err, w.events, w.marks, raws(w.gaps), raws(w.statuses))
	}
}

// within is await that says how it ended.
func (w *witness) within(most time.Duration, ok func() bool) bool {
	timeout := time.NewTimer(most)
	defer timeout.Stop()
	for {
		w.mu.Lock()
		seen, changed := ok(), w.changed
		w.mu.Unlock()
		if seen {
			return true
		}
		select {
		case <-changed:
		case <-w.done:
			w.mu.Lock()
			defer w.mu.Unlock()
			return ok()
		case <-timeout.C:
			return false
		}
	}
}

func raws(events []event) []string {
	texts := make([]string, len(events))
	for i, e := range events {
		texts[i] = e.raw
	}
	return texts
}

func (ws *witnesses) of(market string) []*witness {
	var some []*witness
	for _, w := range ws.all {
		if w.market == market {
			some = append(some, w)
		}
	}
	return some
}

// mark makes a mark and further events behind it, and waits until all witnesses
// of the market have the mark, and so all that was sent to them before it.
func (ws *witnesses) mark(market string, behind int) {
	ws.stage.t.Helper()
	some := ws.of(market)
	before := make([]int, len(some))
	for i, w := range some {
		w.mu.Lock()
		before[i] = w.marks
		w.mu.Unlock()
	}
	ws.stage.order("fault/huge?market=%s&size=100", market)
	ws.stage.emit(market, behind)
	for i, w := range some {
		w.await("the mark", func() bool { return w.marks > before[i] })
	}
}

// begin makes marks until the vendor's events reach all witnesses of a market
// (anew).
func (ws *witnesses) begin(market string) {
	ws.stage.t.Helper()
	for _, w := range ws.of(market) {
		w.mu.Lock()
		before := w.marks
		w.begun = true
		w.mu.Unlock()
		eventually(w.t, "events reach "+w.name, func() bool {
			ws.stage.order("fault/huge?market=%s&size=100", market)
			ws.stage.emit(market, 1)
			return w.within(100*time.Millisecond, func() bool { return w.marks > before })
		})
	}
}

// awaitGaps waits until all witnesses of a market have been told of that many
// gaps.
func (ws *witnesses) awaitGaps(market string, count int) {
	ws.stage.t.Helper()
	for _, w := range ws.of(market) {
		w.await(fmt.Sprintf("gap %d", count), func() bool { return len(w.gaps) >= count })
	}
}

// leave closes all sockets, which must have been open until then.
func (ws *witnesses) leave() {
	ws.stage.t.Helper()
	for _, w := range ws.all {
		w.leave()
	}
}

func (w *witness) leave() {
	w.t.Helper()
	w.socket.frame(ws.OpClose, ws.NewCloseFrameBody(ws.StatusNormalClosure, ""))
	<-w.done
	if end, ok := errors.AsType[closed](w.err); !ok || end.code != 1000 {
		w.t.Errorf("%s: the socket ended with %v, want only the echo of its own close", w.name, w.err)
	}
}

// pulse is how evenly events come.
type pulse struct {
	stamp int64     // of the last event, in Unix nanoseconds
	at    time.Time // when it came

	jump    time.Duration // the longest between the stamps of two events
	silence time.Duration // the longest between the arrivals of two
	late    []float64     // milliseconds from stamp to arrival; nil: they are not kept
}

// beat takes down an event of a feedsim with --stamp.
func (p *pulse) beat(raw []byte, now time.Time) {
	_, text, _ := bytes.Cut(raw, []byte(`"ts":`))
	stamp, err := strconv.ParseInt(strings.TrimRight(string(text), "}"), 10, 64)
	if err != nil {
		return
	}
	if p.stamp != 0 {
		p.jump = max(p.jump, time.Duration(stamp-p.stamp))
		p.silence = max(p.silence, now.Sub(p.at))
	}
	p.stamp, p.at = stamp, now
	if p.late != nil {
		p.late = append(p.late, float64(now.UnixNano()-stamp)/1e6)
	}
}

// rival is another program with the vendor's key, which connects beside the relay.
func (s *stage) rival(market string) *client {
	s.t.Helper()
	key, err := os.ReadFile(filepath.Join(s.Dir(), "vendor.key"))
	if err != nil {
		s.t.Fatal(err)
	}
	conn, in, res := exchange(s.t, s.Info().Feedsim, request("/"+market, host(s.Info().Feedsim)))
	if res.StatusCode != http.StatusSwitchingProtocols {
		s.t.Fatalf("feedsim: status %d", res.StatusCode)
	}
	r := &client{t: s.t, conn: conn, in: in}
	r.expect(connected)
	r.raw(message("auth", strings.TrimSpace(string(key))))
	r.expect(authenticated)
	return r
}
