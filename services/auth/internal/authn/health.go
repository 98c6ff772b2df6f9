package authn

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	authv1 "github.com/cutemarkets/relay/proto/auth/v1"
)

// Health is the grpc.health.v1 service of a server whose health is that of its
// store. It answers in place of the health service that the server comes with,
// which knows only running and stopping.
type Health struct{ server *health.Server }

// NewHealth makes a health service that does not serve yet.
func NewHealth() *Health {
	h := &Health{server: health.NewServer()}
	h.SetServing(false)
	return h
}

// SetServing sets what is answered for the whole server and for AuthService.
func (h *Health) SetServing(serving bool) {
	status := healthv1.HealthCheckResponse_NOT_SERVING
	if serving {
		status = healthv1.HealthCheckResponse_SERVING
	}
	h.server.SetServingStatus("", status)
	h.server.SetServingStatus(authv1.AuthService_ServiceDesc.ServiceName, status)
}

// Options make a gRPC server ask Health.
func (h *Health) Options() []grpc.ServerOption {
	return []grpc.ServerOption{grpc.ChainUnaryInterceptor(h.unary), grpc.ChainStreamInterceptor(h.stream)}
}

func (h *Health) unary(ctx context.Context, request any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	switch r := request.(type) {
	case *healthv1.HealthCheckRequest:
		return h.server.Check(ctx, r)
	case *healthv1.HealthListRequest:
		return h.server.List(ctx, r)
	}
	return next(ctx, request)
}

func (h *Health) stream(service any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if info.FullMethod == healthv1.Health_Watch_FullMethodName {
		return next(h.server, stream)
	}
	return next(service, stream)
}
