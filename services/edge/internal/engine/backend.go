package engine

import (
	"context"
	"time"

	"github.com/cutemarkets/relay/services/edge/internal/dialect"
	"github.com/cutemarkets/relay/services/edge/internal/principal"
	"github.com/cutemarkets/relay/services/internal/lifecycle"
	"github.com/cutemarkets/relay/services/internal/secret"
)

// How long the calls of the backend may take. Together with the close they keep
// a client that closes waiting for less than a second.
const (
	authenticateWait = 2 * time.Second
	acquireWait      = time.Second
	releaseWait      = 500 * time.Millisecond
)

// Backend answers who a client is and whether it may have its one connection.
// Calls come from goroutines of their own and end with their context.
type Backend interface {
	// Authenticate returns whose the credential is, or a refusal.
	Authenticate(ctx context.Context, market string, credential secret.Secret) (principal.Principal, dialect.Reason)
	// Acquire takes the lock of the principal's user. With OK it returns how to
	// give it back; lost may then be called when it was lost, and does not block.
	// When ctx ends before the answer is known, the backend itself gives back
	// what it may have taken.
	Acquire(ctx context.Context, p principal.Principal, lost func(dialect.Reason)) (release func(context.Context), r dialect.Reason)
}

// release gives a lock back.
type release func(context.Context)

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
		c.shard.engine.refused(c.client)
	}
}

// call runs a call of the backend for a connection, when its turn among those
// of its kind comes, and posts the answer.
func (e *Engine) call(c *connection, turns chan struct{}, wait time.Duration, run func(ctx context.Context, turn bool) input) {
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	c.cancel = cancel
	clients, r := c.shard.clients, c.ref
	e.calls.Add(1)
	lifecycle.Go("engine call", func() {
		defer e.calls.Done()
		defer cancel()
		var in input
		select {
		case turns <- struct{}{}:
			in = run(ctx, true)
			<-turns
		case <-ctx.Done():
			in = run(ctx, false)
		}
		in.ref = r
		if lock, ok := in.body.(release); !clients.force(in) && ok {
			e.giveBack(lock) //nolint:contextcheck // a release never depends on a request
		}
	})
}

func (e *Engine) authenticate(c *connection, market string, credential secret.Secret) {
	e.call(c, e.authentications, authenticateWait, func(ctx context.Context, turn bool) input {
		answer := &authenticated{reason: dialect.AuthUnavailable}
		if turn {
			answer.principal, answer.reason = e.backend.Authenticate(ctx, market, credential)
		}
		return input{kind: inputAuthenticated, body: answer}
	})
}

func (e *Engine) acquire(c *connection, p principal.Principal) {
	clients, r := c.shard.clients, c.ref
	lost := func(reason dialect.Reason) { clients.force(input{kind: inputLost, ref: r, reason: reason}) }
	e.call(c, e.acquisitions, acquireWait, func(ctx context.Context, turn bool) input {
		if !turn {
			return input{kind: inputAcquired, reason: dialect.LockUnavailable}
		}
		lock, reason := e.backend.Acquire(ctx, p, lost)
		if reason != dialect.OK {
			return input{kind: inputAcquired, reason: reason}
		}
		return input{kind: inputAcquired, body: release(lock)}
	})
}

// release gives a lock back. It waits for nobody's turn, and for no request:
// what has been taken is always given back.
func (e *Engine) release(s *shard, r ref, lock release) {
	e.calls.Add(1)
	lifecycle.Go("engine release", func() {
		defer e.calls.Done()
		e.giveBack(lock)
		s.clients.force(input{kind: inputReleased, ref: r})
	})
}

func (e *Engine) giveBack(lock release) {
	ctx, cancel := context.WithTimeout(context.Background(), releaseWait)
	defer cancel()
	lock(ctx)
}
