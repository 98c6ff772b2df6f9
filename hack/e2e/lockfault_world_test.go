package e2e

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cutemarkets/relay/hack/cluster"
)

// crowdSize says how many users there are in a fault test.
type crowdSize struct {
	users   int
	rivals  int // of them have a second client, at the other edge
	leavers int // of them leave cleanly now and then, and come back at once
}

const (
	// forsakeAfter is when a client without events looks for another edge.
	forsakeAfter = 2 * time.Second
	// lockResolution of an overlap: two events, and the turns of the client's own
	// goroutines.
	lockResolution = 150 * time.Millisecond
)

// lockWorld is two edges on a Redis, a feed that gives each socket some 20
// evenly spaced events a second and bursts, and users whose clients want to be connected,
// at any edge. Each client is a goroutine, and one more while it has a socket.
type lockWorld struct {
	*cluster.Cluster

	// Static after construction.
	t     *testing.T
	store *lockStore
	edges []string
	users []*lockUser
	began time.Time

	rush func() // has each rival try once more, at once

	leaving atomic.Bool // leavers leave
	seats   sync.WaitGroup
	readers sync.WaitGroup
}

// startLockWorld starts the programs; nobody is connected.
func startLockWorld(t *testing.T, users int, store *lockStore) *lockWorld {
	t.Helper()
	const rate = 33 // of which two fifths come in bursts, the others every 50 ms
	marketed := []string{"--markets=stocks"}
	c := startCluster(t, cluster.Options{
		Edges: 2, Redis: store.address, Way: store.way, Users: users, Rate: rate, LogLevel: "warn",
		Args: map[string][]string{
			"feedsim": {"--symbols=1"}, "fanout": marketed,
			"edge":   append(append(marketed, "--failure-rate-per-ip=100000"), store.args...),
			"edge-0": {"--edge-id=edge-0"}, "edge-1": {"--edge-id=edge-1"},
		},
	})
	w := &lockWorld{Cluster: c, t: t, store: store, edges: c.Info().Edges, began: time.Now()}
	for _, key := range c.Info().Users {
		w.users = append(w.users, &lockUser{world: w, key: key})
	}
	return w
}

// newLockWorld starts the programs and connects all users.
func newLockWorld(t *testing.T, size crowdSize, store *lockStore) *lockWorld {
	t.Helper()
	w := startLockWorld(t, size.users, store)
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(func() {
		cancel()
		w.seats.Wait()
		w.readers.Wait()
	})
	for n, u := range w.users {
		w.seats.Go(func() { w.seat(ctx, u, n >= size.users-size.leavers) })
	}
	w.awaitLive(0)
	rivals := w.users[:size.rivals]
	for _, u := range rivals {
		w.seats.Go(func() {
			for ctx.Err() == nil {
				between(ctx, 500*time.Millisecond, 2*time.Second)
				w.rival(ctx, u)
			}
		})
	}
	w.rush = func() {
		for _, u := range rivals {
			w.seats.Go(func() { w.rival(ctx, u) })
		}
	}
	w.leaving.Store(true)
	return w
}

func (w *lockWorld) now() time.Duration { return time.Since(w.began) }

// between waits for a time up to these bounds.
func between(ctx context.Context, least, most time.Duration) {
	timer := time.NewTimer(least + rand.N(most-least))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// seat is a client that keeps its user connected: at any edge, and after each
// failure at the other one.
func (w *lockWorld) seat(ctx context.Context, u *lockUser, leaver bool) {
	edge := rand.IntN(len(w.edges))
	for ctx.Err() == nil {
		s := u.connect(ctx, edge)
		if s != nil && w.stay(ctx, s, leaver) {
			between(ctx, 0, 200*time.Millisecond)
			edge = rand.IntN(len(w.edges))
			continue
		}
		between(ctx, 200*time.Millisecond, time.Second)
		edge = len(w.edges) - 1 - edge
	}
}

// rival is a second client of a user: it tries the edge that the user is not on,
// and stays if it may.
func (w *lockWorld) rival(ctx context.Context, u *lockUser) {
	edge := rand.IntN(len(w.edges))
	u.note(func(time.Duration) {
		for _, s := range u.log.sockets {
			if s.ended == 0 {
				edge = len(w.edges) - 1 - s.edge
			}
		}
	})
	if s := u.connect(ctx, edge); s != nil {
		w.stay(ctx, s, false)
	}
}

// stay keeps a socket for as long as it has events; leavers leave it at times. It
// reports whether the client left.
func (w *lockWorld) stay(ctx context.Context, s *lockSocket, leaver bool) (leaves bool) {
	look := time.NewTicker(200 * time.Millisecond)
	defer look.Stop()
	var departure <-chan time.Time
	if leaver {
		departure = time.After(time.Second + rand.N(2*time.Second))
	}
	for {
		select {
		case <-s.over:
			return false
		case <-ctx.Done():
			return false
		case <-departure:
			if w.leaving.Load() {
				s.leave(ctx)
				return true
			}
		case <-look.C:
			if s.silent() {
				s.user.note(func(now time.Duration) { s.sight.forsaken = now })
				return false
			}
		}
	}
}

// notLive returns a user who has no socket with events; nil: all have.
func (w *lockWorld) notLive() *lockUser {
	for _, u := range w.users {
		live := false
		u.note(func(now time.Duration) { live = u.log.live(now) })
		if !live {
			return u
		}
	}
	return nil
}

const (
	// liveStep is how often users are looked at.
	liveStep = 20 * time.Millisecond
	// recoverMost is the longest that users may take to be live again.
	recoverMost = 45 * time.Second
)

// awaitLive returns when all users have been live for a while, with the moment
// since which they are, and the last who was not.
func (w *lockWorld) awaitLive(steady time.Duration) (since time.Duration, last *lockUser) {
	w.t.Helper()
	steps := time.NewTicker(liveStep)
	defer steps.Stop()
	since = w.now()
	for end := since + recoverMost + steady; ; <-steps.C {
		now := w.now()
		if u := w.notLive(); u != nil {
			since, last = now+liveStep, u
		}
		if now >= since && now-since >= steady {
			return since, last
		}
		if now > end {
			w.t.Fatalf("not all users are live %s later", recoverMost+steady)
		}
	}
}

// suffer measures what a fault leads to. The fault returns when it has ended; then all
// rivals try at once, a second later nobody leaves any more, and all must become live
// and be so for a while.
func (w *lockWorld) suffer(name string, steady time.Duration, fault func()) *lockFigures {
	w.t.Helper()
	f := &lockFigures{name: name}
	began := w.now()
	for _, u := range w.users {
		u.note(func(now time.Duration) { u.log.forget(now) })
	}
	fault()
	ended := w.now()
	w.rush()
	time.AfterFunc(time.Second, func() { w.leaving.Store(false) })
	since, last := w.awaitLive(steady)
	f.recovery = since - ended
	var logs []*lockLog
	for _, u := range w.users {
		u.mu.Lock()
		logs = append(logs, &u.log)
	}
	f.judge(logs, began, ended)
	if last != nil {
		f.slowest = last.log.since(began, ended)
	}
	for _, u := range w.users {
		u.mu.Unlock()
	}
	return f
}
