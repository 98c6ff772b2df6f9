// Package telemetry makes a service's logger, metrics and traces. Nothing of it
// is global, so several services can run in one process. Metrics are read by
// scraping (MetricsHandler). Traces are off unless a collector is named; then
// one goroutine of the OpenTelemetry SDK sends them in batches from a queue of
// 2048 spans, and what does not fit is dropped: a slow collector costs traces,
// never time. A failing collector is logged at most once a minute.
package telemetry

import (
	"context"
	"errors"
	"log/slog"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

// Telemetry is what a service logs, counts and traces with. Safe for concurrent
// use; static after construction.
type Telemetry struct {
	// Logger carries the attribute service.
	Logger         *slog.Logger
	MeterProvider  metric.MeterProvider
	TracerProvider trace.TracerProvider
	// Propagator is W3C trace context and baggage.
	Propagator propagation.TextMapPropagator

	registry *prometheus.Registry
	closers  []func(context.Context) error
}

// New makes the telemetry of a service (edge, fanout, auth). It connects to
// nothing: a collector that is away does not stop the start-up.
func New(ctx context.Context, service string, o Options) (*Telemetry, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	t := newTelemetry(o.logger(service))
	t.describe(service)
	if o.OTLPEndpoint == "" {
		return t, nil
	}
	tracers, exporter, err := startTraces(ctx, service, o, t.Logger)
	if err != nil {
		return nil, errors.Join(err, t.Shutdown(ctx))
	}
	t.TracerProvider = tracers
	// A provider that runs out of time leaves its exporter at work.
	t.closers = append(t.closers, exporter.Shutdown, tracers.Shutdown)
	return t, nil
}

// Discard returns telemetry that logs and traces nothing; its metrics work. For
// tests and for programs that show neither.
func Discard() *Telemetry { return newTelemetry(slog.New(slog.DiscardHandler)) }

func newTelemetry(log *slog.Logger) *Telemetry {
	registry := prometheus.NewRegistry()
	meters := startMetrics(registry)
	return &Telemetry{
		Logger:         log,
		MeterProvider:  meters,
		TracerProvider: noop.NewTracerProvider(),
		Propagator:     propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{}),
		registry:       registry,
		closers:        []func(context.Context) error{meters.Shutdown},
	}
}

// Meter returns the meter of a subsystem.
func (t *Telemetry) Meter(name string) metric.Meter { return t.MeterProvider.Meter(name) }

// Tracer returns the tracer of a subsystem.
func (t *Telemetry) Tracer(name string) trace.Tracer { return t.TracerProvider.Tracer(name) }

// MetricsHandler answers a scrape by Prometheus. A metric that cannot be
// collected is logged; the others are still served.
func (t *Telemetry) MetricsHandler() http.Handler {
	return promhttp.HandlerFor(t.registry, promhttp.HandlerOpts{
		ErrorLog:      scrapeLog{t.Logger.With(slog.String("component", "telemetry"))},
		ErrorHandling: promhttp.ContinueOnError,
	})
}

// Shutdown sends the spans still queued, for as long as ctx allows, and ends
// traces and metrics.
func (t *Telemetry) Shutdown(ctx context.Context) error {
	var errs []error
	for i := len(t.closers) - 1; i >= 0; i-- {
		errs = append(errs, t.closers[i](ctx))
	}
	return errors.Join(errs...)
}
