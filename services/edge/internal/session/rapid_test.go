package session

import (
	"bytes"
	"flag"
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/cutemarkets/relay/services/edge/internal/dialect"
	"github.com/cutemarkets/relay/services/edge/internal/dialect/cutemarkets"
	"github.com/cutemarkets/relay/services/edge/internal/principal"
	"github.com/cutemarkets/relay/services/internal/secret"
)

// More than the default, as a check is quick; the command line has the last word.
func init() { _ = flag.Set("rapid.checks", "1000") }

// lockState is what the model's lock server knows of the socket's lock.
type lockState uint8

const (
	noLock lockState = iota
	lockAsked
	lockHeld
)

// model is a Host that checks the order of the calls and keeps what an engine
// would know.
type model struct {
	about
	t       *rapid.T
	s       *Session
	now     time.Time
	prompt  bool // answers come from inside the calls
	fragile int  // the socket breaks in the call after so many more; 0: it does not

	asked      []string // credentials being checked
	lock       lockState
	lockWanted int
	releasing  bool
	welcomed   bool
	delivering bool
	everLive   bool
	closes     int

	asking   []string // what the client wants an answer to, in the order of the answers
	answered []string // what was answered
	topics   int      // asked for
}

// open comes first in every call but the close.
func (m *model) open(call string) {
	if m.closes > 0 {
		m.t.Fatalf("%s after the close", call)
	}
}

// wear comes last in calls that may find the socket broken.
func (m *model) wear() {
	if m.fragile > 0 {
		if m.fragile--; m.fragile == 0 {
			m.s.Gone(m.now)
		}
	}
}

func (m *model) Send(message []byte) {
	m.open("send")
	switch {
	case bytes.Contains(message, []byte(`"auth_success"`)):
		m.welcomed = true
		m.answered = append(m.answered, "auth")
	case bytes.Contains(message, []byte(`"auth_failed"`)), bytes.Contains(message, []byte(`could not be checked now`)):
		m.answered = append(m.answered, "auth")
	case bytes.Contains(message, []byte(`Invalid JSON`)):
		m.answered = append(m.answered, "malformed")
	case bytes.Contains(message, []byte(`subscribed to: `)):
		for _, part := range strings.Split(string(message), `subscribed to: `)[1:] {
			topic, _, _ := strings.Cut(part, `"`)
			m.answered = append(m.answered, topic)
		}
	}
	m.wear()
}

func (m *model) Authenticate(market string, c secret.Secret) {
	m.open("authenticate")
	if len(m.asked) > 0 || market != "stocks" || c.Empty() {
		m.t.Fatalf("authenticate with %d in flight, market %q", len(m.asked), market)
	}
	m.asked = append(m.asked, c.Reveal())
	if m.prompt {
		m.answerCredential(dialect.OK)
	}
}

func (m *model) answerCredential(r dialect.Reason) {
	key := m.asked[0]
	m.asked = nil
	p := principal.Principal{}
	if r == dialect.OK {
		p.UserID = "user of " + key[:4] // cm_a1 and cm_a2 are one user's
		if key == "cm_a2" {
			p.Expires = m.now.Add(30 * time.Second)
		}
	}
	m.s.Authenticated(m.now, p, r)
}

func (m *model) Refused(r dialect.Reason) {
	m.open("refused")
	if !m.welcomed || r == dialect.OK {
		m.t.Fatalf("refused %s on a socket that does not go on", r)
	}
}

func (m *model) Acquire(p principal.Principal) {
	m.open("acquire")
	if m.lockWanted++; m.lockWanted > 1 || p.UserID == "" {
		m.t.Fatalf("acquire %d of %q", m.lockWanted, p.UserID)
	}
	m.lock = lockAsked
	if m.prompt {
		m.lock = lockHeld
		m.s.Acquired(m.now, dialect.OK)
	}
}

func (m *model) Release() {
	m.open("release")
	if m.lock == noLock || m.delivering || m.releasing {
		m.t.Fatalf("release: lock %d, delivering %t, releasing %t", m.lock, m.delivering, m.releasing)
	}
	m.lock = noLock
	m.releasing = true
	if m.prompt {
		m.releasing = false
		m.s.Released(m.now)
	}
}

func (m *model) Live(market string) {
	m.open("live")
	if !m.welcomed || m.everLive || m.lock != lockHeld || market != "stocks" {
		m.t.Fatalf("live: welcomed %t, again %t, lock %d", m.welcomed, m.everLive, m.lock)
	}
	m.delivering, m.everLive = true, true
	m.wear()
}

func (m *model) Hold(user string, least time.Duration) time.Duration {
	m.open("hold")
	if user == "" || user != m.s.user || m.lock != noLock || m.welcomed {
		m.t.Fatalf("hold of %q, lock %d", user, m.lock)
	}
	return rapid.SampledFrom([]time.Duration{least, 30 * time.Second}).Draw(m.t, "hold")
}

func (m *model) Subscribe(string) (problem string) {
	m.open("subscribe")
	if !m.delivering {
		m.t.Fatal("subscribe without delivery")
	}
	m.wear()
	return ""
}

func (m *model) Unsubscribe(string) {
	m.open("unsubscribe")
	if !m.delivering {
		m.t.Fatal("unsubscribe without delivery")
	}
	m.wear()
}

func (m *model) Stop() {
	m.open("stop")
	if !m.delivering {
		m.t.Fatal("stop without delivery")
	}
	m.delivering = false
	m.wear()
}

func (m *model) Close(code uint16, text string, r dialect.Reason) {
	m.open("close")
	m.closes++
	if m.delivering || m.lock != noLock {
		m.t.Fatalf("close: delivering %t, lock %d", m.delivering, m.lock)
	}
	if m.s.user == "" && m.everLive {
		m.t.Fatal("live without a user")
	}
	if (code == 1000 || code == 1001) && text != "" {
		m.t.Fatalf("close %d of our own accord", code)
	}
	if len(text) > 123 {
		m.t.Fatalf("close text of %d bytes", len(text))
	}
	if r == dialect.OK {
		m.t.Fatal("close without a reason")
	}
}

func (m *model) check(t *rapid.T) {
	s := m.s
	var kept aside
	if s.aside != nil {
		kept = *s.aside
	}
	if len(kept.queue) > maxWaiting || kept.queued > maxWaitingBytes {
		t.Fatalf("%d messages of %d bytes wait", len(kept.queue), kept.queued)
	}
	total := 0
	for _, message := range kept.queue {
		total += len(message)
	}
	if total != kept.queued {
		t.Fatalf("%d bytes wait, counted as %d", total, kept.queued)
	}
	if s.state == live && !s.checking && s.aside != nil && len(kept.bad) == 0 {
		t.Fatal("a live session keeps more than itself")
	}
	if (s.state == closed) != (m.closes == 1) {
		t.Fatalf("state %d after %d closes", s.state, m.closes)
	}
	if s.ending() && len(kept.queue) > 0 {
		t.Fatal("messages kept by a socket that is ending")
	}
	if (s.state == holding || s.state == releasing || s.state == waiting) && s.Deadline().IsZero() {
		t.Fatalf("state %d without a deadline", s.state)
	}
	if s.state == closed && (!s.Deadline().IsZero() || s.aside != nil) {
		t.Fatal("a deadline, or more than itself, after the close")
	}
	for i, answer := range m.answered {
		if !s.ending() && (i >= len(m.asking) || m.asking[i] != answer) {
			t.Fatalf("answers %q to %q", m.answered, m.asking)
		}
	}
	if s.state == live && !s.checking {
		if len(m.answered) != len(m.asking) {
			t.Fatalf("answers %q to %q", m.answered, m.asking)
		}
		if s.user == "" || !m.delivering {
			t.Fatal("live without a user or delivery")
		}
	}
}

// endReasons are those an engine may end a socket for.
func endReasons() []dialect.Reason {
	var all []dialect.Reason
	for _, r := range dialect.Reasons() {
		if r >= dialect.CredentialMissing && r != dialect.ClientClosed {
			all = append(all, r)
		}
	}
	return all
}

func TestRapid(t *testing.T) {
	d := cutemarkets.New(cutemarkets.Options{Markets: []string{"stocks"}, InBandAuth: true})
	reasons := endReasons()
	refusals := []dialect.Reason{dialect.CredentialInvalid, dialect.ProductMismatch, dialect.PlanTooLow, dialect.AuthUnavailable}
	rapid.Check(t, func(t *rapid.T) {
		m := &model{t: t, now: start, prompt: rapid.Bool().Draw(t, "prompt")}
		opening := dialect.Opening{Market: "stocks"}
		switch rapid.IntRange(0, 9).Draw(t, "opening") {
		case 0:
			opening = dialect.Opening{Refuse: dialect.CredentialConflict}
		case 1, 2, 3, 4:
			opening.Credential = secret.New("cm_a1")
			m.asking = append(m.asking, "auth") // the handshake's key is answered like a message
		}
		session := newSession(m, d, opening)
		m.s = &session
		m.fragile = rapid.SampledFrom([]int{0, 0, 0, 0, 1, 2}).Draw(t, "fragile")
		m.s.Start(m.now)

		client := func(answer []string, text string) {
			m.asking = append(m.asking, answer...)
			buffer := []byte(text)
			m.s.Message(m.now, buffer)
			for i := range buffer { // the engine reads the next message into it
				buffer[i] = '?'
			}
		}
		command := func(action string) {
			var topics []string
			for range rapid.IntRange(1, 3).Draw(t, "topics") {
				m.topics++
				topics = append(topics, fmt.Sprintf("T.A%d", m.topics))
			}
			pad := rapid.SampledFrom([]int{0, 0, 0, 0, 9000}).Draw(t, "pad")
			client(topics, `{"action":"`+action+`","params":"`+strings.Join(topics, ",")+`"}`+strings.Repeat(" ", pad))
		}
		auth := func() {
			key := rapid.SampledFrom([]string{"cm_a1", "cm_a1", "cm_a2", "cm_b1", ""}).Draw(t, "key")
			answer := []string{"auth"}
			if m.s.state == waiting { // goes ahead
				m.asking, answer = append(answer, m.asking...), nil
			}
			client(answer, `{"action":"auth","params":"`+key+`"}`)
		}
		t.Repeat(map[string]func(*rapid.T){
			"":            m.check,
			"subscribe":   func(*rapid.T) { command("subscribe") },
			"unsubscribe": func(*rapid.T) { command("unsubscribe") },
			"auth":        func(*rapid.T) { auth() },
			"malformed":   func(*rapid.T) { client([]string{"malformed"}, `{`) },
			"burst": func(t *rapid.T) {
				for range rapid.IntRange(2, 8).Draw(t, "messages") {
					if rapid.Bool().Draw(t, "auth") {
						auth()
					} else {
						command("subscribe")
					}
				}
			},
			"credential answer": func(t *rapid.T) {
				if len(m.asked) == 0 {
					t.Skip("none in flight")
				}
				r := dialect.OK
				if rapid.IntRange(0, 4).Draw(t, "bad") == 0 {
					r = rapid.SampledFrom(refusals).Draw(t, "refusal")
				}
				m.answerCredential(r)
			},
			"lock answer": func(t *rapid.T) {
				if m.lock != lockAsked {
					t.Skip("none in flight")
				}
				m.lock = lockHeld
				r := dialect.OK
				if rapid.IntRange(0, 4).Draw(t, "held") == 0 {
					m.lock = noLock
					r = rapid.SampledFrom([]dialect.Reason{dialect.DuplicateConnection, dialect.LockUnavailable}).Draw(t, "refusal")
				}
				m.s.Acquired(m.now, r)
			},
			"release answer": func(t *rapid.T) {
				if !m.releasing {
					t.Skip("none in flight")
				}
				m.releasing = false
				m.s.Released(m.now)
			},
			"time": func(t *rapid.T) {
				m.now = m.now.Add(time.Duration(rapid.IntRange(0, 5000).Draw(t, "ms")) * time.Millisecond)
				m.s.Tick(m.now)
			},
			"deadline": func(t *rapid.T) {
				if m.s.Deadline().IsZero() {
					t.Skip("none")
				}
				if m.s.Deadline().After(m.now) {
					m.now = m.s.Deadline()
				}
				m.s.Tick(m.now)
			},
			"end": func(t *rapid.T) {
				if rapid.IntRange(0, 3).Draw(t, "really") == 0 {
					m.s.End(m.now, rapid.SampledFrom(reasons).Draw(t, "reason"))
				}
			},
			"client close": func(t *rapid.T) {
				if rapid.IntRange(0, 5).Draw(t, "really") == 0 {
					m.s.ClientClosed(m.now, rapid.SampledFrom([]uint16{1000, 1001, 1005, 4000}).Draw(t, "code"))
				}
			},
			"gone": func(t *rapid.T) {
				if rapid.IntRange(0, 5).Draw(t, "really") == 0 {
					m.s.Gone(m.now)
				}
			},
			"breaks in a call to come": func(t *rapid.T) {
				m.fragile = rapid.SampledFrom([]int{0, 0, 0, 1, 2, 3}).Draw(t, "calls")
			},
		})

		// Whatever the state, an end leads to the close within its hold and the
		// longest wait for a release, without any answer; a longer hold that was
		// begun before, when the edge drains.
		m.prompt, m.fragile = false, 0
		m.s.End(m.now, dialect.DuplicateConnection)
		m.s.End(m.now, dialect.Draining)
		limit := m.now.Add(2 * time.Second)
		for range 2 {
			if at := m.s.Deadline(); !at.IsZero() {
				if at.After(m.now) {
					m.now = at
				}
				m.s.Tick(m.now)
			}
		}
		if m.closes != 1 || m.now.After(limit) {
			t.Fatalf("%d closes, %s after the end", m.closes, m.now.Sub(limit)+2*time.Second)
		}
	})
}
