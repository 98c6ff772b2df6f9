package upstream

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	feedv1 "github.com/cutemarkets/relay/proto/feed/v1"
	"github.com/cutemarkets/relay/services/fanout/internal/calendar"
)

func TestSlots(t *testing.T) {
	s := newScript(t)
	s.session.LimitTopics("Q", 2)
	s.open("Q.A", "T.A")
	s.ack("Q.A", "T.A")
	s.host.said = nil
	s.session.Add(s.now, []string{"Q.B", "Q.C", "Q.D", "T.B"})
	s.expect("subscribe Q.B,T.B", "problem [Q.C Q.D] NO_SLOT")

	s.session.Remove(s.now, []string{"Q.C", "Q.D", "Q.A"})
	s.session.Add(s.now, []string{"Q.C"}) // Q.A lingers, but it has the only slot that nobody needs
	s.expect("problem [Q.C] UNSPECIFIED", "unsubscribe Q.A", "subscribe Q.C")
	s.ack("Q.B", "Q.C", "T.B")
	s.pass(lingerWait)
	s.expect("problem [Q.D] UNSPECIFIED")
	if used := s.session.SlotsUsed("Q"); used != 2 {
		t.Errorf("%d slots used, want 2", used)
	}

	s.session.Add(s.now, []string{"Q.A"})
	s.expect("problem [Q.A] NO_SLOT")
	s.lose(CauseClosed)
	s.pass(time.Second)
	s.host.said = nil
	s.login()
	s.expect("subscribe Q.B,Q.C,T.A,T.B") // those who had a slot keep it
}

func TestFirehose(t *testing.T) {
	s := newScript(t)
	s.session.Firehose("T")
	s.open("Q.A", "T.A")
	s.expect("subscribe Q.A,T.*")
	s.ack("Q.A", "T.*")
	s.host.said = nil
	s.session.Add(s.now, []string{"T.*", "T.B"})
	s.session.Remove(s.now, []string{"T.*", "T.A", "T.B"})
	s.pass(time.Minute)
	s.expect()
}

// counter is a vendor who acknowledges all and counts the topics of a prefix.
type counter struct {
	recorder
	t          *rapid.T
	subscribed map[string]bool
	refused    map[string]bool
}

func (c *counter) Send(message []byte) {
	var command struct{ Action, Params string }
	if err := json.Unmarshal(message, &command); err != nil {
		c.t.Fatal(err)
	}
	for topic := range strings.SplitSeq(command.Params, ",") {
		if command.Action == "subscribe" {
			c.subscribed[topic] = true
		} else {
			delete(c.subscribed, topic)
		}
		if len(c.subscribed) > 3 {
			c.t.Fatalf("the vendor has more topics than slots: %v", c.subscribed)
		}
	}
}

func (c *counter) Problem(topics []string, problem feedv1.TopicProblem) {
	for _, topic := range topics {
		c.refused[topic] = problem == feedv1.TopicProblem_TOPIC_PROBLEM_NO_SLOT
	}
}

// TestSlotsProperty: whatever is wanted, the vendor never has more topics than it
// serves, what is wanted is either subscribed or was refused, and nothing is
// refused while a slot is free or idle.
func TestSlotsProperty(t *testing.T) {
	var topics []string
	for i := range 6 {
		topics = append(topics, fmt.Sprint("Q.", i))
	}
	rapid.Check(t, func(t *rapid.T) {
		c := &counter{t: t, subscribed: map[string]bool{}, refused: map[string]bool{}}
		now := t0
		s := NewSession(c, func() float64 { return 0 }, calendar.Never, nil, Limit{})
		s.LimitTopics("Q", 3)
		connect := func() {
			s.Dialed(now)
			s.Status(now, "connected", "")
			s.Status(now, "auth_success", "")
		}
		s.Start(now, nil)
		connect()
		wanted := map[string]bool{}
		some := rapid.SliceOfNDistinct(rapid.SampledFrom(topics), 1, 4, rapid.ID[string])
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				add := slices.DeleteFunc(some.Draw(t, "add"), func(name string) bool { return wanted[name] })
				for _, name := range add {
					wanted[name] = true
				}
				s.Add(now, add)
				for _, name := range add {
					if c.refused[name] && len(c.subscribed) < 3 {
						t.Fatalf("%s is refused, and only %v are subscribed", name, c.subscribed)
					}
				}
				for name := range c.subscribed {
					if !wanted[name] && slices.ContainsFunc(add, func(name string) bool { return c.refused[name] }) {
						t.Fatalf("refused for %s, which nobody wants", name)
					}
				}
			},
			"remove": func(t *rapid.T) {
				for _, name := range some.Draw(t, "remove") {
					delete(wanted, name)
					s.Remove(now, []string{name})
				}
			},
			"acks": func(*rapid.T) {
				for name := range c.subscribed {
					s.Status(now, "success", "subscribed to: "+name)
				}
			},
			"pass": func(t *rapid.T) {
				now = now.Add(time.Duration(rapid.Int64Range(1, int64(lingerWait)).Draw(t, "pass")))
				s.Tick(now)
			},
			"reconnect": func(*rapid.T) {
				s.Closed(now, CauseClosed)
				clear(c.subscribed)
				now = now.Add(time.Minute)
				s.Tick(now)
				connect()
			},
			"": func(t *rapid.T) {
				for name := range wanted {
					if c.subscribed[name] == c.refused[name] {
						t.Fatalf("%s: subscribed %t, refused %t", name, c.subscribed[name], c.refused[name])
					}
				}
				if used := s.SlotsUsed("Q"); used != len(c.subscribed) {
					t.Fatalf("%d slots used, the vendor has %v", used, c.subscribed)
				}
			},
		})
	})
}

// BenchmarkSlots wants 26,000 topics, of which the vendor serves 1,000, leaves them
// all, and wants them again.
func BenchmarkSlots(b *testing.B) {
	topics := make([]string, 26_000)
	for i := range topics {
		topics[i] = fmt.Sprint("Q.", i)
	}
	b.ReportAllocs()
	for range b.N {
		c := &recorder{}
		s := NewSession(c, func() float64 { return 0 }, calendar.Never, nil, Limit{})
		s.LimitTopics("Q", 1000)
		s.Start(t0, nil)
		s.Dialed(t0)
		s.Status(t0, "connected", "")
		s.Status(t0, "auth_success", "")
		s.Add(t0, topics)
		s.Remove(t0, topics)
		s.Add(t0, topics)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(3*len(topics)), "ns/topic")
}
