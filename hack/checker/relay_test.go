package checker

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/cutemarkets/relay/hack/truth"
)

// script is a random truth and what a perfect relay makes of it for a client.
type script struct {
	file     bytes.Buffer
	topics   []string // subscribed to
	received []step
	outages  int
}

// step is an event or a gap notice as received.
type step struct {
	seq      int // from 1, in the truth; 0: a gap notice
	topic    string
	raw      string
	from, to time.Time
	unique   bool // no other event has its bytes
}

var allTopics = []string{"T.A", "T.B", "T.C", "Q.A", "Q.B", "AM.A"}

// draw makes a truth of up to 60 events, some alike, with up to 4 outages, and
// the steps of a client who came at some time and stayed.
func draw(t *rapid.T) *script {
	s := &script{topics: rapid.SliceOfNDistinct(rapid.SampledFrom(append([]string{"T.*", "Q.*"}, allTopics...)), 1, 4, rapid.ID).Draw(t, "subscribed")}
	w := truth.NewWriter(&s.file)
	w.Up("stocks", epoch)
	length := rapid.IntRange(1, 60).Draw(t, "length")
	joined := rapid.IntRange(0, length-1).Draw(t, "joined")
	down := time.Time{}
	count := map[string]int{}
	for i := range length {
		at := second(float64(10 * i))
		switch {
		case down.IsZero() && s.outages < 4 && rapid.IntRange(0, 9).Draw(t, "down") == 0:
			down = at.Add(-time.Second)
			w.Down("stocks", down)
		case !down.IsZero() && rapid.IntRange(0, 2).Draw(t, "up") == 0:
			up := at.Add(-time.Second)
			w.Up("stocks", up)
			if i > joined {
				early, late := rapid.IntRange(0, 400).Draw(t, "early"), rapid.IntRange(0, 400).Draw(t, "late")
				s.received = append(s.received, step{from: down.Add(milliseconds(-early)), to: up.Add(milliseconds(late))})
				s.outages++
			}
			down = time.Time{}
		}
		topic := rapid.SampledFrom(allTopics).Draw(t, "topic")
		tag := fmt.Sprint(i)
		if rapid.IntRange(0, 4).Draw(t, "alike") == 0 {
			tag = "alike"
		}
		event := string(raw(topic, tag))
		w.Event("stocks", uint64(i+1), at, topic, []byte(event))
		count[event]++
		if asked := slices.ContainsFunc(s.topics, func(s string) bool { return covers(s, topic) }); asked && down.IsZero() && i >= joined {
			s.received = append(s.received, step{seq: i + 1, topic: topic, raw: event})
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	var anchored, events bool
	for i := range s.received {
		e := &s.received[i]
		e.unique = e.seq > 0 && count[e.raw] == 1
		anchored, events = anchored || e.unique, events || e.seq > 0
		if last := i == len(s.received)-1; last || s.received[i+1].seq == 0 {
			if events && !anchored {
				t.Skip("which of the events alike were received cannot be told")
			}
			anchored, events = false, false
		}
	}
	return s
}

// play lets a client receive steps and checks it.
func (s *script) play(t *rapid.T, steps []step) Report {
	ck := New()
	c := ck.Client("client", "stocks")
	for _, topic := range s.topics {
		c.Subscribed(topic, time.Time{})
	}
	for _, e := range steps {
		if e.seq == 0 {
			c.Gap(e.from, e.to)
		} else {
			c.Event([]byte(e.raw))
		}
	}
	report, err := ck.Check(truth.NewReader(bytes.NewReader(s.file.Bytes())))
	if err != nil {
		t.Fatal(err)
	}
	return report
}

// pick chooses a step that satisfies ok, or skips this script.
func pick(t *rapid.T, steps []step, ok func(i int) bool) int {
	var fit []int
	for i := range steps {
		if ok(i) {
			fit = append(fit, i)
		}
	}
	if len(fit) == 0 {
		t.Skip("no step fits")
	}
	return rapid.SampledFrom(fit).Draw(t, "step")
}

func TestPerfectRelayHasNoFault(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := draw(t)
		report := s.play(t, s.received)
		if err := report.Err(); err != nil {
			t.Fatal(err)
		}
	})
}

// TestFaultyRelayIsCaught makes one mistake in what a perfect relay sends.
func TestFaultyRelayIsCaught(t *testing.T) {
	event := func(steps []step, i int) bool { return i >= 0 && i < len(steps) && steps[i].seq > 0 }
	sole := func(steps []step, i int) bool { return event(steps, i) && steps[i].unique }
	// inner is an event between others of its topic, by which the client's subscription is known to have lasted.
	inner := func(steps []step, i int) bool {
		return sole(steps, i) && sole(steps, i+1) &&
			slices.ContainsFunc(steps[:i], func(e step) bool { return e.topic == steps[i].topic && e.unique })
	}
	for name, mutation := range map[string]struct {
		mutate func(t *rapid.T, s *script) []step
		caught func(Figures) bool
	}{
		"loses an event": {
			func(t *rapid.T, s *script) []step {
				i := pick(t, s.received, func(i int) bool { return inner(s.received, i) })
				return slices.Delete(slices.Clone(s.received), i, i+1)
			},
			func(f Figures) bool { return f.Missing == 1 },
		},
		"sends an event twice": {
			func(t *rapid.T, s *script) []step {
				i := pick(t, s.received, func(i int) bool { return sole(s.received, i) })
				again := rapid.IntRange(i+1, len(s.received)).Draw(t, "again")
				return slices.Insert(slices.Clone(s.received), again, s.received[i])
			},
			func(f Figures) bool { return f.Duplicates == 1 },
		},
		"swaps neighbours": {
			func(t *rapid.T, s *script) []step {
				i := pick(t, s.received, func(i int) bool { return sole(s.received, i) && sole(s.received, i+1) })
				steps := slices.Clone(s.received)
				steps[i], steps[i+1] = steps[i+1], steps[i]
				return steps
			},
			func(f Figures) bool { return f.Disordered == 1 },
		},
		"sends an event late": {
			func(t *rapid.T, s *script) []step {
				i := pick(t, s.received, func(i int) bool { return sole(s.received, i) && sole(s.received, i+1) })
				moved := rapid.IntRange(i+1, len(s.received)-1).Draw(t, "moved")
				return slices.Insert(slices.Delete(slices.Clone(s.received), i, i+1), moved, s.received[i])
			},
			func(f Figures) bool { return f.Disordered >= 1 },
		},
		"alters a byte": {
			func(t *rapid.T, s *script) []step {
				i := pick(t, s.received, func(i int) bool { return event(s.received, i) })
				steps := slices.Clone(s.received)
				text := []byte(steps[i].raw)
				text[rapid.IntRange(0, len(text)-1).Draw(t, "byte")] ^= 0x80
				steps[i].raw = string(text)
				return steps
			},
			func(f Figures) bool { return f.Altered == 1 },
		},
		"sends an empty event": {
			func(t *rapid.T, s *script) []step { return append(slices.Clone(s.received), step{seq: 1}) },
			func(f Figures) bool { return f.Altered == 1 },
		},
		"cuts an event": {
			func(t *rapid.T, s *script) []step {
				i := pick(t, s.received, func(i int) bool { return event(s.received, i) })
				steps := slices.Clone(s.received)
				steps[i].raw = strings.TrimSuffix(steps[i].raw, "}")
				return steps
			},
			func(f Figures) bool { return f.Altered == 1 },
		},
		"does not tell of an outage": {
			func(t *rapid.T, s *script) []step {
				i := pick(t, s.received, func(i int) bool {
					return s.received[i].seq == 0 && sole(s.received, i-1) && sole(s.received, i+1)
				})
				return slices.Delete(slices.Clone(s.received), i, i+1)
			},
			func(f Figures) bool { return f.OutagesNotSpanned == 1 && f.Gaps == f.Outages-1 },
		},
		"tells of an outage twice": {
			func(t *rapid.T, s *script) []step {
				i := pick(t, s.received, func(i int) bool { return s.received[i].seq == 0 })
				return slices.Insert(slices.Clone(s.received), i, s.received[i])
			},
			func(f Figures) bool { return f.Gaps == f.Outages+1 },
		},
		"tells of an outage that was none": {
			func(t *rapid.T, s *script) []step {
				from := second(-100)
				return append(slices.Clone(s.received), step{from: from, to: from.Add(time.Second)})
			},
			func(f Figures) bool { return f.GapsUnfounded == 1 },
		},
		"announces too long a gap": {
			func(t *rapid.T, s *script) []step {
				i := pick(t, s.received, func(i int) bool { return s.received[i].seq == 0 })
				steps := slices.Clone(s.received)
				steps[i].from = steps[i].from.Add(-1100 * time.Millisecond)
				return steps
			},
			func(f Figures) bool { return f.GapsTooLong == 1 },
		},
		"announces too short a gap": {
			func(t *rapid.T, s *script) []step {
				i := pick(t, s.received, func(i int) bool { return s.received[i].seq == 0 })
				steps := slices.Clone(s.received)
				steps[i].from = steps[i].from.Add(500 * time.Millisecond)
				return steps
			},
			func(f Figures) bool { return f.OutagesNotSpanned == 1 },
		},
	} {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				s := draw(t)
				report := s.play(t, mutation.mutate(t, s))
				if !mutation.caught(report.Clients[0].Figures) || report.Err() == nil {
					t.Fatalf("not caught:\n%s%+v", report, report.Clients[0].Figures)
				}
			})
		})
	}
}

func milliseconds(n int) time.Duration { return time.Duration(n) * time.Millisecond }
