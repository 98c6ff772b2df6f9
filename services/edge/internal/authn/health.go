package authn

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	authv1 "github.com/cutemarkets/relay/proto/auth/v1"
)

const statusTTL = time.Second

// Status is the health of auth and its store.
type Status struct {
	OK      bool          // auth answered, and its store answered it
	Latency time.Duration // of a trivial query of the store; 0 when auth is away
}

type health struct {
	calls singleflight.Group

	mu sync.Mutex
	// Guarded by mu.
	last Status
	at   time.Time
}

// Status asks auth for its health; answers are kept for 1 s and callers share a
// call. It is not OK when ctx ends first.
func (a *Authenticator) Status(ctx context.Context) Status {
	if s, ok := a.lastStatus(); ok {
		return s
	}
	result := a.health.calls.DoChan("", func() (any, error) {
		if s, ok := a.lastStatus(); ok {
			return s, nil
		}
		return a.askStatus(), nil
	})
	select {
	case r := <-result:
		return r.Val.(Status)
	case <-ctx.Done():
		return Status{}
	}
}

func (a *Authenticator) lastStatus() (Status, bool) {
	a.health.mu.Lock()
	defer a.health.mu.Unlock()
	if a.health.at.IsZero() || a.now().Sub(a.health.at) >= statusTTL {
		return Status{}, false
	}
	return a.health.last, true
}

func (a *Authenticator) askStatus() Status {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	var s Status
	if r, err := a.client.Status(ctx, &authv1.StatusRequest{}); err == nil {
		s = Status{OK: r.GetStoreOk(), Latency: r.GetStoreLatency().AsDuration()}
	}
	a.health.mu.Lock()
	defer a.health.mu.Unlock()
	a.health.last, a.health.at = s, a.now()
	return s
}
