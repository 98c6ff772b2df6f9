//go:build linux

package benchedge

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/cutemarkets/relay/hack/loadtest/fleet"
)

// class is what clients are that may read slowly.
type class string

// The classes.
const (
	stalled   class = "reads nothing"
	trickling class = "reads 5 KB/s"
)

// aside are the clients that may read slowly: the last ones, as many of each
// class. What becomes of them is what is looked for, and no trouble.
type aside struct {
	// Static after construction.
	first int // tag
	each  int // of a class

	mu sync.Mutex
	// Guarded by mu.
	conns    map[int]*fleet.Conn
	statuses map[int][]string
	ends     map[int]fleet.End
	changed  chan struct{} // closed at the next end
}

func newAside(first, each int) *aside {
	return &aside{
		first: first, each: each, conns: map[int]*fleet.Conn{}, statuses: map[int][]string{}, ends: map[int]fleet.End{},
		changed: make(chan struct{}),
	}
}

// has tells whether a connection is one of them.
func (a *aside) has(c *fleet.Conn) bool { return a != nil && c.Tag() >= a.first }

// class is that of a connection of theirs.
func (a *aside) class(tag int) class {
	if tag < a.first+a.each {
		return stalled
	}
	return trickling
}

func (a *aside) begun(c *fleet.Conn) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.conns[c.Tag()] = c
}

func (a *aside) told(c *fleet.Conn, status, message string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.statuses[c.Tag()] = append(a.statuses[c.Tag()], status+" "+message)
}

func (a *aside) ended(c *fleet.Conn, e fleet.End) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ends[c.Tag()] = e
	close(a.changed)
	a.changed = make(chan struct{})
}

// hurry has them read all there is, and waits until they have ended; those whom
// the server did not end have not after a while.
func (a *aside) hurry(ctx context.Context, f *fleet.Fleet) error {
	a.mu.Lock()
	for _, c := range a.conns {
		f.Hurry(c)
	}
	a.mu.Unlock()
	timer := time.NewTimer(slowEnd)
	defer timer.Stop()
	for {
		a.mu.Lock()
		left, changed := len(a.conns)-len(a.ends), a.changed
		a.mu.Unlock()
		if left == 0 {
			return nil
		}
		select {
		case <-changed:
		case <-timer.C:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("benchedge: %w", context.Cause(ctx))
		}
	}
}

// fill adds what became of them.
func (a *aside) fill(s *Slow) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, name := range []class{stalled, trickling} {
		c := s.Classes[name]
		c.Statuses, c.Ends = map[string]int{}, map[string]int{}
		for tag := range a.conns {
			if a.class(tag) != name {
				continue
			}
			c.Clients++
			if len(a.statuses[tag]) > 0 {
				c.Warned++
			}
			for _, text := range a.statuses[tag] {
				c.Statuses[text]++
			}
			end, ok := a.ends[tag]
			switch {
			case !ok:
				c.Ends["not ended"]++
			case end.Code != 0:
				c.Ends[fmt.Sprintf("%s (%d)", end.Reason, end.Code)]++
			default:
				c.Ends[end.Reason]++
			}
		}
		s.Classes[name] = c
	}
}
