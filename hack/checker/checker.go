// Package checker holds what clients received against the ground truth of what
// the vendor sent: what is missing, altered, disordered or came twice, and
// whether the gaps announced are the outages there were.
//
// A client notes its subscriptions, every event and every gap notice in the
// order they come, and Check compares all clients with a truth file:
//
//	ck := checker.New()
//	c := ck.Client("alice", "stocks")
//	c.Subscribed("T.*", time.Time{})
//	c.Event(raw) // and so on, and c.Gap(from, to) for notices
//	report, err := ck.Check(truth.NewReader(file))
//	err = report.Err() // nil if all was as promised
//
// The package does no I/O of its own and starts no goroutine. Nothing is
// dropped: it needs 8 bytes for each event received and about 40 for each event
// of the truth, and no more for longer events.
package checker

import (
	"hash/maphash"
	"slices"
	"strings"
	"sync"
	"time"
)

// Checker gathers what its clients received.
type Checker struct {
	// Static after construction.
	seed maphash.Seed

	// Guarded by mu.
	mu      sync.Mutex
	clients []*Client
}

// New returns a Checker without clients.
func New() *Checker { return &Checker{seed: maphash.MakeSeed()} }

// Client adds a client of a market. Different clients may be used at the same
// time, one client may not.
func (ck *Checker) Client(name, market string) *Client {
	c := &Client{name: name, market: market, seed: ck.seed}
	ck.mu.Lock()
	defer ck.mu.Unlock()
	ck.clients = append(ck.clients, c)
	return c
}

// Client is what one client of a market received.
type Client struct {
	// Static after construction.
	name   string
	market string
	seed   maphash.Seed

	// Owned by the goroutine that uses the client.
	received []uint64 // hash of each event's bytes
	bytes    int64
	windows  []window
	notices  []notice
	cuts     []outage
	until    time.Time
}

// window is one subscription while it lasted. first and end are numbers of
// received events: those from first on and before end came during it.
type window struct {
	topic string
	from  time.Time
	first int
	end   int // open: it lasts
}

const open = -1

// notice is a gap as announced, before the event numbered before.
type notice struct {
	from, to time.Time
	topics   []string
	before   int
}

// Subscribed notes that a subscription to a topic (T.AAPL, T.*) was
// acknowledged. Its events are expected from the first one that is received, or, if from is not zero,
// all that were generated from then on. An event may be covered by more than
// one topic; it is expected once.
func (c *Client) Subscribed(topic string, from time.Time) {
	c.windows = append(c.windows, window{topic: topic, from: from, first: len(c.received), end: open})
}

// Unsubscribed notes that the client is about to unsubscribe from a topic.
// Events that still come are no fault; what the vendor sent after the last
// event received so far is not expected any more.
func (c *Client) Unsubscribed(topic string) {
	for i := range c.windows {
		if w := &c.windows[i]; w.topic == topic && w.end == open {
			w.end = len(c.received)
		}
	}
}

// Event notes an event. raw is not kept.
func (c *Client) Event(raw []byte) {
	c.received = append(c.received, maphash.Bytes(c.seed, raw))
	c.bytes += int64(len(raw))
}

// Gap notes a gap notice, as it was announced: a zero from is a gap that was
// there before the feed, a zero to one that lasts. The notice that ends it makes
// no second gap. Without topics it is about the whole market.
func (c *Client) Gap(from, to time.Time, topics ...string) {
	n := notice{from: from, to: to, topics: slices.Clone(topics), before: len(c.received)}
	if last := len(c.notices) - 1; last >= 0 && c.notices[last].to.IsZero() && slices.Equal(c.notices[last].topics, topics) {
		n.from, n.before = c.notices[last].from, c.notices[last].before
		c.notices[last] = n
		return
	}
	c.notices = append(c.notices, n)
}

// Cut notes an outage that the truth cannot know, as it was between the vendor and
// the client. Outages that overlap are one.
func (c *Client) Cut(from, to time.Time) { c.cuts = append(c.cuts, outage{from, to}) }

// Until notes that the client was still there at a moment: what was generated
// before it is expected even if no later event was received. Without it events
// are expected up to the last one received.
func (c *Client) Until(at time.Time) { c.until = at }

// covers tells whether a subscription's topic includes an event's.
func covers(subscribed, topic string) bool {
	prefix, all := strings.CutSuffix(subscribed, "*")
	if all && strings.HasSuffix(prefix, ".") {
		return strings.HasPrefix(topic, prefix)
	}
	return subscribed == topic
}
