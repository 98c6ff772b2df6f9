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
	topicFailed  // never acknowledged on this connection
	topicRefused // there was no slot for it; not asked for before it is wanted anew
)

// topic is one that is wanted, or was a moment ago.
type topic struct {
	name      string
	kind      *kind
	phase     topicPhase
	wanted    bool
	canary    bool      // subscribed for the session itself once it is live
	always    bool      // subscribed whether or not it is wanted
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
//
// Of some kinds the vendor serves a connection only so many exact topics: each
// takes a slot from its subscribe to its unsubscribe.
type kind struct {
	wildcard *topic // nil: not wanted
	exact    map[string]*topic
	slots    int             // 0: no bound
	used     int             // of slots
	idle     map[*topic]bool // have a slot and are not wanted any more
}

// covers reports whether the wildcard stands for the exact topics: it is
// acknowledged, or nothing speaks against that yet.
func (k *kind) covers() bool {
	w := k.wildcard
	return w != nil && (w.phase == topicAcked || w.phase == topicPending && w.attempt == 1)
}

// full reports whether another exact topic would be one too many.
func (k *kind) full() bool { return k.slots > 0 && k.used >= k.slots }

// takesSlot reports whether the vendor has the topic, or may have it.
func (t *topic) takesSlot() bool {
	return t.phase == topicPending || t.phase == topicAcked || t.phase == topicFailed
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
	vacate        []string // unsubscribes to be sent before subscribe: they make room
	subscribe     []string // to be sent
	unsubscribe   []string // to be sent behind subscribe
	refused       []string // to be told
}

func newTopics() topics {
	return topics{byName: make(map[string]*topic), kinds: make(map[string]*kind)}
}

// forget tells that there is no connection any more.
func (ts *topics) forget() {
	for _, t := range ts.byName {
		if t.phase != topicRefused { // or it would take the slot of one that was served
			t.phase = topicOff
		}
		t.late = false
	}
	for _, k := range ts.kinds {
		k.used = 0
		clear(k.idle)
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
	k := ts.kind(prefix)
	t := &topic{name: name, kind: k}
	ts.byName[name] = t
	if ticker == "*" {
		k.wildcard = t
	} else {
		k.exact[name] = t
	}
	return t
}

func (ts *topics) kind(prefix string) *kind {
	k := ts.kinds[prefix]
	if k == nil {
		k = &kind{exact: make(map[string]*topic), idle: make(map[*topic]bool)}
		ts.kinds[prefix] = k
	}
	return k
}

// LimitTopics bounds the topics of a prefix, its wildcard left out, that are subscribed
// at a time. What is wanted beyond is refused (TOPIC_PROBLEM_NO_SLOT), for good: it
// must be removed and added to be tried again. It comes before Start.
func (s *Session) LimitTopics(prefix string, slots int) { s.topics.kind(prefix).slots = slots }

// SlotsUsed is how many of a prefix's slots are taken.
func (s *Session) SlotsUsed(prefix string) int { return s.topics.kind(prefix).used }

// Firehose subscribes the wildcard of a prefix for as long as there is a
// connection, so that no exact topic has to wait for the vendor. It comes before
// Start.
func (s *Session) Firehose(prefix string) {
	s.topics.topic(prefix + ".*").always = true
}

func (s *Session) add(now time.Time, name string) {
	if len(s.topics.byName) == 0 {
		s.watch.forget(now)
	}
	t := s.topics.topic(name)
	t.wanted = true
	delete(t.kind.idle, t)
	if t.phase == topicRefused {
		t.phase = topicOff
		s.solved(t)
	}
	s.ensure(now, t)
}

func (s *Session) remove(now time.Time, name string) {
	ts := &s.topics
	t := ts.byName[name]
	if t == nil || !t.wanted {
		return
	}
	t.wanted = false
	if t.takesSlot() && !t.canary && t != t.kind.wildcard {
		t.kind.idle[t] = true
	}
	ts.timers++
	t.linger = ts.timers
	ts.lingers = append(ts.lingers, timer{at: now.Add(lingerWait), topic: t, number: t.linger})
}

// ensure subscribes a topic unless it is, or need not be.
func (s *Session) ensure(now time.Time, t *topic) {
	k := t.kind
	if s.phase != phaseOpen || !t.wanted && !t.always && !s.canaryDue(t) || t.phase != topicOff || t != k.wildcard && k.covers() {
		return
	}
	if t != k.wildcard && !s.takeSlot(now, k) {
		t.phase, t.problem = topicRefused, true
		s.topics.refused = append(s.topics.refused, t.name)
		return
	}
	t.phase = topicPending
	t.attempt = 0
	t.firstSent = now
	s.topics.unacked++
	s.send(now, t)
}

// takeSlot takes a slot, from a topic that lingers if there is no other. false:
// there is none.
func (s *Session) takeSlot(now time.Time, k *kind) bool {
	if k.full() {
		for idle := range k.idle {
			s.drop(now, idle)
			break
		}
	}
	if k.full() {
		return false
	}
	k.used++
	return true
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
	ts := &s.topics
	if t.phase == topicPending {
		ts.unacked--
	}
	if t.takesSlot() {
		switch k := t.kind; {
		case t == k.wildcard:
			ts.unsubscribe = append(ts.unsubscribe, t.name)
		case k.slots > 0:
			k.used--
			ts.vacate = append(ts.vacate, t.name)
		default:
			k.used--
			ts.unsubscribe = append(ts.unsubscribe, t.name)
		}
	}
	t.phase, t.late = topicOff, false
	delete(t.kind.idle, t)
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
		if !t.wanted && !t.canary && !t.always && t.linger == l.number {
			s.drop(now, t)
		}
	}
	s.flush()
}

// drop forgets a topic that nobody wants.
func (s *Session) drop(now time.Time, t *topic) {
	ts, k := &s.topics, t.kind
	s.cancel(t)
	t.linger = 0 // its timer, if there is one, has lost its meaning
	delete(ts.byName, t.name)
	s.watch.leave(now, len(ts.byName), t == k.wildcard)
	if t == k.wildcard {
		k.wildcard = nil
		s.ensureExact(now, k)
	} else {
		delete(k.exact, t.name)
	}
	if k.wildcard == nil && len(k.exact) == 0 && k.slots == 0 {
		prefix, _, _ := strings.Cut(t.name, ".")
		delete(ts.kinds, prefix)
	}
}

// flush sends what has been collected: first what makes room, then subscribes,
// then unsubscribes, and tells what was refused.
func (s *Session) flush() {
	ts := &s.topics
	for _, message := range commands("unsubscribe", ts.vacate) {
		s.host.Send(message)
	}
	for _, message := range commands("subscribe", ts.subscribe) {
		s.host.Send(message)
	}
	for _, message := range commands("unsubscribe", ts.unsubscribe) {
		s.host.Send(message)
	}
	if len(ts.refused) > 0 {
		s.host.Problem(ts.refused, feedv1.TopicProblem_TOPIC_PROBLEM_NO_SLOT)
	}
	ts.vacate, ts.subscribe, ts.unsubscribe, ts.refused = nil, nil, nil, nil
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
