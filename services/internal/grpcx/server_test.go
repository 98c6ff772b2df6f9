package grpcx

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/cutemarkets/relay/services/internal/telemetry"
)

func TestServerOptionsValidate(t *testing.T) {
	for _, tt := range []struct {
		o  ServerOptions
		ok bool
	}{
		{ServerOptions{Listen: ":9000"}, true},
		{ServerOptions{Listen: "127.0.0.1:9000", TLSCertFile: "c", TLSKeyFile: "k"}, true},
		{ServerOptions{Listen: "[::1]:9000", TLSCertFile: "c", TLSKeyFile: "k", TLSClientCAFile: "ca"}, true},
		{ServerOptions{}, false},
		{ServerOptions{Listen: "9000"}, false},
		{ServerOptions{Listen: ":9000", TLSCertFile: "c"}, false},
		{ServerOptions{Listen: ":9000", TLSKeyFile: "k"}, false},
		{ServerOptions{Listen: ":9000", TLSClientCAFile: "ca"}, false},
	} {
		if err := tt.o.Validate(); (err == nil) != tt.ok {
			t.Errorf("%+v: %v", tt.o, err)
		}
		if _, err := NewServer(tt.o, telemetry.Discard()); err == nil && (!tt.ok || tt.o.TLSCertFile != "") {
			t.Errorf("NewServer took %+v", tt.o)
		}
	}
}

func TestHealth(t *testing.T) {
	release := make(chan struct{})
	s := newServer(t, ServerOptions{}, telemetry.Discard())
	address, stop := serve(t, s, &echo{stream: func(stream grpc_testing.TestService_FullDuplexCallServer) error {
		if err := stream.Send(&grpc_testing.StreamingOutputCallResponse{}); err != nil {
			return err
		}
		<-release
		return nil
	}})
	conn := connect(t, address, ClientTLS{}, telemetry.Discard())
	answer, err := healthv1.NewHealthClient(conn).Check(t.Context(), &healthv1.HealthCheckRequest{})
	if err != nil || answer.GetStatus() != healthv1.HealthCheckResponse_SERVING {
		t.Fatalf("Check: %v, %v", answer, err)
	}
	watch, err := healthv1.NewHealthClient(conn).Watch(t.Context(), &healthv1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if now, err := watch.Recv(); err != nil || now.GetStatus() != healthv1.HealthCheckResponse_SERVING {
		t.Fatalf("Watch: %v, %v", now, err)
	}
	stream, err := grpc_testing.NewTestServiceClient(conn).FullDuplexCall(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	stopped := make(chan error, 1)
	go func() { stopped <- stop() }()
	if now, err := watch.Recv(); err != nil || now.GetStatus() != healthv1.HealthCheckResponse_NOT_SERVING {
		t.Errorf("Watch at the stop: %v, %v", now, err)
	}
	// The stream lives on until its handler ends; a stop is not an error.
	close(release)
	if _, err := stream.Recv(); status.Code(err) != codes.OK && err.Error() != "EOF" {
		t.Errorf("the stream was cut: %v", err)
	}
	watch.CloseSend()
	if err := <-stopped; err != nil {
		t.Errorf("Run: %v", err)
	}
}

func TestStopCutsAStreamThatDoesNotEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, ServerOptions{}, telemetry.Discard())
		p := newPipe()
		s.listener = p
		_, stop := serve(t, s, &echo{stream: until})
		client := dial(t, "passthrough:///test", ClientTLS{}, telemetry.Discard(), grpc.WithContextDialer(p.dial))
		stream, err := client.FullDuplexCall(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		if err := stop(); err != nil {
			t.Errorf("Run: %v", err)
		}
		if took := time.Since(begin); took != stopTimeout {
			t.Errorf("the stop took %v, want %v", took, stopTimeout)
		}
		if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
			t.Errorf("the stream ended with %v", err)
		}
	})
}

// TestKeepAlive lets a client ping through a quiet hour. The same client is cut
// by a server with the defaults of grpc-go, so the test would see a cut.
func TestKeepAlive(t *testing.T) {
	for _, tt := range []struct {
		name   string
		server func(t *testing.T) *Server
		cut    bool
	}{
		{"ours", func(t *testing.T) *Server { return newServer(t, ServerOptions{}, telemetry.Discard()) }, false},
		{"defaults", func(t *testing.T) *Server {
			s, err := NewServer(ServerOptions{Listen: ":0"}, telemetry.Discard(),
				grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{}))
			if err != nil {
				t.Fatal(err)
			}
			return s
		}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, p := tt.server(t), newPipe()
				s.listener = p
				serve(t, s, &echo{stream: until})
				client := dial(t, "passthrough:///test", ClientTLS{}, telemetry.Discard(), grpc.WithContextDialer(p.dial))
				stream, err := client.FullDuplexCall(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if _, err := stream.Recv(); err != nil {
					t.Fatal(err)
				}
				cut := make(chan error, 1)
				go func() {
					_, err := stream.Recv()
					cut <- err
				}()
				select {
				case err := <-cut:
					if !tt.cut {
						t.Errorf("the stream was cut: %v", err)
					}
				case <-time.After(time.Hour):
					if tt.cut {
						t.Error("the stream was not cut: this test sees nothing")
					}
				}
				if !tt.cut && p.dialed != 1 {
					t.Errorf("%d connections, want 1", p.dialed)
				}
			})
		})
	}
}

// TestDeadPeerIsNoticed: without an answer to its ping a side gives up after 15 s.
func TestDeadPeerIsNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, p := newServer(t, ServerOptions{}, telemetry.Discard()), newPipe()
		s.listener = p
		ended := make(chan time.Time, 1)
		serve(t, s, &echo{stream: func(stream grpc_testing.TestService_FullDuplexCallServer) error {
			err := until(stream)
			ended <- time.Now()
			return err
		}})
		frozen := &freezer{pipe: p, freeze: make(chan struct{})}
		client := dial(t, "passthrough:///test", ClientTLS{}, telemetry.Discard(), grpc.WithContextDialer(frozen.dial))
		stream, err := client.FullDuplexCall(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		begin := time.Now()
		close(frozen.freeze)
		if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
			t.Errorf("the client's stream ended with %v", err)
		}
		if took := time.Since(begin); took > pingAfter+pingTimeout {
			t.Errorf("the client noticed after %v", took)
		}
		if took := (<-ended).Sub(begin); took > pingAfter+2*pingTimeout {
			t.Errorf("the server noticed after %v", took)
		}
	})
}

func TestMessageSize(t *testing.T) {
	address, _ := serve(t, newServer(t, ServerOptions{}, telemetry.Discard()), &echo{})
	client := dial(t, address, ClientTLS{}, telemetry.Discard())
	body := func(n int) *grpc_testing.SimpleRequest {
		return &grpc_testing.SimpleRequest{Payload: &grpc_testing.Payload{Body: make([]byte, n)}}
	}
	const frame = 64 // what protobuf adds
	for _, tt := range []struct {
		name    string
		request *grpc_testing.SimpleRequest
		want    codes.Code
	}{
		{"request at the bound", body(MaxMessageBytes - frame), codes.OK},
		{"request beyond", body(MaxMessageBytes), codes.ResourceExhausted},
		{"response at the bound", &grpc_testing.SimpleRequest{ResponseSize: MaxMessageBytes - frame}, codes.OK},
		{"response beyond", &grpc_testing.SimpleRequest{ResponseSize: MaxMessageBytes}, codes.ResourceExhausted},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // the race detector is slow with megabytes
		if _, err := client.UnaryCall(ctx, tt.request); status.Code(err) != tt.want {
			t.Errorf("%s: %v", tt.name, err)
		}
		cancel()
	}
}

func TestListenRefused(t *testing.T) {
	first := newServer(t, ServerOptions{}, telemetry.Discard())
	address, _ := serve(t, first, &echo{})
	if addr, err := first.Listen(); err != nil || addr.String() != address {
		t.Errorf("second Listen: %v, %v", addr, err)
	}
	second := newServer(t, ServerOptions{Listen: address}, telemetry.Discard())
	if err := second.Run(t.Context()); err == nil || !strings.Contains(err.Error(), address) {
		t.Errorf("Run on a taken address: %v", err)
	}
}

// TestStopBeforeServe: a service may be stopped before it has come up.
func TestStopBeforeServe(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 50 {
		s := newServer(t, ServerOptions{}, telemetry.Discard())
		if err := s.Run(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := net.Dial("tcp", s.listener.Addr().String()); err == nil {
			t.Fatal("the listener is still open")
		}
	}
}

const roleVariable = "GRPCX_TEST_ROLE"

// TestPanicEndsTheProcess runs this test again as a process that must not live.
func TestPanicEndsTheProcess(t *testing.T) {
	role := os.Getenv(roleVariable)
	if role != "" {
		panicking := &echo{
			unary:  func(context.Context) error { panic("canary") },
			stream: func(grpc_testing.TestService_FullDuplexCallServer) error { panic("canary") },
		}
		tel, err := telemetry.New(t.Context(), "test", telemetry.Options{LogOutput: os.Stderr, LogFormat: "text"})
		if err != nil {
			t.Fatal(err)
		}
		address, _ := serve(t, newServer(t, ServerOptions{}, tel), panicking)
		client := dial(t, address, ClientTLS{}, telemetry.Discard())
		if role == "UnaryCall" {
			_, err = client.UnaryCall(t.Context(), &grpc_testing.SimpleRequest{})
		} else {
			var stream grpc_testing.TestService_FullDuplexCallClient
			stream, err = client.FullDuplexCall(t.Context())
			_, _ = stream.Recv()
		}
		t.Fatalf("the process survived: %v", err)
	}
	for _, role := range []string{"UnaryCall", "FullDuplexCall"} {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestPanicEndsTheProcess$")
		cmd.Env = append(os.Environ(), roleVariable+"="+role)
		output, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 2 {
			t.Errorf("%s: %v", role, err)
		}
		for _, want := range []string{"msg=panic", "component=grpc", "goroutine=/grpc.testing.TestService/" + role, "panic=canary", "panic: canary"} {
			if !strings.Contains(string(output), want) {
				t.Errorf("%s: no %q in %s", role, want, output)
			}
		}
	}
}
