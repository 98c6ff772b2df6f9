package fleet

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cutemarkets/relay/hack/loadtest/fleet/wire"
	"github.com/cutemarkets/relay/hack/loadtest/judge"
	"github.com/cutemarkets/relay/hack/loadtest/scripted"
	"github.com/cutemarkets/relay/hack/truth"
)

// examiner is a Handler that keeps an account of each connection.
type examiner struct {
	*recorder

	number, stamp wire.Field
	delay         time.Duration
	accounts      []judge.Account
	counts        judge.Counts
	delayed       int
}

func (x *examiner) Event(c *Conn, raw []byte, received int64) {
	a := &x.accounts[c.Tag()]
	n, ok := wire.Stamp(raw, x.number)
	if !ok {
		a.Unnumbered()
		return
	}
	if a.Event(uint64(n)) {
		x.counts.Add(uint64(n))
	}
	if stamp, ok := wire.Stamp(raw, x.stamp); ok && received-stamp >= int64(x.delay) {
		x.delayed++
	}
}

func (x *examiner) Status(c *Conn, status, _ string, _ []byte) {
	if status == "gap" {
		x.accounts[c.Tag()].Gap()
	}
}

// TestReportsWhatTheServerDid: against a server that drops, duplicates, reorders,
// delays and misframes known events, the fleet and the judge report exactly
// these.
func TestReportsWhatTheServerDid(t *testing.T) {
	t.Parallel()
	script := &scripted.Script{
		Key: "k", Market: "stocks", Topics: []string{"T.A", "Q.A", "T.B", "T.A", "AM.A"}, Events: 8_000, PerFrame: 20,
		Delay: 2 * time.Second, Pings: true, Code: 1012,
		Fault: func(n uint64) scripted.Fault {
			switch {
			case n < 100 || n > 7_900: // so that each connection's ends are certain
				return scripted.None
			case n%10_007 == 2_000:
				return scripted.Delay
			case n%311 == 5, n%1_013 == 10:
				return scripted.Drop
			case n%1_013 < 40 && n%1_013 > 3:
				return scripted.Announce
			case n%97 == 11:
				return scripted.Duplicate
			case n%53 == 7:
				return scripted.Late
			case n%701 == 9:
				return scripted.Bare
			case n%601 == 9:
				return scripted.Cut
			}
			return scripted.None
		},
	}
	var file bytes.Buffer
	if err := script.WriteTruth(truth.NewWriter(&file)); err != nil {
		t.Fatal(err)
	}
	ground, err := judge.ReadTruth(truth.NewReader(&file), "stocks")
	if err != nil {
		t.Fatal(err)
	}
	lists := []string{"T.A", "T.*", "T.*,T.A,Q.A", "Q.A,AM.*", "T.*,Q.*,AM.*"}
	server := scripted.New(script)
	x := &examiner{recorder: newRecorder(), number: wire.NewField("n"), stamp: wire.NewField("ts"), delay: script.Delay, accounts: make([]judge.Account, len(lists))}
	f := start(t, x, Options{})
	url := target(t, serve(t, server))
	for tag, topics := range lists {
		open(t, f, Plan{Target: url, Key: "k", Topics: topics, Tag: tag})
	}
	sum, coverage := judge.Verdict{Judged: true}, judge.NewCoverage(ground)
	misframed := map[wire.Fault]uint64{}
	for tag, topics := range lists {
		got := x.awaitEnd(t, tag)
		if got.end.Code != 1012 {
			t.Fatalf("%+v", got.end)
		}
		for _, fault := range got.misframed {
			misframed[fault]++
		}
		parsed, span := judge.ParseTopics(topics), judge.Span{From: 1, Through: ground.Last()}
		sum.Add(x.accounts[tag].Verdict(ground, parsed, span))
		coverage.Add(&x.accounts[tag], parsed, span)
	}
	did := server.Did
	// What is lost between the last event before a notice and the first one behind
	// it counts as announced.
	lost := did(scripted.Drop) + did(scripted.Bare) + did(scripted.Cut)
	announced := uint64(0)
	for _, topics := range lists {
		announced += besideGaps(script, topics)
	}
	want := judge.Verdict{
		Judged: true, Expected: sum.Expected, Received: server.Sent() - did(scripted.Duplicate),
		Missing: lost - announced, MissingAnnounced: did(scripted.Announce) + announced,
		Duplicates: did(scripted.Duplicate), Disordered: did(scripted.Late),
	}
	if sum != want {
		t.Errorf("\n got %+v\nwant %+v", sum, want)
	}
	if sum.Expected != sum.Received+sum.Missing+sum.MissingAnnounced || sum.Missing == 0 || announced == 0 {
		t.Errorf("%+v, %d beside gaps", sum, announced)
	}
	missing := uint64(0)
	for _, loss := range coverage.ByTopic(&x.counts, 100) {
		missing += loss.Missing()
	}
	if missing != want.Missing {
		t.Errorf("%d missing by topic, want %d", missing, want.Missing)
	}
	if misframed[wire.NotArray] != did(scripted.Bare) || misframed[wire.Truncated] != did(scripted.Cut) || len(misframed) != 2 {
		t.Errorf("misframed %v, want %d and %d", misframed, did(scripted.Bare), did(scripted.Cut))
	}
	if uint64(x.delayed) != did(scripted.Delay) || x.delayed == 0 {
		t.Errorf("%d delayed, want %d", x.delayed, did(scripted.Delay))
	}
	if server.Pongs() == 0 || server.Pongs() > server.Pings() {
		t.Errorf("%d pongs to %d pings", server.Pongs(), server.Pings())
	}
}

// besideGaps counts the events that were lost, without a word, in the same
// stretch as an announced one.
func besideGaps(s *scripted.Script, topics string) uint64 {
	beside, lost, gap := uint64(0), uint64(0), false
	for n := uint64(1); n <= s.Events; n++ {
		topic := s.Topics[n%uint64(len(s.Topics))]
		prefix, _, _ := strings.Cut(topic, ".")
		if list := strings.Split(topics, ","); !slices.Contains(list, topic) && !slices.Contains(list, prefix+".*") {
			continue
		}
		switch s.Fault(n) {
		case scripted.Drop, scripted.Bare, scripted.Cut:
			lost++
		case scripted.Announce:
			gap = true
		case scripted.Late: // neither ends a stretch nor is lost
		default:
			if gap {
				beside += lost
			}
			lost, gap = 0, false
		}
	}
	return beside
}
