package router

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	feedv1 "github.com/cutemarkets/relay/proto/feed/v1"
)

const (
	maxPayload = 256 << 10         // bytes of events in one message
	maxTopics  = 1 << 17           // of one edge
	maxTopic   = len("LULD.") + 64 // bytes of a topic's name; a ticker may have 64
	maxSpan    = 1 << 31           // sequence numbers in one batch; the wire has 32 bits

	eventCost = 16  // bytes an event takes beside its own: its end, its offset, two ids
	itemCost  = 256 // bytes a queued message takes beside its events
	minBatch  = 512 // bytes a fresh batch has room for, at least
)

// ErrInterest is the cause of all errors about topics an edge names.
var ErrInterest = errors.New("router: bad interest")

// Ended is why a router ended an edge.
type Ended uint8

// The reasons.
const (
	NotEnded      Ended = iota
	EndedOverflow       // its queue was full
	EndedReplaced       // the same edge attached again
)

// Edge is an edge's interest in a market and its queue. Next has one caller;
// all else is safe for concurrent use.
type Edge struct {
	// Static after construction.
	router *Router
	id     string
	wake   chan struct{} // holds a token while Next may have something; never closed
	gone   chan struct{} // closed when the router ended the edge

	// Guarded by router.mu.
	topics  map[uint32]*topic
	unsaid  map[uint32]bool // topics whose problems are to be told
	said    map[uint32]said // their problems that were told
	live    bool            // gets what is routed: from Start, or having caught up, to the end
	behind  bool            // gets what the ring has, until it has caught up
	resume  resume
	ended   Ended // why gone is closed
	queue   []item
	head    int           // first of queue not taken
	beats   int           // heartbeats in queue
	open    *feedv1.Batch // grows; nil: no events since the last message
	message *message      // that holds open
	covered uint64        // end of the coverage that queue states
	stamp   uint64        // sequence of the newest event of open; 0: none
	bytes   int           // of queue, open and taken
	opened  int           // bytes that open counts for
	taken   int           // bytes of the message that is being sent
	touched bool          // is in router.touched
	room    [2]int        // bytes and events to make room for in a fresh batch
}

// said is what was told of a topic, and the sequence then: an edge that has a
// later one has heard it.
type said struct {
	problem  feedv1.TopicProblem
	sequence uint64
}

// item is a queued message and what it counts for.
type item struct {
	message *feedv1.SubscribeResponse
	bytes   int
}

// message holds a batch with what wraps it, made at once.
type message struct {
	response feedv1.SubscribeResponse
	wrapper  feedv1.SubscribeResponse_Batch
	batch    feedv1.Batch
}

// Change removes topics by their ids, then adds topics. A wrong one is an
// ErrInterest: those before it have been changed, those after it have not.
func (e *Edge) Change(remove []uint32, add []*feedv1.Topic) error {
	for len(remove) > 0 {
		n := min(len(remove), changeChunk)
		if err := e.removeSome(remove[:n]); err != nil {
			return err
		}
		remove = remove[n:]
	}
	for len(add) > 0 {
		n := min(len(add), changeChunk)
		if err := e.addSome(add[:n]); err != nil {
			return err
		}
		add = add[n:]
	}
	return nil
}

func (e *Edge) removeSome(ids []uint32) error {
	e.router.mu.Lock()
	defer e.router.mu.Unlock()
	for _, id := range ids {
		t := e.topics[id]
		if t == nil {
			return fmt.Errorf("%w: no topic has id %d", ErrInterest, id)
		}
		delete(e.topics, id)
		delete(e.unsaid, id)
		delete(e.said, id)
		delete(e.resume.said, id)
		e.router.unsubscribeLocked(t, e)
	}
	return nil
}

func (e *Edge) addSome(topics []*feedv1.Topic) error {
	e.router.mu.Lock()
	defer e.router.mu.Unlock()
	for _, topic := range topics {
		id, name := topic.GetId(), topic.GetName()
		switch {
		case id == 0:
			return fmt.Errorf("%w: a topic has id 0", ErrInterest)
		case e.topics[id] != nil:
			return fmt.Errorf("%w: id %d is given twice", ErrInterest, id)
		case len(e.topics) == maxTopics:
			return fmt.Errorf("%w: more than %d topics", ErrInterest, maxTopics)
		case !validTopic(name):
			return fmt.Errorf("%w: topic of id %d is malformed or longer than %d bytes", ErrInterest, id, maxTopic)
		}
		t := e.router.topicLocked(name)
		if t.indexOf(e) >= 0 {
			return fmt.Errorf("%w: topic of id %d is wanted under another id", ErrInterest, id)
		}
		e.topics[id] = t
		e.router.subscribeLocked(t, subscription{edge: e, id: id})
		switch t.problem {
		case feedv1.TopicProblem_TOPIC_PROBLEM_UNSPECIFIED:
		case feedv1.TopicProblem_TOPIC_PROBLEM_NO_SLOT: // there may be one by now: the vendor's session is asked anew
			t.problem = feedv1.TopicProblem_TOPIC_PROBLEM_UNSPECIFIED
			e.router.markLocked(name)
		default:
			e.problemLocked(id)
		}
	}
	return nil
}

// problemLocked notes that the problem of a topic is to be told.
func (e *Edge) problemLocked(id uint32) {
	if e.ended != NotEnded || e.resume.detached {
		return
	}
	if e.unsaid == nil {
		e.unsaid = make(map[uint32]bool)
	}
	e.unsaid[id] = true
	delete(e.resume.said, id)
	if e.live {
		e.signal()
	}
}

// noticesLocked queues notices of up to changeChunk topics, but for what the edge
// has heard from the stream before this one.
func (e *Edge) noticesLocked() {
	if e.said == nil {
		e.said = make(map[uint32]said)
	}
	told := make(map[feedv1.TopicProblem][]uint32)
	n := 0
	for id := range e.unsaid {
		if n++; n > changeChunk {
			break
		}
		delete(e.unsaid, id)
		problem := e.topics[id].problem
		if problem == feedv1.TopicProblem_TOPIC_PROBLEM_UNSPECIFIED {
			continue // it has been taken back
		}
		if before := e.resume.said[id]; before.problem == problem && before.sequence < e.resume.heard {
			e.said[id] = before
			continue
		}
		e.said[id] = said{problem: problem, sequence: e.router.sequence}
		told[problem] = append(told[problem], id)
	}
	for problem, ids := range told {
		e.pushLocked(&feedv1.SubscribeResponse{Message: &feedv1.SubscribeResponse_TopicNotice{TopicNotice: &feedv1.TopicNotice{
			TopicIds: ids, Problem: problem,
		}}}, itemCost+4*len(ids))
	}
}

// validTopic reports whether a name is PREFIX.TICKER and can be one of a comma
// separated list inside a JSON string.
func validTopic(name string) bool {
	dot := strings.IndexByte(name, '.')
	if dot < 1 || dot == len(name)-1 || len(name) > maxTopic {
		return false
	}
	for _, c := range []byte(name) {
		if c <= ' ' || c > '~' || c == ',' || c == '"' || c == '\\' {
			return false
		}
	}
	return true
}

// Heartbeat queues a heartbeat, unless one is queued already.
func (e *Edge) Heartbeat(now time.Time) {
	e.router.mu.Lock()
	defer e.router.mu.Unlock()
	if e.beats == 0 {
		e.heartbeatLocked(now)
	}
}

// Next takes the oldest message, nil if there is none. The one taken before
// counts for the queue until then. What it returns is never changed again.
func (e *Edge) Next(now time.Time) *feedv1.SubscribeResponse {
	for {
		m, more := e.next(now)
		if more {
			runtime.Gosched() // routing has its turn before the next part
		}
		if m != nil || !more {
			return m
		}
	}
}

// next takes the next message and reports whether there is more to be looked
// through, be it that nothing of this part is for the edge.
func (e *Edge) next(now time.Time) (m *feedv1.SubscribeResponse, more bool) {
	e.router.mu.Lock()
	defer e.router.mu.Unlock()
	e.bytes -= e.taken
	e.taken = 0
	if e.head == len(e.queue) {
		switch {
		case e.behind:
			e.replayLocked(now)
		case e.live && len(e.unsaid) > 0:
			e.noticesLocked()
		}
		if !e.behind && e.head == len(e.queue) {
			e.sealLocked(e.router.sequence)
		}
	}
	more = e.behind || e.live && len(e.unsaid) > 0
	if e.head == len(e.queue) {
		return nil, more
	}
	next := e.queue[e.head]
	e.queue[e.head] = item{}
	e.head++
	if e.head == len(e.queue) {
		e.queue, e.head = e.queue[:0], 0
	}
	if next.message.GetHeartbeat() != nil {
		e.beats--
	}
	e.taken = next.bytes
	return next.message, more
}

// Ready receives when Next may have something.
func (e *Edge) Ready() <-chan struct{} { return e.wake }

// Gone is closed when the router has ended the edge; Ended says why.
func (e *Edge) Gone() <-chan struct{} { return e.gone }

// Ended tells why the router ended the edge.
func (e *Edge) Ended() Ended {
	e.router.mu.Lock()
	defer e.router.mu.Unlock()
	return e.ended
}

func (e *Edge) signal() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// appendLocked adds the event that is being routed to the open batch.
func (e *Edge) appendLocked(raw []byte, exact, wildcard uint32) {
	if e.live && e.addLocked(e.router.sequence, e.router.lastFrame.Load(), raw, exact, wildcard) && !e.touched {
		e.touched = true
		e.router.touched = append(e.router.touched, e)
	}
}

// addLocked adds an event that arrived at a moment to the open batch; false: the
// edge has ended.
func (e *Edge) addLocked(sequence uint64, at int64, raw []byte, exact, wildcard uint32) bool {
	if b := e.open; b == nil {
		e.beginLocked(at)
	} else if len(b.Payload)+len(raw) > maxPayload || sequence-b.FirstSequence >= maxSpan {
		e.sealLocked(sequence - 1)
		e.beginLocked(at)
	}
	b := e.open
	b.Payload = append(b.Payload, raw...)
	b.Ends = append(b.Ends, uint32(len(b.Payload)))
	b.SequenceOffsets = append(b.SequenceOffsets, uint32(sequence-b.FirstSequence))
	b.TopicIds = append(b.TopicIds, exact, wildcard)
	e.stamp = sequence
	e.opened += len(raw) + eventCost
	return e.chargeLocked(len(raw) + eventCost)
}

// chargeLocked counts bytes for the queue and ends the edge if it is full.
func (e *Edge) chargeLocked(bytes int) bool {
	e.bytes += bytes
	if e.bytes > e.router.queueBytes {
		e.endLocked(EndedOverflow)
		return false
	}
	return true
}

// beginLocked opens a batch behind the coverage, for an event that arrived at a
// moment, with room for what the last one had.
func (e *Edge) beginLocked(at int64) {
	m := &message{}
	m.response.Message = &m.wrapper
	m.wrapper.Batch = &m.batch
	b := &m.batch
	b.Epoch = e.router.epoch
	b.FirstSequence = e.covered + 1
	b.BuiltUnixNs = at - e.router.lateness.Load()
	size, events := max(e.room[0], minBatch), max(e.room[1], 4)
	b.Payload = make([]byte, 0, size)
	numbers := make([]uint32, 4*events)
	b.Ends = numbers[0:0:events]
	b.SequenceOffsets = numbers[events : events : 2*events]
	b.TopicIds = numbers[2*events : 2*events]
	e.open, e.message = b, m
	e.opened = itemCost
	e.bytes += itemCost
}

// sealLocked queues the open batch, if any, as covering up to last, and counts
// the coverage as told.
func (e *Edge) sealLocked(last uint64) {
	if b := e.open; b != nil {
		b.LastSequence = last
		e.room = [2]int{len(b.Payload), len(b.Ends)}
		e.queue = append(e.queue, item{message: &e.message.response, bytes: e.opened})
		e.open, e.message, e.opened, e.stamp = nil, nil, 0, 0
		e.covered = last
	}
}

// pushLocked queues a message that is no batch.
func (e *Edge) pushLocked(m *feedv1.SubscribeResponse, bytes int) {
	if e.ended != NotEnded {
		return
	}
	e.queue = append(e.queue, item{message: m, bytes: bytes})
	if e.chargeLocked(bytes) {
		e.signal()
	}
}

// heartbeatLocked queues a heartbeat behind everything up to the present
// sequence, where the edge's coverage then ends: so it begins at Start and at
// Lead.
func (e *Edge) heartbeatLocked(now time.Time) {
	if !e.live {
		return
	}
	e.sealLocked(e.router.sequence)
	e.covered = e.router.sequence
	e.stateLocked(now)
}

// stateLocked queues a heartbeat that states the coverage.
func (e *Edge) stateLocked(now time.Time) {
	r := e.router
	h := &feedv1.Heartbeat{Role: r.role}
	if r.role == feedv1.Role_ROLE_LEADER {
		h.Epoch = r.epoch
		h.Sequence = e.covered
		h.Upstream = r.upstream
		h.BuiltUnixNs = now.UnixNano() - r.lateness.Load()
		if !r.downSince.IsZero() {
			h.DownSince = timestamppb.New(r.downSince)
		}
		if last := r.lastFrame.Load(); last != 0 {
			h.UpstreamAgeNs = uint64(max(now.UnixNano()-last, 1))
		}
	}
	e.beats++
	e.pushLocked(&feedv1.SubscribeResponse{Message: &feedv1.SubscribeResponse_Heartbeat{Heartbeat: h}}, itemCost)
}

// gapLocked queues the gap of a sequence, and before it what states the coverage
// up to it.
func (e *Edge) gapLocked(sequence uint64, from, to time.Time) {
	r := e.router
	before := sequence - 1
	e.sealLocked(before)
	if e.covered < before {
		e.pushLocked(&feedv1.SubscribeResponse{Message: &feedv1.SubscribeResponse_Batch{Batch: &feedv1.Batch{
			Epoch: r.epoch, FirstSequence: e.covered + 1, LastSequence: before,
		}}}, itemCost)
	}
	e.covered = sequence
	e.pushLocked(&feedv1.SubscribeResponse{Message: &feedv1.SubscribeResponse_Gap{Gap: &feedv1.Gap{
		Epoch: r.epoch, Sequence: sequence, From: timestamppb.New(from), To: timestamppb.New(to),
	}}}, itemCost)
}

// endLocked ends the edge for a reason and drops its queue.
func (e *Edge) endLocked(why Ended) {
	if e.ended != NotEnded {
		return
	}
	e.ended = why
	e.live, e.behind = false, false
	e.dropLocked()
	close(e.gone)
}

// dropLocked forgets the queue; what is being sent still counts.
func (e *Edge) dropLocked() {
	e.queue, e.head, e.beats, e.unsaid = nil, 0, 0, nil
	e.open, e.message, e.opened, e.stamp = nil, nil, 0, 0
	e.bytes = e.taken
}
