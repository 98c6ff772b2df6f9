package authn

import (
	"context"
	"fmt"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	authv1 "github.com/cutemarkets/relay/proto/auth/v1"
	"github.com/cutemarkets/relay/services/edge/internal/dialect"
	"github.com/cutemarkets/relay/services/edge/internal/principal"
)

var products = map[string]authv1.Product{
	"stocks":  authv1.Product_PRODUCT_STOCKS,
	"options": authv1.Product_PRODUCT_OPTIONS,
}

// result is the label of a request.
type result uint8

const (
	resultOK result = iota
	resultInvalid
	resultProduct
	resultPlan
	resultUnavailable // no answer could be had
	resultMalformed   // an answer that makes no sense
	resultEnd
)

var resultNames = [resultEnd]string{
	resultOK:          "ok",
	resultInvalid:     "invalid_key",
	resultProduct:     "product_mismatch",
	resultPlan:        "plan",
	resultUnavailable: "unavailable",
	resultMalformed:   "malformed",
}

// judge turns auth's answer into ours. One that makes no sense says nothing of
// the credential, so it counts as no answer.
func judge(r *authv1.AuthenticateResponse, product authv1.Product, now time.Time) (answer, result) {
	switch r := r.GetResult().(type) {
	case *authv1.AuthenticateResponse_Principal:
		return judgePrincipal(r.Principal, product, now)
	case *authv1.AuthenticateResponse_Refusal:
		switch r.Refusal.GetReason() {
		case authv1.RefusalReason_REFUSAL_REASON_INVALID_KEY:
			return answer{reason: dialect.CredentialInvalid}, resultInvalid
		case authv1.RefusalReason_REFUSAL_REASON_PRODUCT_MISMATCH:
			return answer{reason: dialect.ProductMismatch}, resultProduct
		case authv1.RefusalReason_REFUSAL_REASON_PLAN:
			return answer{reason: dialect.PlanTooLow}, resultPlan
		}
	}
	return answer{reason: dialect.AuthUnavailable}, resultMalformed
}

func judgePrincipal(p *authv1.Principal, product authv1.Product, now time.Time) (answer, result) {
	if p.GetUserId() == "" || p.GetProduct() != product {
		return answer{reason: dialect.AuthUnavailable}, resultMalformed
	}
	switch p.GetPlan() {
	case authv1.Plan_PLAN_EXPERT, authv1.Plan_PLAN_COMMERCIAL:
	default: // auth refuses these itself; a stream is never opened on one
		return answer{reason: dialect.PlanTooLow}, resultPlan
	}
	got := principal.Principal{UserID: p.GetUserId()}
	if p.GetExpiresAt() != nil {
		got.Expires = p.GetExpiresAt().AsTime()
		if !now.Before(got.Expires) {
			return answer{reason: dialect.CredentialInvalid}, resultInvalid
		}
	}
	return answer{principal: got}, resultOK
}

// metrics are the package's instruments, all label values made at zero.
type metrics struct {
	hits, misses metric.Int64Counter
	requests     metric.Int64Counter
	results      [resultEnd]metric.MeasurementOption
}

func newMetrics(meter metric.Meter) (*metrics, error) {
	m := &metrics{}
	for _, c := range []struct {
		to         *metric.Int64Counter
		name, help string
	}{
		{&m.hits, "relay_edge_auth_cache_hits", "Credentials answered from the cache."},
		{&m.misses, "relay_edge_auth_cache_misses", "Credentials not in the cache."},
		{&m.requests, "relay_edge_auth_requests", "Authenticate requests to auth, by result."},
	} {
		counter, err := meter.Int64Counter(c.name, metric.WithDescription(c.help))
		if err != nil {
			return nil, fmt.Errorf("authn: make metric: %w", err)
		}
		*c.to = counter
	}
	m.hits.Add(context.Background(), 0)
	m.misses.Add(context.Background(), 0)
	for r := range m.results {
		m.results[r] = metric.WithAttributes(attribute.String("result", resultNames[r]))
		m.requests.Add(context.Background(), 0, m.results[r])
	}
	return m, nil
}

func (m *metrics) request(ctx context.Context, r result) { m.requests.Add(ctx, 1, m.results[r]) }
