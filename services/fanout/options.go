package fanout

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/client-go/tools/leaderelection"

	"github.com/cutemarkets/relay/services/fanout/internal/calendar"
	"github.com/cutemarkets/relay/services/fanout/internal/leader"
	"github.com/cutemarkets/relay/services/fanout/internal/router"
	"github.com/cutemarkets/relay/services/fanout/internal/upstream"
	"github.com/cutemarkets/relay/services/internal/grpcx"
	"github.com/cutemarkets/relay/services/internal/ops"
	"github.com/cutemarkets/relay/services/internal/redisx"
	"github.com/cutemarkets/relay/services/internal/telemetry"
)

// Values of --leader.
const (
	leaderKubernetes = "kubernetes"
	leaderRedis      = "redis"
	leaderStatic     = "static"
	leaderStandby    = "standby"
)

// Values of --trading-hours.
const (
	hoursUS     = "us"
	hoursAlways = "always"
	hoursNever  = "never"
)

// minEdgeQueue is the least bound of an edge's queue: twice what is held back
// during an outage, which is routed at once.
const minEdgeQueue = 8 << 20

// Bounds of what a ring can be. An edge whose stream falls silent needs 3 s to
// notice, and events that are older than a minute are news to nobody.
const (
	minRingAge = time.Second
	maxRingAge = time.Minute
	minRing    = 1 << 20
)

// Options are the flags of the service.
type Options struct {
	Listen          string `name:"listen" default:":9100" placeholder:"ADDRESS" help:"Address of the gRPC listener for edges."`
	TLSCertFile     string `name:"tls-cert-file" placeholder:"FILE" help:"PEM certificate of the gRPC listener, re-read when it changes. Empty: plain text."`
	TLSKeyFile      string `name:"tls-key-file" placeholder:"FILE" help:"PEM private key of the certificate."`
	TLSClientCAFile string `name:"tls-client-ca-file" placeholder:"FILE" help:"PEM certificates of the CA that must have signed the certificate of an edge (mutual TLS). Empty: any edge."`

	Markets         []string `name:"markets" default:"stocks,options" help:"Markets that are relayed: stocks, options."`
	UpstreamURL     string   `name:"upstream-url" default:"wss://socket.massive.com" placeholder:"URL" help:"WebSocket of the vendor; the market is appended, as in wss://socket.massive.com/stocks."`
	UpstreamKeyFile string   `name:"upstream-key-file" placeholder:"FILE" help:"File with the vendor's API key, read at each connection. Needed by a process that can lead."`
	TradingHours    string   `name:"trading-hours" enum:"us,always,never" default:"us" help:"When an upstream that answers pings and sends no events is taken for stalled, if its flow was steady before: us (while US stocks or options trade; in no other market), always or never."`
	CanaryTopics    []string `name:"canary-topics" default:"stocks:A.SPY" placeholder:"MARKET:TOPIC" help:"Topics that have events every few seconds from 09:30 to 16:00 in New York, subscribed by the leader itself: 10s without any event are a stall then. Empty: none. Not used with --trading-hours=never."`
	TopicSlots      []string `name:"topic-slots" default:"options:Q:1000" placeholder:"MARKET:PREFIX:COUNT" help:"How many tickers of a prefix the vendor serves on one connection; more are refused. Empty: any number."`
	Firehose        []string `name:"firehose" placeholder:"MARKET:PREFIX" help:"Prefixes that are subscribed whole, as in stocks:T, whatever clients want: a new topic does not wait for the vendor, at the price of all the events. Not where --topic-slots bounds them."`
	EdgeQueueBytes  int      `name:"edge-queue-bytes" default:"16777216" help:"Bytes that may wait for one edge and market; beyond, its stream is cut, to resume from the recent events or with a gap."`

	RingAge              time.Duration `name:"ring-age" default:"10s" help:"How long the recent events of a market are kept, for an edge whose stream broke: back within this time, it loses nothing."`
	RingBytes            int           `name:"ring-bytes" default:"67108864" help:"Memory that the recent events of a market may take; beyond, the oldest are dropped. 0: none are kept, and a broken stream costs a gap."`
	UpstreamOnLimit      []string      `name:"upstream-on-limit" default:"kick-oldest,options:reject-newest" placeholder:"[MARKET:]RULE" help:"What the vendor does when a key has more connections than it may: kick-oldest (it ends the oldest) or reject-newest (it ends the newest, soon after it was authenticated). A rule without a market is for all that have none of their own."`
	UpstreamGhostTimeout time.Duration `name:"upstream-ghost-timeout" default:"90s" help:"How long the vendor may take to notice that a connection has ended. With reject-newest a place that is taken for longer is reported as stolen."`

	Leader             string        `name:"leader" enum:"kubernetes,redis,static,standby" default:"static" help:"Who holds the upstream of a market: kubernetes (the holder of the market's Lease; in a pod), redis (the holder of the market's lease in Redis), static (this process, for every market; there must be no other) or standby (never this process)."`
	LeaseNamespace     string        `name:"lease-namespace" placeholder:"NAME" help:"Namespace of the Leases. Empty: that of the pod."`
	LeaseName          string        `name:"lease-name" default:"relay-fanout" placeholder:"NAME" help:"The lease of a market is NAME-MARKET. With kubernetes it must exist; the service account needs get and update on it."`
	LeaseDuration      time.Duration `name:"lease-duration" default:"4s" help:"How long a Lease that is not renewed binds the others, in whole seconds: a leader that dies is replaced after it and up to two looks. More than the renew deadline, and at least half of it, the retry period and 2s."`
	LeaseRenewDeadline time.Duration `name:"lease-renew-deadline" default:"2s" help:"How long a leader renews at the retry period when renewals fail; then it tries at the pace of a standby, and leads on. A request may take half of it."`
	LeaseRetryPeriod   time.Duration `name:"lease-retry-period" default:"500ms" help:"Pause between renewals. A standby looks every 1 to 2.2 of them whether the Lease is free."`

	Redis      redisx.Options    `embed:""` // with leaderRedis alone
	Operations ops.Options       `embed:""`
	Telemetry  telemetry.Options `embed:""`
}

// knownMarkets may be named though they are not relayed, as in defaults.
var knownMarkets = []string{"stocks", "options"}

// dnsLabel is what names of Leases and namespaces are made of (RFC 1123).
var dnsLabel = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// marketName is what can be an element of a URL's path and a metric label.
var marketName = regexp.MustCompile(`^[a-z]{1,32}$`)

// topicPrefix is a type of events.
var topicPrefix = regexp.MustCompile(`^[A-Z]{1,8}$`)

// canaryTopic is one ticker of a type of events.
var canaryTopic = regexp.MustCompile(`^[A-Z]{1,8}\.[A-Za-z0-9][A-Za-z0-9.:/_-]{0,31}$`)

// Validate reports values that make no sense.
func (o Options) Validate() error {
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	check(len(o.Markets) > 0, "--markets is empty")
	for i, market := range o.Markets {
		check(marketName.MatchString(market), "--markets has %q, must be lower-case letters", market)
		check(!slices.Contains(o.Markets[:i], market), "--markets has %q twice", market)
	}
	check(validUpstream(o.UpstreamURL), "--upstream-url must be a ws:// or wss:// URL with a host, without user, query and fragment")
	check(slices.Contains([]string{leaderKubernetes, leaderRedis, leaderStatic, leaderStandby}, o.Leader),
		"--leader is %q, must be kubernetes, redis, static or standby", o.Leader)
	check(o.Leader == leaderStandby || o.UpstreamKeyFile != "", "--upstream-key-file is missing: the file with the vendor's API key")
	check(o.TradingHours == hoursUS || o.TradingHours == hoursAlways || o.TradingHours == hoursNever,
		"--trading-hours is %q, must be us, always or never", o.TradingHours)
	for _, canary := range o.CanaryTopics {
		market, topic, _ := strings.Cut(canary, ":")
		check(marketName.MatchString(market) && canaryTopic.MatchString(topic),
			"--canary-topics has %q, must be a market and a topic of one ticker, as in stocks:A.SPY", canary)
	}
	slots, err := o.topicSlots()
	check(err == nil, "%w", err)
	for _, list := range []struct {
		flag    string
		entries []string
	}{{"--canary-topics", o.CanaryTopics}, {"--topic-slots", o.TopicSlots}, {"--firehose", o.Firehose}, {"--upstream-on-limit", o.UpstreamOnLimit}} {
		for _, entry := range list.entries {
			market, _, named := strings.Cut(entry, ":")
			check(!named || slices.Contains(o.Markets, market) || slices.Contains(knownMarkets, market),
				"%s has %q, but %s is no market (--markets)", list.flag, entry, market)
		}
	}
	for _, firehose := range o.Firehose {
		market, prefix, _ := strings.Cut(firehose, ":")
		check(marketName.MatchString(market) && topicPrefix.MatchString(prefix),
			"--firehose has %q, must be a market and a prefix, as in stocks:T", firehose)
		check(slots[market][prefix] == 0, "--firehose has %q, of which --topic-slots says that the vendor serves it by the ticker", firehose)
	}
	o.validateOnLimit(check)
	check(o.EdgeQueueBytes >= minEdgeQueue, "--edge-queue-bytes is %d, must be at least %d", o.EdgeQueueBytes, minEdgeQueue)
	check(o.RingAge >= minRingAge && o.RingAge <= maxRingAge, "--ring-age is %v, must be %v to %v", o.RingAge, minRingAge, maxRingAge)
	check(o.RingBytes == 0 || o.RingBytes >= minRing, "--ring-bytes is %d, must be 0 or at least %d", o.RingBytes, minRing)
	switch o.Leader {
	case leaderKubernetes:
		o.validateLeaseName(check)
		o.validateLease(check)
	case leaderRedis:
		o.validateLeaseName(check)
		errs = append(errs, o.Redis.Validate())
	}
	return errors.Join(append(errs, o.grpc().Validate(), o.Operations.Validate(), o.Telemetry.Validate())...)
}

func (o Options) validateOnLimit(check func(ok bool, format string, args ...any)) {
	rules := make(map[string]bool)
	for _, entry := range o.UpstreamOnLimit {
		market, rule := limitEntry(entry)
		check(!strings.HasPrefix(entry, ":") && (market == "" || marketName.MatchString(market)) && (rule == upstream.KickOldest || rule == upstream.RejectNewest),
			"--upstream-on-limit has %q, must be kick-oldest or reject-newest, with a market before it or none, as in options:reject-newest", entry)
		check(!rules[market], "--upstream-on-limit has %q, but an earlier rule for the same markets", entry)
		rules[market] = true
	}
	for _, market := range o.Markets {
		check(rules[market] || rules[""], "--upstream-on-limit has no rule for %s: add %[1]s:kick-oldest or %[1]s:reject-newest, or a rule without a market", market)
	}
	check(o.UpstreamGhostTimeout > 0, "--upstream-ghost-timeout is %v, must be more than 0", o.UpstreamGhostTimeout)
}

// limitEntry is an entry of --upstream-on-limit; no market: of all others.
func limitEntry(entry string) (market string, rule upstream.LimitRule) {
	market, name, ok := strings.Cut(entry, ":")
	if !ok {
		return "", upstream.LimitRule(entry)
	}
	return market, upstream.LimitRule(name)
}

// limit is the vendor's limit of a market.
func (o Options) limit(market string) upstream.Limit {
	l := upstream.Limit{GhostTimeout: o.UpstreamGhostTimeout}
	for _, entry := range o.UpstreamOnLimit {
		switch of, rule := limitEntry(entry); of {
		case market:
			l.Rule = rule
			return l
		case "":
			l.Rule = rule
		}
	}
	return l
}

func (o Options) validateLeaseName(check func(ok bool, format string, args ...any)) {
	for _, market := range o.Markets {
		name := o.LeaseName + "-" + market
		check(dnsLabel.MatchString(name), "--lease-name makes the lease %q, must be a DNS label: a-z, 0-9 and -, at most 63", name)
	}
}

func (o Options) validateLease(check func(ok bool, format string, args ...any)) {
	check(o.LeaseNamespace == "" || dnsLabel.MatchString(o.LeaseNamespace), "--lease-namespace is %q, must be a DNS label", o.LeaseNamespace)
	check(o.LeaseDuration >= time.Second && o.LeaseDuration%time.Second == 0,
		"--lease-duration is %v, must be whole seconds: a Lease has no fractions", o.LeaseDuration)
	// The proof of a leadership ends by CloseWait before the duration.
	least := o.LeaseRetryPeriod + o.LeaseRenewDeadline/2 + upstream.CloseWait
	check(o.LeaseDuration >= least,
		"--lease-duration is %v, must be at least %v: --lease-retry-period and half of --lease-renew-deadline, so that a renewal may hang once, and %v to end a connection that is being made before another process may make one",
		o.LeaseDuration, least, upstream.CloseWait)
	check(o.LeaseDuration > o.LeaseRenewDeadline, "--lease-duration is %v, must be more than --lease-renew-deadline, which is %v",
		o.LeaseDuration, o.LeaseRenewDeadline)
	check(o.LeaseRetryPeriod > 0, "--lease-retry-period is %v, must be more than 0", o.LeaseRetryPeriod)
	check(float64(o.LeaseRenewDeadline) > leaderelection.JitterFactor*float64(o.LeaseRetryPeriod),
		"--lease-renew-deadline is %v, must be more than %v times --lease-retry-period, which is %v",
		o.LeaseRenewDeadline, leaderelection.JitterFactor, o.LeaseRetryPeriod)
}

func (o Options) lease() leader.LeaseConfig {
	return leader.LeaseConfig{
		Namespace:     o.LeaseNamespace,
		Name:          o.LeaseName,
		Duration:      o.LeaseDuration,
		RenewDeadline: o.LeaseRenewDeadline,
		RetryPeriod:   o.LeaseRetryPeriod,
		Closing:       upstream.CloseWait,
	}
}

// upstream is what a market's upstream is made from.
func (o Options) upstream(market string) upstream.Config {
	c := upstream.Config{URL: o.UpstreamURL, KeyFile: o.UpstreamKeyFile, Hours: calendar.Never, Limit: o.limit(market), Firehose: ofMarket(o.Firehose, market)}
	if slots, err := o.topicSlots(); err == nil {
		c.Slots = slots[market]
	}
	switch {
	case o.TradingHours == hoursNever:
		return c
	case o.TradingHours == hoursAlways:
		c.Hours = calendar.Always
	case market == "stocks":
		c.Hours = calendar.Stocks
	case market == "options":
		c.Hours = calendar.Options
	}
	c.Canaries = ofMarket(o.CanaryTopics, market)
	return c
}

// ofMarket returns what is behind MARKET: in the elements of a market.
func ofMarket(list []string, market string) (rest []string) {
	for _, element := range list {
		if what, ok := strings.CutPrefix(element, market+":"); ok {
			rest = append(rest, what)
		}
	}
	return rest
}

// topicSlots reads --topic-slots: counts by market and prefix.
func (o Options) topicSlots() (map[string]map[string]int, error) {
	slots := make(map[string]map[string]int)
	for _, element := range o.TopicSlots {
		market, rest, _ := strings.Cut(element, ":")
		prefix, count, _ := strings.Cut(rest, ":")
		n, err := strconv.Atoi(count)
		if !marketName.MatchString(market) || !topicPrefix.MatchString(prefix) || err != nil || n < 1 {
			return nil, fmt.Errorf("--topic-slots has %q, must be a market, a prefix and a count of at least 1, as in options:Q:1000", element)
		}
		if slots[market] == nil {
			slots[market] = make(map[string]int)
		}
		if slots[market][prefix] != 0 {
			return nil, fmt.Errorf("--topic-slots has %s:%s twice", market, prefix)
		}
		slots[market][prefix] = n
	}
	return slots, nil
}

// validUpstream refuses what would carry a key in the URL.
func validUpstream(raw string) bool {
	u, err := url.Parse(raw)
	return err == nil && (u.Scheme == "ws" || u.Scheme == "wss") && u.Host != "" &&
		u.User == nil && u.RawQuery == "" && u.Fragment == ""
}

func (o Options) ring() router.RingBounds {
	return router.RingBounds{Age: o.RingAge, Bytes: o.RingBytes}
}

func (o Options) grpc() grpcx.ServerOptions {
	return grpcx.ServerOptions{
		Listen:          o.Listen,
		TLSCertFile:     o.TLSCertFile,
		TLSKeyFile:      o.TLSKeyFile,
		TLSClientCAFile: o.TLSClientCAFile,
	}
}
