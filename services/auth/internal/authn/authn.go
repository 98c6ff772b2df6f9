// Package authn answers who a key belongs to: it implements the gRPC service
// auth.v1.AuthService on a store, and watches whether the store answers.
//
// It starts no goroutine; Monitor.Run is a part of the service. Under overload,
// beyond maxInFlight calls of Authenticate at once, further ones fail at once
// with UNAVAILABLE. A call gives up on the store a little before its caller's
// deadline, and after maxWait at the latest. Keys reach neither log, metric,
// span nor error.
package authn

import (
	"context"
	"crypto/subtle"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/metric"
	"google.golang.org/protobuf/types/known/durationpb"

	authv1 "github.com/cutemarkets/relay/proto/auth/v1"
	"github.com/cutemarkets/relay/services/auth/internal/apikey"
	"github.com/cutemarkets/relay/services/auth/internal/store"
)

const (
	// maxInFlight bounds the calls that wait for the store: some 1 MiB.
	maxInFlight = 1024
	// maxWait is the patience with the store when the caller names none.
	maxWait = 2 * time.Second
	// maxMargin is how long before the caller's deadline the answer leaves; a
	// tenth of the time left, if that is less.
	maxMargin = 50 * time.Millisecond
	// logInterval is the least time between two logged errors of the store.
	logInterval = 10 * time.Second
)

// Server implements authv1.AuthServiceServer. Safe for concurrent use.
type Server struct {
	authv1.UnimplementedAuthServiceServer

	// Static after construction.
	store   store.Store
	pepper  apikey.Pepper
	log     *slog.Logger
	metrics *metrics

	lastLogged atomic.Int64 // Unix nanoseconds
}

// New makes a server.
func New(s store.Store, pepper apikey.Pepper, log *slog.Logger, meter metric.Meter) (*Server, error) {
	m, err := newMetrics(meter)
	if err != nil {
		return nil, err
	}
	return &Server{store: s, pepper: pepper, log: log.With(slog.String("component", "authn")), metrics: m}, nil
}

// Authenticate implements authv1.AuthServiceServer.
func (s *Server) Authenticate(ctx context.Context, request *authv1.AuthenticateRequest) (*authv1.AuthenticateResponse, error) {
	outcome, principal := s.decide(ctx, request.GetKey(), request.GetProduct())
	s.metrics.decisions[outcome].Add(1)
	answer := &answers[outcome]
	if answer.err != nil {
		return nil, answer.err
	}
	if answer.refusal != authv1.RefusalReason_REFUSAL_REASON_UNSPECIFIED {
		return &authv1.AuthenticateResponse{Result: &authv1.AuthenticateResponse_Refusal{
			Refusal: &authv1.Refusal{Reason: answer.refusal},
		}}, nil
	}
	return &authv1.AuthenticateResponse{Result: &authv1.AuthenticateResponse_Principal{Principal: principal}}, nil
}

// decide returns the principal if the outcome is allowed.
func (s *Server) decide(ctx context.Context, key string, wanted authv1.Product) (outcome, *authv1.Principal) {
	product, ok := products[wanted]
	if !ok {
		return badProduct, nil
	}
	if !apikey.Plausible(key) {
		return malformedKey, nil
	}
	defer s.metrics.inFlight.Add(-1)
	if s.metrics.inFlight.Add(1) > maxInFlight {
		return overloaded, nil
	}
	digest := s.pepper.Digest(key)
	match, err := s.find(ctx, digest)
	switch {
	case errors.Is(err, store.ErrUnknownKey):
		return unknownKey, nil
	case err != nil:
		return s.storeError(ctx, err), nil
	case subtle.ConstantTimeCompare(match.Digest[:], digest[:]) != 1:
		return unknownKey, nil
	case !match.Key.Revoked.IsZero():
		return revokedKey, nil
	case match.Key.Product != product:
		return productMismatch, nil
	}
	plan := match.Plans.Of(product)
	if !plan.HasStream() {
		return planTooLow, nil
	}
	return allowed, &authv1.Principal{
		UserId:  match.Key.UserID,
		KeyId:   match.Key.ID,
		Product: wanted,
		Plan:    plans[plan],
	}
}

// find asks the store, and gives up before the caller does.
func (s *Server) find(ctx context.Context, digest store.Digest) (store.Match, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, patience(ctx), errStoreSlow)
	defer cancel()
	start := time.Now()
	match, err := s.store.Lookup(ctx, digest)
	answered := err == nil || errors.Is(err, store.ErrUnknownKey)
	s.metrics.observeLookup(ctx, time.Since(start), answered)
	if !answered && errors.Is(context.Cause(ctx), errStoreSlow) {
		return match, errors.Join(errStoreSlow, err)
	}
	return match, err
}

var errStoreSlow = errors.New("authn: the store did not answer in time")

// patience is how long to wait for the store.
func patience(ctx context.Context) time.Duration {
	deadline, ok := ctx.Deadline()
	if !ok {
		return maxWait
	}
	left := time.Until(deadline)
	return min(maxWait, left-min(maxMargin, left/10))
}

// storeError tells the store's faults from the caller's impatience, and logs
// the former now and then: the counter has them all.
func (s *Server) storeError(ctx context.Context, err error) outcome {
	if ctx.Err() != nil {
		return callerGone
	}
	now := time.Now().UnixNano()
	last := s.lastLogged.Load()
	if now-last >= int64(logInterval) && s.lastLogged.CompareAndSwap(last, now) {
		s.log.WarnContext(ctx, "key look-up failed", slog.Any("error", err), slog.Duration("next_log_after", logInterval))
	}
	if errors.Is(err, errStoreSlow) {
		return storeSlow
	}
	return storeFailed
}

// Status implements authv1.AuthServiceServer.
func (s *Server) Status(ctx context.Context, _ *authv1.StatusRequest) (*authv1.StatusResponse, error) {
	took, err := s.ping(ctx, patience(ctx))
	if err != nil && ctx.Err() != nil {
		return nil, answers[callerGone].err
	}
	return &authv1.StatusResponse{StoreOk: err == nil, StoreLatency: durationpb.New(took)}, nil
}

func (s *Server) ping(ctx context.Context, patience time.Duration) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	start := time.Now()
	err := s.store.Ping(ctx)
	took := time.Since(start)
	s.metrics.observePing(ctx, took, err == nil)
	return took, err
}

var products = map[authv1.Product]store.Product{
	authv1.Product_PRODUCT_STOCKS:  store.ProductStocks,
	authv1.Product_PRODUCT_OPTIONS: store.ProductOptions,
	authv1.Product_PRODUCT_PAPER:   store.ProductPaper,
}

var plans = map[store.Plan]authv1.Plan{
	store.PlanFree:       authv1.Plan_PLAN_FREE,
	store.PlanDeveloper:  authv1.Plan_PLAN_DEVELOPER,
	store.PlanExpert:     authv1.Plan_PLAN_EXPERT,
	store.PlanCommercial: authv1.Plan_PLAN_COMMERCIAL,
}
