package authn

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"
)

const (
	pingInterval = time.Second
	pingTimeout  = time.Second
)

// Why a service is not ready.
var (
	errStarting = errors.New("the store has not been asked yet")
	errStore    = errors.New("the store does not answer")
	errStopping = errors.New("the service is stopping")
)

// Monitor asks the store once a second whether it answers, and tells so. Ready
// may be called from any goroutine.
type Monitor struct {
	// Static after construction.
	server  *Server
	serving func(bool)

	unready atomic.Pointer[error] // nil: ready
}

// NewMonitor makes a monitor of a server's store. serving is told the first
// answer and every change; nothing after the last call, with false.
func NewMonitor(s *Server, serving func(bool)) *Monitor {
	m := &Monitor{server: s, serving: serving}
	m.unready.Store(&errStarting)
	return m
}

// Ready returns why the service should get no traffic, or nil.
func (m *Monitor) Ready() error {
	if err := m.unready.Load(); err != nil {
		return *err
	}
	return nil
}

// Run asks until ctx is done.
func (m *Monitor) Run(ctx context.Context) error {
	ticker := time.NewTicker(pingInterval)
	defer ticker.Stop()
	defer m.set(&errStopping)
	for {
		m.ask(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

func (m *Monitor) ask(ctx context.Context) {
	_, err := m.server.ping(ctx, pingTimeout)
	switch {
	case ctx.Err() != nil:
	case err == nil:
		if m.set(nil) {
			m.server.log.InfoContext(ctx, "store answers")
		}
	case m.set(&errStore):
		m.server.log.ErrorContext(ctx, "store does not answer", slog.Any("error", err))
	}
}

// set reports whether the state is a new one.
func (m *Monitor) set(unready *error) bool {
	if m.unready.Swap(unready) == unready {
		return false
	}
	m.server.metrics.storeUp.Store(unready == nil)
	m.serving(unready == nil)
	return true
}
