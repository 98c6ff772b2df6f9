package feed

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// cause is why events may be missing; the label of a gap.
type cause uint8

const (
	causeStart cause = iota
	causeHole
	causeEpoch
	causeFanout
	causeMalformed
	causeUpstream
	causeSilence
	causeEnd
)

var causeNames = [causeEnd]string{
	causeStart:     "start",
	causeHole:      "hole",
	causeEpoch:     "epoch",
	causeFanout:    "fanout",
	causeMalformed: "malformed",
	causeUpstream:  "upstream",
	causeSilence:   "silence",
}

// ending is why a stream ended; the label of its counter.
type ending uint8

const (
	endingError  ending = iota // the pod went away, refused or ended the stream
	endingCut                  // RESOURCE_EXHAUSTED: this edge read too slowly
	endingSilent               // no message in time
	endingBroken               // the pod broke the protocol
	endingEnd
)

var endingNames = [endingEnd]string{
	endingError:  "error",
	endingCut:    "cut",
	endingSilent: "silent",
	endingBroken: "broken",
}

// stats counts what happens in a market; written by its goroutines, read at scrapes.
type stats struct {
	streams      atomic.Int64
	epochChanges atomic.Int64
	stale        atomic.Int64 // messages of an older epoch
	repeated     atomic.Int64 // messages that were covered before
	malformed    atomic.Int64
	recovered    atomic.Int64 // interruptions that proved to have lost nothing
	duplicates   atomic.Int64 // events of a new leader that the one before had sent
	gaps         [causeEnd]atomic.Int64
	endings      [endingEnd]atomic.Int64
}

// observe registers the metrics of all markets and of the name look-up.
func (c *Client) observe(meter metric.Meter) error {
	f := instruments{meter: meter}
	streams := f.gauge("relay_edge_feed_streams", "Streams to fanout pods that have had a message.")
	live := f.gauge("relay_edge_feed_live", "1 while the market's feed is live, 0 while events may be missing.")
	epochs := f.counter("relay_edge_feed_epoch_changes", "Times a newer epoch was adopted.")
	gaps := f.counter("relay_edge_feed_gaps", "Gaps told to clients, by cause.")
	dropped := f.counter("relay_edge_feed_dropped", "Messages of fanout pods dropped: stale (older epoch), repeated (covered before), malformed.")
	recovered := f.counter("relay_edge_feed_recovered", "Interruptions of the feed (a stream that broke and resumed, or silence for 3 s) after which it went on where it had stopped: no gap for those who were there.")
	duplicates := f.counter("relay_edge_feed_duplicates", "Events of a new leader that were dropped because the one before it had sent them.")
	endings := f.counter("relay_edge_feed_streams_ended", "Streams to fanout pods that ended, by cause.")
	topics := f.gauge("relay_edge_feed_topics", "Topics some client wants.")
	failures := f.counter("relay_edge_feed_lookup_failures", "Look-ups of the fanout name that failed.")
	lag, err := meter.Float64ObservableGauge("relay_edge_feed_lag", metric.WithUnit("s"),
		metric.WithDescription("Time since the feed last stated its coverage."))
	f.fail(err)
	f.all = append(f.all, lag)
	if f.err != nil {
		return f.err
	}
	_, err = meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		o.ObserveInt64(failures, c.lookupFailures.Load())
		now := time.Now()
		for _, m := range c.markets {
			market := attribute.String("market", m.name)
			only := metric.WithAttributes(market)
			status := m.status(now)
			o.ObserveInt64(streams, m.stats.streams.Load(), only)
			o.ObserveInt64(live, b2i(status.Live), only)
			o.ObserveInt64(epochs, m.stats.epochChanges.Load(), only)
			o.ObserveInt64(recovered, m.stats.recovered.Load(), only)
			o.ObserveInt64(duplicates, m.stats.duplicates.Load(), only)
			o.ObserveInt64(topics, int64(m.interest.Len()), only)
			o.ObserveFloat64(lag, status.Lag.Seconds(), only)
			o.ObserveInt64(dropped, m.stats.stale.Load(), metric.WithAttributes(market, attribute.String("cause", "stale")))
			o.ObserveInt64(dropped, m.stats.repeated.Load(), metric.WithAttributes(market, attribute.String("cause", "repeated")))
			o.ObserveInt64(dropped, m.stats.malformed.Load(), metric.WithAttributes(market, attribute.String("cause", "malformed")))
			for n := range m.stats.gaps {
				o.ObserveInt64(gaps, m.stats.gaps[n].Load(), metric.WithAttributes(market, attribute.String("cause", causeNames[n])))
			}
			for n := range m.stats.endings {
				o.ObserveInt64(endings, m.stats.endings[n].Load(), metric.WithAttributes(market, attribute.String("cause", endingNames[n])))
			}
		}
		return nil
	}, f.all...)
	if err != nil {
		return fmt.Errorf("feed: register metrics: %w", err)
	}
	return nil
}

// instruments makes instruments and keeps the first error.
type instruments struct {
	meter metric.Meter
	all   []metric.Observable
	err   error
}

func (f *instruments) fail(err error) {
	if err != nil && f.err == nil {
		f.err = fmt.Errorf("feed: make metric: %w", err)
	}
}

func (f *instruments) gauge(name, help string) metric.Int64Observable {
	i, err := f.meter.Int64ObservableGauge(name, metric.WithDescription(help))
	f.fail(err)
	f.all = append(f.all, i)
	return i
}

func (f *instruments) counter(name, help string) metric.Int64Observable {
	i, err := f.meter.Int64ObservableCounter(name, metric.WithDescription(help))
	f.fail(err)
	f.all = append(f.all, i)
	return i
}

func b2i(b bool) int64 {
	if b {
		return 1
	}
	return 0
}
