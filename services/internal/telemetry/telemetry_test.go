package telemetry

import (
	"bytes"
	"context"
	"encoding/json"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start makes telemetry that ends with the test.
func start(t *testing.T, service string, o Options) *Telemetry {
	t.Helper()
	tel, err := New(t.Context(), service, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tel.Shutdown(context.Background()); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
	})
	return tel
}

func scrape(t *testing.T, tel *Telemetry) string {
	t.Helper()
	answer := httptest.NewRecorder()
	tel.MetricsHandler().ServeHTTP(answer, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil))
	if answer.Code != http.StatusOK {
		t.Fatalf("scrape: %d, %s", answer.Code, answer.Body)
	}
	return answer.Body.String()
}

func TestOptionsValidate(t *testing.T) {
	for _, tt := range []struct {
		o    Options
		want string // empty: valid
	}{
		{Options{}, ""},
		{Options{LogLevel: "debug", LogFormat: "text", OTLPEndpoint: "collector:4317", OTLPSampleRatio: 1}, ""},
		{Options{LogLevel: "error", LogFormat: "json", OTLPEndpoint: "https://collector:4317", OTLPSampleRatio: 0.5}, ""},
		{Options{OTLPEndpoint: "http://[::1]:4317/"}, ""},
		{Options{LogLevel: "loud"}, "--log-level"},
		{Options{LogFormat: "xml"}, "--log-format"},
		{Options{OTLPSampleRatio: -0.1}, "--otlp-sample-ratio"},
		{Options{OTLPSampleRatio: 1.1}, "--otlp-sample-ratio"},
		{Options{OTLPSampleRatio: math.NaN()}, "--otlp-sample-ratio"},
		{Options{OTLPEndpoint: "collector"}, "--otlp-endpoint"},
		{Options{OTLPEndpoint: "grpc://collector:4317"}, "--otlp-endpoint"},
		{Options{OTLPEndpoint: "http://collector:4317/v1/traces"}, "--otlp-endpoint"},
		{Options{OTLPEndpoint: "http://user:canary@collector:4317"}, "--otlp-endpoint"},
		{Options{OTLPEndpoint: "http://collector:4317?x"}, "--otlp-endpoint"},
		{Options{OTLPEndpoint: "http://%zz:1"}, "--otlp-endpoint"},
	} {
		err := tt.o.Validate()
		if (err == nil) != (tt.want == "") || (err != nil && (!strings.HasPrefix(err.Error(), tt.want+" ") || strings.Contains(err.Error(), "canary"))) {
			t.Errorf("%+v: %v, want %q", tt.o, err, tt.want)
		}
		if err == nil {
			continue
		}
		if _, err := New(t.Context(), "test", tt.o); err == nil {
			t.Errorf("New took %+v", tt.o)
		}
	}
}

func TestEndpointSecurity(t *testing.T) {
	for endpoint, want := range map[string]struct {
		hostport string
		secure   bool
	}{
		"collector:4317":          {"collector:4317", false},
		"http://collector:4317":   {"collector:4317", false},
		"https://collector:4317/": {"collector:4317", true},
		"127.0.0.1:4317":          {"127.0.0.1:4317", false},
	} {
		hostport, secure, err := Options{OTLPEndpoint: endpoint}.endpoint()
		if err != nil || hostport != want.hostport || secure != want.secure {
			t.Errorf("%s: %s, %v, %v", endpoint, hostport, secure, err)
		}
	}
}

func TestLogger(t *testing.T) {
	var buf bytes.Buffer
	tel := start(t, "edge", Options{LogLevel: "warn", LogOutput: &buf})
	tel.Logger.Info("unseen")
	tel.Logger.Warn("seen", "component", "engine")
	var record map[string]any
	if err := json.Unmarshal(buf.Bytes(), &record); err != nil {
		t.Fatalf("%v in %s", err, buf.String())
	}
	if record["level"] != "WARN" || record["msg"] != "seen" || record["service"] != "edge" || record["component"] != "engine" {
		t.Errorf("record %v", record)
	}
	buf.Reset()
	start(t, "edge", Options{LogLevel: "debug", LogFormat: "text", LogOutput: &buf}).Logger.Debug("seen")
	if s := buf.String(); !strings.HasSuffix(s, "level=DEBUG msg=seen service=edge\n") {
		t.Errorf("text: %s", s)
	}
}

func TestMetrics(t *testing.T) {
	tel := start(t, "edge", Options{LogOutput: t.Output()})
	counter, err := tel.Meter("engine").Int64Counter("relay_edge_closes", metric.WithDescription("Sockets closed."))
	if err != nil {
		t.Fatal(err)
	}
	counter.Add(t.Context(), 3, metric.WithAttributes(attribute.String("reason", "drain")))
	duration, err := tel.Meter("front").Float64Histogram("relay_edge_connection_duration", metric.WithUnit("s"), metric.WithExplicitBucketBoundaries(1))
	if err != nil {
		t.Fatal(err)
	}
	duration.Record(t.Context(), 0.5)
	text := scrape(t, tel)
	for _, want := range []string{
		"relay_edge_closes_total{reason=\"drain\"} 3\n",
		"relay_edge_connection_duration_seconds_bucket{le=\"1\"} 1\n",
		"relay_build_info{go_version=\"go1.",
		"service=\"edge\"",
		"\ngo_goroutines ",
		"\nprocess_open_fds ",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in the metrics", want)
		}
	}
	for _, unwanted := range []string{"otel_scope", "target_info"} {
		if strings.Contains(text, unwanted) {
			t.Errorf("%q in the metrics", unwanted)
		}
	}
}

func TestServicesShareNothing(t *testing.T) {
	tracers, meters, propagator := otel.GetTracerProvider(), otel.GetMeterProvider(), otel.GetTextMapPropagator()
	edge, auth := start(t, "edge", Options{LogOutput: t.Output()}), start(t, "auth", Options{LogOutput: t.Output()})
	for _, tel := range []*Telemetry{edge, auth} {
		counter, err := tel.Meter("shared").Int64Counter("relay_test")
		if err != nil {
			t.Fatal(err)
		}
		counter.Add(t.Context(), 1)
	}
	for service, tel := range map[string]*Telemetry{"edge": edge, "auth": auth} {
		if text := scrape(t, tel); !strings.Contains(text, "relay_test_total 1\n") || strings.Count(text, `service="`) != 1 || !strings.Contains(text, `service="`+service+`"`) {
			t.Errorf("%s counts for another service", service)
		}
	}
	if otel.GetTracerProvider() != tracers || otel.GetMeterProvider() != meters || otel.GetTextMapPropagator() != propagator {
		t.Error("a global of OpenTelemetry was set")
	}
}

func TestDiscard(t *testing.T) {
	tel := Discard()
	tel.Logger.Error("unseen")
	counter, err := tel.Meter("test").Int64Counter("relay_test")
	if err != nil {
		t.Fatal(err)
	}
	counter.Add(t.Context(), 1)
	if text := scrape(t, tel); !strings.Contains(text, "relay_test_total 1\n") {
		t.Errorf("metrics: %s", text)
	}
	if _, span := tel.Tracer("test").Start(t.Context(), "unseen"); span.IsRecording() {
		t.Error("a span is recorded")
	}
	if err := tel.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestDefaultOutput runs this test as a process: the log goes to standard output.
func TestDefaultOutput(t *testing.T) {
	const variable = "TELEMETRY_TEST_CHILD"
	if os.Getenv(variable) != "" {
		start(t, "edge", Options{}).Logger.Info("seen")
		return
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestDefaultOutput$")
	cmd.Env = append(os.Environ(), variable+"=1")
	output, err := cmd.Output()
	if err != nil || !strings.Contains(string(output), `"msg":"seen","service":"edge"}`) {
		t.Errorf("%v, %s", err, output)
	}
}
