// Package market is one market of the vendor on real sockets: it accepts
// WebSockets, holds the conversation of package session on them, and sends them
// the events of package tape they subscribed to.
//
// Run is one goroutine that prints and routes the events; each connection has
// one that reads and one that writes. Overload: a connection that lets its
// bounded send buffer run full is ended (Slow); a machine too slow for the rate
// makes the market skip time, which is logged and counted.
package market

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gobwas/ws"

	"github.com/cutemarkets/relay/hack/feedsim/session"
	"github.com/cutemarkets/relay/hack/feedsim/tape"
)

// LimitRule says which connection loses when there are too many.
type LimitRule string

// The rules.
const (
	KickOldest   LimitRule = "kick-oldest"
	RejectNewest LimitRule = "reject-newest"
)

// Config fixes a market.
type Config struct {
	Rules          session.Rules
	Tape           tape.Config
	Start          time.Time // time the events begin at; zero: the wall clock
	MaxConnections int       // authenticated connections at once
	OnLimit        LimitRule
	Buffer         int           // bytes that may wait for one client
	AuthTimeout    time.Duration // for the key, from the upgrade on
}

// Market serves one market. Serve it as the HTTP handler of its path, and call
// Run once.
type Market struct {
	// Static after construction.
	cfg     Config
	log     *slog.Logger
	symbols map[string]int32

	// Owned by Run; not thread-safe.
	tape *tape.Tape

	dials     atomic.Uint64
	refused   atomic.Uint64
	generated atomic.Uint64
	sent      atomic.Uint64
	skipped   atomic.Uint64 // milliseconds
	ends      [reasonCount]atomic.Uint64

	conns sync.WaitGroup // one per connection in sockets

	mu         sync.Mutex
	closed     bool // Run has returned, or is about to
	fault      fault
	sockets    map[*conn]struct{} // all that are open
	socketsMax int
	active     []*conn // authenticated and admitted, the oldest first
	activeMax  int
}

// New makes a market.
func New(cfg Config, log *slog.Logger) *Market {
	m := &Market{
		cfg:     cfg,
		log:     log.With("market", string(cfg.Tape.Market)),
		symbols: make(map[string]int32, cfg.Tape.Symbols),
		tape:    tape.New(cfg.Tape),
		sockets: make(map[*conn]struct{}),
	}
	for i, ticker := range tape.Tickers(cfg.Tape.Market, cfg.Tape.Symbols) {
		m.symbols[ticker] = int32(i)
	}
	return m
}

// ServeHTTP upgrades the request and starts the connection. During an outage it
// answers 503.
func (m *Market) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m.dials.Add(1)
	m.mu.Lock()
	refuse := m.closed || m.fault.refuses(time.Now())
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
	if m.closed || m.fault.refuses(time.Now()) {
		c.end(ending{reason: Dropped, abort: true})
		return
	}
	m.sockets[c] = struct{}{}
	m.socketsMax = max(m.socketsMax, len(m.sockets))
	m.conns.Go(c.run)
}

// admit takes an authenticated connection in; false: it is one too many.
func (m *Market) admit(c *conn) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c.ended() {
		return true
	}
	if len(m.active) >= m.cfg.MaxConnections {
		if m.cfg.OnLimit == RejectNewest {
			return false
		}
		m.active[0].end(kick(Kicked))
		m.active = slices.Delete(m.active, 0, 1)
	}
	m.active = append(m.active, c)
	m.activeMax = max(m.activeMax, len(m.active))
	return true
}

// change acknowledges first, so that no event comes before its acknowledgement.
func (m *Market) change(c *conn, a session.Answer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	c.sendAll(a.Frames)
	for _, t := range a.Topics {
		c.topics.set(t, m.symbols, a.Change == session.Subscribe)
	}
}

func (m *Market) leave(c *conn) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.sockets, c)
	m.deactivateLocked(func(other *conn) bool { return other == c })
}

func (m *Market) deactivateLocked(gone func(*conn) bool) {
	m.active = slices.DeleteFunc(m.active, gone)
}

func (m *Market) abortAllLocked(r Reason) {
	for c := range m.sockets {
		c.end(ending{reason: r, abort: true})
	}
	m.deactivateLocked((*conn).ended)
}

// Run prints the tape in real time until ctx is done, then aborts all sockets
// and waits for them. Call it once.
func (m *Market) Run(ctx context.Context) error {
	ticker := time.NewTicker(tape.Interval)
	defer ticker.Stop()
	pace := pace{start: m.cfg.Start, began: time.Now()}
	for {
		select {
		case <-ctx.Done():
			m.stop()
			return nil
		case <-ticker.C:
			m.catchUp(&pace)
		}
	}
}

// catchUp prints the ticks that were due when it was called.
func (m *Market) catchUp(p *pace) {
	now := time.Now()
	for {
		moment, due, skip := p.next(now)
		if skip > 0 {
			m.skipped.Add(uint64(skip.Milliseconds()))
			m.log.Warn("the machine is too slow for the rate: time skipped", "skipped", skip)
		}
		if !due {
			return
		}
		m.tick(moment)
	}
}

// tick prints the next events and hands them to their subscribers.
func (m *Market) tick(now time.Time) {
	events := m.tape.Tick(now)
	m.generated.Add(uint64(len(events)))
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fault.silent(time.Now()) {
		return
	}
	sent := 0
	for _, c := range m.active {
		sent += c.deliver(events)
	}
	m.sent.Add(uint64(sent))
	m.deactivateLocked((*conn).ended)
}

func (m *Market) stop() {
	m.mu.Lock()
	m.closed = true
	m.abortAllLocked(Stopped)
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
	Dials            uint64            `json:"dials"`   // requests for the market's path
	Refused          uint64            `json:"refused"` // of them without an upgrade
	Generated        uint64            `json:"events_generated"`
	Sent             uint64            `json:"events_sent"` // queued for a socket; an event to two sockets counts twice
	SkippedMS        uint64            `json:"skipped_ms"`  // time the machine was too slow for
	Closed           map[string]uint64 `json:"closed"`      // ended connections by reason
}

// Stats reads the counters.
func (m *Market) Stats() Stats {
	s := Stats{
		Dials:     m.dials.Load(),
		Refused:   m.refused.Load(),
		Generated: m.generated.Load(),
		Sent:      m.sent.Load(),
		SkippedMS: m.skipped.Load(),
		Closed:    make(map[string]uint64, reasonCount),
	}
	for r := range reasonCount {
		s.Closed[reasonNames[r]] = m.ends[r].Load()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s.Connections, s.ConnectionsMax = len(m.sockets), m.socketsMax
	s.Authenticated, s.AuthenticatedMax = len(m.active), m.activeMax
	return s
}
