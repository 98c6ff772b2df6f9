package telemetry

import (
	"fmt"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	otelprometheus "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/sdk/metric"

	"github.com/cutemarkets/relay/services/internal/version"
)

// startMetrics makes a provider whose instruments appear in registry under their
// own names, with no labels but their own: which service a metric is of, is told
// by its name and by relay_build_info.
func startMetrics(registry *prometheus.Registry) *metric.MeterProvider {
	reader, err := otelprometheus.New(
		otelprometheus.WithRegisterer(registry),
		otelprometheus.WithoutScopeInfo(),
		otelprometheus.WithoutTargetInfo(),
	)
	if err != nil {
		panic(fmt.Sprintf("telemetry: exporter refused by an empty registry: %v", err))
	}
	return metric.NewMeterProvider(metric.WithReader(reader))
}

// describe adds what there is to know of the process: Go runtime, CPU, memory,
// file descriptors, build.
func (t *Telemetry) describe(service string) {
	build := version.Get()
	t.registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "relay_build_info",
			Help: "The build that runs; always 1.",
			ConstLabels: prometheus.Labels{
				"service": service, "version": build.Version, "revision": build.Revision, "go_version": build.Go,
			},
		}, func() float64 { return 1 }),
	)
}

// scrapeLog routes the errors of a scrape to the log.
type scrapeLog struct{ log *slog.Logger }

func (l scrapeLog) Println(v ...any) {
	l.log.Error("metrics not collected", slog.String("error", fmt.Sprint(v...)))
}
