package feedsim

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cutemarkets/relay/hack/feedsim/market"
	"github.com/cutemarkets/relay/hack/feedsim/recording"
	"github.com/cutemarkets/relay/hack/feedsim/session"
	"github.com/cutemarkets/relay/hack/feedsim/tape"
)

// Options are the flags of `feedsim serve`.
type Options struct {
	Listen        string `name:"listen" group:"Listeners" default:"127.0.0.1:7100" help:"Address of the WebSocket endpoints /stocks and /options."`
	ControlListen string `name:"control-listen" group:"Listeners" placeholder:"HOST:PORT" help:"Address of the control API; without it the API is served on the address of the endpoints."`

	Keys           []session.Key `name:"key" group:"Clients" placeholder:"KEY" help:"API key to accept; may be repeated."`
	KeyFile        string        `name:"key-file" group:"Clients" type:"path" placeholder:"FILE" help:"File with API keys to accept, one per line."`
	Unauthorized   []string      `name:"unauthorized" group:"Clients" placeholder:"PREFIX" help:"Topic prefixes answered with 'not authorized', such as NOI."`
	MaxConnections int           `name:"max-connections" group:"Clients" default:"1" help:"Authenticated connections per market."`
	OnLimit        LimitRules    `name:"on-limit" group:"Clients" default:"kick-oldest" help:"Who loses when there are more: kick-oldest or reject-newest, or for each market: stocks=kick-oldest,options=reject-newest."`
	AuthTimeout    time.Duration `name:"auth-timeout" group:"Clients" default:"10s" help:"Time a connection has to send its key."`
	Buffer         int           `name:"buffer" group:"Clients" default:"16777216" help:"Bytes that may wait for a client before it is cut off as too slow."`

	Rate     Rates         `name:"rate" group:"Events" default:"200" help:"Events per second, on average: a number for each market, or stocks=N,options=N."`
	Symbols  int           `name:"symbols" group:"Events" default:"4000" help:"Tickers per market."`
	Minute   time.Duration `name:"minute" group:"Events" default:"5s" help:"Length of an AM window; the vendor's is 1m."`
	Seed     uint64        `name:"seed" group:"Events" default:"1" help:"The sequence of events, and the times of random faults, follow from it."`
	Start    time.Time     `name:"start" group:"Events" placeholder:"RFC3339" help:"Time the events begin at; without it they carry the time of the clock."`
	Stamp    bool          `name:"stamp" group:"Events" help:"Append \"ts\", the time in unix nanoseconds, to each event."`
	Number   string        `name:"number" group:"Events" enum:"none,topic,market" default:"none" help:"Append \"n\" to each event: its number in its topic, or in its market as in the ground truth, from 1 on without a hole."`
	Quiesced bool          `name:"quiesced" group:"Events" help:"Begin without events, until POST /resume, or POST /emit for a number of them."`

	Replay      string          `name:"replay" group:"Events" type:"path" placeholder:"FILE" help:"Send the events of a recording, once, instead of invented ones."`
	ReplaySpeed recording.Speed `name:"replay-speed" group:"Events" default:"1x" help:"1x as recorded, 10x ten times as fast, max as fast as the clients take it."`

	Script string `name:"script" group:"Faults and files" type:"path" placeholder:"FILE" help:"Faults to commit, with their times after the start; README.md has the format."`
	Truth  string `name:"truth" group:"Faults and files" type:"path" placeholder:"FILE" help:"Append all events, and when clients lost them, to this file."`
	Record string `name:"record" group:"Faults and files" type:"path" placeholder:"FILE" help:"Append the frames of events that were sent, for --replay."`
}

// byMarket reads one value for both markets, or market=value pairs with commas
// between them.
func byMarket(text string, set func(m tape.Market, value string) error) error {
	if !strings.Contains(text, "=") {
		return errors.Join(set(tape.Stocks, text), set(tape.Options, text))
	}
	for pair := range strings.SplitSeq(text, ",") {
		name, value, _ := strings.Cut(pair, "=")
		if m := tape.Market(name); m != tape.Stocks && m != tape.Options {
			return fmt.Errorf("unknown market %q", name)
		}
		if err := set(tape.Market(name), value); err != nil {
			return err
		}
	}
	return nil
}

// Rates has the events per second of each market.
type Rates struct{ Stocks, Options int }

// UnmarshalText reads one rate for both markets, or market=rate pairs with commas
// between them.
func (r *Rates) UnmarshalText(text []byte) error {
	return byMarket(string(text), func(m tape.Market, value string) error {
		rate, err := strconv.Atoi(value)
		if err != nil {
			return fmt.Errorf("rate %q: want a whole number", value)
		}
		if m == tape.Stocks {
			r.Stocks = rate
		} else {
			r.Options = rate
		}
		return nil
	})
}

// LimitRules has a rule for each market.
type LimitRules struct{ Stocks, Options market.LimitRule }

// UnmarshalText reads one rule for both markets, or market=rule pairs with
// commas between them.
func (l *LimitRules) UnmarshalText(text []byte) error {
	err := byMarket(string(text), func(m tape.Market, value string) error {
		if m == tape.Stocks {
			l.Stocks = market.LimitRule(value)
		} else {
			l.Options = market.LimitRule(value)
		}
		return nil
	})
	return errors.Join(err, l.validate())
}

func (l *LimitRules) validate() error {
	for _, rule := range []market.LimitRule{l.Stocks, l.Options} {
		if rule != market.KickOldest && rule != market.RejectNewest {
			return fmt.Errorf("limit rule %q: want %s or %s, for each market", rule, market.KickOldest, market.RejectNewest)
		}
	}
	return nil
}

// Validate reports what is wrong with the options, all at once.
func (o *Options) Validate() error {
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	check(o.Listen != "", "--listen: an address is needed")
	check(len(o.Keys) > 0 || o.KeyFile != "", "--key or --key-file: a key to accept is needed")
	check(!slices.Contains(o.Keys, ""), "--key: must not be empty")
	check(o.MaxConnections >= 1, "--max-connections: want at least 1, got %d", o.MaxConnections)
	check(o.AuthTimeout > 0, "--auth-timeout: want more than 0, got %s", o.AuthTimeout)
	check(o.Buffer >= minBuffer, "--buffer: want at least %d, got %d", minBuffer, o.Buffer)
	for _, rate := range []int{o.Rate.Stocks, o.Rate.Options} {
		check(rate >= 1 && rate <= maxRate, "--rate: want 1 to %d for each market, got %d", maxRate, rate)
	}
	check(o.Symbols >= 1 && o.Symbols <= tape.MaxSymbols, "--symbols: want 1 to %d, got %d", tape.MaxSymbols, o.Symbols)
	check(o.Minute >= time.Second && o.Minute%time.Second == 0, "--minute: want whole seconds, got %s", o.Minute)
	check(o.Replay == "" || o.ReplaySpeed > 0, "--replay-speed: want more than 0")
	check(o.Replay == "" || o.Replay != o.Record, "--replay and --record: want two files")
	for _, p := range o.Unauthorized {
		_, known := tape.ParseKind(tape.Stocks, p)
		check(known, "--unauthorized: unknown topic prefix %q", p)
	}
	if err := o.OnLimit.validate(); err != nil {
		errs = append(errs, fmt.Errorf("--on-limit: %w", err))
	}
	return errors.Join(errs...)
}

const (
	minBuffer = 1 << 20 // a frame must fit
	maxRate   = 5_000_000
)

// keys gathers the accepted keys. The error names the file, never its content.
func (o *Options) keys() (map[session.Key]struct{}, error) {
	keys := make(map[session.Key]struct{})
	for _, k := range o.Keys {
		keys[k] = struct{}{}
	}
	if o.KeyFile == "" {
		return keys, nil
	}
	text, err := os.ReadFile(o.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("read key file: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		if k := strings.TrimSpace(line); k != "" {
			keys[session.Key(k)] = struct{}{}
		}
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("read key file %s: it holds no key", o.KeyFile)
	}
	return keys, nil
}
