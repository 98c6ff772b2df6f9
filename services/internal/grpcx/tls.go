package grpcx

import (
	"context"
	"errors"
	"net"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/cutemarkets/relay/services/internal/certs"
	"github.com/cutemarkets/relay/services/internal/telemetry"
)

// ErrPair says that one of certificate and key is given without the other.
var ErrPair = errors.New("the TLS certificate file and key file go together")

// http2 is the ALPN name of what gRPC speaks.
const http2 = "h2"

// serverCredentials are plain text without a certificate.
func serverCredentials(o ServerOptions, t *telemetry.Telemetry) (credentials.TransportCredentials, error) {
	if o.TLSCertFile == "" {
		return insecure.NewCredentials(), nil
	}
	source, err := certs.Open(certs.Files{Cert: o.TLSCertFile, Key: o.TLSKeyFile, CA: o.TLSClientCAFile}, t.Logger)
	if err != nil {
		return nil, err
	}
	return credentials.NewTLS(source.Server(http2)), nil
}

// clientCredentials are plain text without a CA.
func clientCredentials(o ClientTLS, t *telemetry.Telemetry) (credentials.TransportCredentials, error) {
	if o.CAFile == "" {
		return insecure.NewCredentials(), nil
	}
	source, err := certs.Open(certs.Files{Cert: o.CertFile, Key: o.KeyFile, CA: o.CAFile}, t.Logger)
	if err != nil {
		return nil, err
	}
	return &rereading{source: source, serverName: o.ServerName}, nil
}

// rereading is TLS of a client that takes its files anew at each handshake.
// crypto/tls has a hook for the client's certificate, but none for its CA.
type rereading struct {
	source     *certs.Source
	serverName string
}

func (r *rereading) now() credentials.TransportCredentials {
	return credentials.NewTLS(r.source.Client(r.serverName))
}

// ClientHandshake implements credentials.TransportCredentials.
func (r *rereading) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return r.now().ClientHandshake(ctx, authority, conn)
}

// ServerHandshake implements credentials.TransportCredentials.
func (r *rereading) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	panic("grpcx: credentials of a client used by a server")
}

// Info implements credentials.TransportCredentials.
func (r *rereading) Info() credentials.ProtocolInfo { return r.now().Info() }

// Clone implements credentials.TransportCredentials.
func (r *rereading) Clone() credentials.TransportCredentials {
	c := *r
	return &c
}

// OverrideServerName implements credentials.TransportCredentials.
func (r *rereading) OverrideServerName(name string) error {
	r.serverName = name
	return nil
}
