package upstream

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	feedv1 "github.com/cutemarkets/relay/proto/feed/v1"
	"github.com/cutemarkets/relay/services/fanout/internal/leader"
	"github.com/cutemarkets/relay/services/fanout/internal/router"
	"github.com/cutemarkets/relay/services/internal/lease"
	"github.com/cutemarkets/relay/services/internal/secret"
)

const (
	maxHeld     = 4 << 20          // bytes of events held back
	maxScratch  = 1 << 16          // events; a greater list is not kept
	maxNotes    = 64               // log records waiting for the loop
	malformedAt = 10 * time.Second // between two records about malformed frames
	vendorText  = 128              // bytes of a vendor's message that are logged

	maxLateness    = time.Minute // of an event that is believed to be late
	maxStampDigits = 15          // of a unix time in ms
)

// run is one leadership of a market.
type run struct {
	// Static after construction.
	upstream *Upstream
	proof    *lease.Proof
	client   *http.Client
	wake     chan struct{} // holds a token while the loop has something to do; never closed

	lingerUntil atomic.Int64              // see lingering; of the present socket
	conn        atomic.Pointer[lingering] // of the present socket

	// Owned by the loop; not thread-safe.
	key secret.Secret // of the present connection

	mu sync.Mutex
	// Guarded by mu.
	session    *Session
	now        time.Time // of the present input
	socket     *socket   // nil: none
	dialing    bool      // the session asked for a connection
	closing    bool      // the session asked for the end of the socket
	ignoring   bool      // frames, until that end
	holding    bool
	held       []byte         // a JSON array of events, not closed yet
	events     []router.Event // scratch of frame
	heldEvents []router.Event // scratch of Release
	notes      []note
	malformed  time.Time // of the last record about malformed frames
}

// note is a log record that the loop writes, for a log can be slow.
type note struct {
	level slog.Level
	text  string
	attrs []slog.Attr
}

func newRun(u *Upstream, proof *lease.Proof, client *http.Client) *run {
	r := &run{upstream: u, proof: proof, client: client, wake: make(chan struct{}, 1), holding: true}
	r.session = NewSession(r, rand.Float64, u.config.Hours, u.config.Canaries, u.config.Limit)
	for prefix, slots := range u.config.Slots {
		r.session.LimitTopics(prefix, slots)
	}
	for _, prefix := range u.config.Firehose {
		r.session.Firehose(prefix)
	}
	return r
}

// lead is the loop.
func (r *run) lead(ctx context.Context, l leader.Leadership) {
	market := r.upstream.router
	interest := market.Lead(l.Epoch, time.Now())
	r.upstream.log.Info("leading", slog.String("epoch", l.Epoch.String()), slog.Int("topics", len(interest)))
	r.input(func(now time.Time) { r.session.Start(now, interest) })

	timer := time.NewTimer(0)
	defer timer.Stop()
	done := ctx.Done()
	for {
		changed := r.proof.Changed()
		r.input(func(time.Time) {})
		deadline, over := r.attend(ctx)
		if over {
			break
		}
		timer.Stop()
		if !deadline.IsZero() {
			timer.Reset(time.Until(deadline))
		}
		select {
		case <-done:
			done = nil
			r.input(r.session.Stop)
		case <-timer.C:
			r.input(r.session.Tick)
		case <-r.wake:
		case <-changed:
		case <-r.socketEnded():
			r.hangUp()
		case <-market.Changed():
			r.input(func(now time.Time) {
				added, removed := market.Changes()
				r.session.Remove(now, removed)
				r.session.Add(now, added)
			})
		}
	}
	market.Follow(time.Now())
	r.upstream.state.Store(uint32(StateStandby))
	for _, used := range r.upstream.slotsUsed {
		used.Store(0)
	}
	r.upstream.log.Info("no longer leading", slog.String("epoch", l.Epoch.String()))
}

// attend does what the session asked for, until there is nothing more. It
// returns the session's deadline and whether it is over.
func (r *run) attend(ctx context.Context) (deadline time.Time, over bool) {
	for {
		r.mu.Lock()
		notes := r.notes
		r.notes = nil
		dialing, closing := r.dialing, r.closing
		r.dialing, r.closing = false, false
		deadline, over = r.session.Deadline(), r.session.Stopped()
		r.mu.Unlock()

		for _, n := range notes {
			r.upstream.log.LogAttrs(ctx, n.level, n.text, n.attrs...) //nolint:sloglint // the texts of notes are constants
		}
		switch {
		case dialing:
			r.dial(ctx)
		case closing:
			r.hangUp()
		case len(notes) == 0:
			return deadline, over
		}
	}
}

// input gives the session an input, and first the state of the proof: it may be
// older than the event that the loop has yet to see.
func (r *run) input(f func(now time.Time)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.now = time.Now()
	r.session.Proof(r.now, r.proof.Proven())
	f(r.now)
	r.upstream.router.Unacknowledged(r.session.Unacknowledged())
	r.upstream.silenceLimit.Store(int64(r.session.SilenceLimit()))
	for prefix, used := range r.upstream.slotsUsed {
		used.Store(int64(r.session.SlotsUsed(prefix)))
	}
}

func (r *run) signal() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// socketEnded is closed when the present socket has failed or was closed by the
// vendor; nil without a socket.
func (r *run) socketEnded() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.socket == nil {
		return nil
	}
	return r.socket.readEnded
}

func (r *run) dial(ctx context.Context) {
	key, err := secret.Read(r.upstream.config.KeyFile)
	if err != nil {
		r.dialFailed(CauseKey, err)
		return
	}
	k, err := dialSocket(ctx, r)
	if err != nil {
		cause := CauseDial
		if ctx.Err() != nil {
			cause = CauseStopped
		}
		r.dialFailed(cause, err)
		return
	}
	r.key = key
	r.mu.Lock()
	r.socket = k
	r.mu.Unlock()
	r.input(r.session.Dialed)
	k.start()
}

func (r *run) dialFailed(cause Cause, err error) {
	r.input(func(now time.Time) {
		r.noteLocked(slog.LevelWarn, "upstream not reached", slog.String("cause", cause.String()), slog.Any("error", err))
		r.session.DialFailed(now, cause)
	})
}

// hangUp ends the socket, on both sides or by cutting it off, and tells the
// session.
func (r *run) hangUp() {
	r.mu.Lock()
	k := r.socket
	r.mu.Unlock()
	cause := k.hangUp()
	r.input(func(now time.Time) {
		r.socket = nil
		r.closing, r.ignoring = false, false
		r.session.Closed(now, cause)
	})
}

// frame takes one message of the vendor. It does not keep it.
func (r *run) frame(message []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ignoring {
		return
	}
	now := time.Now()
	r.now = now
	r.upstream.lastMessage.Store(now.UnixNano())
	r.upstream.router.FrameSeen(now)
	events, faults := router.Split(message, r.events[:0])
	if faults.Any() {
		r.malformedLocked(&faults)
	}
	statuses := 0
	for i := range events {
		if events[i].Status() {
			statuses++
		}
	}
	var lag time.Duration
	if len(events) > 0 {
		lag = lateness(events[len(events)-1].Raw, now)
	}
	data := len(events) > statuses
	if data {
		r.upstream.router.Late(lag)
		r.upstream.lag.Store(int64(lag))
	}
	r.session.Frame(now, data, lag)
	start := 0
	for i := 0; statuses > 0; i++ {
		if events[i].Status() {
			r.passLocked(events[start:i])
			r.statusLocked(events[i].Raw)
			start = i + 1
			statuses--
		}
	}
	r.passLocked(events[start:])
	if faults.Any() {
		r.session.Malformed(now)
		r.signal()
	}
	if cap(events) <= maxScratch {
		r.events = events
	} else {
		r.events = nil
	}
}

// lateness is how long an event with the vendor's time stamp ("t", in unix ms)
// has been on its way, as our clock has it; 0 without one, and when it is not
// believable: clocks differ, and delayed feeds are late by quarters of an hour.
func lateness(raw []byte, now time.Time) time.Duration {
	at := bytes.LastIndex(raw, []byte(`,"t":`))
	if at < 0 {
		return 0
	}
	digits := raw[at+len(`,"t":`):]
	stamp, n := int64(0), 0
	for n < len(digits) && n < maxStampDigits && '0' <= digits[n] && digits[n] <= '9' {
		stamp = stamp*10 + int64(digits[n]-'0')
		n++
	}
	late := now.Sub(time.UnixMilli(stamp))
	if late < 0 || late > maxLateness {
		return 0
	}
	return late
}

// passLocked routes events, or holds them back. What comes after the session
// has asked for the end of the socket is part of the gap.
func (r *run) passLocked(events []router.Event) {
	if r.ignoring {
		return
	}
	for r.holding && len(events) > 0 {
		raw := events[0].Raw
		if len(r.held)+len(raw)+len(",]") > maxHeld {
			r.session.HoldFull(r.now)
			if r.holding { // nothing was asked for, so nothing is missed
				return
			}
			break
		}
		separator := byte(',')
		if len(r.held) == 0 {
			separator = '['
		}
		r.held = append(append(r.held, separator), raw...)
		events = events[1:]
	}
	if len(events) > 0 {
		r.session.Events(r.now)
		r.upstream.router.Route(events)
	}
}

func (r *run) statusLocked(raw []byte) {
	status, message, ok := parseStatus(raw)
	if !ok {
		var faults router.Faults
		faults[router.FaultSyntax]++
		r.malformedLocked(&faults)
		return
	}
	if status != "success" && status != "connected" && status != "auth_success" {
		r.noteLocked(slog.LevelWarn, "vendor status", slog.String("status", cut(status)), slog.String("message", cut(message)))
	}
	r.session.Proof(r.now, r.proof.Proven())
	r.session.Status(r.now, status, message)
	r.upstream.router.Unacknowledged(r.session.Unacknowledged())
	r.signal()
}

// parseStatus reads a status object. A missing field is empty.
func parseStatus(raw []byte) (status, message string, ok bool) {
	var object struct {
		Status  string `json:"status"`
		Message string `json:"message"`
	}
	if err := json.Unmarshal(raw, &object); err != nil {
		return "", "", false
	}
	return object.Status, object.Message, true
}

func cut(s string) string { return s[:min(len(s), vendorText)] }

func (r *run) malformedLocked(faults *router.Faults) {
	var attrs []slog.Attr
	for _, fault := range router.AllFaults() {
		if n := faults[fault]; n > 0 {
			r.upstream.malformed[fault].Add(uint64(n))
			attrs = append(attrs, slog.Int(fault.String(), int(n)))
		}
	}
	if r.now.Sub(r.malformed) >= malformedAt {
		r.malformed = r.now
		r.noteLocked(slog.LevelWarn, "malformed upstream frame", attrs...)
	}
}

// noteLocked leaves a log record to the loop; what is too much is dropped.
func (r *run) noteLocked(level slog.Level, text string, attrs ...slog.Attr) {
	if len(r.notes) < maxNotes {
		r.notes = append(r.notes, note{level, text, attrs})
		r.signal()
	}
}

// stateAdvice says what to do where a state is not for relay alone to leave.
var stateAdvice = map[State]string{
	StateStolen:   "something else uses the vendor's key or account: find it and stop it, or get relay a key of its own; does the vendor limit connections as --upstream-on-limit says?",
	StateWaiting:  "nothing yet: the vendor still counts a connection that has ended, or another program's; it is tried again until --upstream-ghost-timeout, and then told as stolen",
	StateUnproven: "see to the lease store: without its word that this process leads, the vendor is not dialed",
}

// The methods of Host. mu is held.

// Dial implements Host.
func (r *run) Dial() {
	r.dialing = true
	r.signal()
}

// Auth implements Host.
func (r *run) Auth() {
	message, err := json.Marshal(struct {
		Action string `json:"action"`
		Params string `json:"params"`
	}{"auth", r.key.Reveal()})
	if err != nil {
		panic("upstream: auth message: " + err.Error())
	}
	r.socket.send(message)
}

// Send implements Host.
func (r *run) Send(message []byte) { r.socket.send(message) }

// Close implements Host.
func (r *run) Close() {
	r.closing, r.ignoring = true, true
	r.signal()
}

// Hold implements Host.
func (r *run) Hold() { r.holding, r.held = true, nil }

// Gap implements Host.
func (r *run) Gap(from, to time.Time) {
	r.upstream.router.Gap(from, to)
	r.noteLocked(slog.LevelWarn, "gap", slog.Time("from", from), slog.Time("to", to))
}

// Release implements Host.
func (r *run) Release() {
	r.holding = false
	if len(r.held) == 0 {
		return
	}
	events, faults := router.Split(append(r.held, ']'), r.heldEvents[:0])
	if faults.Any() {
		panic("upstream: held events are malformed")
	}
	r.upstream.router.Route(events)
	r.held, r.heldEvents = nil, nil
}

// State implements Host.
func (r *run) State(state State, downSince time.Time) {
	r.upstream.state.Store(uint32(state))
	r.upstream.router.Upstream(state == StateLive, downSince, r.now)
	attrs := []slog.Attr{slog.String("state", state.String())}
	if !downSince.IsZero() {
		attrs = append(attrs, slog.Time("down_since", downSince))
	}
	level := slog.LevelInfo
	if advice, ok := stateAdvice[state]; ok {
		level = slog.LevelWarn
		if state == StateStolen {
			level = slog.LevelError
		}
		attrs = append(attrs, slog.String("advice", advice))
	}
	r.noteLocked(level, "upstream state", attrs...)
}

// Stalled implements Host.
func (r *run) Stalled(silence, next time.Duration) {
	r.noteLocked(slog.LevelWarn, "upstream stalled: it answers, but sends no events; connecting anew",
		slog.Duration("silence", silence), slog.Duration("next_limit", next))
}

// Lost implements Host.
func (r *run) Lost(cause Cause) {
	r.upstream.lost[cause].Add(1)
	r.noteLocked(slog.LevelInfo, "upstream connection ended", slog.String("cause", cause.String()))
}

// Problem implements Host.
func (r *run) Problem(topics []string, problem feedv1.TopicProblem) {
	r.upstream.router.Problem(topics, problem)
	if problem == feedv1.TopicProblem_TOPIC_PROBLEM_NO_SLOT {
		r.upstream.refused.Add(uint64(len(topics)))
	}
	if problem != feedv1.TopicProblem_TOPIC_PROBLEM_UNSPECIFIED {
		r.noteLocked(slog.LevelWarn, "topics not served", slog.String("problem", problem.String()),
			slog.Int("topics", len(topics)), slog.String("first", topics[0]))
	}
}
