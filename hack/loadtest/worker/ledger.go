package worker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sort"
	"time"

	"github.com/cutemarkets/relay/hack/loadtest/fleet/wire"
	"github.com/cutemarkets/relay/hack/loadtest/judge"
	"github.com/cutemarkets/relay/hack/loadtest/scenario"
	"github.com/cutemarkets/relay/hack/loadtest/tally"
	"github.com/cutemarkets/relay/hack/truth"
)

const (
	// maxSessions bounds the accounts that are kept, at some 400 bytes each.
	maxSessions = 1 << 20

	// worstTopics is how many topics a loss names.
	worstTopics = 20

	// late is how long an event may be under way when the connection ends: a
	// later one counts as missing.
	late = 5 * time.Second

	// truthWait is how long the ground truth may take to have what was received.
	truthWait = 5 * time.Second
)

// ledger keeps an account of each connection, to be judged at the end.
type ledger struct {
	// Static after construction.
	number   wire.Field
	settle   time.Duration // see Assignment
	patience time.Duration // see truthWait

	// Owned by Fleet.Run, and after its end by Run; not thread-safe.
	sessions []*session
	counts   judge.Counts
	highest  uint64 // number of an event
	beyond   int    // sessions that were too many
}

// session is one connection of a client, from ready to its end.
type session struct {
	account judge.Account
	client  int    // its number among those of all workers
	settled int64  // unix ns from which on it is judged
	ended   int64  // unix ns
	before  uint64 // highest number that came before it was settled
}

func newLedger(number string, settle time.Duration) *ledger {
	return &ledger{number: wire.NewField(number), settle: settle, patience: truthWait}
}

// begin opens an account; nil: there are too many.
func (l *ledger) begin(client int, now time.Time) *session {
	if len(l.sessions) == maxSessions {
		l.beyond++
		return nil
	}
	s := &session{client: client, settled: now.Add(l.settle).UnixNano()}
	l.sessions = append(l.sessions, s)
	return s
}

func (s *session) end(now time.Time) { s.ended = now.UnixNano() }

func (l *ledger) event(s *session, raw []byte, received int64) {
	n, ok := wire.Stamp(raw, l.number)
	switch {
	case !ok || n < 1:
		s.account.Unnumbered()
		return
	case l.settle > 0 && received < s.settled: // without it, events that came with the acknowledgement count too
		s.before = max(s.before, uint64(n))
		return
	case uint64(n) <= s.before: // late by as much: what was beside it is not judged either
		return
	}
	if s.account.Event(uint64(n)) {
		l.counts.Add(uint64(n))
		l.highest = max(l.highest, uint64(n))
	}
}

// judge holds what came against the ground truth. Each connection with missing
// events that were not announced is a gap that was not.
func (l *ledger) judge(ctx context.Context, a Assignment, plan *scenario.Plan, t *tally.Tally) (loss tally.Loss, notes []string) {
	ground, clock, err := l.read(ctx, a.Truth, a.Market)
	if err != nil {
		return tally.Loss{}, []string{"losses are not judged: " + err.Error()}
	}
	sum, coverage := judge.Verdict{Judged: true}, judge.NewCoverage(ground)
	parsed := map[string]judge.Topics{}
	for _, s := range l.sessions {
		list := plan.Topics(s.client)
		topics, known := parsed[list]
		if !known {
			topics = judge.ParseTopics(list)
			parsed[list] = topics
		}
		span := judge.Span{From: clock.since(s.settled)}
		if plan.ReadLimit(s.client) == 0 {
			span.Through = clock.until(s.ended - int64(late))
		}
		if s.account.Received() == 0 && (span.Through == 0 || span.From == 0 || span.From > span.Through) {
			continue // it was not there for long enough to get any
		}
		verdict := s.account.Verdict(ground, topics, span)
		if verdict.Missing > 0 {
			t.Gap(false)
		}
		sum.Add(verdict)
		coverage.Add(&s.account, topics, span)
	}
	loss = tally.Loss{
		Judged: sum.Judged && sum.Unexpected == 0 && l.beyond == 0, Expected: sum.Expected, Received: sum.Received, Missing: sum.Missing,
		MissingAnnounced: sum.MissingAnnounced, Duplicates: sum.Duplicates, Disordered: sum.Disordered,
	}
	for _, topic := range coverage.ByTopic(&l.counts, worstTopics) {
		if topic.Missing() > 0 {
			loss.Topics = append(loss.Topics, tally.TopicLoss{Topic: topic.Topic, Expected: topic.Expected, Missing: topic.Missing()})
		}
	}
	return loss, l.notes(sum, a)
}

// notes say why losses are not judged, or not exactly.
func (l *ledger) notes(v judge.Verdict, a Assignment) (notes []string) {
	if v.Unnumbered > 0 {
		notes = append(notes, fmt.Sprintf("losses are not judged: %d events have no number in the field %q: run feedsim with --number=market, or choose --number-field", v.Unnumbered, a.Number))
	}
	if v.Unexpected > 0 {
		notes = append(notes, fmt.Sprintf("losses are not judged: %d events came that the ground truth does not have: is it that of this run, and %q the field of its sequence?", v.Unexpected, a.Number))
	}
	if l.beyond > 0 {
		notes = append(notes, fmt.Sprintf("losses are not judged: %d connections were too many to keep an account of each", l.beyond))
	}
	if v.Beyond > 0 {
		notes = append(notes, fmt.Sprintf("%d events came so late that they may be duplicates: missing may be too low by as many", v.Beyond))
	}
	if v.Forgotten > 0 {
		notes = append(notes, fmt.Sprintf("%d announced gaps were too many for their connections: what is missing there counts as not announced", v.Forgotten))
	}
	return notes
}

var errShort = errors.New("the ground truth ends before the last event that was received: is it that of this run?")

// read reads the ground truth, when it has all that was received.
func (l *ledger) read(ctx context.Context, name, market string) (*judge.Truth, clock, error) {
	deadline := time.Now().Add(l.patience)
	for {
		ground, times, err := readTruth(name, market)
		if err != nil || ground.Last() >= l.highest {
			return ground, times, err
		}
		if time.Now().After(deadline) {
			return nil, nil, errShort
		}
		timer := time.NewTimer(tick / 10)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, nil, ctx.Err()
		case <-timer.C:
		}
	}
}

// readTruth reads the whole lines that a file has now.
func readTruth(name, market string) (*judge.Truth, clock, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, nil, err
	}
	defer file.Close()
	size, err := wholeLines(file)
	if err != nil {
		return nil, nil, err
	}
	ground, err := judge.ReadTruth(truth.NewReader(io.NewSectionReader(file, 0, size)), market)
	if err != nil {
		return nil, nil, err
	}
	times, err := readClock(truth.NewReader(io.NewSectionReader(file, 0, size)), market)
	return ground, times, err
}

// wholeLines is how many bytes there are up to the last line break: feedsim may
// be writing the next line.
func wholeLines(file *os.File) (int64, error) {
	info, err := file.Stat()
	if err != nil {
		return 0, err
	}
	block := make([]byte, 64<<10)
	for end := info.Size(); end > 0; {
		start := max(0, end-int64(len(block)))
		part := block[:end-start]
		if _, err := file.ReadAt(part, start); err != nil {
			return 0, err
		}
		if i := bytes.LastIndexByte(part, '\n'); i >= 0 {
			return start + int64(i) + 1, nil
		}
		end = start
	}
	return 0, nil
}

// clock says which event was sent when, a hundred times a second.
type clock []moment

type moment struct {
	at       int64 // unix ns
	sequence uint64
}

func readClock(r *truth.Reader, market string) (clock, error) {
	const apart = 10 * time.Millisecond
	var c clock
	for {
		line, err := r.Next()
		if errors.Is(err, io.EOF) {
			return c, nil
		}
		if err != nil {
			return nil, err
		}
		if line.Kind != truth.Event || line.Market != market {
			continue
		}
		if at := line.At.UnixNano(); len(c) == 0 || at >= c[len(c)-1].at+int64(apart) {
			c = append(c, moment{at, line.Sequence})
		}
	}
}

// since is the number of an event sent at that time or soon after; 0: there is none.
func (c clock) since(at int64) uint64 {
	i := sort.Search(len(c), func(i int) bool { return c[i].at >= at })
	if i == len(c) {
		return 0
	}
	return c[i].sequence
}

// until is the number of an event sent at that time or shortly before; 0: there is none.
func (c clock) until(at int64) uint64 {
	i := sort.Search(len(c), func(i int) bool { return c[i].at > at })
	if i == 0 {
		return 0
	}
	return c[i-1].sequence
}
