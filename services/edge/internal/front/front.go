// Package front is the public listener: it takes TCP (and TLS) connections, has
// net/http read the one request each may make, refuses or answers it, and hands
// upgraded sockets to the engine. Of the API key it knows a digest, to count its
// handshakes; it asks nobody about it and knows no socket after the hand-over.
// Credentials and the lock are the business of the session behind the upgrade.
//
// One goroutine accepts; net/http starts one per connection, which ends with the
// answer or the hand-over, after 5 s at the latest.
//
// Overload: beyond MaxHandshakes connections being opened, handshakes get 503;
// beyond twice as many, connections wait in the kernel's backlog. When the process
// is out of descriptors net/http waits (5 ms to 1 s) before it accepts again. An
// address that fails too often gets 429 before its handshake is looked at, an API
// key that comes too often instead of the upgrade. One request is answered per
// connection and the connection is then closed, so that a proxy which takes a
// refusal for an upgrade cannot be made to smuggle a second one (TestPipelined).
//
// Refusals of ours carry the REST error envelope. Those that net/http makes
// itself (malformed bytes 400, more than 12 KiB 431) keep its
// plain text and are counted as bad_request.
package front

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"

	"github.com/cutemarkets/relay/services/edge/internal/dialect"
	"github.com/cutemarkets/relay/services/internal/certs"
	"github.com/cutemarkets/relay/services/internal/lifecycle"
)

const (
	// requestTimeout bounds the TLS handshake, the reading of the request and
	// the writing of the answer, each.
	requestTimeout = 5 * time.Second
	// stopTimeout is what Run gives connections that are being opened.
	stopTimeout = 2 * time.Second
	// reportRate is how often refusals of one address are logged, per second.
	reportRate = 1.0 / 60
)

// ErrRunTwice is the answer to a second Run.
var ErrRunTwice = errors.New("front: has been run already")

// Engine takes over the upgraded sockets. Its methods are safe for concurrent
// use and do not block.
type Engine interface {
	// Full reports whether there is no place for another socket.
	Full() bool
	// Attach takes over a socket. The 101 has been written, no deadline is set,
	// nothing else refers to conn: it is a *net.TCPConn, or a *tls.Conn whose
	// NetConn leads to one. early is what the client sent after its handshake and
	// has been read already, client its address, for Front.Failed; deflate says
	// whether permessage-deflate was negotiated. It reports false when it takes no
	// more sockets; conn is then the caller's still.
	Attach(conn net.Conn, early []byte, d dialect.Dialect, o dialect.Opening, client netip.Addr, deflate bool) bool
}

// Deps are what a Front needs of others.
type Deps struct {
	Engine  Engine
	Dialect dialect.Dialect
	Status  http.Handler // answers GET /v1/status/
	Log     *slog.Logger
	Meter   metric.Meter
	Tracer  trace.Tracer
}

// Front is the public listener. Safe for concurrent use.
type Front struct {
	// Static after construction.
	options    Options
	deps       Deps
	log        *slog.Logger
	server     *http.Server
	certs      *certs.Source // nil: no TLS
	metrics    *metrics
	handshakes *throttle[netip.Addr] // nil: no limit
	keys       *throttle[uint64]     // handshakes by digests of keys; nil: no limit
	failures   *throttle[netip.Addr]
	reports    *throttle[netip.Addr] // who is logged
	seed       maphash.Seed          // of digests

	tooMany      *refusal // by handshakes; nil: no limit
	tooManyOfKey *refusal // by keys; nil: no limit
	tooFailing   *refusal // by failures

	slots    chan struct{} // one per connection being opened; never closed
	broken   chan any      // first panic of a handler; never closed
	draining atomic.Bool
	ran      atomic.Bool

	// Written by Listen, which must return before Run and Addr.
	listener net.Listener
}

// New makes a Front. It reads the certificate and opens no listener.
func New(o Options, deps Deps) (*Front, error) {
	if err := o.Validate(); err != nil {
		return nil, fmt.Errorf("front: %w", err)
	}
	f := &Front{
		options:  o,
		deps:     deps,
		log:      deps.Log.With(slog.String("component", "front")),
		failures: newThrottle[netip.Addr](o.FailureRate, o.FailureBurst),
		reports:  newThrottle[netip.Addr](reportRate, 1),
		seed:     maphash.MakeSeed(),
		tooFailing: tooManyRequests(dialect.FailureRate, o.FailureRate,
			"Too many failed connection attempts from your address. Check the API key, and wait before you connect again."),
		slots:  make(chan struct{}, 2*o.MaxHandshakes),
		broken: make(chan any, 1),
	}
	if o.HandshakeRate > 0 {
		f.handshakes = newThrottle[netip.Addr](o.HandshakeRate, o.HandshakeBurst)
		f.tooMany = tooManyRequests(dialect.HandshakeRate, o.HandshakeRate,
			"Too many connection attempts from your address. Keep one connection open, and wait before you connect again.")
	}
	if o.KeyRate > 0 {
		f.keys = newThrottle[uint64](o.KeyRate, o.KeyBurst)
		f.tooManyOfKey = tooManyRequests(dialect.KeyRate, o.KeyRate,
			"Too many connection attempts with this API key. A user may have one connection: keep it open, and wait before you connect again.")
	}
	var err error
	if f.metrics, err = newMetrics(deps.Meter, f.opening, o.MaxHandshakes); err != nil {
		return nil, fmt.Errorf("front: %w", err)
	}
	if o.TLSCertFile != "" {
		if f.certs, err = certs.Open(certs.Files{Cert: o.TLSCertFile, Key: o.TLSKeyFile}, deps.Log); err != nil {
			return nil, fmt.Errorf("front: %w", err)
		}
	}
	f.server = f.newServer()
	return f, nil
}

func (f *Front) newServer() *http.Server {
	s := &http.Server{
		Handler:                      http.HandlerFunc(f.handle),
		DisableGeneralOptionsHandler: true,
		ReadHeaderTimeout:            requestTimeout,
		ReadTimeout:                  requestTimeout,
		WriteTimeout:                 requestTimeout,
		MaxHeaderBytes:               maxHeaderBytes,
		ConnState:                    f.connState,
		ConnContext:                  connContext,
		ErrorLog:                     newErrorLog(f.log, f.metrics),
		Protocols:                    new(http.Protocols),
	}
	s.Protocols.SetHTTP1(true)
	s.SetKeepAlivesEnabled(false)
	return s
}

// Listen opens the listener, so that Addr is known and an address in use is an
// error before anything else has started. Run does it if nobody has.
func (f *Front) Listen(ctx context.Context) error {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", f.options.Listen)
	if err != nil {
		return fmt.Errorf("front: %w", err)
	}
	f.listener = f.wrap(l)
	return nil
}

// Addr is the address of the listener after Listen.
func (f *Front) Addr() net.Addr { return f.listener.Addr() }

// Run serves until ctx is done, then stops to listen, gives connections that are
// being opened 2 s and cuts them. Sockets that have been handed over are not
// touched. A panic of a handler, which net/http would swallow, is raised again
// here.
func (f *Front) Run(ctx context.Context) error {
	if f.ran.Swap(true) {
		return ErrRunTwice
	}
	if f.listener == nil {
		if err := f.Listen(ctx); err != nil {
			return err
		}
	}
	served := make(chan error, 1)
	lifecycle.Go("edge/front accept", func() { served <- f.server.Serve(f.listener) })
	f.log.Info("listening", slog.String("addr", f.listener.Addr().String()), slog.Bool("tls", f.certs != nil))
	var failure error
	select {
	case <-ctx.Done():
		f.stop(context.WithoutCancel(ctx))
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			failure = fmt.Errorf("front: serve: %w", err)
		}
	case err := <-served:
		_ = f.server.Close()
		failure = fmt.Errorf("front: serve: %w", err)
	case v := <-f.broken:
		panic(v)
	}
	select {
	case v := <-f.broken:
		panic(v)
	default:
		return failure
	}
}

func (f *Front) stop(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	if err := f.server.Shutdown(ctx); err != nil {
		f.log.Warn("connections that were being opened have been cut", slog.Int("count", f.opening()))
		_ = f.server.Close()
	}
}

// SetDraining makes all handshakes be refused with 503 (true) or not.
func (f *Front) SetDraining(on bool) { f.draining.Store(on) }

// Failed counts a failure of a client: a refusal after the upgrade, of its
// credential or of what it asked for. Too many of them make its handshakes be refused with 429.
func (f *Front) Failed(client netip.Addr) { f.failures.take(bucketKey(client), time.Now()) }

// opening is the number of connections that are being opened.
func (f *Front) opening() int { return len(f.slots) }
