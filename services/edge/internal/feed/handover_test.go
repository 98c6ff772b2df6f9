package feed

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	feedv1 "github.com/cutemarkets/relay/proto/feed/v1"
)

// texts makes a well-formed batch of events with the given bytes, at every other
// sequence.
func texts(events ...string) *feedv1.Batch {
	b := &feedv1.Batch{Epoch: &feedv1.Epoch{Term: 1}, FirstSequence: 1, LastSequence: uint64(2*len(events) + 1)}
	for n, e := range events {
		b.Payload = append(b.Payload, e...)
		b.Ends = append(b.Ends, uint32(len(b.Payload)))
		b.SequenceOffsets = append(b.SequenceOffsets, uint32(2*n))
		b.TopicIds = append(b.TopicIds, uint32(len(e)), uint32(n))
	}
	return b
}

func textsOf(b *feedv1.Batch) (events []string) {
	start := uint32(0)
	for _, end := range b.Ends {
		events = append(events, string(b.Payload[start:end]))
		start = end
	}
	return events
}

// TestHandover: after a change of epoch each event that was delivered lately
// suppresses one with the same bytes, and nothing else is dropped.
func TestHandover(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := newHandover()
		now := time.Date(2026, 11, 20, 15, 0, 0, 0, time.UTC)
		type delivery struct {
			at   time.Time
			text string
		}
		var delivered []delivery
		left, until := map[string]int{}, time.Time{}
		event := rapid.Custom(func(t *rapid.T) string { return fmt.Sprintf(`{"q":%d}`, rapid.IntRange(0, 5).Draw(t, "q")) })
		t.Repeat(map[string]func(*rapid.T){
			"batch": func(t *rapid.T) {
				in := rapid.SliceOfN(event, 1, 8).Draw(t, "events")
				if !now.Before(until) {
					clear(left)
				}
				var want []string
				for _, e := range in {
					if left[e] > 0 {
						left[e]--
						continue
					}
					want = append(want, e)
					delivered = append(delivered, delivery{now, e})
				}
				b := texts(in...)
				rest, dropped := h.filter(now, b)
				if got := textsOf(rest); !slices.Equal(got, want) || dropped != len(in)-len(want) {
					t.Fatalf("%d dropped, left %v, want %v", dropped, got, want)
				}
				if !wellFormed(rest) || rest.FirstSequence != b.FirstSequence || rest.LastSequence != b.LastSequence || !slices.Equal(textsOf(b), in) {
					t.Fatalf("malformed %v", rest)
				}
				for n, offset := range rest.SequenceOffsets {
					if in[offset/2] != want[n] || rest.TopicIds[2*n+1] != offset/2 {
						t.Fatalf("event %d has offset %d, ids %v", n, offset, rest.TopicIds)
					}
				}
				if len(rest.Ends) > 0 {
					h.keep(now, rest)
				}
			},
			"epoch": func(*rapid.T) {
				h.begin(now)
				clear(left)
				for _, d := range delivered {
					if now.Sub(d.at) <= handoverAge {
						left[d.text]++
					}
				}
				until = now.Add(handoverWindow)
			},
			"pass": func(t *rapid.T) {
				now = now.Add(time.Duration(rapid.IntRange(1, 6000).Draw(t, "ms")) * time.Millisecond)
				if rapid.Bool().Draw(t, "tick") {
					h.expire(now)
				}
			},
		})
		now = now.Add(time.Minute)
		if h.expire(now); h.bytes != 0 || h.delivered != nil || h.head != len(h.kept) {
			t.Fatalf("left behind: %d bytes", h.bytes)
		}
	})
}

// TestHandoverAtTheArbiter: an event of both leaders is delivered once.
func TestHandoverAtTheArbiter(t *testing.T) {
	zero := time.Date(2026, 11, 20, 15, 0, 0, 0, time.UTC)
	r := &sinkOfTexts{}
	s := &stats{}
	a := newArbiter(r, s)
	a.start(zero)
	message := func(after time.Duration, stream uint64, term uint64, events ...string) {
		b := texts(events...)
		b.Epoch = &feedv1.Epoch{Generation: 1, Term: term}
		if p := a.streams[stream]; p == nil {
			a.opened(stream)
		} else {
			shift := p.sequence
			b.FirstSequence, b.LastSequence = b.FirstSequence+shift, b.LastSequence+shift
		}
		if !a.message(zero.Add(after), stream, &feedv1.SubscribeResponse{Message: &feedv1.SubscribeResponse_Batch{Batch: b}}) {
			t.Fatal("rejected")
		}
	}
	message(time.Second, 1, 1, "a", "b", "b")
	message(time.Second, 1, 1, "b")
	message(2*time.Second, 2, 2, "b", "c", "a", "a")
	message(3*time.Second, 2, 2, "b", "b", "b")
	message(13*time.Second, 2, 2, "c")
	if got := fmt.Sprint(r.events); got != "[a b b b c a b c]" || s.duplicates.Load() != 4 {
		t.Errorf("delivered %s, %d duplicates", got, s.duplicates.Load())
	}
}

type sinkOfTexts struct {
	recorder
	events []string
}

func (s *sinkOfTexts) Batch(b *feedv1.Batch) { s.events = append(s.events, textsOf(b)...) }

// TestHandoverIsBounded, and costs nothing but a reference while no leader changes.
func TestHandoverIsBounded(t *testing.T) {
	h := newHandover()
	now := time.Date(2026, 11, 20, 15, 0, 0, 0, time.UTC)
	b := texts(string(make([]byte, 64<<10)))
	deliver := func() {
		now = now.Add(time.Millisecond)
		rest, _ := h.filter(now, b)
		h.keep(now, rest)
	}
	for range 1000 {
		deliver()
		if h.bytes > handoverBytes {
			t.Fatalf("%d bytes kept", h.bytes)
		}
	}
	if n := testing.AllocsPerRun(1000, deliver); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if len(h.kept) > 4*handoverBytes/(64<<10) {
		t.Errorf("room for %d batches", len(h.kept))
	}
}
