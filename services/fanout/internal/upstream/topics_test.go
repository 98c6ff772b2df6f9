package upstream

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestWildcardCovers(t *testing.T) {
	s := newScript(t)
	s.open("T.*", "T.A", "Q.A")
	s.expect("subscribe Q.A,T.*")
	s.ack("Q.A", "T.*")
	s.expect("release", "state live")
	s.session.Add(s.now, []string{"T.B"})
	s.expect()
	s.session.Remove(s.now, []string{"T.B"})
	s.session.Add(s.now, []string{"Q.*"})
	s.expect("subscribe Q.*")
	s.ack("Q.*")
	s.expect("unsubscribe Q.A")
	s.session.Remove(s.now, []string{"T.*", "Q.*"})
	s.expect()
	s.pass(lingerWait)
	s.expect("subscribe Q.A,T.A", "unsubscribe Q.*,T.*")
}

// TestWildcardNotServed: the exact topics come to their right when the wildcard
// is late.
func TestWildcardNotServed(t *testing.T) {
	s := newScript(t)
	s.open("Q.*", "Q.A")
	s.expect("subscribe Q.*")
	s.pass(ackWait)
	s.expect("release", "state live", "subscribe Q.*,Q.A")
	s.ack("Q.A")
	s.session.Add(s.now, []string{"Q.B"})
	s.expect("subscribe Q.B")
	s.ack("Q.B")
	s.pass(time.Minute)
	s.expect("subscribe Q.*", "problem [Q.*] NOT_ACKNOWLEDGED")
	s.ack("Q.*") // very late
	s.host.said[1] = strings.ReplaceAll(s.host.said[1], "Q.B,Q.A", "Q.A,Q.B")
	s.expect("problem [Q.*] UNSPECIFIED", "unsubscribe Q.A,Q.B")
}

func TestLinger(t *testing.T) {
	s := newScript(t)
	s.open("T.A", "T.B")
	s.ack("T.A", "T.B")
	s.host.said = nil
	for range 10 {
		s.session.Remove(s.now, []string{"T.A"})
		s.pass(lingerWait - 1)
		s.session.Add(s.now, []string{"T.A"})
	}
	s.pass(time.Minute)
	s.expect()
	s.session.Remove(s.now, []string{"T.A", "T.unknown"})
	s.session.Remove(s.now, []string{"T.A"})
	s.pass(lingerWait)
	s.expect("unsubscribe T.A")
	s.session.Add(s.now, []string{"T.A"})
	s.status("success", "unsubscribed to: T.A")
	s.expect("subscribe T.A")
	s.session.Remove(s.now, []string{"T.A"})
	s.pass(lingerWait) // not acknowledged yet
	s.expect("unsubscribe T.A")
	s.ack("T.A")
	s.pass(time.Minute)
	s.expect()
}

// TestAckWaitBeginsAnew: the wait of a subscribe that was taken back does not
// count for a later one of the same topic.
func TestAckWaitBeginsAnew(t *testing.T) {
	s := newScript(t)
	s.open()
	s.host.said = nil
	s.session.Add(s.now, []string{"T.A"})
	s.session.Remove(s.now, []string{"T.A"})
	s.pass(lingerWait)
	s.session.Add(s.now, []string{"T.A", "T.*"})
	s.ack("T.*")
	s.session.Remove(s.now, []string{"T.*"})
	s.pass(lingerWait)
	s.expect("subscribe T.A", "unsubscribe T.A", "subscribe T.*,T.A", "unsubscribe T.A", "subscribe T.A", "unsubscribe T.*")
	s.pass(ackWait - 1)
	s.expect()
	s.pass(1)
	s.expect("subscribe T.A")
}

func TestInterestWhileDown(t *testing.T) {
	s := newScript(t)
	s.open("T.A", "T.B")
	s.ack("T.A", "T.B")
	s.lose(CauseClosed)
	s.session.Remove(s.now, []string{"T.A"})
	s.session.Add(s.now, []string{"T.C"})
	s.pass(backoffMost)
	s.host.said = nil
	s.login()
	s.expect("subscribe T.B,T.C")
}

func TestCommandsAreBounded(t *testing.T) {
	var topics []string
	for i := range 4000 {
		topics = append(topics, fmt.Sprintf("Q.O:%s%05d", strings.Repeat("X", i%50), i))
	}
	var got []string
	for _, message := range commands("subscribe", topics) {
		var command struct{ Action, Params string }
		if err := json.Unmarshal(message, &command); err != nil {
			t.Fatal(err)
		}
		params := strings.Split(command.Params, ",")
		if len(params) > maxParams || len(message) > maxCommand || command.Action != "subscribe" {
			t.Errorf("%d params in %d bytes, action %s", len(params), len(message), command.Action)
		}
		got = append(got, params...)
	}
	if !slices.Equal(got, topics) {
		t.Error("not the topics")
	}
	if len(commands("subscribe", nil)) > 0 {
		t.Error("a message without topics")
	}
}

// TestFailedTopicIsUnsubscribed: the vendor may serve what it has never
// acknowledged, and would send its events twice beside a wildcard.
func TestFailedTopicIsUnsubscribed(t *testing.T) {
	s := newScript(t)
	s.open("T.A")
	s.pass(time.Minute)
	s.host.said = nil
	s.session.Add(s.now, []string{"T.*"})
	s.expect("subscribe T.*")
	s.ack("T.*")
	s.expect("problem [T.A] UNSPECIFIED", "unsubscribe T.A")
}
