package grpcx

import (
	"context"
	"net"
	"sync"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/interop/grpc_testing"

	"github.com/cutemarkets/relay/services/internal/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// echo is a service with a unary call and a stream; nil functions do nothing.
type echo struct {
	grpc_testing.UnimplementedTestServiceServer
	unary  func(ctx context.Context) error
	stream func(s grpc_testing.TestService_FullDuplexCallServer) error
}

func (e *echo) UnaryCall(ctx context.Context, r *grpc_testing.SimpleRequest) (*grpc_testing.SimpleResponse, error) {
	if e.unary != nil {
		if err := e.unary(ctx); err != nil {
			return nil, err
		}
	}
	return &grpc_testing.SimpleResponse{Payload: &grpc_testing.Payload{Body: make([]byte, r.GetResponseSize())}}, nil
}

func (e *echo) FullDuplexCall(s grpc_testing.TestService_FullDuplexCallServer) error {
	if e.stream != nil {
		return e.stream(s)
	}
	return nil
}

// until tells a stream handler to send one answer, then wait for the client.
func until(s grpc_testing.TestService_FullDuplexCallServer) error {
	if err := s.Send(&grpc_testing.StreamingOutputCallResponse{}); err != nil {
		return err
	}
	<-s.Context().Done()
	return s.Context().Err()
}

// serve runs a server until the test ends, or until stop is called, which
// returns the result of Run.
func serve(t *testing.T, s *Server, service *echo) (address string, stop func() error) {
	t.Helper()
	grpc_testing.RegisterTestServiceServer(s, service)
	addr, err := s.Listen()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	result := make(chan error, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		result <- s.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return addr.String(), func() error {
		cancel()
		return <-result
	}
}

func newServer(t *testing.T, o ServerOptions, tel *telemetry.Telemetry) *Server {
	t.Helper()
	if o.Listen == "" {
		o.Listen = "127.0.0.1:0"
	}
	s, err := NewServer(o, tel)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func dial(t *testing.T, target string, o ClientTLS, tel *telemetry.Telemetry, options ...grpc.DialOption) grpc_testing.TestServiceClient {
	t.Helper()
	return grpc_testing.NewTestServiceClient(connect(t, target, o, tel, options...))
}

func connect(t *testing.T, target string, o ClientTLS, tel *telemetry.Telemetry, options ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	conn, err := Dial(target, o, tel, options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// pipe is a listener inside the process, for tests in a bubble of synctest.
type pipe struct {
	conns  chan net.Conn
	closed chan struct{}
	dialed int
}

func newPipe() *pipe { return &pipe{conns: make(chan net.Conn), closed: make(chan struct{})} }

func (p *pipe) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipe) Close() error {
	close(p.closed)
	return nil
}

func (p *pipe) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)} }

func (p *pipe) dial(ctx context.Context, _ string) (net.Conn, error) {
	near, far := net.Pipe()
	select {
	case p.conns <- far:
		p.dialed++
		return near, nil
	case <-p.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// freezer dials connections on which nothing arrives any more, in either
// direction, once freeze is closed.
type freezer struct {
	pipe   *pipe
	freeze chan struct{}
}

func (f *freezer) dial(ctx context.Context, target string) (net.Conn, error) {
	c, err := f.pipe.dial(ctx, target)
	return &frozenConn{Conn: c, freeze: f.freeze, closed: make(chan struct{})}, err
}

type frozenConn struct {
	net.Conn
	freeze chan struct{}
	closed chan struct{}
	once   sync.Once
}

func (c *frozenConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return nil // The other side is not told.
}

func (c *frozenConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	select {
	case <-c.freeze:
		<-c.closed
		return 0, net.ErrClosed
	default:
		return n, err
	}
}

func (c *frozenConn) Write(b []byte) (int, error) {
	select {
	case <-c.freeze:
		return len(b), nil
	default:
		return c.Conn.Write(b)
	}
}
