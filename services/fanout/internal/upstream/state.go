package upstream

// State is what a session is doing, for metrics and logs.
type State uint8

// The states.
const (
	StateStandby    State = iota // there is no session
	StateConnecting              // no events, or not complete ones
	StateLive                    // authenticated and subscribed
	StateRefused                 // auth_failed: retried slowly
	StateStolen                  // max_connections: a stranger has the place; retried slowly
	StateWaiting                 // max_connections: a ghost may have the place; retried
	StateUnproven                // would connect, but for the proof of leadership
)

// String is for logs.
func (s State) String() string {
	return [...]string{"standby", "connecting", "live", "refused", "stolen", "waiting", "unproven"}[s]
}

// Cause is why a connection ended or did not come about.
type Cause uint8

// The causes.
const (
	CauseNone     Cause = iota
	CauseDial           // no connection, or no WebSocket
	CauseKey            // the key file could not be read
	CauseRejected       // auth_failed
	CauseKicked         // max_connections: another leader has taken over
	CauseStolen         // max_connections: a stranger has the place
	CauseOccupied       // max_connections: a ghost may have the place
	CauseUnproven       // not authenticated when the proof of leadership was lost
	CauseSlow           // close 1008 of the vendor, which gives no reason
	CauseClosed         // any other close frame of the vendor
	CauseEOF            // end of the connection without a close frame
	CauseError          // reset, or a broken frame
	CauseTimeout        // no answer, or no pong
	CauseStalled        // pongs, but no events where they were to be expected
	CauseStopped        // we do not lead any more
	causeEnd
)

var causeNames = [causeEnd]string{
	"none", "dial", "key", "rejected", "kicked", "stolen", "occupied", "unproven", "slow", "closed", "eof", "error", "timeout", "stalled", "stopped",
}

// String is the metric label.
func (c Cause) String() string { return causeNames[c] }

// binding reports whether proof of leadership does not shorten the wait after it.
func (c Cause) binding() bool {
	return c == CauseRejected || c == CauseStolen || c == CauseOccupied
}

// intact reports whether the connection carried everything up to its end, so
// that silence before it was silence of the market.
func (c Cause) intact() bool {
	switch c {
	case CauseError, CauseTimeout, CauseSlow: // what waited for us at the vendor is lost
		return false
	}
	return true
}
