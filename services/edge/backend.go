package edge

import (
	"context"

	"github.com/cutemarkets/relay/services/edge/internal/authn"
	"github.com/cutemarkets/relay/services/edge/internal/dialect"
	"github.com/cutemarkets/relay/services/edge/internal/engine"
	"github.com/cutemarkets/relay/services/edge/internal/lock"
	"github.com/cutemarkets/relay/services/edge/internal/principal"
	"github.com/cutemarkets/relay/services/internal/secret"
)

// backend is what the engine asks about credentials and locks.
type backend struct {
	authenticator *authn.Authenticator
	locks         *lock.Manager
}

// Authenticate implements engine.Backend.
func (b backend) Authenticate(ctx context.Context, market string, credential secret.Secret) (principal.Principal, dialect.Reason) {
	return b.authenticator.Authenticate(ctx, market, credential)
}

// Acquire implements engine.Backend.
func (b backend) Acquire(ctx context.Context, p principal.Principal, o engine.Owner) (engine.Lock, dialect.Reason) {
	lease, reason := b.locks.Acquire(ctx, p.UserID, uint64(o))
	if reason != dialect.OK {
		return nil, reason
	}
	return lease, dialect.OK
}

// Fence implements engine.Backend.
func (b backend) Fence() { b.locks.Fence() }

// Probe implements engine.Backend.
func (b backend) Probe(ctx context.Context, p principal.Principal) dialect.Reason {
	return b.locks.Probe(ctx, p.UserID)
}
