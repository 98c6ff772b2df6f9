// Package dialect is the seam between the one engine and the client-facing
// protocols. A dialect is pure: it owns no goroutine, timer, socket or state of
// a connection. The engine owns the upgrade, timers, queues, liveness, the lock
// and drain; the session owns the order of things; a dialect owns words.
package dialect

import (
	"net/http"
	"strings"
	"time"

	"github.com/cutemarkets/relay/services/internal/secret"
)

// Policy holds a dialect's constants; they are read once per connection.
type Policy struct {
	MaxMessage     int           // bytes of one inbound message
	MaxTopics      int           // topics per socket
	MaxScarce      int           // of these, Scarce ones
	CommandRate    float64       // inbound messages per second, sustained
	CommandBurst   int           // inbound messages at once
	CredentialWait time.Duration // for an in-band credential; 0: none is taken
	Exclusive      bool          // one connection per user in the cluster
}

// Opening is what a handshake asks for.
type Opening struct {
	Market     string        // stocks or options; empty when Refuse says why
	Credential secret.Secret // empty: none was presented
	Refuse     Reason        // OK, or the handshake itself decides; told after the upgrade
	Conflate   bool          // when the client is slow, the latest of what is Conflatable will do
}

// Op is what a client message intends.
type Op uint8

// The intents.
const (
	OpNone Op = iota // nothing to do; Command.Reply holds the whole answer, if any
	OpSubscribe
	OpUnsubscribe
	OpSignin // an in-band credential
)

// Param is one topic of a command as the client spelled it.
type Param struct {
	Topic   string // canonical topic, empty when Problem is set
	Text    string // as the client spelled it, for the answer; cut and safe to echo
	Problem string // empty, or why this param is refused (user-visible text)
}

// Problems of a topic.
const (
	// TopicLimit is that of one beyond Policy.MaxTopics.
	TopicLimit = "the connection has as many topics as it may have"
	// ScarceLimit is that of one beyond Policy.MaxScarce.
	ScarceLimit = "the connection has as many option quotes as it may have"
	// NoSlot is that of one for which the vendor has no room.
	NoSlot = "all slots for option quotes are taken, try again later"
	// NotAcknowledged and NotAuthorized are what the vendor said, or did not say.
	NotAcknowledged = "not acknowledged by the data source"
	NotAuthorized   = "not authorized at the data source"
)

// Scarce reports whether a topic is one of those of which the vendor serves only
// so many to all clients together: option quotes.
func Scarce(market, topic string) bool { return market == "options" && strings.HasPrefix(topic, "Q.") }

// Command is a decoded client message. It is reused: Params is valid until the
// next Decode, the strings and the Reply for good.
type Command struct {
	Op         Op
	Params     []Param       // OpSubscribe and OpUnsubscribe only
	Credential secret.Secret // OpSignin only; empty: what was presented can be no credential
	Reply      []byte        // OpNone only: message to send back
	Malformed  bool          // counts towards BadCommands
}

// Gap is a span of time in which events may be missing.
type Gap struct {
	Market string
	From   time.Time
	To     time.Time // zero: it still lasts
	Topics []string  // empty: all of the market
}

// Bye is how a socket ends.
type Bye struct {
	Frames [][]byte      // messages before the close frame
	Hold   time.Duration // between Frames and the close frame; the least one, where refusals repeat
	Code   uint16        // close code; 0: no close frame, just close
	Text   string        // close reason, at most 123 bytes
}

// Dialect is a client-facing protocol. All methods are pure and safe for
// concurrent use; returned messages are immutable and may be shared.
type Dialect interface {
	// Name is a metric label.
	Name() string
	// Policy returns the dialect's constants.
	Policy() Policy
	// Open reads a handshake. It never refuses before the upgrade.
	Open(r *http.Request) Opening
	// Greeting is sent first, at once; nil: nothing.
	Greeting() []byte
	// Welcome is sent when the credential was accepted and the lock is held.
	Welcome() []byte
	// Signin answers a redundant credential on an accepted socket: OK, or the
	// reason it is refused for (the socket goes on as it was). CredentialConflict
	// means a good credential of another user.
	Signin(r Reason) []byte
	// Decode reads one text message of a client of the market. It overwrites
	// all of c and does not retain message.
	Decode(market string, message []byte, c *Command)
	// Reply answers an OpSubscribe or OpUnsubscribe whose params have been
	// carried out (those without Problem).
	Reply(c *Command) []byte
	// Gap tells of a gap.
	Gap(g Gap) []byte
	// TopicProblem tells that the vendor does not serve a topic.
	TopicProblem(topic, problem string) []byte
	// Slow tells that the client does not keep up and will be ended if that goes
	// on; nil: the protocol has no words for it.
	Slow() []byte
	// Conflatable returns what an event is the latest of, when it makes the
	// earlier ones of the same key needless; nil: it does not. The key is part of
	// the event.
	Conflatable(event []byte) []byte
	// Prefix, separator and suffix of a message that joins events.
	Envelope() (prefix, separator, suffix string)
	// Encode turns one event's original bytes into the dialect's. It is called
	// once per event and shard; the result is shared by all clients.
	Encode(event []byte) []byte
	// Bye tells how a socket ends for a reason. It panics for OK, for reasons
	// that only refuse before the upgrade, and for ClientClosed, which has no
	// words of ours: the client's own code is echoed.
	Bye(r Reason) Bye
}
