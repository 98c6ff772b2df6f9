package authn

import (
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	authv1 "github.com/cutemarkets/relay/proto/auth/v1"
)

// outcome is how a call of Authenticate ended. Every call ends in exactly one,
// which is its metric label.
type outcome uint8

const (
	allowed outcome = iota
	malformedKey
	unknownKey
	revokedKey
	productMismatch
	planTooLow
	badProduct
	overloaded
	storeFailed
	storeSlow
	callerGone
	outcomes int = iota
)

// answers maps every outcome to its labels and to what the caller gets: a
// refusal, a gRPC error, or (neither) the principal.
var answers = [outcomes]struct {
	result  string
	reason  string
	refusal authv1.RefusalReason
	err     error
}{
	allowed:         {result: "allowed", reason: "none"},
	malformedKey:    {result: "refused", reason: "malformed_key", refusal: authv1.RefusalReason_REFUSAL_REASON_INVALID_KEY},
	unknownKey:      {result: "refused", reason: "unknown_key", refusal: authv1.RefusalReason_REFUSAL_REASON_INVALID_KEY},
	revokedKey:      {result: "refused", reason: "revoked_key", refusal: authv1.RefusalReason_REFUSAL_REASON_INVALID_KEY},
	productMismatch: {result: "refused", reason: "product_mismatch", refusal: authv1.RefusalReason_REFUSAL_REASON_PRODUCT_MISMATCH},
	planTooLow:      {result: "refused", reason: "plan", refusal: authv1.RefusalReason_REFUSAL_REASON_PLAN},
	badProduct:      {result: "error", reason: "bad_product", err: status.Error(codes.InvalidArgument, "product is none of stocks, options, paper")},
	overloaded:      {result: "error", reason: "overloaded", err: status.Error(codes.Unavailable, "too many calls at once")},
	storeFailed:     {result: "error", reason: "store_failed", err: status.Error(codes.Unavailable, "the key store did not answer")},
	storeSlow:       {result: "error", reason: "store_slow", err: status.Error(codes.Unavailable, "the key store did not answer in time")},
	callerGone:      {result: "error", reason: "caller_gone", err: status.Error(codes.Canceled, "the caller gave up")},
}
