package grpcx

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"

	"github.com/cutemarkets/relay/services/internal/certs/certstest"
	"github.com/cutemarkets/relay/services/internal/telemetry"
)

func TestClientTLSValidate(t *testing.T) {
	for _, tt := range []struct {
		o  ClientTLS
		ok bool
	}{
		{ClientTLS{}, true},
		{ClientTLS{CAFile: "ca"}, true},
		{ClientTLS{CAFile: "ca", ServerName: "auth"}, true},
		{ClientTLS{CAFile: "ca", CertFile: "c", KeyFile: "k"}, true},
		{ClientTLS{CAFile: "ca", CertFile: "c"}, false},
		{ClientTLS{CAFile: "ca", KeyFile: "k"}, false},
		{ClientTLS{CertFile: "c", KeyFile: "k"}, false},
		{ClientTLS{ServerName: "auth"}, false},
	} {
		if err := tt.o.Validate(); (err == nil) != tt.ok {
			t.Errorf("%+v: %v", tt.o, err)
		}
		if tt.o == (ClientTLS{}) {
			continue
		}
		// None of the files is there.
		if conn, err := Dial("localhost:9000", tt.o, telemetry.Discard()); err == nil {
			conn.Close()
			t.Errorf("Dial took %+v", tt.o)
		}
	}
}

func TestDeadline(t *testing.T) {
	deadlines := make(chan time.Duration, 1)
	address, _ := serve(t, newServer(t, ServerOptions{}, telemetry.Discard()), &echo{unary: func(ctx context.Context) error {
		at, ok := ctx.Deadline()
		if !ok {
			at = time.Time{}
		}
		deadlines <- time.Until(at)
		return nil
	}})
	client := dial(t, address, ClientTLS{}, telemetry.Discard())
	long, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	for _, tt := range []struct {
		name string
		ctx  context.Context
		most time.Duration
		more time.Duration
	}{
		{"of nobody", t.Context(), DefaultTimeout, 0},
		{"of the caller", long, time.Hour, 30 * time.Minute},
	} {
		if _, err := client.UnaryCall(tt.ctx, &grpc_testing.SimpleRequest{}); err != nil {
			t.Fatal(err)
		}
		if left := <-deadlines; left > tt.most || left <= tt.more {
			t.Errorf("deadline %s: %v", tt.name, left)
		}
	}
}

func TestDeadlineEndsACall(t *testing.T) {
	address, _ := serve(t, newServer(t, ServerOptions{}, telemetry.Discard()), &echo{unary: func(ctx context.Context) error {
		<-ctx.Done()
		return ctx.Err()
	}})
	_, err := dial(t, address, ClientTLS{}, telemetry.Discard()).UnaryCall(t.Context(), &grpc_testing.SimpleRequest{})
	if status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("UnaryCall: %v", err)
	}
}

// keys are the files of one side.
type keys struct{ cert, key, ca string }

func newKeys(t *testing.T, name string, own, trusted *certstest.CA) keys {
	dir := t.TempDir()
	k := keys{filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"), filepath.Join(dir, "ca.crt")}
	k.replace(t, name, own, trusted)
	return k
}

func (k keys) replace(t *testing.T, name string, own, trusted *certstest.CA) {
	own.WritePair(t, name, k.cert, k.key)
	trusted.WriteCA(t, k.ca)
}

func (k keys) server() ServerOptions {
	return ServerOptions{TLSCertFile: k.cert, TLSKeyFile: k.key, TLSClientCAFile: k.ca}
}

func (k keys) client(name string) ClientTLS {
	return ClientTLS{CAFile: k.ca, CertFile: k.cert, KeyFile: k.key, ServerName: name}
}

func TestMutualTLS(t *testing.T) {
	ca, other := certstest.NewCA(t), certstest.NewCA(t)
	address, _ := serve(t, newServer(t, newKeys(t, "fanout", ca, ca).server(), telemetry.Discard()), &echo{})
	for _, tt := range []struct {
		name string
		tls  ClientTLS
		ok   bool
	}{
		{"good", newKeys(t, "edge", ca, ca).client("fanout"), true},
		{"by address", newKeys(t, "edge", ca, ca).client(""), true},
		{"plain text", ClientTLS{}, false},
		{"no certificate", ClientTLS{CAFile: newKeys(t, "edge", ca, ca).ca, ServerName: "fanout"}, false},
		{"server of another CA", newKeys(t, "edge", ca, other).client("fanout"), false},
		{"client of another CA", newKeys(t, "edge", other, ca).client("fanout"), false},
		{"server of another name", newKeys(t, "edge", ca, ca).client("auth"), false},
	} {
		client := dial(t, address, tt.tls, telemetry.Discard())
		_, err := client.UnaryCall(t.Context(), &grpc_testing.SimpleRequest{})
		if (err == nil) != tt.ok || (err != nil && status.Code(err) != codes.Unavailable) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

// TestRotation replaces all certificates by those of another CA: neither the
// server nor the client is made anew, only the connection.
func TestRotation(t *testing.T) {
	first, second := certstest.NewCA(t), certstest.NewCA(t)
	serverKeys, clientKeys := newKeys(t, "fanout", first, first), newKeys(t, "edge", first, first)
	s := newServer(t, serverKeys.server(), telemetry.Discard())
	address, _ := serve(t, s, &echo{})
	conn := connect(t, address, clientKeys.client("fanout"), telemetry.Discard())
	call := func(client grpc_testing.TestServiceClient) error {
		_, err := client.UnaryCall(t.Context(), &grpc_testing.SimpleRequest{})
		return err
	}
	client := grpc_testing.NewTestServiceClient(conn)
	if err := call(client); err != nil {
		t.Fatal(err)
	}
	serverKeys.replace(t, "fanout", second, second)
	if err := call(client); err != nil {
		t.Errorf("a connection that stands was cut: %v", err)
	}
	late := dial(t, address, newKeys(t, "edge", first, first).client("fanout"), telemetry.Discard())
	if err := call(late); status.Code(err) != codes.Unavailable {
		t.Errorf("a client of the former CA: %v", err)
	}
	clientKeys.replace(t, "edge", second, second)
	again := dial(t, address, clientKeys.client("fanout"), telemetry.Discard())
	if err := call(again); err != nil {
		t.Errorf("a client of the new CA: %v", err)
	}
}

// TestClientRotation keeps one client over a restart of the server, which comes
// back with certificates of another CA.
func TestClientRotation(t *testing.T) {
	first, second := certstest.NewCA(t), certstest.NewCA(t)
	serverKeys, clientKeys := newKeys(t, "fanout", first, first), newKeys(t, "edge", first, first)
	address, stop := serve(t, newServer(t, serverKeys.server(), telemetry.Discard()), &echo{})
	client := dial(t, address, clientKeys.client("fanout"), telemetry.Discard())
	if _, err := client.UnaryCall(t.Context(), &grpc_testing.SimpleRequest{}); err != nil {
		t.Fatal(err)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	serverKeys.replace(t, "fanout", second, second)
	clientKeys.replace(t, "edge", second, second)
	options := serverKeys.server()
	options.Listen = address
	serve(t, newServer(t, options, telemetry.Discard()), &echo{})
	if _, err := client.UnaryCall(t.Context(), &grpc_testing.SimpleRequest{}, grpc.WaitForReady(true)); err != nil {
		t.Errorf("after the rotation: %v", err)
	}
}

func TestSpans(t *testing.T) {
	recorder := tracetest.NewSpanRecorder()
	tel := telemetry.Discard()
	tel.TracerProvider = sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder))
	address, stop := serve(t, newServer(t, ServerOptions{}, tel), &echo{})
	conn := connect(t, address, ClientTLS{}, tel)
	client := grpc_testing.NewTestServiceClient(conn)
	if _, err := client.UnaryCall(t.Context(), &grpc_testing.SimpleRequest{}); err != nil {
		t.Fatal(err)
	}
	if _, err := healthv1.NewHealthClient(conn).Check(t.Context(), &healthv1.HealthCheckRequest{}); err != nil {
		t.Fatal(err)
	}
	stream, err := client.FullDuplexCall(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err == nil {
		t.Fatal("the stream has not ended")
	}
	conn.Close()
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	var spans []string
	traces := map[trace.TraceID]bool{}
	for _, s := range recorder.Ended() {
		spans = append(spans, s.SpanKind().String()+" "+s.Name())
		traces[s.SpanContext().TraceID()] = true
	}
	slices.Sort(spans)
	if got := strings.Join(spans, ", "); got != "client grpc.testing.TestService/UnaryCall, server grpc.testing.TestService/UnaryCall" {
		t.Errorf("spans %s", got)
	}
	if len(traces) != 1 {
		t.Errorf("%d traces: the server's span is no child of the client's", len(traces))
	}
	if started := len(recorder.Started()); started != 2 {
		t.Errorf("%d spans were started, want 2", started)
	}
}
