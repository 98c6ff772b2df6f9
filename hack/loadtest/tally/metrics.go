package tally

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Metrics serves the state of a run under way in the Prometheus exposition
// format. Durations are in seconds, sizes in bytes.
func Metrics(state func() Snapshot) http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collector(state))
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{})
}

type collector func() Snapshot

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("loadtest_"+name, help, labels, nil)
}

var (
	wantedDesc    = describe("connections_wanted", "Connections that are to be ready at the same time.")
	readyDesc     = describe("connections_ready", "Connections that are authenticated, with their topics acknowledged.")
	openDesc      = describe("connections_open", "Sockets that are connected.")
	openingDesc   = describe("connections_opening", "Sockets that are connected and not ready yet.")
	becameDesc    = describe("connections_became_ready_total", "How often connections became ready.")
	failedDesc    = describe("connections_failed_total", "Connections that did not become ready.")
	lostDesc      = describe("connections_lost_total", "Ready connections that the server or the network ended.")
	eventsDesc    = describe("events_total", "Events received.")
	bytesDesc     = describe("event_bytes_total", "Bytes of the events received.")
	framesDesc    = describe("frames_total", "Data frames received.")
	wireDesc      = describe("frame_bytes_total", "Bytes of the data frames received, on the wire.")
	strayDesc     = describe("misframed_total", "Data frames that are no array of events.")
	stamplessDesc = describe("events_unstamped_total", "Events without a stamp.")
	aheadDesc     = describe("events_ahead_total", "Events that came before their stamp: the clocks differ.")
	gapsDesc      = describe("gaps_total", "Gaps seen by connections, by whether the server announced them (true or false).", "announced")
	latencyDesc   = describe("event_latency_seconds", "From the stamp of an event to its arrival.")
	lagDesc       = describe("lag_seconds", "How late the tester was at most in the last second.")
	cpuDesc       = describe("cpu_cores", "Cores' worth of CPU that the tester used in the last second.")
)

// Describe implements prometheus.Collector.
func (c collector) Describe(descs chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, descs) }

// Collect implements prometheus.Collector.
func (c collector) Collect(metrics chan<- prometheus.Metric) {
	s := c()
	gauge := func(desc *prometheus.Desc, value float64) {
		metrics <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value)
	}
	counter := func(desc *prometheus.Desc, value uint64, labels ...string) {
		metrics <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(value), labels...)
	}
	gauge(wantedDesc, float64(s.Wanted))
	gauge(readyDesc, float64(s.Ready))
	gauge(openDesc, float64(s.Open))
	gauge(openingDesc, float64(s.Opening))
	counter(becameDesc, s.BecameReady)
	counter(failedDesc, s.Failed)
	counter(lostDesc, s.Lost)
	counter(eventsDesc, s.Events)
	counter(bytesDesc, s.Bytes)
	counter(framesDesc, s.Frames)
	counter(wireDesc, s.FrameBytes)
	counter(strayDesc, s.Misframed)
	counter(stamplessDesc, s.Unstamped)
	counter(aheadDesc, s.Ahead)
	counter(gapsDesc, s.GapsAnnounced, "true")
	counter(gapsDesc, s.GapsUnannounced, "false")
	gauge(lagDesc, s.Last.LagMax.Seconds())
	gauge(cpuDesc, s.Last.CPU.Seconds()/float64(max(1, s.Step)))
	buckets := make(map[float64]uint64, len(bounds))
	for i, bound := range bounds {
		buckets[bound.Seconds()] = s.LatencyUpTo[i]
	}
	metrics <- prometheus.MustNewConstHistogram(latencyDesc, s.Events-s.Unstamped-s.Ahead, s.LatencySum, buckets)
}
