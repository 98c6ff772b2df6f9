// Package cutemarkets is the CuteMarkets dialect: the vendor's own protocol as
// its official SDKs speak it, with the product's close codes and notices.
// Every message to a client is a JSON array of objects; whatever is not an
// event of the vendor is an object with "ev":"status". Everything here is pure:
// no goroutine, no state of a connection, no log line. Overload is not its
// business, but every reply is bounded: it fits one frame of 256 KiB.
package cutemarkets

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cutemarkets/relay/services/edge/internal/dialect"
)

// Limits of one connection.
const (
	// DefaultMaxMessage is OWASP's bound for an inbound message. A list of 1,000
	// option contracts takes 23 KB, so a smaller bound would refuse lists that
	// MaxTopics allows.
	DefaultMaxMessage = 64 << 10
	DefaultMaxTopics  = 1000
	// DefaultMaxQuotes is a quarter of what the vendor serves to all clients
	// together.
	DefaultMaxQuotes = 250

	maxParams      = 1000 // topics in one message
	commandRate    = 20
	commandBurst   = 50
	credentialWait = 10 * time.Second
)

// Options configures the dialect.
type Options struct {
	Markets    []string // markets whose stream is configured, of stocks and options
	InBandAuth bool     // whether {"action":"auth"} may bring the first credential
	MaxTopics  int      // topics per socket; 0: DefaultMaxTopics
	MaxQuotes  int      // of these, option quotes; 0: DefaultMaxQuotes
	MaxMessage int      // bytes of one inbound message, at most DefaultMaxMessage; 0: DefaultMaxMessage
}

// Validate reports the first option that cannot be served.
func (o Options) Validate() error {
	for _, name := range o.Markets {
		if _, ok := markets[name]; !ok {
			return fmt.Errorf("unknown market %q", name)
		}
	}
	if o.MaxTopics < 0 || o.MaxQuotes < 0 {
		return errors.New("max topics or max quotes is negative")
	}
	if o.MaxMessage != 0 && (o.MaxMessage < 1<<10 || o.MaxMessage > DefaultMaxMessage) {
		return fmt.Errorf("max message is not within 1024..%d bytes", DefaultMaxMessage)
	}
	return nil
}

// Dialect implements dialect.Dialect. It is immutable.
type Dialect struct {
	configured []string
	inBandAuth bool
	policy     dialect.Policy
}

// New makes the dialect. It panics on options that do not validate.
func New(o Options) *Dialect {
	if err := o.Validate(); err != nil {
		panic("cutemarkets: " + err.Error())
	}
	d := &Dialect{
		configured: slices.Clone(o.Markets),
		inBandAuth: o.InBandAuth,
		policy: dialect.Policy{
			MaxMessage:   DefaultMaxMessage,
			MaxTopics:    DefaultMaxTopics,
			MaxScarce:    DefaultMaxQuotes,
			CommandRate:  commandRate,
			CommandBurst: commandBurst,
			Exclusive:    true,
		},
	}
	if o.MaxTopics > 0 {
		d.policy.MaxTopics = o.MaxTopics
	}
	if o.MaxQuotes > 0 {
		d.policy.MaxScarce = o.MaxQuotes
	}
	if o.MaxMessage > 0 {
		d.policy.MaxMessage = o.MaxMessage
	}
	if o.InBandAuth {
		d.policy.CredentialWait = credentialWait
	}
	return d
}

// Name implements dialect.Dialect.
func (*Dialect) Name() string { return "cutemarkets" }

// Policy implements dialect.Dialect.
func (d *Dialect) Policy() dialect.Policy { return d.policy }

var (
	greeting = status("connected", "Connected Successfully")
	welcome  = status("auth_success", "authenticated")
)

// Greeting implements dialect.Dialect. The Python SDK waits for it before it
// sends anything.
func (*Dialect) Greeting() []byte { return greeting }

// Welcome implements dialect.Dialect. It is a frame of its own: the JavaScript
// SDK's examples look at the first object of a frame only.
func (*Dialect) Welcome() []byte { return welcome }

// Envelope implements dialect.Dialect.
func (*Dialect) Envelope() (prefix, separator, suffix string) { return "[", ",", "]" }

// Encode implements dialect.Dialect: the event's own bytes.
func (*Dialect) Encode(event []byte) []byte { return event }

var slow = status("slow", "You do not read as fast as your events come. If that goes on, this connection will be closed.")

// Slow implements dialect.Dialect.
func (*Dialect) Slow() []byte { return slow }

// Conflatable implements dialect.Dialect: quotes, by their symbol. One with its
// keys in another order than the vendor's is left alone.
func (*Dialect) Conflatable(event []byte) []byte {
	rest, ok := bytes.CutPrefix(event, []byte(`{"ev":"Q","sym":"`))
	if !ok {
		return nil
	}
	symbol, _, _ := bytes.Cut(rest, []byte{'"'})
	return symbol
}

// Signin implements dialect.Dialect.
func (*Dialect) Signin(r dialect.Reason) []byte {
	switch r {
	case dialect.OK:
		return welcome
	case dialect.CredentialConflict:
		return otherUser
	case dialect.AuthUnavailable:
		return signinUnavailable
	}
	if text, ok := credentialTexts[r]; ok {
		return authFailed(text)
	}
	panic("cutemarkets: no sign-in answer for " + r.String())
}

var (
	otherUser         = authFailed("the API key belongs to another user; the connection stays as it was")
	signinUnavailable = status("error", "the API key could not be checked now; the connection stays as it was")
)

// Reply implements dialect.Dialect: one status object per param, in order.
func (*Dialect) Reply(c *dialect.Command) []byte {
	done, refused := "subscribed to: ", "cannot subscribe to: "
	if c.Op == dialect.OpUnsubscribe {
		done, refused = "unsubscribed to: ", "cannot unsubscribe from: "
	}
	size := 2
	for i := range c.Params {
		size += 2*len(c.Params[i].Text) + len(c.Params[i].Problem) + 80
	}
	b := append(make([]byte, 0, size), '[')
	for i := range c.Params {
		if i > 0 {
			b = append(b, ',')
		}
		if p := &c.Params[i]; p.Problem == "" {
			b = appendStatus(b, "success", done, p.Text)
		} else {
			b = appendStatus(b, "error", refused, p.Text, ": ", p.Problem)
		}
		b = append(b, '}')
	}
	return append(b, ']')
}

// TopicProblem implements dialect.Dialect.
func (*Dialect) TopicProblem(topic, problem string) []byte {
	return status("error", "cannot subscribe to: ", topic, ": ", problem)
}

// Gap implements dialect.Dialect. From and to are RFC 3339 in UTC with
// milliseconds, rounded outwards; to is null while the gap lasts, from is null
// when the beginning is not known. Topics is there only when the gap concerns
// some topics rather than the market.
func (*Dialect) Gap(g dialect.Gap) []byte {
	message := "events may be missing between from and to"
	if g.To.IsZero() {
		message = "events may be missing until further notice"
	}
	b := appendStatus([]byte{'['}, "gap", message)
	b = append(b, `,"market":"`...)
	b = appendEscaped(b, g.Market)
	b = append(b, `","from":`...)
	b = appendTime(b, g.From)
	b = append(b, `,"to":`...)
	to := g.To
	if rest := to.Nanosecond() % int(time.Millisecond); rest > 0 {
		to = to.Add(time.Millisecond - time.Duration(rest))
	}
	b = appendTime(b, to)
	for i, topic := range g.Topics {
		if i == 0 {
			b = append(b, `,"topics":["`...)
		} else {
			b = append(b, `","`...)
		}
		b = appendEscaped(b, topic)
	}
	if len(g.Topics) > 0 {
		b = append(b, `"]`...)
	}
	return append(b, "}]"...)
}
