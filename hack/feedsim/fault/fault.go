// Package fault is what feedsim does wrong on command: the names of the
// misbehaviours and their arguments (Command), scripts of them with times
// (Script), and which of them last at a moment (State).
//
// The package is pure: it reads no clock, starts no goroutine and does no I/O.
// What a fault does to sockets is the business of package market.
package fault

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cutemarkets/relay/hack/feedsim/tape"
)

// Name is a misbehaviour, or the end of them.
type Name uint8

// The names. Those up to Slow happen at once, the others last.
const (
	Drop         Name = iota // TCP reset of all sockets
	Close                    // close frame with a code and no reason
	Slow                     // killed as a slow consumer: 1008, what was queued is lost
	Huge                     // an event of a great size
	Limit                    // who loses when there are too many connections
	Resume                   // ends all that lasts
	Outage                   // sockets are reset, new ones refused
	Stall                    // events are withheld, pings and messages answered
	Quiesce                  // no events are made
	Ghost                    // ended sockets still count
	AuthFailed               // good keys are refused
	AuthSilent               // keys get no answer
	NoAck                    // acknowledgements are left out
	Acks                     // acknowledgements in other frames
	Unauthorized             // topics refused for want of rights
	Malformed                // frames that are no array of events
	Numbers                  // 12.0 and 1e3 for integers
	Keys                     // keys nobody knows
	Types                    // event types nobody knows
	Sequence                 // "q" that does not rise

	Names int = iota // how many there are
)

// Values of Command.Mode.
const (
	KickOldest   = "kick-oldest"   // of Limit
	RejectNewest = "reject-newest" // of Limit
	Split        = "split"         // of Acks: a frame for each
	Joined       = "joined"        // of Acks: those of several requests in one frame
	Before       = "before"        // of Unauthorized: before the acknowledgements
	After        = "after"         // of Unauthorized
	Truncated    = "truncated"     // of Malformed: cut off in an event
	Garbage      = "garbage"       // of Malformed: no JSON behind the events
	Elements     = "elements"      // of Malformed: elements that are no events
	Object       = "object"        // of Malformed: an event without an array
	BadUTF8      = "utf8"          // of Malformed: an event with invalid UTF-8
	Repeated     = "repeated"      // of Sequence
	Falling      = "falling"       // of Sequence
)

// Command orders one misbehaviour.
type Command struct {
	Name   Name
	Market tape.Market // empty: both

	For      time.Duration // how long it lasts; zero: until Resume
	Next     int           // how often it happens; zero: no limit
	Every    int           // of NoAck and Types: each n-th; zero: of NoAck, all
	Hold     time.Duration // of Ghost and Acks
	Code     int           // of Close
	Size     int           // of Huge, in bytes
	Mode     string
	Topics   []string    // of NoAck; none: all
	Prefixes []tape.Kind // of Unauthorized
	Deliver  bool        // of NoAck: events come nevertheless
}

// spec is the arguments that a command takes besides market.
type spec struct {
	name  string
	keys  []string // a "!" marks those that are needed
	mode  string   // key of the argument for Command.Mode
	modes []string // its values
}

var specs = [Names]spec{
	Drop:         {name: "drop"},
	Close:        {name: "close", keys: []string{"code"}},
	Slow:         {name: "slow"},
	Huge:         {name: "huge", keys: []string{"size"}},
	Limit:        {name: "limit", mode: "rule", modes: []string{KickOldest, RejectNewest}},
	Resume:       {name: "resume"},
	Outage:       {name: "outage", keys: []string{"for!"}},
	Stall:        {name: "stall", keys: []string{"for"}},
	Quiesce:      {name: "quiesce", keys: []string{"for"}},
	Ghost:        {name: "ghost", keys: []string{"hold!", "for", "next"}},
	AuthFailed:   {name: "auth-failed", keys: []string{"for", "next"}},
	AuthSilent:   {name: "auth-silent", keys: []string{"for", "next"}},
	NoAck:        {name: "no-ack", keys: []string{"topics", "every", "deliver", "for", "next"}},
	Acks:         {name: "acks", keys: []string{"hold", "for"}, mode: "mode", modes: []string{Split, Joined}},
	Unauthorized: {name: "unauthorized", keys: []string{"prefix!", "for"}, mode: "order", modes: []string{Before, After}},
	Malformed:    {name: "malformed", keys: []string{"next", "for"}, mode: "kind", modes: []string{Truncated, Garbage, Elements, Object, BadUTF8}},
	Numbers:      {name: "numbers", keys: []string{"for"}},
	Keys:         {name: "keys", keys: []string{"for"}},
	Types:        {name: "types", keys: []string{"every", "for"}},
	Sequence:     {name: "sequence", keys: []string{"for"}, mode: "mode", modes: []string{Repeated, Falling}},
}

const (
	defaultHold  = 200 * time.Millisecond // of Acks
	defaultSize  = 200_000
	maxSize      = 3 << 20 // a line of the ground truth holds it
	minSize      = 100
	plainClose   = 1000
	greatestCode = 4999
)

// ErrUnknown is the error of a name that no command has.
var ErrUnknown = errors.New("no such fault")

// String returns the name as Parse takes it.
func (n Name) String() string {
	if int(n) < Names {
		return specs[n].name
	}
	return fmt.Sprintf("Name(%d)", uint8(n))
}

// Parse reads a command: its name and its arguments by key.
func Parse(name string, arguments map[string]string) (Command, error) {
	n := Name(slices.IndexFunc(specs[:], func(s spec) bool { return s.name == name }))
	if int(n) >= Names {
		return Command{}, fmt.Errorf("%w: %q", ErrUnknown, name)
	}
	c := Command{Name: n}
	switch n {
	case Close:
		c.Code = plainClose
	case Huge:
		c.Size = defaultSize
	case Acks:
		c.Hold = defaultHold
	case Malformed:
		if arguments["for"] == "" {
			c.Next = 1
		}
	case Types:
		c.Every = 1
	case Unauthorized:
		c.Mode = Before
	}
	for _, key := range slices.Sorted(maps.Keys(arguments)) {
		if err := c.set(key, arguments[key]); err != nil {
			return Command{}, fmt.Errorf("%s: %w", name, err)
		}
	}
	for _, key := range specs[n].keys {
		if key, must := strings.CutSuffix(key, "!"); must && arguments[key] == "" {
			return Command{}, fmt.Errorf("%s: %s is missing", name, key)
		}
	}
	if mode := specs[n].mode; mode != "" && c.Mode == "" {
		return Command{}, fmt.Errorf("%s: %s is missing", name, mode)
	}
	return c, nil
}

// set takes one argument.
func (c *Command) set(key, text string) (err error) {
	s := &specs[c.Name]
	switch {
	case key == "market":
		c.Market = tape.Market(text)
		if c.Market != tape.Stocks && c.Market != tape.Options {
			return fmt.Errorf("market: want %s or %s", tape.Stocks, tape.Options)
		}
		return nil
	case key == s.mode:
		c.Mode = text
		if !slices.Contains(s.modes, text) {
			return fmt.Errorf("%s: want one of %s", key, strings.Join(s.modes, ", "))
		}
		return nil
	case !slices.Contains(s.keys, key) && !slices.Contains(s.keys, key+"!"):
		return fmt.Errorf("it takes no %s", key)
	}
	switch key {
	case "for":
		c.For, err = duration(key, text)
	case "hold":
		c.Hold, err = duration(key, text)
	case "next":
		c.Next, err = number(key, text, 1, 1<<30)
	case "every":
		c.Every, err = number(key, text, 1, 1<<30)
	case "code":
		c.Code, err = number(key, text, plainClose, greatestCode)
		if err == nil && slices.Contains([]int{1004, 1005, 1006, 1015}, c.Code) {
			err = fmt.Errorf("code: %d cannot be sent", c.Code)
		}
	case "size":
		c.Size, err = number(key, text, minSize, maxSize)
	case "topics":
		c.Topics = strings.Split(text, ",")
	case "prefix":
		for prefix := range strings.SplitSeq(text, ",") {
			kind, known := tape.ParseKind(tape.Stocks, prefix)
			if !known {
				return fmt.Errorf("prefix: %q is none", prefix)
			}
			c.Prefixes = append(c.Prefixes, kind)
		}
	case "deliver":
		if c.Deliver, err = strconv.ParseBool(text); err != nil {
			err = errors.New("deliver: want true or false")
		}
	}
	return err
}

func duration(key, text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("%s: want a duration such as 3s", key)
	}
	return d, nil
}

func number(key, text string, least, most int) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil || n < least || n > most {
		return 0, fmt.Errorf("%s: want a number from %d to %d", key, least, most)
	}
	return n, nil
}
