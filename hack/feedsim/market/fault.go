package market

import "time"

// fault is what is wrong with a market on purpose. It holds no socket and reads
// no clock; Market asks it before it accepts and before it sends.
type fault struct {
	outageUntil time.Time
	pauseUntil  time.Time
}

// refuses reports whether new connections are turned away.
func (f *fault) refuses(now time.Time) bool { return now.Before(f.outageUntil) }

// silent reports whether events are withheld from the sockets. Everything else
// goes on: the tape runs, pings and messages are answered.
func (f *fault) silent(now time.Time) bool { return now.Before(f.pauseUntil) }

// Outage aborts the market's sockets and refuses new ones for a while.
func (m *Market) Outage(d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fault.outageUntil = time.Now().Add(d)
	m.abortAllLocked(Dropped)
}

// Drop aborts the market's sockets; clients may connect again at once.
func (m *Market) Drop() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.abortAllLocked(Dropped)
}

// Pause withholds events for a while. They are lost to the clients, as on a
// stalled feed.
func (m *Market) Pause(d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fault.pauseUntil = time.Now().Add(d)
}

// Resume ends an outage and a pause.
func (m *Market) Resume() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fault = fault{}
}
