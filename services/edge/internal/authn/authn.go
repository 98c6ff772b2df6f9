// Package authn asks the auth service whose a credential is. It owns the cache
// of its answers and starts no goroutine that outlives a call.
//
// A good answer is kept for 60 s, never longer than its principal lasts, so
// that known keys still pass while auth is away. "No such key" is kept for 5 s,
// in a cache of its own, so that a client that retries with a bad key costs one
// call per 5 s and a key created meanwhile works soon; other refusals are not
// kept. Cache keys are HMAC-SHA-256 digests under a random key of the process:
// a credential is never stored.
//
// Under overload: callers with the same credential share one call; both caches
// are bounded and drop what was used least recently; a call ends after 2 s.
// Whatever keeps auth from answering is AuthUnavailable, never a reason of the
// credential.
package authn

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
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

type digest [sha256.Size]byte

// answer is a decision of auth and how long it may be used.
type answer struct {
	principal principal.Principal
	reason    dialect.Reason
	until     time.Time
}

// Authenticator asks auth. All methods are safe for concurrent use.
type Authenticator struct {
	// Static after construction.
	client  authv1.AuthServiceClient
	log     *slog.Logger
	metrics *metrics
	key     []byte // of the digests
	now     func() time.Time

	good  *lru.Cache[digest, answer]
	bad   *lru.Cache[digest, answer]
	calls singleflight.Group // by digest

	health health
}

// New makes an authenticator that calls auth over conn.
func New(conn grpc.ClientConnInterface, meter metric.Meter, log *slog.Logger) (*Authenticator, error) {
	m, err := newMetrics(meter)
	if err != nil {
		return nil, err
	}
	good, err := lru.New[digest, answer](goodEntries)
	if err != nil {
		return nil, fmt.Errorf("authn: make cache: %w", err)
	}
	bad, err := lru.New[digest, answer](badEntries)
	if err != nil {
		return nil, fmt.Errorf("authn: make cache: %w", err)
	}
	a := &Authenticator{
		client:  authv1.NewAuthServiceClient(conn),
		log:     log.With(slog.String("component", "authn")),
		metrics: m,
		key:     make([]byte, sha256.Size),
		now:     time.Now,
		good:    good,
		bad:     bad,
	}
	_, _ = rand.Read(a.key) // never fails (crypto/rand)
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
	// The call keeps the values of the first caller's context (its trace), but
	// not its end: the others still want the answer.
	shared := context.WithoutCancel(ctx)
	result := a.calls.DoChan(string(d[:]), func() (any, error) {
		if known, ok := a.cached(d); ok { // answered since this caller looked
			return known, nil
		}
		return a.ask(shared, d, market, product, credential), nil
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
	h := hmac.New(sha256.New, a.key)
	h.Write([]byte(market))
	h.Write([]byte{0})
	h.Write([]byte(credential.Reveal()))
	return digest(h.Sum(nil))
}

func (a *Authenticator) cached(d digest) (answer, bool) {
	for _, cache := range []*lru.Cache[digest, answer]{a.good, a.bad} {
		known, ok := cache.Get(d)
		if !ok {
			continue
		}
		if a.now().Before(known.until) {
			return known, true
		}
		cache.Remove(d)
	}
	return answer{}, false
}

// ask calls auth and keeps what may be kept. The ages of answers count from
// before the call.
func (a *Authenticator) ask(ctx context.Context, d digest, market string, product authv1.Product, credential secret.Secret) answer {
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
	got, result := judge(response, market, product, asked)
	a.metrics.request(ctx, result)
	switch result {
	case resultOK:
		got.until = asked.Add(goodTTL)
		if e := got.principal.Expires; !e.IsZero() && e.Before(got.until) {
			got.until = e
		}
		a.good.Add(d, got)
	case resultInvalid:
		got.until = asked.Add(badTTL)
		a.bad.Add(d, got)
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
