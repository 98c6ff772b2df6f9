package engine

import (
	"context"
	"net/netip"
	"time"

	"github.com/cutemarkets/relay/services/edge/internal/dialect"
	"github.com/cutemarkets/relay/services/edge/internal/principal"
	"github.com/cutemarkets/relay/services/internal/lifecycle"
	"github.com/cutemarkets/relay/services/internal/secret"
)

// How long the calls of the backend may take once it is their turn, and how long
// they wait for that: a storm of connects is to be late rather than refused.
const (
	authenticateWait = 2 * time.Second
	acquireWait      = 4 * time.Second
	turnWait         = 20 * time.Second
)

// Backend answers who a client is and whether it may have its one connection.
// Calls come from goroutines of their own and end with their context.
type Backend interface {
	// Authenticate returns whose the credential is, or a refusal.
	Authenticate(ctx context.Context, market string, credential secret.Secret) (principal.Principal, dialect.Reason)
	// Acquire takes the lock of the principal's user. With OK it returns the lock;
	// Engine.Lost may then be called with the owner when it was lost. When ctx ends
	// before the answer is known, the backend itself gives back what it may have
	// taken.
	Acquire(ctx context.Context, p principal.Principal, o Owner) (Lock, dialect.Reason)
	// Probe asks whether the connection that has the lock of the principal's user
	// still lives, wherever it is. OK: Acquire may succeed now; DuplicateConnection:
	// it lives, or cannot be asked; HolderSilent: its edge does not answer.
	Probe(ctx context.Context, p principal.Principal) dialect.Reason
	// Fence calls Engine.Lost for the locks that have ended by now. Shards call it
	// in each round before they deliver: the process may have stood still.
	Fence()
}

// Lock is a lock that is held.
type Lock interface {
	// Release gives it back; Engine.Released is then called with its owner, maybe
	// before Release returns. It does not block, and is called once.
	Release()
}

// Owner names the connection that asked for a lock.
type Owner uint64

func ownerOf(s *shard, r ref) Owner {
	return Owner(s.index)<<56 | Owner(r.slot)<<32 | Owner(r.generation)
}

func (o Owner) split() (shard int, r ref) {
	return int(o >> 56), ref{int32(o >> 32 & 0xffffff), uint32(o)}
}

// lockState is where a connection's lock is.
type lockState uint8

const (
	lockNone    lockState = iota
	lockAsked             // Backend.Acquire is in flight
	lockGivenUp           // in flight, and to be given back if it comes
	lockHeld
)

// authenticated is the answer to Backend.Authenticate.
type authenticated struct {
	principal principal.Principal
	reason    dialect.Reason
}

// charge counts a refusal towards what the client's address may fail. What the
// client can do nothing about does not count, nor an accepted key that expires.
func (c *connection) charge(r dialect.Reason) {
	switch r {
	case dialect.CredentialMissing, dialect.CredentialTimeout, dialect.CredentialInvalid, dialect.CredentialConflict,
		dialect.ProductMismatch, dialect.PlanTooLow, dialect.MarketUnsupported, dialect.StreamNotConfigured:
		c.shard.engine.refused(netip.AddrFrom16(c.from).Unmap())
	}
}

// call runs calls of the backend for a connection, and posts the answer.
func (e *Engine) call(c *connection, run func(ctx context.Context) input) {
	ctx, cancel := context.WithCancel(context.Background())
	c.keep().cancel = cancel
	clients, r := c.shard.clients, c.ref
	e.calls.Add(1)
	lifecycle.Go("engine call", func() {
		defer e.calls.Done()
		defer cancel()
		in := run(ctx)
		in.ref = r
		if lock, ok := in.body.(Lock); !clients.force(in) && ok {
			lock.Release()
		}
	})
}

// takeTurn runs a call when its turn among those of its kind comes; turn is false
// when it did not.
func takeTurn(ctx context.Context, turns chan struct{}, wait time.Duration, run func(ctx context.Context, turn bool) input) input {
	patience := time.NewTimer(turnWait)
	defer patience.Stop()
	select {
	case turns <- struct{}{}:
		defer func() { <-turns }()
		ctx, cancel := context.WithTimeout(ctx, wait)
		defer cancel()
		return run(ctx, true)
	case <-patience.C:
	case <-ctx.Done():
	}
	return run(ctx, false)
}

func (e *Engine) authenticate(c *connection, market string, credential secret.Secret) {
	e.call(c, func(ctx context.Context) input {
		return takeTurn(ctx, e.authentications, authenticateWait, func(ctx context.Context, turn bool) input {
			answer := &authenticated{reason: dialect.AuthUnavailable}
			if turn {
				answer.principal, answer.reason = e.backend.Authenticate(ctx, market, credential)
			}
			return input{kind: inputAuthenticated, body: answer}
		})
	})
}

// acquire takes the lock of a user. When another connection has it, it tries once
// more if that one turns out to be dead; it has no turn while it waits for that.
func (e *Engine) acquire(c *connection, p principal.Principal) {
	owner := ownerOf(c.shard, c.ref)
	try := func(ctx context.Context, turn bool) input {
		if !turn {
			return input{kind: inputAcquired, reason: dialect.LockUnavailable}
		}
		lock, reason := e.backend.Acquire(ctx, p, owner)
		if reason != dialect.OK {
			return input{kind: inputAcquired, reason: reason}
		}
		e.tarpit.Granted(p.UserID)
		return input{kind: inputAcquired, body: lock}
	}
	e.call(c, func(ctx context.Context) input {
		in := takeTurn(ctx, e.acquisitions, acquireWait, try)
		if in.reason == dialect.DuplicateConnection {
			in.reason = e.backend.Probe(ctx, p)
			if in.reason == dialect.OK {
				in = takeTurn(ctx, e.acquisitions, acquireWait, try)
			}
		}
		return in
	})
}
