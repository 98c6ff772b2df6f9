package engine

import (
	"sync"

	feedv1 "github.com/cutemarkets/relay/proto/feed/v1"
	"github.com/cutemarkets/relay/services/edge/internal/dialect"
	"github.com/cutemarkets/relay/services/edge/internal/frame"
)

// ref names a connection of a shard: its slot and the slot's generation, so that
// news of a connection that has gone never reaches the one that took its slot.
type ref struct {
	slot       int32
	generation uint32
}

// inputKind is what a shard is told.
type inputKind uint8

const (
	inputAttach        inputKind = iota // body: *attachment
	inputFrame                          // of the client; frame, payload, code
	inputBroken                         // the client broke a rule, or was too slow; reason
	inputGone                           // the socket broke
	inputRelieved                       // nothing waits to be written any more
	inputDone                           // the socket is closed, nothing more of it comes
	inputAuthenticated                  // body: *authenticated
	inputAcquired                       // reason; body: Lock
	inputReleased                       //
	inputLost                           // the lock; reason
	inputProbe                          // of the connection; body: func(alive bool)
	inputDrain                          // body: *time.Duration
	inputStop                           //
	inputBatch                          // market; body: *feedv1.Batch
	inputGap                            // market; body: *dialect.Gap
	inputUp                             // market; body: *dialect.Gap
	inputDown                           // market; body: *time.Time
	inputNotice                         // market; body: *notice
)

// input is one thing a shard is told.
type input struct {
	kind       inputKind
	frame      frame.Kind
	compressed bool
	reason     dialect.Reason
	code       uint16
	ref        ref
	market     int
	size       int // bytes that count towards the inbox's bound
	offset     int // of the payload in the arena
	body       any
}

type notice struct {
	ids     []uint32
	problem feedv1.TopicProblem
}

// inputCost is what an input counts towards the bound beside its bytes.
const inputCost = 128

// inbox is a bounded queue into a shard. Payloads are copied into an arena that
// changes hands with the inputs, so that posting allocates nothing.
type inbox struct {
	// Static after construction.
	limit int           // bytes
	wake  chan struct{} // a token when there is input

	// Guarded by mu.
	mu     sync.Mutex
	room   *sync.Cond
	inputs []input
	arena  []byte
	bytes  int
	closed bool
}

func newInbox(limit int, wake chan struct{}) *inbox {
	b := &inbox{limit: limit, wake: wake}
	b.room = sync.NewCond(&b.mu)
	return b
}

// post waits for room and adds an input with a copy of its payload. It reports
// false when the inbox is closed.
func (b *inbox) post(in input, payload []byte) bool {
	cost := in.size + len(payload) + inputCost
	b.mu.Lock()
	for !b.closed && b.bytes > 0 && b.bytes+cost > b.limit {
		b.room.Wait()
	}
	if b.closed {
		b.mu.Unlock()
		return false
	}
	b.addLocked(in, payload, cost)
	b.mu.Unlock()
	b.signal()
	return true
}

// force adds an input without waiting for room: for what is bounded by the
// number of connections and whose sender must not wait. It reports false when
// the inbox is closed.
func (b *inbox) force(in input) bool {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return false
	}
	b.addLocked(in, nil, inputCost)
	b.mu.Unlock()
	b.signal()
	return true
}

func (b *inbox) addLocked(in input, payload []byte, cost int) {
	in.offset, in.size = len(b.arena), len(payload)
	b.arena = append(b.arena, payload...)
	b.inputs = append(b.inputs, in)
	b.bytes += cost
}

func (b *inbox) signal() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// take returns all inputs and their payloads; the slices given are used next.
func (b *inbox) take(inputs []input, arena []byte) ([]input, []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	inputs, b.inputs = b.inputs, inputs[:0]
	arena, b.arena = b.arena, arena[:0]
	b.bytes = 0
	b.room.Broadcast()
	return inputs, arena
}

// close makes every post report false and takes what was left.
func (b *inbox) close() []input {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	b.room.Broadcast()
	return b.inputs
}
