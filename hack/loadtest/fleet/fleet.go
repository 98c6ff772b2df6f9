// Package fleet is the sockets of a load test: it opens WebSockets by plan,
// talks the client's protocol on them until they are ready, and hands every
// event to a Handler. What is measured, and when a connection is to be opened
// or closed, is the caller's business.
//
// A fleet is one goroutine, the one that calls Run: an edge-triggered epoll loop
// over raw descriptors with one read buffer for all of them. Frames and events
// are parsed where they were read. An idle connection has no goroutine and no
// buffer; a frame that came in part is kept in a pooled buffer until its rest is
// there. All methods of a Handler are called on that goroutine and must not
// wait. It needs Linux.
//
// A connection with TLS costs more: crypto/tls wants blocking calls, so there is
// a goroutine that reads it, with buffers of its own, and for a moment one that
// writes. The Handler is still called on the loop's goroutine.
//
// Overload: the queue of plans is bounded, and Open says when it is full.
// Handshakes beyond Options.InFlight wait for their turn, and what they wait is
// in their Times. A fleet that is slower than its servers leaves the bytes in
// the kernel, and the servers notice; Handler.Round and Stats.Busy tell that the
// fleet was the limit. Nothing is dropped.
package fleet

import (
	"container/heap"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/cutemarkets/relay/hack/loadtest/fleet/wire"
)

const (
	// readSize is how much is read at once.
	readSize = 1 << 20

	// closeWait is how long the server may take to end TCP after a close frame;
	// the port is then free again on the server's side first.
	closeWait = time.Second

	// slowTick is how often slow readers read.
	slowTick = 100 * time.Millisecond

	// maxBegins is how many connections begin in one round, so that a storm does
	// not keep the loop from those that have begun.
	maxBegins = 64
)

// Errors of Open.
var (
	ErrFull    = errors.New("fleet: too many plans wait; open later, or raise Options.Queue")
	ErrStopped = errors.New("fleet: stopped")
)

// Handler is told what happens. Slices and strings in slices are valid during
// the call.
type Handler interface {
	// Ready: all topics are answered, at least one of them granted; without
	// topics, the connection is authenticated.
	Ready(c *Conn, t Times)
	// Event is one event of a frame, as it came; received is the time of the read
	// that brought it, in unix nanoseconds.
	Event(c *Conn, raw []byte, received int64)
	// Status is a status after authentication other than the acknowledgement of
	// a topic: gap, draining, error (also a topic that was refused).
	Status(c *Conn, status, message string, raw []byte)
	// Misframed is a frame that breaks the rules; raw is what there is of it. The
	// events before the fault have been told. It ends the connection when the
	// wire itself was broken.
	Misframed(c *Conn, fault wire.Fault, raw []byte)
	// Closed comes once for each plan, also if it never became ready, and is the
	// last call for its connection.
	Closed(c *Conn, e End)
	// Round comes after each round of the loop that had work, with the time it
	// took: by so much an event may have waited for its read.
	Round(took time.Duration)
}

// Options fix a fleet. The zero value is good.
type Options struct {
	InFlight         int           // handshakes in flight at most, from connect to Ready; 0: 128
	Queue            int           // plans that wait at most; 0: 65,536
	HandshakeTimeout time.Duration // from connect to Ready; 0: 30 s
	MaxMessage       int           // bytes of a message at most; 0: 4 MiB
	BusyPoll         bool          // never sleep: the server does not pay for waking the fleet, which takes a core
	TLS              *tls.Config   // for wss; nil: the system's roots
}

func (o *Options) setDefaults() {
	set := func(value *int, standard int) {
		if *value == 0 {
			*value = standard
		}
	}
	set(&o.InFlight, 128)
	set(&o.Queue, 1<<16)
	set(&o.MaxMessage, 4<<20)
	if o.HandshakeTimeout == 0 {
		o.HandshakeTimeout = 30 * time.Second
	}
	if o.TLS == nil {
		o.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	}
}

func (o *Options) validate() error {
	if o.InFlight < 1 || o.Queue < 1 || o.HandshakeTimeout < 1 || o.MaxMessage < 1 || o.MaxMessage > math.MaxInt32 {
		return fmt.Errorf("fleet: in flight %d, queue %d, handshake timeout %s, max. message %d: want more than 0",
			o.InFlight, o.Queue, o.HandshakeTimeout, o.MaxMessage)
	}
	return nil
}

// Stats are the counters of a fleet, as of its last round.
type Stats struct {
	Waiting   int // plans whose connection has not begun
	Opening   int // connections before Ready
	Open      int // connections that are ready
	Ready     uint64
	Closed    uint64
	Frames    uint64 // data frames
	Events    uint64
	Misframed uint64
	Bytes     uint64 // read, without TLS
	Reads     uint64
	Busy      time.Duration // time the loop had work: near to the time of the clock, the fleet is the limit
}

// Fleet is a number of connections. Open, Close, Hurry, Say and Stats may be
// called from any goroutine.
type Fleet struct {
	// Static after construction.
	handler Handler
	options Options
	poller  *poller
	started time.Time // times within are durations since then

	carriers sync.WaitGroup // goroutines of connections with TLS

	// Guarded by mu.
	mu       sync.Mutex
	incoming []*Plan
	accepted int // plans, all in all
	closes   []closing
	hurries  []*Conn
	says     []saying
	notes    []note
	woken    bool
	stopped  bool
	stats    Stats
	begun    int // plans whose connection has begun, all in all

	// Owned by Run; not thread-safe.
	collected struct { // taken from above, the arrays in turns
		plans   []*Plan
		closes  []closing
		hurries []*Conn
		says    []saying
		notes   []note
	}
	counts    Stats
	begins    int
	due       plans
	sockets   []*Conn            // by descriptor
	secured   map[*Conn]struct{} // with TLS
	deadlines queue              // of handshakes
	lingering queue              // connections that wait for the server to end TCP
	slow      []*Conn            // with a limit
	slowNext  time.Duration
	again     []*Conn // have more to read
	againNext []*Conn
	now       time.Duration
	received  int64 // unix nanoseconds of the last read
	headroom  int   // bytes of buf before what is read, for the part that came before
	buf       []byte
	frame     []byte // to be sent
	pool      pool
	inflater  wire.Inflater
}

// closing is an order of Close.
type closing struct {
	c    *Conn
	code int
}

// saying is an order of Say.
type saying struct {
	c       *Conn
	message string
}

// New makes a fleet. The error is that of the system, or of the options. Run
// must be called: it frees what New took.
func New(h Handler, o Options) (*Fleet, error) {
	o.setDefaults()
	if err := o.validate(); err != nil {
		return nil, err
	}
	p, err := newPoller()
	if err != nil {
		return nil, err
	}
	headroom := max(o.MaxMessage, wire.MaxAnswer) + wire.MaxHeader
	return &Fleet{
		handler: h, options: o, poller: p, started: time.Now(),
		headroom: headroom, buf: make([]byte, headroom+readSize),
		secured: make(map[*Conn]struct{}),
	}, nil
}

// Open takes a plan; its connection begins when it is due and a handshake may
// be in flight. The error is ErrFull or ErrStopped.
func (f *Fleet) Open(p Plan) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.stopped:
		return ErrStopped
	case f.accepted-f.begun >= f.options.Queue:
		return ErrFull
	}
	f.accepted++
	f.incoming = append(f.incoming, &p)
	f.wakeLocked()
	return nil
}

// Close ends a connection with a close frame of this code, or, for code 0,
// resets it. It takes effect in the next round of the loop; no event is told
// after that. A connection that has ended stays as it is.
func (f *Fleet) Close(c *Conn, code int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c.closing || f.stopped {
		return
	}
	c.closing = true
	f.closes = append(f.closes, closing{c, code})
	f.wakeLocked()
}

// Hurry lifts the read limit of a connection, from the next round of the loop on:
// what waits in the kernel is read, and with it how the server ended the
// connection.
func (f *Fleet) Hurry(c *Conn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stopped {
		return
	}
	f.hurries = append(f.hurries, c)
	f.wakeLocked()
}

// Say sends a text message, such as a further subscription, in the next round of
// the loop; the answers come as statuses. A connection that is not ready, or has
// ended, sends nothing.
func (f *Fleet) Say(c *Conn, message string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stopped {
		return
	}
	f.says = append(f.says, saying{c, message})
	f.wakeLocked()
}

// Stats reads the counters.
func (f *Fleet) Stats() Stats {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.stats
	s.Waiting = f.accepted - f.begun
	return s
}

func (f *Fleet) wakeLocked() {
	if !f.woken && !f.stopped {
		f.woken = true
		f.poller.wake()
	}
}

func (f *Fleet) wake() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.wakeLocked()
}

// Run serves the connections until ctx is done, and then ends them all. Call it
// once. The error is that of the system.
func (f *Fleet) Run(ctx context.Context) error {
	defer context.AfterFunc(ctx, f.wake)()
	var err error
	for ctx.Err() == nil && err == nil {
		var ready []readiness
		ready, err = f.poller.wait(f.timeout())
		f.now = time.Since(f.started)
		work := len(ready)+len(f.again) > 0
		for _, r := range ready {
			f.ready(r)
		}
		f.readAgain()
		f.collect()
		f.expire()
		f.readSlow()
		f.begin(ctx)
		if work {
			took := time.Since(f.started) - f.now
			f.counts.Busy += took
			f.handler.Round(took)
		}
	}
	f.stop()
	return err
}

// timeout is how long the next wait may take, in whole milliseconds: less than
// one is spent awake, so that connections begin when they are due.
func (f *Fleet) timeout() int {
	if f.options.BusyPoll || len(f.again) > 0 {
		return 0
	}
	next := time.Duration(math.MaxInt64)
	if len(f.due) > 0 && f.counts.Opening < f.options.InFlight {
		next = f.due[0].Scheduled.Sub(f.started)
	}
	if len(f.slow) > 0 {
		next = min(next, f.slowNext)
	}
	next = min(next, f.deadlines.next(), f.lingering.next())
	if next == math.MaxInt64 {
		return -1
	}
	wait := max(next-time.Since(f.started), 0)
	return int(min(wait, time.Minute) / time.Millisecond)
}

// ready does what a socket is ready for.
func (f *Fleet) ready(r readiness) {
	c := f.sockets[r.fd]
	if c == nil {
		return
	}
	if c.stage == StageConnect && !c.over {
		if !f.connected(c, r) {
			return
		}
	}
	if r.writable && c.out != nil {
		f.flush(c)
	}
	if r.hangup {
		c.hangup = true
	}
	if r.readable && !c.limited() {
		f.read(c, readSize)
	}
}

func (f *Fleet) readAgain() {
	f.again, f.againNext = f.againNext[:0], f.again
	for _, c := range f.againNext {
		if c.fd >= 0 && !c.limited() {
			f.read(c, readSize)
		}
	}
	clear(f.againNext)
}

// collect takes what other goroutines left and publishes the counters.
func (f *Fleet) collect() {
	in := &f.collected
	f.mu.Lock()
	in.plans, f.incoming = f.incoming, in.plans[:0]
	in.closes, f.closes = f.closes, in.closes[:0]
	in.hurries, f.hurries = f.hurries, in.hurries[:0]
	in.says, f.says = f.says, in.says[:0]
	in.notes, f.notes = f.notes, in.notes[:0]
	f.woken = false
	f.stats, f.begun = f.counts, f.begins
	f.mu.Unlock()

	for _, p := range in.plans {
		heap.Push(&f.due, p)
	}
	for _, n := range in.notes {
		f.carried(n)
	}
	for _, order := range in.says {
		if order.c.stage == StageLive && !order.c.over {
			f.send(order.c, wire.OpText, []byte(order.message))
		}
	}
	for _, order := range in.closes {
		f.closeByUs(order.c, order.code, ReasonClosed)
	}
	for _, c := range in.hurries {
		f.hurry(c)
	}
	clear(in.plans)
	clear(in.hurries)
	clear(in.says)
	clear(in.closes)
	clear(in.notes)
}

// expire ends what took too long.
func (f *Fleet) expire() {
	for c := f.deadlines.pop(f.now); c != nil; c = f.deadlines.pop(f.now) {
		if c.opening != nil {
			f.end(c, End{Stage: c.stage, Reason: ReasonTimeout, By: ByUs}, false)
		}
	}
	for c := f.lingering.pop(f.now); c != nil; c = f.lingering.pop(f.now) {
		f.free(c)
	}
}

// hurry lifts a limit.
func (f *Fleet) hurry(c *Conn) {
	c.limit = 0
	switch {
	case c.over:
	case c.tls != nil:
		c.tls.readMore(carrySize)
	default:
		f.again = append(f.again, c)
	}
}

// readSlow gives each slow reader its bytes.
func (f *Fleet) readSlow() {
	if len(f.slow) == 0 || f.now < f.slowNext {
		return
	}
	f.slowNext = f.now + slowTick
	kept := f.slow[:0]
	for _, c := range f.slow {
		if c.over || c.hangup || c.limit == 0 {
			continue
		}
		kept = append(kept, c)
		most := min(max(int(c.limit)/int(time.Second/slowTick), 1), readSize)
		if c.tls != nil {
			c.tls.readMore(most)
		} else {
			f.read(c, most)
		}
	}
	clear(f.slow[len(kept):])
	f.slow = kept
}

// begin begins the connections that are due.
func (f *Fleet) begin(ctx context.Context) {
	for range maxBegins {
		if len(f.due) == 0 || f.counts.Opening >= f.options.InFlight {
			return
		}
		p := f.due[0]
		now := time.Since(f.started)
		if p.Scheduled.Sub(f.started) > now {
			return
		}
		heap.Pop(&f.due)
		f.begins++
		f.counts.Opening++
		c := &Conn{tag: p.Tag, fd: -1, limit: int32(min(p.ReadLimit, math.MaxInt32)), opening: &opening{plan: p}}
		c.opening.times.Begun = time.Since(p.Scheduled)
		f.deadlines.push(c, now+f.options.HandshakeTimeout)
		if p.Target.secure {
			f.secure(ctx, c)
			continue
		}
		fd, err := dial(p.Target.address(p.Source), p.Source)
		if err == nil {
			c.fd = int32(fd)
			for len(f.sockets) <= fd {
				f.sockets = append(f.sockets, nil)
			}
			f.sockets[fd] = c
			err = f.poller.add(fd)
		}
		if err != nil {
			f.fail(c, err)
		}
	}
}

// stop ends everything.
func (f *Fleet) stop() {
	f.collect()
	f.mu.Lock()
	f.stopped = true
	f.mu.Unlock()
	f.collect()
	for _, p := range f.due {
		f.begins++
		f.counts.Opening++
		f.end(&Conn{tag: p.Tag, fd: -1, opening: &opening{plan: p}}, End{Reason: ReasonStopped, By: ByUs}, false)
	}
	f.due = nil
	for _, c := range f.sockets {
		if c != nil {
			f.closeByUs(c, goingAway, ReasonStopped)
			f.free(c)
		}
	}
	for c := range f.secured {
		f.closeByUs(c, goingAway, ReasonStopped)
	}
	f.carriers.Wait()
	f.collect()
	f.poller.close()
}

// goingAway is the code of our close frames at the end.
const goingAway = 1001

// plans is a heap, the one that is due first on top.
type plans []*Plan

func (p plans) Len() int           { return len(p) }
func (p plans) Less(i, j int) bool { return p[i].Scheduled.Before(p[j].Scheduled) }
func (p plans) Swap(i, j int)      { p[i], p[j] = p[j], p[i] }
func (p *plans) Push(x any)        { *p = append(*p, x.(*Plan)) }
func (p *plans) Pop() any {
	last := len(*p) - 1
	top := (*p)[last]
	(*p)[last] = nil
	*p = (*p)[:last]
	return top
}

// queue has connections in the order of their time.
type queue struct {
	entries []entry
	head    int
}

type entry struct {
	at time.Duration
	c  *Conn
}

func (q *queue) push(c *Conn, at time.Duration) {
	if q.head > len(q.entries)/2 {
		n := copy(q.entries, q.entries[q.head:])
		clear(q.entries[n:])
		q.entries, q.head = q.entries[:n], 0
	}
	q.entries = append(q.entries, entry{at, c})
}

// next is the time of the first one.
func (q *queue) next() time.Duration {
	if q.head == len(q.entries) {
		return math.MaxInt64
	}
	return q.entries[q.head].at
}

// pop returns the first one if its time has come.
func (q *queue) pop(now time.Duration) *Conn {
	if q.next() > now {
		return nil
	}
	c := q.entries[q.head].c
	q.entries[q.head].c = nil
	q.head++
	return c
}
