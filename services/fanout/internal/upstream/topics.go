package upstream

import (
	"slices"
	"strings"
	"time"

	feedv1 "github.com/cutemarkets/relay/proto/feed/v1"
)

type topicPhase uint8

const (
	topicOff     topicPhase = iota // not subscribed, or not known to be
	topicPending                   // subscribe sent, no ack yet
	topicAcked
	topicFailed // never acknowledged on this connection
)

// topic is one that is wanted, or was a moment ago.
type topic struct {
	name      string
	kind      *kind
	phase     topicPhase
	wanted    bool
	canary    bool      // subscribed for the session itself once it is live
	attempt   int       // subscribes sent
	firstSent time.Time // of them
	wait      uint64    // number of the newest entry in topics.waits
	linger    uint64    // number of the newest entry in topics.lingers
	problem   bool      // told, and not taken back
	late      bool      // was not acknowledged yet when the connection went live
}

// kind is all topics of one prefix. The vendor may send an event twice that
// both an exact topic and the wildcard ask for, so the exact topics are left out
// while the wildcard stands for them.
type kind struct {
	wildcard *topic // nil: not wanted
	exact    map[string]*topic
}

// covers reports whether the wildcard stands for the exact topics: it is
// acknowledged, or nothing speaks against that yet.
func (k *kind) covers() bool {
	w := k.wildcard
	return w != nil && (w.phase == topicAcked || w.phase == topicPending && w.attempt == 1)
}

// timer is an entry of a list of equal waits, which is so in order of time. It
// counts if it is the topic's newest.
type timer struct {
	at     time.Time
	topic  *topic
	number uint64
}

// topics is what a session knows of its subscriptions.
type topics struct {
	byName        map[string]*topic
	kinds         map[string]*kind
	canaries      []*topic // static after construction
	unacked       int      // topics in topicPending
	waits         []timer
	lingers       []timer
	timers        uint64 // made
	notAuthorized time.Time
	subscribe     []string // to be sent
	unsubscribe   []string // to be sent behind subscribe
}

func newTopics() topics {
	return topics{byName: make(map[string]*topic), kinds: make(map[string]*kind)}
}

// forget tells that there is no connection any more.
func (ts *topics) forget() {
	for _, t := range ts.byName {
		t.phase, t.late = topicOff, false
	}
	ts.unacked = 0
	ts.waits = nil
	ts.notAuthorized = time.Time{}
}

// markLate notes what waits for its ack while events begin to flow.
func (ts *topics) markLate() {
	for _, t := range ts.byName {
		t.late = t.phase == topicPending && t.wanted
	}
}

// deadline is when the next timer is due; zero: there is none.
func (ts *topics) deadline() time.Time {
	var at time.Time
	if len(ts.waits) > 0 {
		at = ts.waits[0].at
	}
	if len(ts.lingers) > 0 && (at.IsZero() || ts.lingers[0].at.Before(at)) {
		at = ts.lingers[0].at
	}
	return at
}

// topic finds a topic, or makes it.
func (ts *topics) topic(name string) *topic {
	if t := ts.byName[name]; t != nil {
		return t
	}
	prefix, ticker, _ := strings.Cut(name, ".")
	k := ts.kinds[prefix]
	if k == nil {
		k = &kind{exact: make(map[string]*topic)}
		ts.kinds[prefix] = k
	}
	t := &topic{name: name, kind: k}
	ts.byName[name] = t
	if ticker == "*" {
		k.wildcard = t
	} else {
		k.exact[name] = t
	}
	return t
}

func (s *Session) add(now time.Time, name string) {
	if len(s.topics.byName) == 0 {
		s.watch.forget(now)
	}
	t := s.topics.topic(name)
	t.wanted = true
	s.ensure(now, t)
}

func (s *Session) remove(now time.Time, name string) {
	ts := &s.topics
	t := ts.byName[name]
	if t == nil || !t.wanted {
		return
	}
	t.wanted = false
	ts.timers++
	t.linger = ts.timers
	ts.lingers = append(ts.lingers, timer{at: now.Add(lingerWait), topic: t, number: t.linger})
}

// ensure subscribes a topic unless it is, or need not be.
func (s *Session) ensure(now time.Time, t *topic) {
	if s.phase != phaseOpen || !t.wanted && !s.canaryDue(t) || t.phase != topicOff || t != t.kind.wildcard && t.kind.covers() {
		return
	}
	t.phase = topicPending
	t.attempt = 0
	t.firstSent = now
	s.topics.unacked++
	s.send(now, t)
}

// ensureExact subscribes the exact topics of a kind that need it.
func (s *Session) ensureExact(now time.Time, k *kind) {
	for _, t := range k.exact {
		s.ensure(now, t)
	}
}

// send subscribes a pending topic, first or again.
func (s *Session) send(now time.Time, t *topic) {
	ts := &s.topics
	t.attempt++
	ts.timers++
	t.wait = ts.timers
	ts.waits = append(ts.waits, timer{at: now.Add(ackWait), topic: t, number: t.wait})
	ts.subscribe = append(ts.subscribe, t.name)
}

func (s *Session) subscribeAll(now time.Time) {
	for _, k := range s.topics.kinds {
		if k.wildcard != nil {
			s.ensure(now, k.wildcard)
		}
		s.ensureExact(now, k)
	}
}

// cancel unsubscribes a topic if it is, or may be, subscribed.
func (s *Session) cancel(t *topic) {
	switch t.phase {
	case topicPending:
		s.topics.unacked--
		s.topics.unsubscribe = append(s.topics.unsubscribe, t.name)
	case topicAcked, topicFailed:
		s.topics.unsubscribe = append(s.topics.unsubscribe, t.name)
	}
	t.phase, t.late = topicOff, false
	s.solved(t)
}

// solved takes the problem back that was told of a topic, if any.
func (s *Session) solved(t *topic) {
	if t.problem {
		t.problem = false
		s.host.Problem([]string{t.name}, feedv1.TopicProblem_TOPIC_PROBLEM_UNSPECIFIED)
	}
}

// acked credits the vendor's word to a topic.
func (s *Session) acked(now time.Time, name string) {
	t := s.topics.byName[name]
	if t == nil {
		return
	}
	switch t.phase {
	case topicPending:
		s.topics.unacked--
	case topicFailed:
	default:
		return
	}
	canary := s.topics.canaryServed()
	t.phase = topicAcked
	if !canary && s.topics.canaryServed() {
		s.watch.resume(now)
	}
	s.lateAcked = s.lateAcked || t.late
	t.late = false
	s.solved(t)
	if t == t.kind.wildcard {
		for _, exact := range t.kind.exact {
			s.cancel(exact)
		}
	}
}

// overdue subscribes again what has not been acknowledged in time, and gives up
// what has been tried often enough.
func (s *Session) overdue(now time.Time) {
	ts := &s.topics
	var unserved, unauthorized []string
	for len(ts.waits) > 0 && !now.Before(ts.waits[0].at) {
		w := ts.waits[0]
		ts.waits = ts.waits[1:]
		t := w.topic
		if t.phase != topicPending || t.wait != w.number {
			continue
		}
		if t.attempt <= ackRetries {
			s.send(now, t)
			if t == t.kind.wildcard {
				s.ensureExact(now, t.kind)
			}
			continue
		}
		t.phase = topicFailed
		t.problem = true
		ts.unacked--
		if ts.notAuthorized.Before(t.firstSent) {
			unserved = append(unserved, t.name)
		} else {
			unauthorized = append(unauthorized, t.name)
		}
	}
	if len(unserved) > 0 {
		s.host.Problem(unserved, feedv1.TopicProblem_TOPIC_PROBLEM_NOT_ACKNOWLEDGED)
	}
	if len(unauthorized) > 0 {
		s.host.Problem(unauthorized, feedv1.TopicProblem_TOPIC_PROBLEM_NOT_AUTHORIZED)
	}
}

// unlinger drops the topics whose interest has not come back. The exact topics
// that a wildcard stood for are subscribed before it is unsubscribed.
func (s *Session) unlinger(now time.Time) {
	ts := &s.topics
	for len(ts.lingers) > 0 && !now.Before(ts.lingers[0].at) {
		l := ts.lingers[0]
		ts.lingers = ts.lingers[1:]
		t := l.topic
		if t.wanted || t.canary || t.linger != l.number {
			continue
		}
		s.cancel(t)
		delete(ts.byName, t.name)
		k := t.kind
		s.watch.leave(now, len(ts.byName), t == k.wildcard)
		if t == k.wildcard {
			k.wildcard = nil
			s.ensureExact(now, k)
		} else {
			delete(k.exact, t.name)
		}
		if k.wildcard == nil && len(k.exact) == 0 {
			prefix, _, _ := strings.Cut(t.name, ".")
			delete(ts.kinds, prefix)
		}
	}
	s.flush()
}

// flush sends what has been collected: first subscribes, then unsubscribes.
func (s *Session) flush() {
	ts := &s.topics
	for _, message := range commands("subscribe", ts.subscribe) {
		s.host.Send(message)
	}
	for _, message := range commands("unsubscribe", ts.unsubscribe) {
		s.host.Send(message)
	}
	ts.subscribe, ts.unsubscribe = nil, nil
}

// Bounds of one message to the vendor, whose own limit is not known.
const (
	maxParams  = 500
	maxCommand = 32 << 10 // bytes
)

// commands makes as few messages as the bounds allow, in alphabetical order of
// the topics.
func commands(action string, topics []string) [][]byte {
	slices.Sort(topics)
	var messages [][]byte
	for len(topics) > 0 {
		message := []byte(`{"action":"` + action + `","params":"`)
		n := 0
		for n < len(topics) && n < maxParams {
			if len(message)+len(topics[n])+len(`,"}`) > maxCommand {
				break
			}
			if n > 0 {
				message = append(message, ',')
			}
			message = append(message, topics[n]...)
			n++
		}
		messages = append(messages, append(message, `"}`...))
		topics = topics[n:]
	}
	return messages
}
