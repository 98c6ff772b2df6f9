package session

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cutemarkets/relay/services/edge/internal/dialect"
	"github.com/cutemarkets/relay/services/edge/internal/dialect/cutemarkets"
	"github.com/cutemarkets/relay/services/edge/internal/principal"
	"github.com/cutemarkets/relay/services/internal/secret"
)

var start = time.Date(2026, 5, 15, 13, 30, 0, 0, time.UTC)

// about is what a host knows of its socket.
type about struct {
	dialect dialect.Dialect
	market  string
}

func (a *about) Dialect() dialect.Dialect                  { return a.dialect }
func (a *about) Market() string                            { return a.market }
func (a *about) tell(d dialect.Dialect, o dialect.Opening) { a.dialect, a.market = d, o.Market }

func newSession(h interface {
	Host
	tell(d dialect.Dialect, o dialect.Opening)
}, d dialect.Dialect, o dialect.Opening) Session {
	h.tell(d, o)
	return New(h, o)
}

// recorder is a Host that writes down what it is asked for.
type recorder struct {
	about
	calls     []string
	maxTopics int           // 0: no limit
	hold      time.Duration // of a second connection; 0: the least
	topics    map[string]bool
}

func (h *recorder) add(format string, args ...any) {
	h.calls = append(h.calls, fmt.Sprintf(format, args...))
}

func (h *recorder) Send(message []byte) { h.add("send %s", statuses(message)) }
func (h *recorder) Authenticate(market string, c secret.Secret) {
	h.add("authenticate %s %s", market, c.Reveal())
}
func (h *recorder) Refused(r dialect.Reason)      { h.add("refused %s", r) }
func (h *recorder) Acquire(p principal.Principal) { h.add("acquire %s", p.UserID) }
func (h *recorder) Release()                      { h.add("release") }
func (h *recorder) Hold(user string, least time.Duration) time.Duration {
	h.add("hold %s %s", user, least)
	return max(least, h.hold)
}
func (h *recorder) Live(market string)       { h.add("live %s", market) }
func (h *recorder) Unsubscribe(topic string) { h.add("unsubscribe %s", topic) }
func (h *recorder) Stop()                    { h.add("stop") }
func (h *recorder) Subscribe(topic string) (problem string) {
	if h.topics == nil {
		h.topics = map[string]bool{}
	}
	if !h.topics[topic] && h.maxTopics > 0 && len(h.topics) == h.maxTopics {
		h.add("full %s", topic)
		return dialect.TopicLimit
	}
	h.topics[topic] = true
	h.add("subscribe %s", topic)
	return ""
}
func (h *recorder) Close(code uint16, text string, r dialect.Reason) {
	h.add("close %d %q %s", code, text, r)
}

// statuses shows a message of status objects: the message alone for acks, else
// the status and the message where that tells more.
func statuses(message []byte) string {
	var objects []struct{ Ev, Status, Message string }
	if err := json.Unmarshal(message, &objects); err != nil {
		panic(err)
	}
	var all []string
	for _, o := range objects {
		switch o.Status {
		case "success":
			all = append(all, o.Message)
		case "connected", "auth_success", "auth_timeout", "max_connections", "draining":
			all = append(all, o.Status)
		default:
			all = append(all, o.Status+" "+o.Message)
		}
	}
	return strings.Join(all, " | ")
}

// input is one input of a script.
type input func(s *Session, now time.Time)

func begin() input { return func(s *Session, now time.Time) { s.Start(now) } }
func message(text string) input {
	return func(s *Session, now time.Time) { s.Message(now, []byte(text)) }
}
func auth(key string) input       { return message(`{"action":"auth","params":"` + key + `"}`) }
func subscribe(list string) input { return message(`{"action":"subscribe","params":"` + list + `"}`) }
func user(id string) input {
	return func(s *Session, now time.Time) {
		s.Authenticated(now, principal.Principal{UserID: id}, dialect.OK)
	}
}
func userUntil(id string, life time.Duration) input {
	return func(s *Session, now time.Time) {
		s.Authenticated(now, principal.Principal{UserID: id, Expires: start.Add(life)}, dialect.OK)
	}
}
func refused(r dialect.Reason) input {
	return func(s *Session, now time.Time) { s.Authenticated(now, principal.Principal{}, r) }
}
func acquired(r dialect.Reason) input {
	return func(s *Session, now time.Time) { s.Acquired(now, r) }
}
func released() input            { return func(s *Session, now time.Time) { s.Released(now) } }
func end(r dialect.Reason) input { return func(s *Session, now time.Time) { s.End(now, r) } }
func clientClosed(code uint16) input {
	return func(s *Session, now time.Time) { s.ClientClosed(now, code) }
}
func gone() input { return func(s *Session, now time.Time) { s.Gone(now) } }
func tick() input { return func(s *Session, now time.Time) { s.Tick(now) } }

// step is an input at a moment (since the start) and the calls it leads to.
type step struct {
	at   time.Duration
	do   input
	want []string
}

func calls(c ...string) []string { return c }

// alive are the steps of a socket that came with a key in its handshake.
func alive(more ...step) []step {
	return append([]step{
		{0, begin(), calls("send connected", "authenticate stocks cm_a")},
		{0, user("u"), calls("acquire u")},
		{0, acquired(dialect.OK), calls("send auth_success", "live stocks")},
	}, more...)
}

var (
	withKey    = dialect.Opening{Market: "stocks", Credential: secret.New("cm_a")}
	withoutKey = dialect.Opening{Market: "stocks"}
)

const (
	ms   = time.Millisecond
	sec  = time.Second
	ours = `"" client_closed`
)

// TestHold is the refusal of a second connection that is held for longer than the
// dialect asks for.
func TestHold(t *testing.T) {
	for name, c := range map[string]struct {
		do    input // after 2 s
		want  []string
		until time.Duration // the close, when do did not lead to it
	}{
		"to its end":                   {auth("cm_a"), nil, 8 * sec},
		"cut short by the client":      {clientClosed(1000), calls(`close 1000 "" duplicate_connection`), 0},
		"cut short by a broken socket": {gone(), calls(`close 0 "" duplicate_connection`), 0},
		"cut short by a drain":         {end(dialect.Draining), nil, 3 * sec},
		"not cut short by another end": {end(dialect.PongTimeout), nil, 8 * sec},
	} {
		t.Run(name, func(t *testing.T) {
			h := &recorder{hold: 8 * sec}
			s := newSession(h, newDialect(cutemarkets.Options{}), withKey)
			s.Start(start)
			user("u")(&s, start)
			s.Acquired(start, dialect.DuplicateConnection)
			h.calls = nil
			c.do(&s, start.Add(2*sec))
			if !slices.Equal(h.calls, c.want) {
				t.Fatalf("got %q, want %q", h.calls, c.want)
			}
			if c.until == 0 {
				return
			}
			if s.Tick(start.Add(c.until - 1)); len(h.calls) > 0 {
				t.Fatalf("%q before the end of the hold", h.calls)
			}
			s.Tick(start.Add(c.until))
			if want := calls(`close 4409 "this user already has an active connection" duplicate_connection`); !slices.Equal(h.calls, want) {
				t.Fatalf("got %q, want %q", h.calls, want)
			}
		})
	}
}

// TestDrainNeverMakesAHoldLonger: what is left of it may be less than a drain leaves.
func TestDrainNeverMakesAHoldLonger(t *testing.T) {
	h := &recorder{}
	s := newSession(h, newDialect(cutemarkets.Options{}), withKey)
	s.Start(start)
	refused(dialect.CredentialInvalid)(&s, start)
	s.End(start, dialect.Draining)
	h.calls = nil
	s.Tick(start.Add(150 * ms))
	if want := calls(`close 4401 "invalid API key" credential_invalid`); !slices.Equal(h.calls, want) {
		t.Fatalf("got %q, want %q", h.calls, want)
	}
}

func TestScripts(t *testing.T) {
	scripts := []struct {
		name    string
		opening dialect.Opening
		steps   []step
	}{
		{"key in the handshake", withKey, alive(
			step{sec, subscribe("T.AAPL, AM.*"), calls("subscribe T.AAPL", "subscribe AM.*", "send subscribed to: T.AAPL | subscribed to: AM.*")},
			step{sec, message(`{"action":"unsubscribe","params":"T.AAPL"}`), calls("unsubscribe T.AAPL", "send unsubscribed to: T.AAPL")},
			step{sec, subscribe("T.aapl,T.MSFT"), calls("subscribe T.MSFT",
				"send error cannot subscribe to: T.aapl: not a stock symbol (symbols are case-sensitive) | subscribed to: T.MSFT")},
			step{2 * sec, clientClosed(1000), calls("stop", "release")},
			step{2 * sec, released(), calls("close 1000 " + ours)},
		)},
		{"messages before the answer wait", withKey, []step{
			{0, begin(), calls("send connected", "authenticate stocks cm_a")},
			{0, subscribe("T.A"), nil},
			{0, user("u"), calls("acquire u")},
			{0, subscribe("T.B"), nil},
			{0, acquired(dialect.OK), calls("send auth_success", "live stocks",
				"subscribe T.A", "send subscribed to: T.A", "subscribe T.B", "send subscribed to: T.B")},
		}},
		{"key in band, as the Go SDK sends it", withoutKey, []step{
			{0, begin(), calls("send connected")},
			{0, auth("cm_a"), calls("authenticate stocks cm_a")},
			{0, subscribe("T.A"), nil},
			{0, user("u"), calls("acquire u")},
			{0, acquired(dialect.OK), calls("send auth_success", "live stocks", "subscribe T.A", "send subscribed to: T.A")},
			{11 * sec, tick(), nil},
		}},
		{"subscriptions ahead of the key in band", withoutKey, []step{
			{0, begin(), calls("send connected")},
			{0, subscribe("T.A"), nil},
			{0, message(`nonsense`), nil},
			{0, auth("cm_a"), calls("authenticate stocks cm_a")},
			{0, user("u"), calls("acquire u")},
			{0, acquired(dialect.OK), calls("send auth_success", "live stocks",
				"subscribe T.A", "send subscribed to: T.A", "send error Invalid JSON")},
		}},
		{"key in the handshake and again in band", withKey, []step{
			{0, begin(), calls("send connected", "authenticate stocks cm_a")},
			{0, auth("cm_a"), nil},
			{0, user("u"), calls("acquire u")},
			{0, acquired(dialect.OK), calls("send auth_success", "live stocks", "send auth_success")},
			{0, auth("cm_a"), calls("send auth_success")},
		}},
		{"another key of the same user", withKey, alive(
			step{0, auth("cm_b"), calls("authenticate stocks cm_b")},
			step{0, subscribe("T.A"), nil},
			step{0, auth("cm_a"), nil},
			step{0, auth("cm_c"), nil},
			step{0, user("u"), calls("send auth_success", "subscribe T.A", "send subscribed to: T.A", "send auth_success", "authenticate stocks cm_c")},
			step{0, user("u"), calls("send auth_success")},
		)},
		{"another user's key never changes the user", withKey, alive(
			step{0, auth("cm_b"), calls("authenticate stocks cm_b")},
			step{0, user("v"), calls("refused credential_conflict", "send auth_failed authentication failed: the API key belongs to another user; the connection stays as it was")},
			step{0, auth("cm_b"), calls("authenticate stocks cm_b")},
			step{0, user("v"), calls("refused credential_conflict", "send auth_failed authentication failed: the API key belongs to another user; the connection stays as it was")},
			step{0, auth("cm_a"), calls("send auth_success")},
		)},
		{"a bad key on a live socket", withKey, alive(
			step{0, auth("cm_b"), calls("authenticate stocks cm_b")},
			step{0, refused(dialect.CredentialInvalid), calls("refused credential_invalid", "send auth_failed authentication failed: invalid API key")},
			step{0, auth(""), calls("refused credential_invalid", "send auth_failed authentication failed: invalid API key")},
			step{0, auth("cm_b"), calls("authenticate stocks cm_b")},
			step{0, refused(dialect.AuthUnavailable), calls("refused auth_unavailable", "send error the API key could not be checked now; the connection stays as it was")},
			step{0, subscribe("T.A"), calls("subscribe T.A", "send subscribed to: T.A")},
		)},
		{"no key in time", withoutKey, []step{
			{0, begin(), calls("send connected")},
			{10*sec - 1, tick(), nil},
			{10 * sec, tick(), calls("send auth_timeout")},
			{10*sec + 150*ms, tick(), calls(`close 4401 "authentication timeout" credential_timeout`)},
		}},
		{"bad key", withKey, []step{
			{0, begin(), calls("send connected", "authenticate stocks cm_a")},
			{0, refused(dialect.CredentialInvalid), calls("send auth_failed authentication failed: invalid API key")},
			{149 * ms, tick(), nil},
			{150 * ms, tick(), calls(`close 4401 "invalid API key" credential_invalid`)},
		}},
		{"a key in band that can be none", withoutKey, []step{
			{0, begin(), calls("send connected")},
			{0, message(`{"action":"auth"}`), calls("send auth_failed authentication failed: invalid API key")},
			{150 * ms, tick(), calls(`close 4401 "invalid API key" credential_invalid`)},
		}},
		{"refused by the handshake", dialect.Opening{Refuse: dialect.MarketUnsupported}, []step{
			{0, begin(), calls("send connected", "send auth_failed authentication failed: unsupported market; stocks and options are supported")},
			{0, subscribe("T.A"), nil},
			{150 * ms, tick(), calls(`close 4401 "unsupported market; stocks and options are supported" market_unsupported`)},
		}},
		{"second connection of the user", withKey, []step{
			{0, begin(), calls("send connected", "authenticate stocks cm_a")},
			{0, user("u"), calls("acquire u")},
			{0, acquired(dialect.DuplicateConnection), calls("hold u 1s", "send max_connections")},
			{0, auth("cm_a"), nil},
			{999 * ms, tick(), nil},
			{sec, tick(), calls(`close 4409 "this user already has an active connection" duplicate_connection`)},
		}},
		{"Redis away", withKey, []step{
			{0, begin(), calls("send connected", "authenticate stocks cm_a")},
			{0, user("u"), calls("acquire u")},
			{0, acquired(dialect.LockUnavailable), calls("send error stream gateway error: the connection lock is not available")},
			{sec, tick(), calls(`close 1011 "stream gateway error: the connection lock is not available" lock_unavailable`)},
		}},
		{"auth away", withKey, []step{
			{0, begin(), calls("send connected", "authenticate stocks cm_a")},
			{0, refused(dialect.AuthUnavailable), calls("send error stream gateway error: authentication is not available")},
			{sec, tick(), calls(`close 1011 "stream gateway error: authentication is not available" auth_unavailable`)},
		}},
		{"drain", withKey, alive(
			step{sec, end(dialect.Draining), calls("stop", "send draining", "release")},
			step{sec, end(dialect.SlowConsumer), nil},
			step{sec, subscribe("T.A"), nil},
			step{sec, released(), calls(`close 1012 "service restart" draining`)},
			step{sec, released(), nil},
			step{sec, end(dialect.Draining), nil},
			step{sec, gone(), nil},
			step{sec, clientClosed(1000), nil},
			step{sec, message(`x`), nil},
			step{sec, user("u"), nil},
			step{sec, acquired(dialect.OK), nil},
			step{9 * sec, tick(), nil},
		)},
		{"a release without an answer", withKey, alive(
			step{sec, end(dialect.PongTimeout), calls("stop", "release")},
			step{2*sec - 1, tick(), nil},
			step{2 * sec, tick(), calls(`close 1008 "pong timeout" pong_timeout`)},
			step{2 * sec, released(), nil},
		)},
		{"the lock is lost", withKey, alive(
			step{sec, end(dialect.LockLost), calls("stop", "send max_connections", "release")},
			step{sec, released(), calls(`close 4409 "another connection of this user took over" lock_lost`)},
		)},
		{"drain while the lock is asked for", withKey, []step{
			{0, begin(), calls("send connected", "authenticate stocks cm_a")},
			{0, user("u"), calls("acquire u")},
			{0, end(dialect.Draining), calls("send draining", "release")},
			{0, acquired(dialect.OK), nil},
			{0, released(), calls(`close 1012 "service restart" draining`)},
		}},
		{"the lock comes during the hold", withKey, []step{
			{0, begin(), calls("send connected", "authenticate stocks cm_a")},
			{0, user("u"), calls("acquire u")},
			{0, end(dialect.UpstreamGone), calls("send error stream gateway error: the upstream feed is not available")},
			{0, acquired(dialect.OK), nil},
			{sec, tick(), calls("release")},
			{sec, released(), calls(`close 1011 "stream gateway error: the upstream feed is not available" upstream_gone`)},
		}},
		{"the lock is refused during the hold", withKey, []step{
			{0, begin(), calls("send connected", "authenticate stocks cm_a")},
			{0, user("u"), calls("acquire u")},
			{0, end(dialect.UpstreamGone), calls("send error stream gateway error: the upstream feed is not available")},
			{0, acquired(dialect.DuplicateConnection), nil},
			{sec, tick(), calls(`close 1011 "stream gateway error: the upstream feed is not available" upstream_gone`)},
		}},
		{"gone while the key is checked", withKey, []step{
			{0, begin(), calls("send connected", "authenticate stocks cm_a")},
			{0, gone(), calls(`close 0 "" client_gone`)},
			{0, user("u"), nil},
		}},
		{"gone", withKey, alive(
			step{sec, gone(), calls("stop", "release")},
			step{sec, released(), calls(`close 0 "" client_gone`)},
		)},
		{"an empty close frame is echoed empty", withKey, alive(
			step{sec, clientClosed(1005), calls("stop", "release")},
			step{sec, released(), calls("close 1005 " + ours)},
		)},
		{"a close cuts the hold short and keeps the reason", withKey, []step{
			{0, begin(), calls("send connected", "authenticate stocks cm_a")},
			{0, refused(dialect.PlanTooLow), calls("send auth_failed authentication failed: the plan has no live stream; Expert or Commercial is needed")},
			{20 * ms, clientClosed(1000), calls(`close 1000 "" plan_too_low`)},
		}},
		{"gone while the lock is released", withKey, alive(
			step{sec, end(dialect.Draining), calls("stop", "send draining", "release")},
			step{sec, gone(), nil},
			step{sec, released(), calls(`close 0 "" draining`)},
		)},
		{"the key expires", withKey, []step{
			{0, begin(), calls("send connected", "authenticate stocks cm_a")},
			{0, userUntil("u", sec), calls("acquire u")},
			{0, acquired(dialect.OK), calls("send auth_success", "live stocks")},
			{sec - 1, tick(), nil},
			{sec, tick(), calls("stop", "send auth_failed authentication failed: the API key has expired or was revoked")},
			{sec + 150*ms, tick(), calls("release")},
			{sec + 150*ms, released(), calls(`close 4401 "the API key has expired or was revoked" credential_expired`)},
		}},
		{"the key has expired when the answer comes", withKey, []step{
			{0, begin(), calls("send connected", "authenticate stocks cm_a")},
			{2 * sec, userUntil("u", sec), calls("send auth_failed authentication failed: the API key has expired or was revoked")},
		}},
		{"five malformed messages within a minute", withKey, alive(
			step{0, message(`1`), calls("send error invalid message: not a JSON object")},
			step{1 * sec, message(`{}`), calls("send error invalid message: action is missing or not a string")},
			step{2 * sec, message(``), calls("send error Invalid JSON")},
			step{3 * sec, message(`[`), calls("send error Invalid JSON")},
			step{60 * sec, message(`[]`), calls("send error invalid message: not a JSON object")},
			step{60 * sec, message(`{"action":"dance"}`), calls("send error unknown action; use subscribe, unsubscribe or auth")},
			step{61*sec - 1, message(`"`), calls("send error Invalid JSON", "stop", "send error too many malformed messages")},
			step{62 * sec, tick(), calls("release")},
			step{62 * sec, released(), calls(`close 1008 "too many malformed messages" bad_commands`)},
		)},
	}
	for _, script := range scripts {
		t.Run(script.name, func(t *testing.T) {
			h := &recorder{}
			s := newSession(h, cutemarkets.New(cutemarkets.Options{Markets: []string{"stocks", "options"}, InBandAuth: true}), script.opening)
			for i, step := range script.steps {
				h.calls = nil
				step.do(&s, start.Add(step.at))
				if !slices.Equal(h.calls, step.want) {
					t.Fatalf("step %d:\n got %q\nwant %q", i, h.calls, step.want)
				}
			}
		})
	}
}
