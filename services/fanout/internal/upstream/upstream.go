// Package upstream holds the conversation with the vendor: one WebSocket of a
// market, for as long as the process leads it. The conversation itself is
// Session, a state machine without I/O; Upstream gives it a socket and a clock.
// Whether the connection works is judged twice: by pings, at all hours, and by
// its events, while there is trading.
//
// Per market and leadership there is one loop (the caller of Run) and, while a
// socket is open, one goroutine that reads it, one that writes and one that
// pings. The reader hands events to the router and does nothing that can wait:
// logs and writes are left to the others. Two queues are bounded: what is to be
// written (8 MiB; overflow ends the connection as timeout) and the events held
// back while subscriptions are taken up again (4 MiB; overflow ends the hold).
// There is never more than one socket: a new one is dialed after the old one has
// ended on both sides or has been cut off.
package upstream

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/cutemarkets/relay/services/fanout/internal/calendar"
	"github.com/cutemarkets/relay/services/fanout/internal/leader"
	"github.com/cutemarkets/relay/services/fanout/internal/router"
)

// CloseWait is how long the vendor may take to end a connection that we close;
// then it is cut off.
const CloseWait = 2 * time.Second

// Upstream is the upstream of one market.
type Upstream struct {
	// Static after construction.
	url    string // of the market
	config Config
	router *router.Router
	log    *slog.Logger
	times  times
	dial   func(ctx context.Context, network, address string) (net.Conn, error) // gives a halfCloser

	state        atomic.Uint32 // State
	lastMessage  atomic.Int64  // unix nanoseconds of the last frame; 0: none yet
	lag          atomic.Int64  // nanoseconds for which the last event was under way
	lost         [causeEnd]atomic.Uint64
	malformed    []atomic.Uint64 // by router.Fault
	silenceLimit atomic.Int64    // nanoseconds; see Session.SilenceLimit
	slotsUsed    map[string]*atomic.Int64
	refused      atomic.Uint64 // topics, for want of a slot
}

// Config says where the vendor is and what is expected of it.
type Config struct {
	URL      string         // ws or wss; the market is appended as its last path element
	KeyFile  string         // with the vendor's key, read at each connection
	Hours    calendar.Hours // of trading, outside of which silence means nothing
	Canaries []string       // topics that are never silent in regular trading
	Slots    map[string]int // how many exact topics the vendor serves, by prefix; none: as many as wanted
	Firehose []string       // prefixes whose wildcard is always subscribed
	Limit    Limit          // of connections
}

// times are the waits of the socket.
type times struct {
	dial      time.Duration // for a connection, with its handshakes
	write     time.Duration // for one message
	pingEvery time.Duration
	pingWait  time.Duration // for the pong, or for anything else
	hangUp    time.Duration // for the vendor's end of a connection that we close
}

// New makes the upstream of the router's market.
func New(c Config, r *router.Router, log *slog.Logger) *Upstream {
	u := &Upstream{
		url:    strings.TrimRight(c.URL, "/") + "/" + r.Market(),
		config: c,
		router: r,
		log:    log.With(slog.String("component", "upstream"), slog.String("market", r.Market())),
		times: times{
			dial:      10 * time.Second,
			write:     10 * time.Second,
			pingEvery: 20 * time.Second,
			pingWait:  10 * time.Second,
			hangUp:    CloseWait,
		},
		dial:      http.DefaultTransport.(*http.Transport).DialContext,
		malformed: make([]atomic.Uint64, len(router.AllFaults())),
		slotsUsed: make(map[string]*atomic.Int64),
	}
	for prefix := range c.Slots {
		u.slotsUsed[prefix] = new(atomic.Int64)
	}
	return u
}

// Run leads the market: it holds the vendor's feed until ctx ends, and returns
// when the socket is closed. While leadership is not proven it keeps the socket
// it has, and makes none. It has the form of leader.Work.
func (u *Upstream) Run(ctx context.Context, l leader.Leadership) error {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	defer transport.CloseIdleConnections()
	r := newRun(u, l.Proof, &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	})
	transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := u.dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		l := &lingering{halfCloser: conn.(halfCloser), until: &r.lingerUntil}
		r.conn.Store(l)
		return l, nil
	}
	r.lead(ctx, l)
	return nil
}

// Observe registers the metrics of upstreams.
func Observe(meter metric.Meter, upstreams []*Upstream) error {
	state, err1 := meter.Int64ObservableGauge("relay_fanout_upstream_state",
		metric.WithDescription("0 standby, 1 connecting, 2 live, 3 refused (auth_failed), 4 stolen (a stranger uses the key), 5 waiting (for the vendor to free our place), 6 unproven (would connect, but for proof of its lease)."))
	last, err2 := meter.Float64ObservableGauge("relay_fanout_upstream_last_message_timestamp_seconds",
		metric.WithDescription("When the last frame of the upstream came, in Unix time; 0: none yet."))
	lost, err3 := meter.Int64ObservableCounter("relay_fanout_upstream_disconnects_total",
		metric.WithDescription("Ends of upstream connections, and attempts that made none, by cause."))
	limit, err5 := meter.Float64ObservableGauge("relay_fanout_upstream_silence_limit_seconds",
		metric.WithDescription("The silence of the upstream that counts as a stall; 0: none does. After stall upon stall it grows from 10 to 300."))
	lag, err9 := meter.Float64ObservableGauge("relay_fanout_upstream_lag_seconds",
		metric.WithDescription("For how long the last event was under way, by its own time stamp; 0 without one, or if it is older than a minute."))
	slots, err6 := meter.Int64ObservableGauge("relay_fanout_topic_slots",
		metric.WithDescription("How many topics of a prefix the vendor serves."))
	used, err7 := meter.Int64ObservableGauge("relay_fanout_topic_slots_used",
		metric.WithDescription("Topics of a prefix that are subscribed at the vendor, where it serves only so many."))
	refused, err8 := meter.Int64ObservableCounter("relay_fanout_topics_refused_total",
		metric.WithDescription("Topics refused because all slots were taken."))
	malformed, err4 := meter.Int64ObservableCounter("relay_fanout_malformed_total",
		metric.WithDescription("Upstream frames, rests of frames, and events dropped as malformed, by reason."))
	for _, err := range []error{err1, err2, err3, err4, err5, err6, err7, err8, err9} {
		if err != nil {
			return fmt.Errorf("upstream: metrics: %w", err)
		}
	}
	_, err := meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		for _, u := range upstreams {
			market := attribute.String("market", u.router.Market())
			o.ObserveInt64(state, int64(u.state.Load()), metric.WithAttributes(market))
			o.ObserveFloat64(last, float64(u.lastMessage.Load())/1e9, metric.WithAttributes(market))
			o.ObserveFloat64(lag, time.Duration(u.lag.Load()).Seconds(), metric.WithAttributes(market))
			o.ObserveFloat64(limit, time.Duration(u.silenceLimit.Load()).Seconds(), metric.WithAttributes(market))
			o.ObserveInt64(refused, int64(u.refused.Load()), metric.WithAttributes(market))
			for prefix, n := range u.config.Slots {
				of := metric.WithAttributes(market, attribute.String("ev", prefix))
				o.ObserveInt64(slots, int64(n), of)
				o.ObserveInt64(used, u.slotsUsed[prefix].Load(), of)
			}
			for cause := CauseNone + 1; cause < causeEnd; cause++ {
				o.ObserveInt64(lost, int64(u.lost[cause].Load()),
					metric.WithAttributes(market, attribute.String("cause", cause.String())))
			}
			for _, fault := range router.AllFaults() {
				o.ObserveInt64(malformed, int64(u.malformed[fault].Load()),
					metric.WithAttributes(market, attribute.String("reason", fault.String())))
			}
		}
		return nil
	}, state, last, lost, malformed, limit, lag, slots, used, refused)
	if err != nil {
		return fmt.Errorf("upstream: metrics: %w", err)
	}
	return nil
}
