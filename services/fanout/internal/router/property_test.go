package router

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"

	feedv1 "github.com/cutemarkets/relay/proto/feed/v1"
	"github.com/cutemarkets/relay/services/fanout/internal/leader"
)

// model is what one edge must receive.
type model struct {
	edge    *Edge
	topics  map[string]uint32
	nextID  uint32
	begun   uint64 // where the coverage begins
	covered uint64 // end of the coverage received
	want    []delivery
}

type delivery struct {
	epoch           uint64
	sequence        uint64
	raw             string // "gap" for a gap
	exact, wildcard uint32
}

// TestDelivery: for random changes of interest and events, the ranges of each
// edge are contiguous, and every event with interest at its routing comes
// exactly once, in order, with its bytes and ids.
func TestDelivery(t *testing.T) {
	tickers := []string{"A", "B", "BRK.A", "*"}
	kinds := []string{"T", "Q", "ZZ"}
	rapid.Check(t, func(t *rapid.T) {
		r := New("stocks", 1<<30, RingBounds{})
		term := uint64(1)
		r.Lead(leader.Epoch{Generation: 1, Term: term}, t0)
		var edges []*model
		sequence, n := uint64(0), 0
		received := map[*model][]delivery{}
		pick := func() *model {
			if len(edges) == 0 {
				t.Skip("no edge")
			}
			return rapid.SampledFrom(edges).Draw(t, "edge")
		}
		take := func(m *model) {
			for next := m.edge.Next(t0); next != nil; next = m.edge.Next(t0) {
				received[m] = append(received[m], m.check(t, next)...)
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"attach": func(t *rapid.T) {
				if len(edges) == 5 {
					t.Skip("enough")
				}
				m := &model{topics: map[string]uint32{}, covered: sequence}
				m.edge = r.Attach(fmt.Sprint(len(edges)))
				m.edge.Start(t0)
				edges = append(edges, m)
			},
			"subscribe": func(t *rapid.T) {
				m := pick()
				name := rapid.SampledFrom(kinds).Draw(t, "kind") + "." + rapid.SampledFrom(tickers).Draw(t, "ticker")
				if m.topics[name] != 0 {
					t.Skip("has it")
				}
				m.nextID++
				m.topics[name] = m.nextID
				if err := m.edge.Change(nil, []*feedv1.Topic{{Id: m.nextID, Name: name}}); err != nil {
					t.Fatal(err)
				}
			},
			"unsubscribe": func(t *rapid.T) {
				m := pick()
				for name, id := range m.topics {
					delete(m.topics, name)
					if err := m.edge.Change([]uint32{id}, nil); err != nil {
						t.Fatal(err)
					}
					return
				}
			},
			"route": func(t *rapid.T) {
				var events []Event
				for range rapid.IntRange(1, 5).Draw(t, "events") {
					n++
					kind, ticker := rapid.SampledFrom(kinds).Draw(t, "kind"), rapid.SampledFrom(tickers[:3]).Draw(t, "ticker")
					e := event(kind, ticker, n)
					events = append(events, e)
					sequence++
					for _, m := range edges {
						exact, wildcard := m.topics[kind+"."+ticker], m.topics[kind+".*"]
						if exact+wildcard > 0 {
							m.want = append(m.want, delivery{term, sequence, string(e.Raw), exact, wildcard})
						}
					}
				}
				r.Route(events)
			},
			"gap": func(t *rapid.T) {
				sequence++
				for _, m := range edges {
					m.want = append(m.want, delivery{term, sequence, "gap", 0, 0})
				}
				r.Gap(t0, t0)
			},
			"heartbeat": func(t *rapid.T) { pick().edge.Heartbeat(t0) },
			"take":      func(t *rapid.T) { take(pick()) },
			"epoch": func(t *rapid.T) {
				for _, m := range edges {
					take(m)
					m.covered = 0
				}
				r.Follow(t0)
				term++
				sequence = 0
				r.Lead(leader.Epoch{Generation: 1, Term: term}, t0)
			},
		})
		for _, m := range edges {
			take(m) // a heartbeat may be queued still
			m.edge.Heartbeat(t0)
			take(m)
			if m.covered != sequence {
				t.Fatalf("covered up to %d of %d", m.covered, sequence)
			}
			if fmt.Sprint(received[m]) != fmt.Sprint(m.want) {
				t.Fatalf("received\n%v\nwant\n%v", received[m], m.want)
			}
		}
	})
}

// check checks that a message continues the coverage, and returns its events.
func (m *model) check(t *rapid.T, next *feedv1.SubscribeResponse) (got []delivery) {
	switch {
	case next.GetHeartbeat() != nil:
		h := next.GetHeartbeat()
		if h.GetRole() == feedv1.Role_ROLE_STANDBY {
			return nil
		}
		if h.GetSequence() < m.covered {
			t.Fatalf("heartbeat at %d behind %d", h.GetSequence(), m.covered)
		}
		m.covered = h.GetSequence()
	case next.GetGap() != nil:
		g := next.GetGap()
		if g.GetSequence() != m.covered+1 {
			t.Fatalf("gap at %d behind %d", g.GetSequence(), m.covered)
		}
		m.covered++
		got = append(got, delivery{g.GetEpoch().GetTerm(), g.GetSequence(), "gap", 0, 0})
	case next.GetBatch() != nil:
		b := next.GetBatch()
		if b.GetFirstSequence() != m.covered+1 || b.GetLastSequence() < b.GetFirstSequence() {
			t.Fatalf("batch %d-%d behind %d", b.GetFirstSequence(), b.GetLastSequence(), m.covered)
		}
		m.covered = b.GetLastSequence()
		begin := uint32(0)
		for i, end := range b.GetEnds() {
			sequence := b.GetFirstSequence() + uint64(b.GetSequenceOffsets()[i])
			if sequence > b.GetLastSequence() {
				t.Fatalf("event %d in batch %d-%d", sequence, b.GetFirstSequence(), b.GetLastSequence())
			}
			got = append(got, delivery{b.GetEpoch().GetTerm(), sequence, string(b.GetPayload()[begin:end]), b.GetTopicIds()[2*i], b.GetTopicIds()[2*i+1]})
			begin = end
		}
	}
	return got
}
