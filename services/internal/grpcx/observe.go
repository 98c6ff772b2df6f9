package grpcx

import (
	"context"
	"log/slog"
	"strings"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/stats"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/cutemarkets/relay/services/internal/lifecycle"
	"github.com/cutemarkets/relay/services/internal/telemetry"
)

func serverStats(t *telemetry.Telemetry) stats.Handler {
	return otelgrpc.NewServerHandler(statsOptions(t)...)
}

func clientStats(t *telemetry.Telemetry) stats.Handler {
	return otelgrpc.NewClientHandler(statsOptions(t)...)
}

func statsOptions(t *telemetry.Telemetry) []otelgrpc.Option {
	return []otelgrpc.Option{
		otelgrpc.WithTracerProvider(t.TracerProvider),
		otelgrpc.WithMeterProvider(t.MeterProvider),
		otelgrpc.WithPropagators(t.Propagator),
		otelgrpc.WithFilter(observed),
	}
}

// observed tells which calls get a span and a duration: unary ones but for
// health checks. The span of a stream would end with the process.
func observed(info *stats.RPCTagInfo) bool {
	name := strings.ReplaceAll(strings.TrimPrefix(info.FullMethodName, "/"), "/", ".")
	if strings.HasPrefix(name, "grpc.health.v1.") {
		return false
	}
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(name))
	if err != nil {
		return true // A method nobody knows is answered with UNIMPLEMENTED at once.
	}
	m, ok := d.(protoreflect.MethodDescriptor)
	return ok && !m.IsStreamingClient() && !m.IsStreamingServer()
}

// crashUnary lets a panic of a handler end the process, after it has been logged.
func crashUnary(log *slog.Logger) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
		defer lifecycle.Crash(log, info.FullMethod)
		return handle(ctx, request)
	}
}

// crashStream is crashUnary for streams.
func crashStream(log *slog.Logger) grpc.StreamServerInterceptor {
	return func(service any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
		defer lifecycle.Crash(log, info.FullMethod)
		return handle(service, stream)
	}
}
