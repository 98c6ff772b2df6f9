package feed

import (
	"strings"
	"sync"

	feedv1 "github.com/cutemarkets/relay/proto/feed/v1"
)

const (
	generationShift = slotBits
	maxGeneration   = 255
	// restingSlots is how many slots must have been freed after one before it
	// is used again. With 255 generations an id returns only after
	// 255*restingSlots topics have come and gone, far longer than a batch is
	// on its way.
	restingSlots = 256

	// A fanout pod ends the stream of an edge that asks for more, or for a
	// topic that is not PREFIX.TICKER of that many bytes: a ticker may have 64.
	maxTopics = 1 << 17
	maxTopic  = len("LULD.") + 64
)

// Interest is the edge's topic table of one market: each topic that some client
// wants has one id, however many clients want it. The streams to the fanout
// pods watch it. All methods are safe for concurrent use; none blocks.
type Interest struct {
	// Guarded by mu.
	mu       sync.Mutex
	ids      map[string]uint32 // without those retired
	slots    []slot
	free     []uint32 // slots without a topic, longest free first
	watchers map[*watcher]struct{}
}

type slot struct {
	topic      string
	references int // 0: free
	generation uint32
}

func newInterest() *Interest {
	return &Interest{ids: make(map[string]uint32), watchers: make(map[*watcher]struct{})}
}

// Acquire adds a reference to a topic and returns its id. Each Acquire is paid
// back by one Release. It returns 0, and holds nothing, when 131,072 topics are
// held or no fanout pod would take the topic.
func (i *Interest) Acquire(topic string) uint32 {
	i.mu.Lock()
	defer i.mu.Unlock()
	if id, ok := i.ids[topic]; ok {
		i.slots[Slot(id)].references++
		return id
	}
	if len(i.ids) == maxTopics || !validTopic(topic) {
		return 0
	}
	n := i.takeSlotLocked()
	s := &i.slots[n]
	s.topic, s.references = topic, 1
	if s.generation++; s.generation > maxGeneration {
		s.generation = 1
	}
	id := n | s.generation<<generationShift
	i.ids[topic] = id
	for w := range i.watchers {
		w.addLocked(id, topic)
	}
	return id
}

func (i *Interest) takeSlotLocked() uint32 {
	if len(i.free) > restingSlots {
		n := i.free[0]
		i.free = i.free[1:]
		return n
	}
	i.slots = append(i.slots, slot{})
	return uint32(len(i.slots) - 1)
}

// validTopic guards the stream, which all clients share, against one topic.
func validTopic(topic string) bool {
	dot := strings.IndexByte(topic, '.')
	return dot > 0 && dot < len(topic)-1 && len(topic) <= maxTopic &&
		!strings.ContainsFunc(topic, func(r rune) bool { return r <= ' ' || r > '~' || r == ',' || r == '"' || r == '\\' })
}

// Release drops a reference to the topic with the id. Releasing an id that is
// not held is a bug and panics.
func (i *Interest) Release(id uint32) {
	i.mu.Lock()
	defer i.mu.Unlock()
	s := i.lookupLocked(id)
	if s == nil {
		panic("feed: release of a topic id that is not held")
	}
	if s.references--; s.references > 0 {
		return
	}
	i.withdrawLocked(id, s.topic)
	s.topic = ""
	i.free = append(i.free, uint32(Slot(id)))
}

// retire withdraws topics from the streams, though they are held: who asks for
// one from now on gets another id, and the fanout pods are asked anew.
func (i *Interest) retire(ids []uint32) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, id := range ids {
		if s := i.lookupLocked(id); s != nil {
			i.withdrawLocked(id, s.topic)
		}
	}
}

// withdrawLocked tells the streams that a topic is not wanted, once.
func (i *Interest) withdrawLocked(id uint32, topic string) {
	if i.ids[topic] != id {
		return
	}
	delete(i.ids, topic)
	for w := range i.watchers {
		w.removeLocked(id)
	}
}

// Topic returns the topic with the id, retired or not; false when the id is not held (any more).
func (i *Interest) Topic(id uint32) (string, bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if s := i.lookupLocked(id); s != nil {
		return s.topic, true
	}
	return "", false
}

// Len returns how many topics are held and not retired.
func (i *Interest) Len() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return len(i.ids)
}

func (i *Interest) lookupLocked(id uint32) *slot {
	n := Slot(id)
	if n >= len(i.slots) {
		return nil
	}
	if s := &i.slots[n]; s.references > 0 && s.generation == id>>generationShift {
		return s
	}
	return nil
}

// watcher collects the changes of an Interest that one stream has not sent yet:
// at most one entry per topic that is held or was sent, so it is as bounded as
// the Interest.
type watcher struct {
	interest *Interest
	// wake has one slot and is never closed; it is filled when there are changes.
	wake chan struct{}

	// Guarded by interest.mu.
	added   map[uint32]string
	removed map[uint32]struct{}
}

// watch returns all topics of now and a watcher of everything after.
func (i *Interest) watch() ([]*feedv1.Topic, *watcher) {
	w := &watcher{
		interest: i,
		wake:     make(chan struct{}, 1),
		added:    make(map[uint32]string),
		removed:  make(map[uint32]struct{}),
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	topics := make([]*feedv1.Topic, 0, len(i.ids))
	for topic, id := range i.ids {
		topics = append(topics, &feedv1.Topic{Id: id, Name: topic})
	}
	i.watchers[w] = struct{}{}
	return topics, w
}

func (w *watcher) close() {
	w.interest.mu.Lock()
	defer w.interest.mu.Unlock()
	delete(w.interest.watchers, w)
}

func (w *watcher) addLocked(id uint32, topic string) {
	w.added[id] = topic
	w.wakeLocked()
}

func (w *watcher) removeLocked(id uint32) {
	if _, ok := w.added[id]; ok {
		delete(w.added, id)
		return
	}
	w.removed[id] = struct{}{}
	w.wakeLocked()
}

func (w *watcher) wakeLocked() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// changes takes all changes, nil when there are none. The pod makes removals
// first, because the slot of a removed topic may belong to an added one.
func (w *watcher) changes() *feedv1.InterestChange {
	w.interest.mu.Lock()
	defer w.interest.mu.Unlock()
	if len(w.added) == 0 && len(w.removed) == 0 {
		return nil
	}
	change := &feedv1.InterestChange{}
	for id := range w.removed {
		change.Remove = append(change.Remove, id)
	}
	for id, topic := range w.added {
		change.Add = append(change.Add, &feedv1.Topic{Id: id, Name: topic})
	}
	clear(w.removed)
	clear(w.added)
	return change
}
