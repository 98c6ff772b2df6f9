package telemetry

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	collectorv1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"

	"github.com/cutemarkets/relay/services/internal/version"
)

// collector is an OTLP collector.
type collector struct {
	collectorv1.UnimplementedTraceServiceServer
	received chan *tracev1.ResourceSpans
}

func (c *collector) Export(_ context.Context, r *collectorv1.ExportTraceServiceRequest) (*collectorv1.ExportTraceServiceResponse, error) {
	for _, spans := range r.GetResourceSpans() {
		c.received <- spans
	}
	return &collectorv1.ExportTraceServiceResponse{}, nil
}

func startCollector(t *testing.T) (*collector, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &collector{received: make(chan *tracev1.ResourceSpans, 100)}
	server := grpc.NewServer()
	collectorv1.RegisterTraceServiceServer(server, c)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := server.Serve(l); err != nil {
			t.Errorf("collector: %v", err)
		}
	}()
	t.Cleanup(func() {
		server.Stop()
		<-done
	})
	return c, l.Addr().String()
}

func TestTracesReachTheCollector(t *testing.T) {
	for _, scheme := range []string{"", "http://"} {
		c, address := startCollector(t)
		tel, err := New(t.Context(), "edge", Options{OTLPEndpoint: scheme + address, OTLPSampleRatio: 1, LogOutput: t.Output()})
		if err != nil {
			t.Fatal(err)
		}
		ctx, parent := tel.Tracer("front").Start(t.Context(), "handshake")
		_, child := tel.Tracer("lock").Start(ctx, "acquire")
		child.End()
		parent.End()
		if err := tel.Shutdown(t.Context()); err != nil {
			t.Fatal(err)
		}
		got := <-c.received
		attributes := map[string]string{}
		for _, a := range got.GetResource().GetAttributes() {
			attributes[a.GetKey()] = a.GetValue().GetStringValue()
		}
		if attributes["service.name"] != "relay-edge" || attributes["service.version"] != version.Get().Version {
			t.Errorf("resource %v", attributes)
		}
		names := map[string]bool{}
		for _, scope := range got.GetScopeSpans() {
			for _, s := range scope.GetSpans() {
				names[scope.GetScope().GetName()+" "+s.GetName()] = true
			}
		}
		if len(names) != 2 || !names["front handshake"] || !names["lock acquire"] {
			t.Errorf("spans %v", names)
		}
	}
}

func TestSampling(t *testing.T) {
	_, address := startCollector(t)
	for ratio, sampled := range map[float64]bool{0: false, 1: true} {
		tel := start(t, "edge", Options{OTLPEndpoint: address, OTLPSampleRatio: ratio, LogOutput: t.Output()})
		ctx, span := tel.Tracer("front").Start(t.Context(), "handshake")
		span.End()
		if got := span.SpanContext().IsSampled(); got != sampled {
			t.Errorf("ratio %v: sampled %v", ratio, got)
		}
		// Whoever began the trace decides.
		header := propagation.MapCarrier{"traceparent": "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"}
		ctx = tel.Propagator.Extract(ctx, header)
		_, span = tel.Tracer("front").Start(ctx, "call")
		span.End()
		if !span.SpanContext().IsSampled() || span.SpanContext().TraceID().String() != "0123456789abcdef0123456789abcdef" {
			t.Errorf("ratio %v: a trace of another is not continued: %v", ratio, span.SpanContext())
		}
		injected := propagation.MapCarrier{}
		tel.Propagator.Inject(ctx, injected)
		if injected["traceparent"] == "" {
			t.Errorf("nothing injected")
		}
	}
}

func TestNoTracesByDefault(t *testing.T) {
	tel := start(t, "edge", Options{OTLPSampleRatio: 1, LogOutput: t.Output()})
	if _, span := tel.Tracer("front").Start(t.Context(), "handshake"); span.IsRecording() {
		t.Error("a span is recorded without a collector")
	}
}

var errDown = errors.New("collector down")

// down is an exporter whose collector does not answer.
type down struct{ sdktrace.SpanExporter }

func (down) ExportSpans(context.Context, []sdktrace.ReadOnlySpan) error { return errDown }

func (down) Shutdown(context.Context) error { return nil }

func TestCollectorDownIsLoggedOnce(t *testing.T) {
	var buf bytes.Buffer
	e := &loggingExporter{SpanExporter: down{}, log: slog.New(slog.NewTextHandler(&buf, nil))}
	provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(e))
	for range 3 {
		_, span := provider.Tracer("test").Start(t.Context(), "handshake")
		span.End()
	}
	if err := provider.Shutdown(t.Context()); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	if s := buf.String(); strings.Count(s, "\n") != 1 || !strings.Contains(s, `msg="traces not sent" spans=1 error="collector down"`) {
		t.Errorf("logged %s", s)
	}
	buf.Reset()
	e.failed(e.logged.Add(logEvery-time.Nanosecond), 1, errDown)
	if buf.Len() > 0 {
		t.Errorf("logged again within the interval: %s", buf.String())
	}
	e.failed(e.logged.Add(logEvery), 4, errDown)
	if s := buf.String(); !strings.Contains(s, "spans=7 ") {
		t.Errorf("logged %s, want the spans lost meanwhile", s)
	}
}

func TestGoodExportIsNotLogged(t *testing.T) {
	var buf bytes.Buffer
	memory := tracetest.NewInMemoryExporter()
	e := &loggingExporter{SpanExporter: memory, log: slog.New(slog.NewTextHandler(&buf, nil))}
	if err := e.ExportSpans(t.Context(), tracetest.SpanStubs{{Name: "handshake"}}.Snapshots()); err != nil || buf.Len() > 0 {
		t.Errorf("%v, logged %s", err, buf.String())
	}
	if n := len(memory.GetSpans()); n != 1 {
		t.Errorf("%d spans exported, want 1", n)
	}
}

// TestStartWithoutCollector: a collector that is away does not keep a service
// from starting, nor from stopping in time.
func TestStartWithoutCollector(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	tel, err := New(t.Context(), "edge", Options{OTLPEndpoint: address, OTLPSampleRatio: 1, LogOutput: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	_, span := tel.Tracer("front").Start(t.Context(), "handshake")
	span.End()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := tel.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Shutdown with spans that cannot be sent: %v", err)
	}
}
