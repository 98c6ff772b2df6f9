// Package market is one market of the vendor on real sockets: it accepts
// WebSockets, holds the conversation of package session on them, sends them the
// events of a source they subscribed to, and does wrong what it is told to. It
// notes in the ground truth what it sent, and when the events of a client broke
// off and came back.
//
// Run is one goroutine that routes the events; each connection has one that
// reads and one that writes. Overload: a connection that lets its bounded send
// buffer run full is ended (Slow); a machine too slow for the rate makes the
// market skip time, which is logged and counted. Events that are sent ahead of
// their time (Emit, a recording at full speed) wait for the sockets instead.
package market

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gobwas/ws"

	"github.com/cutemarkets/relay/hack/feedsim/fault"
	"github.com/cutemarkets/relay/hack/feedsim/oddity"
	"github.com/cutemarkets/relay/hack/feedsim/recording"
	"github.com/cutemarkets/relay/hack/feedsim/session"
	"github.com/cutemarkets/relay/hack/feedsim/source"
	"github.com/cutemarkets/relay/hack/feedsim/tape"
	"github.com/cutemarkets/relay/hack/truth"
)

const (
	// slice is how long events are sent without a look at anything else.
	slice = tape.Interval

	// roomPart is the part of a send buffer up to which events are sent ahead
	// of their time.
	roomPart = 4

	// maxHeld is how many answers are held back to be joined.
	maxHeld = 1000
)

// ErrStopped is the error of an Emit that Run did not live to see.
var ErrStopped = errors.New("market: stopped")

// LimitRule says which connection loses when there are too many.
type LimitRule string

// The rules.
const (
	KickOldest   LimitRule = fault.KickOldest
	RejectNewest LimitRule = fault.RejectNewest
)

// Config fixes a market.
type Config struct {
	Rules          session.Rules // without Quirks
	Universe       *source.Universe
	Source         source.Source
	Stamp          bool          // add the time to each event
	Number         oddity.Number // to add to each event
	Quiesced       bool          // begin without events, until told to resume
	MaxConnections int           // authenticated connections at once
	OnLimit        LimitRule
	Buffer         int               // bytes that may wait for one client
	AuthTimeout    time.Duration     // for the key, from the upgrade on
	Truth          *truth.Writer     // nil: none
	Record         *recording.Writer // nil: none
}

// Market serves one market. Serve it as the HTTP handler of its path, and call
// Run once.
type Market struct {
	// Static after construction.
	cfg     Config
	name    string
	log     *slog.Logger
	emits   chan struct{} // holds a token while an Emit goes on
	stopped chan struct{} // closed when Run is about to return

	dials   atomic.Uint64
	refused atomic.Uint64
	ends    [reasonCount]atomic.Uint64

	conns sync.WaitGroup // one per connection in sockets

	mu         sync.Mutex
	closed     bool // Run has returned, or is about to
	rule       LimitRule
	faults     fault.State
	oddity     oddity.Oddity
	huge       int // bytes of an event to add; zero: none
	order      *order
	sequence   uint64 // of the last event
	sent       uint64
	skippedMS  uint64
	sockets    map[*conn]struct{} // all that are open
	socketsMax int
	active     []*conn // authenticated and admitted, with their ghosts, the oldest first
	activeMax  int     // without ghosts
	history    history // of how many are active, without ghosts
}

// order is an Emit that goes on.
type order struct {
	// Guarded by Market.mu.
	left int
	sent int

	done chan struct{} // closed when its events have left
}

// New makes a market.
func New(cfg Config, log *slog.Logger) *Market {
	m := &Market{
		cfg:     cfg,
		name:    string(cfg.Rules.Market),
		log:     log.With("market", string(cfg.Rules.Market)),
		emits:   make(chan struct{}, 1),
		stopped: make(chan struct{}),
		rule:    cfg.OnLimit,
		sockets: make(map[*conn]struct{}),
	}
	m.cfg.Rules.Quirks = quirks{m}
	if cfg.Quiesced {
		m.faults.Start(fault.Command{Name: fault.Quiesce}, time.Now())
	}
	return m
}

// ServeHTTP upgrades the request and starts the connection. During an outage it
// answers 503.
func (m *Market) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m.dials.Add(1)
	m.mu.Lock()
	refuse := m.refusesLocked()
	m.mu.Unlock()
	if refuse {
		m.refused.Add(1)
		w.Header().Set("Connection", "close")
		http.Error(w, "service unavailable", http.StatusServiceUnavailable)
		return
	}
	nc, rw, _, err := ws.UpgradeHTTP(r, w)
	if err != nil {
		m.refused.Add(1)
		if nc != nil {
			_ = nc.Close()
		}
		return
	}
	m.start(nc, rw.Reader)
}

func (m *Market) start(nc net.Conn, in io.Reader) {
	c := newConn(m, nc, in)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.refusesLocked() {
		c.end(ending{reason: Dropped, abort: true})
		return
	}
	m.sockets[c] = struct{}{}
	m.socketsMax = max(m.socketsMax, len(m.sockets))
	m.conns.Go(c.run)
}

func (m *Market) refusesLocked() bool {
	return m.closed || m.faults.Active(fault.Outage, time.Now()) != nil
}

// admit takes an authenticated connection in; false: it is one too many.
func (m *Market) admit(c *conn) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	m.pruneLocked(now)
	if c.ended() {
		return true
	}
	for len(m.active) >= m.cfg.MaxConnections {
		if m.rule == RejectNewest {
			return false
		}
		oldest := m.active[0]
		oldest.end(kick(Kicked))
		m.carryLocked(oldest, false, now)
		m.active = m.active[1:]
	}
	m.active = append(m.active, c)
	m.activeMax = max(m.activeMax, m.livingLocked())
	m.history.note(m.livingLocked(), now)
	return true
}

// livingLocked counts the active connections without the ghosts.
func (m *Market) livingLocked() int {
	n := 0
	for _, c := range m.active {
		if !c.lost {
			n++
		}
	}
	return n
}

// change acknowledges first, so that no event comes before its acknowledgement.
func (m *Market) change(c *conn, a session.Answer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	switch acks := m.faults.Use(fault.Acks, now); {
	case acks != nil && acks.Mode == fault.Joined:
		if len(c.held) == 0 {
			c.heldUntil = now.Add(acks.Hold)
		}
		if c.held = append(c.held, a); len(c.held) == maxHeld {
			m.releaseLocked(c)
		}
		return
	case acks != nil:
		for _, o := range a.Objects {
			c.sendAll(session.Frames([][]byte{o}))
		}
	default:
		c.sendAll(session.Frames(a.Objects))
	}
	m.subscribeLocked(c, a)
	m.settleLocked(now)
}

func (m *Market) subscribeLocked(c *conn, a session.Answer) {
	for _, t := range a.Topics {
		c.topics.set(t, m.cfg.Universe, a.Change == session.Subscribe)
		c.subscribed = true
	}
}

// releaseLocked joins the acknowledgements that were held back.
func (m *Market) releaseLocked(c *conn) {
	var objects [][]byte
	for _, a := range c.held {
		objects = append(objects, a.Objects...)
	}
	c.sendAll(session.Frames(objects))
	for _, a := range c.held {
		m.subscribeLocked(c, a)
	}
	c.held = nil
}

func (m *Market) leave(c *conn) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.sockets, c)
	c.left = true
	m.pruneLocked(time.Now())
}

// pruneLocked takes out the connections that have ended, unless they are to
// stay as ghosts for a while.
func (m *Market) pruneLocked(now time.Time) {
	kept := m.active[:0]
	for _, c := range m.active {
		if !c.lost && (c.left || c.ended()) {
			c.lost = true
			m.carryLocked(c, false, now)
			if ghost := m.faults.Use(fault.Ghost, now); ghost != nil {
				c.ghostUntil = now.Add(ghost.Hold)
			}
		}
		if !c.lost || now.Before(c.ghostUntil) {
			kept = append(kept, c)
		}
	}
	clear(m.active[len(kept):])
	m.active = kept
	m.history.note(m.livingLocked(), now)
}

// carryLocked notes whether a client gets events.
func (m *Market) carryLocked(c *conn, carries bool, now time.Time) {
	if c.carries == carries {
		return
	}
	c.carries = carries
	switch {
	case m.cfg.Truth == nil:
	case carries:
		m.cfg.Truth.Up(m.name, now)
	default:
		m.cfg.Truth.Down(m.name, now)
	}
}

// settleLocked does what is due: the end of a stall, of ghosts, of what was held
// back.
func (m *Market) settleLocked(now time.Time) {
	m.pruneLocked(now)
	silent := m.faults.Active(fault.Stall, now) != nil
	for _, c := range m.active {
		if c.lost {
			continue
		}
		if len(c.held) > 0 && !now.Before(c.heldUntil) {
			m.releaseLocked(c)
		}
		m.carryLocked(c, c.subscribed && !silent, now)
	}
}

// Run sends the source's events until ctx is done, then aborts all sockets and
// waits for them. Call it once.
func (m *Market) Run(ctx context.Context) error {
	ticker := time.NewTicker(tape.Interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			m.stop()
			return nil
		case <-ticker.C:
			if err := m.catchUp(time.Now()); err != nil {
				m.stop()
				return err
			}
		}
	}
}

// catchUp sends the events that were due when it was called, and then those that
// are wanted ahead of their time, for a while.
func (m *Market) catchUp(began time.Time) error {
	for m.paced(began) {
	}
	for m.ahead(began) && time.Since(began) < slice {
	}
	return m.cfg.Source.Err()
}

func (m *Market) paced(due time.Time) (more bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	m.settleLocked(now)
	if m.faults.Active(fault.Quiesce, now) != nil {
		m.cfg.Source.Hold(due)
		return false
	}
	if m.cfg.Source.Unpaced() {
		return false
	}
	events, more := m.cfg.Source.Next(due, false, source.All)
	if skipped := m.cfg.Source.Skipped(); skipped > 0 {
		m.skippedMS += uint64(skipped.Milliseconds())
		m.log.Warn("the machine is too slow for the rate: time skipped", "skipped", skipped)
	}
	if more {
		m.sendLocked(events, now)
	}
	return more
}

// ahead sends the next events if they are wanted before they are due and the
// sockets have room for them.
func (m *Market) ahead(due time.Time) (more bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	most := source.All
	switch {
	case m.order != nil:
		most = m.order.left
	case !m.cfg.Source.Unpaced() || m.faults.Active(fault.Quiesce, now) != nil:
		return false
	}
	queued := m.queuedLocked()
	if most == 0 && queued == 0 {
		close(m.order.done)
		m.order = nil
	}
	if most == 0 || queued > m.cfg.Buffer/roomPart {
		return false
	}
	m.settleLocked(now)
	events, more := m.cfg.Source.Next(due, true, most)
	if o := m.order; o != nil {
		o.sent += len(events)
		o.left -= len(events)
		if !more {
			o.left = 0
		}
	}
	m.sendLocked(events, now)
	return more
}

// queuedLocked is the number of bytes that wait for the slowest client.
func (m *Market) queuedLocked() int {
	most := 0
	for _, c := range m.active {
		if !c.lost {
			most = max(most, c.queued())
		}
	}
	return most
}

// sendLocked notes the events and hands them to their subscribers.
func (m *Market) sendLocked(events []source.Event, now time.Time) {
	events = m.distortLocked(events, now)
	for i := range events {
		m.sequence++
		if m.cfg.Truth != nil {
			m.cfg.Truth.Event(m.name, m.sequence, now, events[i].Topic, events[i].Data)
		}
	}
	if len(events) == 0 || m.faults.Active(fault.Stall, now) != nil {
		return
	}
	broken := m.brokenLocked(now)
	used := false
	for _, c := range m.active {
		if !c.carries {
			continue
		}
		if sent := c.deliver(events, broken, now); sent > 0 {
			m.sent += uint64(sent)
			used = used || broken != nil
		}
	}
	if used {
		m.faults.Use(fault.Malformed, now)
	}
	m.pruneLocked(now)
}

// Emit sends the next events of the source as fast as the clients take them,
// whether or not events are due, and returns how many these were when all have
// left, which is fewer than wanted only at the end of a recording.
func (m *Market) Emit(ctx context.Context, events int) (int, error) {
	select {
	case m.emits <- struct{}{}:
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-m.stopped:
		return 0, ErrStopped
	}
	defer func() { <-m.emits }()
	o := &order{left: events, done: make(chan struct{})}
	m.mu.Lock()
	m.order = o
	m.mu.Unlock()
	var err error
	select {
	case <-o.done:
	case <-ctx.Done():
		err = ctx.Err()
	case <-m.stopped:
		err = ErrStopped
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.order = nil
	return o.sent, err
}

func (m *Market) stop() {
	m.mu.Lock()
	m.closed = true
	close(m.stopped)
	m.endAllLocked(ending{reason: Stopped, abort: true}, time.Now())
	m.mu.Unlock()
	m.conns.Wait()
}

func (m *Market) countEnd(r Reason) { m.ends[r].Add(1) }

// Stats counts what a market did.
type Stats struct {
	Connections      int               `json:"connections"`     // sockets open now
	ConnectionsMax   int               `json:"connections_max"` // at most at the same time
	Authenticated    int               `json:"authenticated"`
	AuthenticatedMax int               `json:"authenticated_max"`
	Topics           int               `json:"topics"`  // that open sockets have subscribed to, of existing tickers
	Ghosts           int               `json:"ghosts"`  // ended, and still counted against the limit
	Dials            uint64            `json:"dials"`   // requests for the market's path
	Refused          uint64            `json:"refused"` // of them without an upgrade
	Generated        uint64            `json:"events_generated"`
	Sent             uint64            `json:"events_sent"` // queued for a socket; an event to two sockets counts twice
	SkippedMS        uint64            `json:"skipped_ms"`  // time the machine was too slow for
	Closed           map[string]uint64 `json:"closed"`      // ended connections by reason
	Faults           map[string]uint64 `json:"faults"`      // how often each fault took effect
}

// Stats reads the counters.
func (m *Market) Stats() Stats {
	s := Stats{
		Dials:   m.dials.Load(),
		Refused: m.refused.Load(),
		Closed:  make(map[string]uint64, reasonCount),
	}
	for r := range reasonCount {
		s.Closed[reasonNames[r]] = m.ends[r].Load()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pruneLocked(time.Now())
	s.Connections, s.ConnectionsMax = len(m.sockets), m.socketsMax
	s.Authenticated, s.AuthenticatedMax = m.livingLocked(), m.activeMax
	s.Ghosts = len(m.active) - s.Authenticated
	for c := range m.sockets {
		s.Topics += c.topics.count
	}
	s.Generated, s.Sent, s.SkippedMS = m.sequence, m.sent, m.skippedMS
	s.Faults = m.faults.Done()
	return s
}
