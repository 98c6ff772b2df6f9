package grpcx

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/cutemarkets/relay/services/internal/telemetry"
)

// DefaultTimeout is the deadline of a unary call whose context has none.
const DefaultTimeout = 2 * time.Second

// ClientTLS are the flags of the TLS of a gRPC client.
type ClientTLS struct {
	CAFile     string `name:"tls-ca-file" placeholder:"FILE" help:"PEM certificates of the CA that must have signed the certificate of the server, re-read when it changes. Empty: plain text."`
	CertFile   string `name:"tls-cert-file" placeholder:"FILE" help:"PEM certificate shown to the server (mutual TLS)."`
	KeyFile    string `name:"tls-key-file" placeholder:"FILE" help:"PEM private key of the certificate."`
	ServerName string `name:"tls-server-name" placeholder:"NAME" help:"Name that the certificate of the server must have. Empty: the host dialled."`
}

// Validate reports values that make no sense.
func (o ClientTLS) Validate() error {
	if (o.CertFile == "") != (o.KeyFile == "") {
		return ErrPair
	}
	if o.CAFile == "" && (o.CertFile != "" || o.ServerName != "") {
		return errors.New("a TLS certificate or server name of a gRPC client needs a CA file")
	}
	return nil
}

// Dial makes a connection to a gRPC server; it connects with the first call, and
// again by itself. target is as for grpc.NewClient. options come after its own.
func Dial(target string, o ClientTLS, t *telemetry.Telemetry, options ...grpc.DialOption) (*grpc.ClientConn, error) {
	if err := o.Validate(); err != nil {
		return nil, fmt.Errorf("grpcx: %w", err)
	}
	creds, err := clientCredentials(o, t)
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient(target, append([]grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxMessageBytes), grpc.MaxCallSendMsgSize(MaxMessageBytes)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingAfter, Timeout: pingTimeout, PermitWithoutStream: true}),
		grpc.WithStatsHandler(clientStats(t)),
		grpc.WithChainUnaryInterceptor(withDeadline),
		grpc.WithDisableServiceConfig(),
	}, options...)...)
	if err != nil {
		return nil, fmt.Errorf("grpcx: %w", err)
	}
	return conn, nil
}

// withDeadline gives DefaultTimeout to calls that have no deadline.
func withDeadline(ctx context.Context, method string, request, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, DefaultTimeout)
		defer cancel()
	}
	return invoke(ctx, method, request, reply, conn, options...)
}
