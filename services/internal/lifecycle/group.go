// Package lifecycle starts and stops the parts of a process. It owns the named
// goroutine roots (Go) and the order of start and stop (Group): every long-lived
// goroutine of the services begins here, so that a panic always leaves its stack
// and the build in the log before it ends the process. A Group starts one
// goroutine per part and returns when all have ended; SignalContext starts one
// that ends with its context. Nothing is queued.
package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
)

// Errors of Group.Run.
var (
	// ErrRunTwice is the answer to a second Run.
	ErrRunTwice = errors.New("lifecycle: group has been run already")
	// ErrEnded says that a part returned without an error though nobody had
	// asked it to.
	ErrEnded = errors.New("lifecycle: ended without being asked to")
)

// Group runs the parts of a service and stops them in reverse order.
type Group struct {
	// Static after construction.
	log *slog.Logger

	// Owned by the caller of Add, then by Run; not thread-safe.
	parts []*part

	ran atomic.Bool
}

type part struct {
	// Static after construction.
	name string
	run  func(ctx context.Context) error

	// Owned by Run; not thread-safe.
	cancel context.CancelFunc

	// Written before done is closed.
	err  error
	done chan struct{}
}

// NewGroup makes an empty group.
func NewGroup(log *slog.Logger) *Group {
	return &Group{log: log.With(slog.String("component", "lifecycle"))}
}

// Add registers a part before Run. run must return when its ctx is done; nil or
// context.Canceled is then a clean stop. Any return before that stops the group,
// and is an error of Run: ErrEnded if it was nil.
func (g *Group) Add(name string, run func(ctx context.Context) error) {
	g.parts = append(g.parts, &part{name: name, run: run, done: make(chan struct{})})
}

// Run starts the parts in the order added and waits until ctx is done or a part
// returns. Then it stops them in reverse order: each part's context is cancelled
// and its return awaited before the next one is. Values of ctx reach the parts,
// its cancellation does not. It returns the joined errors of the parts, or nil.
func (g *Group) Run(ctx context.Context) error {
	if g.ran.Swap(true) {
		return ErrRunTwice
	}
	ended := make(chan *part, len(g.parts))
	for _, p := range g.parts {
		g.start(context.WithoutCancel(ctx), p, ended)
	}
	select {
	case <-ctx.Done():
		g.log.Info("stopping", slog.Any("cause", context.Cause(ctx)))
	case p := <-ended:
		g.log.Error("part ended, stopping", slog.String("part", p.name), slog.Any("error", p.err))
	}
	var errs []error
	for i := len(g.parts) - 1; i >= 0; i-- {
		p := g.parts[i]
		p.cancel()
		<-p.done
		if p.err != nil {
			errs = append(errs, p.err)
		}
		g.log.Debug("part stopped", slog.String("part", p.name))
	}
	return errors.Join(errs...)
}

func (g *Group) start(parent context.Context, p *part, ended chan<- *part) {
	ctx, cancel := context.WithCancel(parent)
	p.cancel = cancel
	Go(p.name, func() {
		p.err = p.outcome(ctx, p.run(ctx))
		close(p.done)
		ended <- p
	})
}

// outcome judges what run returned: a cancellation is clean only if the group
// asked for it.
func (p *part) outcome(ctx context.Context, err error) error {
	asked := ctx.Err() != nil
	switch {
	case asked && (err == nil || onlyCanceled(err)):
		return nil
	case err == nil:
		err = ErrEnded
	}
	return fmt.Errorf("%s: %w", p.name, err)
}

// onlyCanceled reports whether err is context.Canceled, wrapped or not. A joined
// error is one only if each of its parts is, so that nothing beside a
// cancellation is lost.
func onlyCanceled(err error) bool {
	for err != nil {
		if joined, ok := err.(interface{ Unwrap() []error }); ok {
			for _, e := range joined.Unwrap() {
				if !onlyCanceled(e) {
					return false
				}
			}
			return true
		}
		if err == context.Canceled { //nolint:errorlint // this loop unwraps
			return true
		}
		err = errors.Unwrap(err)
	}
	return false
}
