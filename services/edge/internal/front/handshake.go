package front

import (
	"bytes"
	"hash/maphash"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"runtime/debug"
	"time"

	"github.com/gobwas/ws"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/cutemarkets/relay/services/edge/internal/deflate"
	"github.com/cutemarkets/relay/services/edge/internal/dialect"
	"github.com/cutemarkets/relay/services/edge/internal/frame"
	"github.com/cutemarkets/relay/services/edge/internal/front/envelope"
)

const (
	// lingerTimeout is how long the rest of what a refused client sends is read, so
	// that the kernel does not take the answer back with a reset.
	lingerTimeout = 500 * time.Millisecond
	// goodbyeTimeout bounds the writing of the last words to a socket that the
	// engine did not take.
	goodbyeTimeout = time.Second
)

// handle answers the one request of a connection.
func (f *Front) handle(w http.ResponseWriter, r *http.Request) {
	defer f.raise()
	c := r.Context().Value(connKey{}).(*conn)
	c.handled.Store(true)
	to := route(r.URL.Path)
	if no := checkRequest(r, to); no != nil {
		f.refuse(w, no, f.client(r))
		f.metrics.upgrade(no.reason)
		return
	}
	if to == kindStatus {
		f.deps.Status.ServeHTTP(w, r)
		return
	}
	_, span := f.deps.Tracer.Start(r.Context(), "relay.handshake",
		trace.WithTimestamp(c.accepted), trace.WithSpanKind(trace.SpanKindServer))
	reason := f.handshake(w, r)
	span.SetAttributes(attribute.String("market", marketLabel(r)), attribute.String("result", reason.String()))
	span.End()
	f.metrics.upgrade(reason)
	if reason == dialect.OK {
		f.metrics.duration.Record(r.Context(), time.Since(c.accepted).Seconds())
	}
}

// raise keeps net/http from swallowing a panic: the stack is logged here, the
// panic goes on in Run, and the connection is closed.
func (f *Front) raise() {
	v := recover()
	if v == nil {
		return
	}
	f.log.Error("a request's handler panicked", slog.Any("panic", v), slog.String("stack", string(debug.Stack())))
	select {
	case f.broken <- v:
	default: // one is enough to end the process
	}
	panic(http.ErrAbortHandler)
}

// checkRequest makes the checks that all paths have in common.
func checkRequest(r *http.Request, to kind) *refusal {
	if no := checkSize(r); no != nil {
		return no
	}
	switch {
	case r.ProtoMajor != 1:
		return versionUnsupported // "PRI * HTTP/2.0" gets this far
	case to == kindNone:
		return notFound
	case r.Method != http.MethodGet:
		return methodNotAllowed
	}
	return nil
}

// handshake answers a request for a stream and returns the result. After the 101
// the engine can still drain, or be full by handshakes that went on at the same
// time: the client is then told which.
func (f *Front) handshake(w http.ResponseWriter, r *http.Request) dialect.Reason {
	client := f.client(r)
	if no := f.admit(r, client, time.Now()); no != nil {
		f.refuse(w, no, client)
		return no.reason
	}
	opening := f.deps.Dialect.Open(r)
	if key := opening.Credential; !key.Empty() && !f.keys.take(maphash.String(f.seed, key.Reveal()), time.Now()) {
		f.refuse(w, f.tooManyOfKey, client)
		return dialect.KeyRate
	}
	extensions := f.negotiate(r)
	conn, early, err := upgrade(w, r, extensions)
	if err != nil {
		return dialect.ClientGone
	}
	if !f.deps.Engine.Attach(conn, early, f.deps.Dialect, opening, client, extensions != "") {
		reason := dialect.PodFull
		if f.draining.Load() {
			reason = dialect.Draining
		}
		sayGoodbye(conn, f.deps.Dialect.Greeting(), f.deps.Dialect.Bye(reason))
		return reason
	}
	return dialect.OK
}

// admit decides whether a request for a stream is upgraded.
func (f *Front) admit(r *http.Request, client netip.Addr, now time.Time) *refusal {
	switch {
	case f.draining.Load():
		return podDraining
	case f.deps.Engine.Full():
		return podFull
	case f.opening() > f.options.MaxHandshakes:
		return tooManyHandshakes
	case !f.handshakes.take(client, now):
		return f.tooMany
	case !f.failures.ready(client, now):
		return f.tooFailing
	}
	if no := checkOrigin(r, f.options.AllowedOrigins); no != nil {
		return no
	}
	return checkUpgrade(r)
}

// refuse answers with a refusal; net/http closes the connection after it.
func (f *Front) refuse(w http.ResponseWriter, no *refusal, client netip.Addr) {
	now := time.Now()
	if no.charged {
		f.failures.take(client, now)
	}
	if f.reports.take(client, now) {
		f.log.Info("handshake refused, more of this address in the next minute are not logged",
			slog.String("reason", no.reason.String()), slog.Int("status", no.status), slog.Any("client", client))
	}
	_ = http.NewResponseController(w).SetReadDeadline(now.Add(lingerTimeout))
	if no.header != "" {
		w.Header().Set(no.header, no.value)
	}
	envelope.WriteError(w, no.status, no.code, no.message)
}

// client is the address of the client, as limits and reports have it: see bucketKey.
func (f *Front) client(r *http.Request) netip.Addr {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{} // the peer was gone before we could ask who it is
	}
	return bucketKey(clientAddr(peer.Addr(), r.Header["X-Forwarded-For"], f.options.TrustedProxies))
}

// negotiate answers the offers of extensions; "": none is accepted.
func (f *Front) negotiate(r *http.Request) string {
	if !f.options.Deflate {
		return ""
	}
	response, _ := deflate.Negotiate(r.Header["Sec-Websocket-Extensions"])
	return response
}

// upgrade answers with a 101 that accepts these extensions (as negotiate says)
// and no subprotocol, whatever is offered. It returns the connection freed of
// net/http, and what the client sent after its handshake.
func upgrade(w http.ResponseWriter, r *http.Request, extensions string) (conn net.Conn, early []byte, err error) {
	// Lists that checkUpgrade has accepted are more than gobwas reads.
	r.Header["Upgrade"], r.Header["Connection"] = tokenWebSocket, tokenUpgrade
	upgrader := ws.HTTPUpgrader{Timeout: requestTimeout}
	if extensions != "" {
		upgrader.Header = http.Header{"Sec-WebSocket-Extensions": {extensions}}
	}
	conn, rw, _, err := upgrader.Upgrade(r, w)
	if err != nil {
		if conn != nil {
			_ = conn.Close()
		}
		return nil, nil, err
	}
	if in := rw.Reader; in.Buffered() > 0 {
		buffered, _ := in.Peek(in.Buffered())
		early = bytes.Clone(buffered)
	}
	return handOver(conn), early, nil
}

// Read by gobwas; never changed.
var (
	tokenWebSocket = []string{"websocket"}
	tokenUpgrade   = []string{"Upgrade"}
)

// sayGoodbye closes a socket that nobody owns with the frames it would have got
// from the engine. What the client has sent is read for a moment: closing with
// unread input would make the kernel reset the connection and drop the frames.
func sayGoodbye(conn net.Conn, greeting []byte, bye dialect.Bye) {
	defer conn.Close()
	var words []byte
	if len(greeting) > 0 {
		words = frame.AppendText(words, greeting)
	}
	for _, message := range bye.Frames {
		words = frame.AppendText(words, message)
	}
	words = frame.AppendClose(words, bye.Code, bye.Text)
	_ = conn.SetWriteDeadline(time.Now().Add(goodbyeTimeout))
	if _, err := conn.Write(words); err != nil {
		return
	}
	if half, ok := conn.(interface{ CloseWrite() error }); !ok || half.CloseWrite() != nil {
		return
	}
	_ = conn.SetReadDeadline(time.Now().Add(lingerTimeout))
	_, _ = io.Copy(io.Discard, conn) // ends with the client's side, or the deadline
}
