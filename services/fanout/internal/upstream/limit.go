package upstream

import "time"

// LimitRule is what the vendor does about a connection more than it allows.
type LimitRule string

// The rules.
const (
	// KickOldest: the newest is served, the oldest is told max_connections.
	KickOldest LimitRule = "kick-oldest"
	// RejectNewest: the newest is told max_connections soon after it was
	// authenticated, the oldest is undisturbed.
	RejectNewest LimitRule = "reject-newest"
)

// Limit is the vendor's limit of one connection, as far as a session minds it.
type Limit struct {
	Rule LimitRule
	// GhostTimeout is for how long, with RejectNewest, a place that is taken is
	// believed to be that of a connection which has ended without the vendor's
	// notice.
	GhostTimeout time.Duration
}

// The times of the limit. To every wait up to a fifth is added at random.
const (
	stolenFirst = 30 * time.Second        // wait after a kick
	stolenMost  = 5 * time.Minute         // and after kick upon kick
	youngFor    = 10 * time.Second        // from auth_success, in which a refusal is one of a newcomer
	admitWait   = 1500 * time.Millisecond // from auth_success, after which a silent connection counts as admitted
	jitterShare = 5                       // of a wait
)

// occupiedWaits are the waits while a ghost may hold the place; the last one
// repeats.
var occupiedWaits = [...]time.Duration{time.Second, 2 * time.Second, 5 * time.Second}

// place is what a session knows of its place at the vendor, who has one for it.
type place struct {
	// Static after construction.
	limit Limit

	// Owned by the session; not thread-safe.
	openedAt     time.Time     // auth_success of the connection
	admitBy      time.Time     // when it counts as admitted though it is silent
	kicks        uint          // by strangers, since data has flowed for long
	excused      bool          // one more was another leader's, as it seemed
	refusals     uint          // in a row
	refusedSince time.Time     // the first of them; zero: none
	wait         time.Duration // after the last max_connections
}

// lived takes what the connection, which ends, has shown by having lasted: that
// the place was ours, and for how long events came.
func (s *Session) lived(now time.Time) {
	if s.live && s.lastData.Sub(s.liveSince) >= backoffReset {
		s.attempts, s.place.kicks, s.place.excused = 0, 0, false
	}
	if !s.young(now) {
		s.place.refusals, s.place.refusedSince = 0, time.Time{}
	}
}

// young reports whether the connection may still be one that was never admitted.
func (s *Session) young(now time.Time) bool {
	return s.phase != phaseOpen || now.Sub(s.place.openedAt) < youngFor
}

// overLimit tells what max_connections means, and how long to wait after it.
//
// Whoever has proof and is kicked was kicked by a stranger, and would kick the
// stranger in turn: the waits grow. Without proof it is another leader who has
// taken over; should the lease prove to be ours all the same, that leader is gone,
// and the place is taken back once without a wait.
//
// A newcomer that is refused disturbs nobody. So when the ghost's time is over the
// waits stay at 30 s: the place may be that of a leader of ours who is cut off from
// the lease store and goes when it hears from it, and what is waited for beyond
// that moment is lost to all clients.
func (s *Session) overLimit(now time.Time) Cause {
	p := &s.place
	switch {
	case p.limit.Rule == RejectNewest && s.young(now):
		if p.refusedSince.IsZero() {
			p.refusedSince = now
		}
		if now.Sub(p.refusedSince) >= p.limit.GhostTimeout {
			p.wait = s.jitter(stolenFirst)
			return CauseStolen
		}
		p.wait = s.jitter(occupiedWaits[min(p.refusals, uint(len(occupiedWaits)-1))])
		p.refusals++
		return CauseOccupied
	case !s.proven && !p.excused:
		p.excused = true
		return CauseKicked
	}
	p.wait = s.jitter(min(stolenFirst<<min(p.kicks, 10), stolenMost))
	p.kicks++
	return CauseStolen
}

func (s *Session) jitter(wait time.Duration) time.Duration {
	return wait + time.Duration(s.random()*float64(wait/jitterShare))
}

// awaitsAdmission reports whether the vendor may yet refuse a connection for another
// that has the place. An event shows that it does not, or a while without a word;
// but no acknowledgement, for the vendor has been seen to refuse behind those. Until
// then edges must not leave an older leader, who may have the place.
func (s *Session) awaitsAdmission(now time.Time) bool {
	if s.place.limit.Rule != RejectNewest || !s.lastData.IsZero() {
		return false
	}
	if now.Sub(s.place.admitBy) > lookLate { // we stood still, and what the vendor says has yet to be read
		s.place.admitBy = now.Add(admitWait)
	}
	return now.Before(s.place.admitBy)
}

// liveBy is when to go live unless something comes before.
func (s *Session) liveBy() time.Time {
	if s.place.limit.Rule == RejectNewest && s.lastData.IsZero() {
		return later(s.settle, s.place.admitBy)
	}
	return s.settle
}
