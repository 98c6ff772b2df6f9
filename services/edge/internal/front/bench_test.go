package front

import (
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"testing"

	metricnoop "go.opentelemetry.io/otel/metric/noop"
	tracenoop "go.opentelemetry.io/otel/trace/noop"

	"github.com/cutemarkets/relay/services/edge/internal/dialect"
)

// closer is an engine that closes what it gets.
type closer struct{}

func (closer) Full() bool { return false }
func (closer) Attach(c net.Conn, _ []byte, _ dialect.Dialect, _ dialect.Opening, _ netip.Addr, _ bool) bool {
	return c.Close() == nil
}

// BenchmarkHandshake is a whole handshake over loopback, connect to close, the
// allocations of both ends counted. Those of net.Dial and the client are about
// 20; net/http makes most of the rest.
func BenchmarkHandshake(b *testing.B) {
	for name, raw := range map[string]string{
		"upgraded": request("/v1/ws/stocks/?api_key=cm_0123456789"),
		"refused":  request("/v1/ws/stocks/?api_key=cm_0123456789", "-Upgrade"),
	} {
		b.Run(name, func(b *testing.B) {
			o := defaults()
			o.FailureBurst, o.FailureRate = 1<<30, 1e6
			o.KeyBurst, o.KeyRate = 1<<30, 1e6
			f, err := New(o, Deps{
				Engine: closer{}, Dialect: plainDialect{}, Status: http.NotFoundHandler(), Log: slog.New(slog.DiscardHandler),
				Meter: metricnoop.NewMeterProvider().Meter(""), Tracer: tracenoop.NewTracerProvider().Tracer(""),
			})
			if err != nil {
				b.Fatal(err)
			}
			if err := f.Listen(b.Context()); err != nil {
				b.Fatal(err)
			}
			ran := make(chan error, 1)
			go func() { ran <- f.Run(b.Context()) }()
			b.Cleanup(func() { <-ran })
			addr := f.Addr().String()
			buf := make([]byte, 2048)
			b.ReportAllocs()
			for b.Loop() {
				c, err := net.Dial("tcp", addr)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := io.WriteString(c, raw); err != nil {
					b.Fatal(err)
				}
				for err == nil {
					_, err = c.Read(buf)
				}
				_ = c.Close()
			}
		})
	}
}

// BenchmarkCheck is what we add to net/http for a good handshake.
func BenchmarkCheck(b *testing.B) {
	r := parse(b, request("/v1/ws/stocks/?api_key=cm_0123456789", "+Origin: https://app.example.com"))
	origins := []string{"https://app.example.com"}
	b.ReportAllocs()
	for b.Loop() {
		if checkRequest(r, route(r.URL.Path)) != nil || checkOrigin(r, origins) != nil || checkUpgrade(r) != nil {
			b.Fatal("refused")
		}
	}
}
