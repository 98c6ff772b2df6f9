package telemetry

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/sdk/resource"
	"go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"

	"github.com/cutemarkets/relay/services/internal/version"
)

// logEvery is how often a failing collector is logged.
const logEvery = time.Minute

func startTraces(ctx context.Context, service string, o Options, log *slog.Logger) (*trace.TracerProvider, trace.SpanExporter, error) {
	hostport, secure, err := o.endpoint()
	if err != nil {
		return nil, nil, err
	}
	options := []otlptracegrpc.Option{otlptracegrpc.WithEndpoint(hostport)}
	if !secure {
		options = append(options, otlptracegrpc.WithInsecure())
	}
	exporter, err := otlptracegrpc.New(ctx, options...)
	if err != nil {
		return nil, nil, fmt.Errorf("telemetry: traces to %s: %w", hostport, err)
	}
	about := resource.NewWithAttributes(semconv.SchemaURL,
		semconv.ServiceName("relay-"+service),
		semconv.ServiceVersion(version.Get().Version),
	)
	provider := trace.NewTracerProvider(
		trace.WithResource(about),
		trace.WithSampler(trace.ParentBased(trace.TraceIDRatioBased(o.OTLPSampleRatio))),
		trace.WithBatcher(&loggingExporter{
			SpanExporter: exporter,
			log:          log.With(slog.String("component", "telemetry")),
		}),
	)
	return provider, exporter, nil
}

// loggingExporter logs the errors of an exporter, which the SDK would otherwise
// give to its global error handler.
type loggingExporter struct {
	// Static after construction.
	trace.SpanExporter
	log *slog.Logger

	mu sync.Mutex
	// Guarded by mu.
	logged time.Time // of the last log record
	lost   int       // spans lost since then
}

// ExportSpans never fails: spans that could not be sent are counted, logged and
// lost.
func (e *loggingExporter) ExportSpans(ctx context.Context, spans []trace.ReadOnlySpan) error {
	if err := e.SpanExporter.ExportSpans(ctx, spans); err != nil {
		e.failed(time.Now(), len(spans), err)
	}
	return nil
}

func (e *loggingExporter) failed(now time.Time, spans int, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.lost += spans
	if !e.logged.IsZero() && now.Sub(e.logged) < logEvery {
		return
	}
	e.log.Warn("traces not sent", slog.Int("spans", e.lost), slog.Any("error", err))
	e.logged, e.lost = now, 0
}
