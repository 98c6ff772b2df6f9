// Package authn asks the auth service whose a credential is. It owns the cache
// of its answers and starts no goroutine that outlives a call; a timer empties
// the cache.
//
// A good answer is kept for 55 to 60 s, never longer than its principal lasts,
// so that known keys still pass while auth is away. "No such key" is kept for
// 4.5 to 5 s, in a cache of its own, so that a client that retries with a bad
// key costs one call in that time and a key created meanwhile works soon; other
// refusals are not kept. Afterwards their memory is free. Cache keys are digests
// under a random key of the process: a credential is never stored.
//
// Under overload: callers with the same credential share one call; both caches
// are bounded and drop their oldest answers; a call ends after 2 s.
// Whatever keeps auth from answering is AuthUnavailable, never a reason of the
// credential.
package authn

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"log/slog"
	"time"

	"go.opentelemetry.io/otel/metric"
	"golang.org/x/sync/singleflight"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	authv1 "github.com/cutemarkets/relay/proto/auth/v1"
	"github.com/cutemarkets/relay/services/edge/internal/dialect"
	"github.com/cutemarkets/relay/services/edge/internal/principal"
	"github.com/cutemarkets/relay/services/internal/secret"
)

const (
	goodTTL     = 60 * time.Second
	badTTL      = 5 * time.Second
	goodEntries = 100_000
	badEntries  = 10_000

	callTimeout = 2 * time.Second
	retryAfter  = 100 * time.Millisecond
)

// digest tells a credential for a market from others: 128 bits of a SHA-256 that
// begins with a secret of the process.
type digest [16]byte

// answer is a decision of auth.
type answer struct {
	principal principal.Principal
	reason    dialect.Reason
}

// known is a principal in the cache.
type known struct {
	user    string
	expires int64 // Unix µs; 0: never
}

// Authenticator asks auth. All methods are safe for concurrent use.
type Authenticator struct {
	// Static after construction.
	client  authv1.AuthServiceClient
	log     *slog.Logger
	metrics *metrics
	key     [sha256.Size]byte // of the digests
	now     func() time.Time

	good  *cache[known]
	bad   *cache[struct{}]   // credentials that are none
	calls singleflight.Group // by digest

	health health
}

// New makes an authenticator that calls auth over conn.
func New(conn grpc.ClientConnInterface, meter metric.Meter, log *slog.Logger) (*Authenticator, error) {
	m, err := newMetrics(meter)
	if err != nil {
		return nil, err
	}
	a := &Authenticator{
		client:  authv1.NewAuthServiceClient(conn),
		log:     log.With(slog.String("component", "authn")),
		metrics: m,
		now:     time.Now,
	}
	a.good = newCache[known](goodTTL, goodEntries, func() time.Time { return a.now() })
	a.bad = newCache[struct{}](badTTL, badEntries, func() time.Time { return a.now() })
	_, _ = rand.Read(a.key[:]) // never fails (crypto/rand)
	return a, nil
}

// Authenticate returns whose the credential is and OK, or why it does not open
// the market: CredentialMissing, CredentialInvalid, ProductMismatch, PlanTooLow,
// MarketUnsupported, or AuthUnavailable when no answer could be had (also when
// ctx ends first).
func (a *Authenticator) Authenticate(ctx context.Context, market string, credential secret.Secret) (principal.Principal, dialect.Reason) {
	product, ok := products[market]
	if !ok {
		return principal.Principal{}, dialect.MarketUnsupported
	}
	if credential.Empty() {
		return principal.Principal{}, dialect.CredentialMissing
	}
	d := a.digest(market, credential)
	if known, ok := a.cached(d); ok {
		a.metrics.hits.Add(ctx, 1)
		return known.principal, known.reason
	}
	a.metrics.misses.Add(ctx, 1)
	return a.share(ctx, d, product, credential)
}

// share asks auth together with all that want to know the same.
func (a *Authenticator) share(ctx context.Context, d digest, product authv1.Product, credential secret.Secret) (principal.Principal, dialect.Reason) {
	// The call keeps the values of the first caller's context (its trace), but
	// not its end: the others still want the answer.
	shared := context.WithoutCancel(ctx)
	result := a.calls.DoChan(string(d[:]), func() (any, error) {
		if known, ok := a.cached(d); ok { // answered since this caller looked
			return known, nil
		}
		return a.ask(shared, d, product, credential), nil
	})
	select {
	case r := <-result:
		got := r.Val.(answer)
		return got.principal, got.reason
	case <-ctx.Done():
		return principal.Principal{}, dialect.AuthUnavailable
	}
}

func (a *Authenticator) digest(market string, credential secret.Secret) digest {
	var room [256]byte
	b := append(room[:0], a.key[:]...)
	b = append(b, market...)
	b = append(b, 0)
	b = append(b, credential.Reveal()...)
	sum := sha256.Sum256(b)
	return digest(sum[:16])
}

func (a *Authenticator) cached(d digest) (answer, bool) {
	now := a.now()
	if k, ok := a.good.get(d, now); ok && (k.expires == 0 || now.UnixMicro() < k.expires) {
		p := principal.Principal{UserID: k.user}
		if k.expires != 0 {
			p.Expires = time.UnixMicro(k.expires).UTC()
		}
		return answer{principal: p}, true
	}
	_, ok := a.bad.get(d, now)
	return answer{reason: dialect.CredentialInvalid}, ok
}

// ask calls auth and keeps what may be kept. The ages of answers count from
// before the call.
func (a *Authenticator) ask(ctx context.Context, d digest, product authv1.Product, credential secret.Secret) answer {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	asked := a.now()
	response, err := a.call(ctx, &authv1.AuthenticateRequest{Key: credential.Reveal(), Product: product})
	if err != nil {
		// The message of a gRPC status is the server's; it is not logged.
		a.log.Warn("auth gave no answer", slog.String("code", status.Code(err).String()))
		a.metrics.request(ctx, resultUnavailable)
		return answer{reason: dialect.AuthUnavailable}
	}
	got, result := judge(response, product, asked)
	a.metrics.request(ctx, result)
	switch result {
	case resultOK:
		k := known{user: got.principal.UserID}
		if e := got.principal.Expires; !e.IsZero() {
			k.expires = e.UnixMicro()
		}
		a.good.put(d, k, asked)
	case resultInvalid:
		a.bad.put(d, struct{}{}, asked)
	case resultMalformed:
		a.log.Error("auth gave an answer that makes no sense")
	}
	return got
}

// call asks, and once more if auth was unreachable.
func (a *Authenticator) call(ctx context.Context, request *authv1.AuthenticateRequest) (*authv1.AuthenticateResponse, error) {
	response, err := a.client.Authenticate(ctx, request)
	if status.Code(err) != codes.Unavailable {
		return response, err
	}
	pause := time.NewTimer(retryAfter)
	defer pause.Stop()
	select {
	case <-pause.C:
		return a.client.Authenticate(ctx, request)
	case <-ctx.Done():
		return nil, err
	}
}
