package loadtest

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cutemarkets/relay/hack/loadtest/scenario"
	"github.com/cutemarkets/relay/hack/loadtest/tally"
	"github.com/cutemarkets/relay/hack/loadtest/worker"
)

// Flags are those that all scenarios have.
type Flags struct {
	Target      []string      `name:"target" sep:"none" required:"" group:"Connections" placeholder:"URL" help:"Where to connect to: ws://HOST:PORT (the market's path is appended) or a whole URL; wss:// for TLS. Repeatable: connections take turns."`
	Market      string        `name:"market" group:"Connections" default:"stocks" enum:"stocks,options" help:"Market to stream: stocks or options."`
	Keys        string        `name:"keys" group:"Connections" required:"" type:"existingfile" placeholder:"FILE" help:"API keys, one per line, each of another user, for a connection each: as auth keys create --numbered N prints them."`
	KeyIn       string        `name:"key-in" group:"Connections" default:"header" enum:"header,query" help:"Where the key goes: header or query."`
	Connections int           `name:"connections" short:"n" group:"Connections" default:"100" help:"Connections in all, over all workers and shards."`
	Rate        float64       `name:"rate" group:"Connections" default:"100" help:"Connections to open per second, in all. A storm has none."`
	Source      []string      `name:"source" group:"Connections" placeholder:"ADDR" help:"Addresses to connect from: one, or a network such as 127.0.0.0/8. Repeatable."`
	CA          string        `name:"ca" group:"Connections" type:"existingfile" placeholder:"FILE" help:"Certificates that have signed those of wss:// targets, PEM. Without it, the system's."`
	Deflate     bool          `name:"deflate" group:"Connections" help:"Offer permessage-deflate."`
	Duration    time.Duration `name:"duration" group:"Connections" placeholder:"TIME" help:"Time of the run, the opening of the connections included. Without it 30s; drain: 5m; soak: 1h."`

	Topics  string  `name:"topics" group:"Topics" placeholder:"LIST" help:"Topics that each connection subscribes to, such as T.AAPL,AM.*. Without it or --symbols: none for ramp, storm and idle, else T.*."`
	Symbols string  `name:"symbols" group:"Topics" type:"existingfile" placeholder:"FILE" help:"Symbols, one per line, the most popular first: each connection subscribes to some of them."`
	Prefix  string  `name:"prefix" group:"Topics" default:"T" help:"What is put before each symbol, with a dot, to make a topic of it."`
	Each    int     `name:"topics-per-connection" group:"Topics" default:"10" help:"How many symbols each connection subscribes to."`
	Zipf    float64 `name:"zipf" group:"Topics" default:"1" help:"How steeply the popularity of symbols falls: the n-th is chosen as 1/n^ZIPF. 0: all alike."`

	StampField  string        `name:"stamp-field" group:"Measuring" default:"ts" help:"Field of an event with the time it was sent, in unix ns, µs or ms, that latencies count from: ts of feedsim --stamp, t of a vendor. Empty: none."`
	NumberField string        `name:"number-field" group:"Measuring" default:"n" help:"Field of an event with its sequence in the ground truth: n of feedsim --number=market."`
	Truth       string        `name:"truth" group:"Measuring" type:"existingfile" placeholder:"FILE" help:"Ground truth that feedsim --truth writes, on this machine: losses are judged by it."`
	Settle      time.Duration `name:"settle" group:"Measuring" default:"2s" help:"Judge losses of a connection from so long after it was ready: the first client of a topic makes the relay ask the vendor for it."`
	Pid         []int         `name:"pid" group:"Measuring" placeholder:"PID" help:"Process of the server on this machine whose CPU and memory are sampled once a second. Repeatable."`
	MetricsURL  []string      `name:"metrics-url" sep:"none" group:"Measuring" placeholder:"URL" help:"The same from metrics in the Prometheus format, such as http://edge:9090/metrics. Repeatable."`

	Outputs
	Prometheus string `name:"prometheus" group:"Output" placeholder:"ADDR" help:"Address to serve /metrics of the run at, while it lasts."`

	Workers int   `name:"workers" group:"Workers" default:"1" help:"Processes on this machine that share the connections."`
	Shard   Shard `name:"shard" group:"Workers" default:"0/1" placeholder:"I/N" help:"Do the I-th of N parts (from 0): the others run elsewhere with the same flags. Merge the results with loadtest merge."`
}

// Outputs say where the result goes.
type Outputs struct {
	JSON   string   `name:"json" group:"Output" type:"path" placeholder:"FILE" help:"Write the result as JSON; -: to the standard output, and the summary to the standard error."`
	HTML   string   `name:"html" group:"Output" type:"path" placeholder:"FILE" help:"Write the result as one HTML page that needs nothing else."`
	FailIf []string `name:"fail-if" sep:"none" group:"Output" placeholder:"THRESHOLD" help:"Exit with status 99 when this is true of the result, such as 'p99>50ms' or 'loss>0'. Repeatable; loadtest thresholds lists all figures."`
}

// thresholds parses them.
func (o *Outputs) thresholds() ([]tally.Threshold, error) {
	var all []tally.Threshold
	var errs []error
	for _, text := range o.FailIf {
		t, err := tally.ParseThreshold(text)
		all, errs = append(all, t), append(errs, err)
	}
	return all, errors.Join(errs...)
}

// Shard is one of several parts of a run.
type Shard struct{ Index, Of int }

// UnmarshalText reads I/N.
func (s *Shard) UnmarshalText(text []byte) error {
	index, of, found := strings.Cut(string(text), "/")
	i, err := strconv.Atoi(index)
	n, errOf := strconv.Atoi(of)
	if !found || err != nil || errOf != nil || i < 0 || i >= n {
		return fmt.Errorf("%q is no shard: write I/N, with I from 0 to N-1", text)
	}
	s.Index, s.Of = i, n
	return nil
}

// maxWorkers bounds the processes, and maxSources the addresses they connect from.
const (
	maxWorkers = 256
	maxSources = 4096
)

// perSource is how many connections come from one address where there is a
// choice: beyond 5,000 to one target the kernel searches long for a free port.
const perSource = 2000

// assignments shares the run out among the workers of this machine.
func (f *Flags) assignments(s scenario.Settings, machine string, parameters []tally.Parameter) ([]worker.Assignment, error) {
	if f.Workers < 1 || f.Workers > maxWorkers {
		return nil, fmt.Errorf("--workers is %d, must be from 1 to %d", f.Workers, maxWorkers)
	}
	all := f.Workers * f.Shard.Of
	if s.Connections < all {
		return nil, fmt.Errorf("%d connections are too few for %d workers: raise --connections", s.Connections, all)
	}
	if f.Truth != "" && f.NumberField == "" {
		return nil, errors.New("--truth needs --number-field")
	}
	keys, err := readKeys(f.Keys, s.Connections)
	if err != nil {
		return nil, err
	}
	targets, err := f.urls()
	if err != nil {
		return nil, err
	}
	sources, err := f.sources()
	if err != nil {
		return nil, err
	}
	if err := ports(s.Connections/f.Shard.Of, len(targets)*max(1, len(sources))); err != nil {
		return nil, err
	}
	var list []worker.Assignment
	for i := range f.Workers {
		a := worker.Assignment{
			Scenario: s, Worker: f.Shard.Index*f.Workers + i, Workers: all,
			Targets: targets, Sources: sources, InQuery: f.KeyIn == "query", Deflate: f.Deflate, CA: f.CA,
			Stamp: f.StampField, Number: f.NumberField, Truth: f.Truth, Market: f.Market, Settle: f.Settle, Parameters: parameters,
		}
		a.Tester = fmt.Sprintf("%s-%d", machine, a.Worker)
		if i == 0 {
			a.Pids, a.Metrics = f.Pid, f.MetricsURL
		}
		for number := a.Worker; number < s.Connections; number += all {
			a.Keys = append(a.Keys, keys[number])
		}
		list = append(list, a)
	}
	return list, nil
}

// readKeys reads as many keys as there are connections.
func readKeys(file string, connections int) ([]string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("--keys: %w", err)
	}
	keys := strings.Fields(string(text))
	if len(keys) < connections {
		return nil, fmt.Errorf("--keys: %d connections need as many keys, and %s has %d: make more (auth users set --user load --numbered %d --plan-stocks expert; auth keys create --user load --numbered %d --product stocks), or lower --connections",
			connections, file, len(keys), connections, connections)
	}
	return keys[:connections], nil
}

// urls are the targets, with the market's path where they have none.
func (f *Flags) urls() ([]string, error) {
	var all []string
	for _, text := range f.Target {
		u, err := url.Parse(text)
		if err != nil || u.Scheme != "ws" && u.Scheme != "wss" || u.Host == "" {
			return nil, fmt.Errorf("--target: %q is no target: write ws://HOST:PORT, wss://HOST:PORT, or a whole URL", text)
		}
		if strings.Trim(u.Path, "/") == "" {
			u.Path = "/v1/ws/" + f.Market + "/"
		}
		all = append(all, u.String())
	}
	return all, nil
}

// sources are as many addresses as the connections need, of those given.
func (f *Flags) sources() ([]netip.Addr, error) {
	needed := min((f.Connections+perSource-1)/perSource, maxSources)
	var all []netip.Addr
	for _, text := range f.Source {
		if address, err := netip.ParseAddr(text); err == nil {
			all = append(all, address)
			continue
		}
		network, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("--source: %q is neither an address nor a network such as 127.0.0.0/8", text)
		}
		// The network's own address is left out.
		next := network.Masked().Addr().Next()
		for range needed {
			if network.Contains(next) {
				all = append(all, next)
			}
			next = next.Next()
		}
	}
	slices.SortFunc(all, netip.Addr.Compare)
	return slices.Compact(all), nil
}

const portRange = "/proc/sys/net/ipv4/ip_local_port_range"

// ports reports whether there are ports enough for connections between so many
// pairs of a source and a target.
func ports(connections, pairs int) error {
	text, err := os.ReadFile(portRange)
	if err != nil {
		return nil //nolint:nilerr // not known here: what fails is counted as no_port
	}
	var first, last int
	if _, err := fmt.Sscan(string(text), &first, &last); err != nil {
		return nil //nolint:nilerr // as above
	}
	if needed, there := (connections+pairs-1)/pairs, last-first+1; needed > there {
		return fmt.Errorf("%d connections from one address to one target need as many ports, and this machine has %d (net.ipv4.ip_local_port_range): give more addresses with --source (on this machine 127.0.0.0/8), or more targets",
			needed, there)
	}
	return nil
}

// topics are those of the scenario.
func (f *Flags) topics(otherwise string) (scenario.Topics, error) {
	t := scenario.Topics{List: f.Topics, Prefix: f.Prefix, Each: f.Each, Zipf: f.Zipf}
	if f.Symbols != "" {
		text, err := os.ReadFile(f.Symbols)
		if err != nil {
			return t, fmt.Errorf("--symbols: %w", err)
		}
		if t.Symbols = strings.Fields(string(text)); len(t.Symbols) == 0 {
			return t, fmt.Errorf("--symbols: %s has none", f.Symbols)
		}
		return t, nil
	}
	if t.List == "" {
		t.List = otherwise
	}
	return t, nil
}
