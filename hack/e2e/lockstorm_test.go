package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cutemarkets/relay/hack/benchedge/operations"
)

// storm is clients that come and go.
type storm struct {
	*lockWorld

	connects atomic.Int64 // attempts still to be made
	turns    chan struct{}
	looks    atomic.Int64 // at keys and their TTLs
	wrong    atomic.Int64 // keys that had none, or too long a one
}

// TestStorm lets clients come and go, in every way there is; when all is calm there
// is a key for each live socket and no other, and none when all have left.
func TestStorm(t *testing.T) { runStorm(t, 60, 1_000) }

func runStorm(t *testing.T, users, connects int) {
	s := &storm{lockWorld: startLockWorld(t, users, singleStore(t, keepsNone)), turns: make(chan struct{}, 24)}
	s.connects.Store(int64(connects))
	looking, stop := context.WithCancel(t.Context())
	var looks sync.WaitGroup
	looks.Go(func() { s.watchTTLs(looking) })
	began := time.Now()
	for n := range s.users {
		s.seats.Go(func() { s.comeAndGo(t.Context(), n) })
	}
	s.seats.Wait()
	t.Logf("%d connects in %s", connects, time.Since(began).Round(time.Millisecond))

	sockets := s.settle()
	s.expectKeys(sockets)
	stop()
	looks.Wait()
	s.expectAnswers()
	if n := s.wrong.Load(); n > 0 {
		t.Errorf("of %d keys looked at, %d had no TTL or one beyond %s", s.looks.Load(), n, lockTTL)
	}
	began = time.Now()
	for n, socket := range sockets {
		if n%2 == 0 {
			s.readers.Go(func() { socket.leave(t.Context()) })
		} else {
			socket.reset()
		}
	}
	for len(s.keys(t.Context())) > 0 {
		if time.Since(began) > 2*time.Second {
			t.Fatalf("keys are left after all have left: %v", s.keys(t.Context()))
		}
		time.Sleep(time.Millisecond)
	}
	t.Logf("%d looks at keys and their TTLs; %d sockets left, and their keys were gone after %s",
		s.looks.Load(), len(sockets), time.Since(began).Round(time.Millisecond))
}

// comeAndGo connects a user, and ends that in one way or another. A third of the
// users always leave cleanly: nothing of them may be in their own way.
func (s *storm) comeAndGo(ctx context.Context, n int) {
	u := s.users[n]
	ways := []func(context.Context, *lockUser){leaveClean, leaveReset, leaveUnanswered, leaveGreeted}
	if n%3 == 0 {
		ways = ways[:1]
	}
	for s.connects.Add(-1) >= 0 && ctx.Err() == nil {
		s.turns <- struct{}{}
		ways[rand.IntN(len(ways))](ctx, u)
		<-s.turns
		if len(ways) > 1 {
			between(ctx, 0, 50*time.Millisecond)
		}
	}
}

func (u *lockUser) anyEdge() int { return rand.IntN(len(u.world.edges)) }

func leaveClean(ctx context.Context, u *lockUser) {
	if socket := u.connect(ctx, u.anyEdge()); socket != nil {
		between(ctx, 0, 20*time.Millisecond)
		socket.leave(ctx)
	}
}

func leaveReset(ctx context.Context, u *lockUser) {
	if socket := u.connect(ctx, u.anyEdge()); socket != nil {
		between(ctx, 0, 20*time.Millisecond)
		socket.reset()
	}
}

// leaveUnanswered goes while the edge authenticates the user or takes the lock.
func leaveUnanswered(ctx context.Context, u *lockUser) {
	u.goEarly(ctx, func(net.Conn) { between(ctx, 0, 5*time.Millisecond) })
}

// leaveGreeted goes right after the upgrade.
func leaveGreeted(ctx context.Context, u *lockUser) {
	u.goEarly(ctx, func(conn net.Conn) { _, _ = conn.Read(make([]byte, 1)) })
}

// goEarly ends a connection before it is accepted, by a reset or not.
func (u *lockUser) goEarly(ctx context.Context, wait func(net.Conn)) {
	a := &attempt{edge: u.anyEdge(), verdict: noAnswer}
	u.note(func(now time.Duration) {
		a.began = now
		u.log.attempts = append(u.log.attempts, a)
	})
	dialer := net.Dialer{Timeout: upgradeWait}
	edge := host(u.world.edges[a.edge])
	if conn, err := dialer.DialContext(ctx, "tcp", edge); err == nil {
		_ = conn.SetDeadline(time.Now().Add(upgradeWait))
		_, _ = conn.Write(request("/v1/ws/stocks/", edge, bearer(u.key)))
		wait(conn)
		if tcp, ok := conn.(*net.TCPConn); ok && rand.IntN(2) == 0 {
			_ = tcp.SetLinger(0)
		}
		_ = conn.Close()
	}
	u.note(func(now time.Duration) { a.decided = now })
}

// reset ends the connection by a TCP reset.
func (s *lockSocket) reset() {
	_ = s.conn.(*net.TCPConn).SetLinger(0)
	_ = s.conn.Close()
	<-s.over
}

// settle connects half of the users for good, and returns their sockets, of user 0,
// 2 and so on.
func (s *storm) settle() []*lockSocket {
	sockets := make([]*lockSocket, (len(s.users)+1)/2)
	var wg sync.WaitGroup
	for n := range sockets {
		wg.Go(func() {
			for sockets[n] == nil && s.t.Context().Err() == nil {
				sockets[n] = s.users[2*n].connect(s.t.Context(), s.users[2*n].anyEdge())
			}
		})
	}
	wg.Wait()
	return sockets
}

// lockKey is a key in Redis.
type lockKey struct {
	token string
	ttl   time.Duration // -1: none
}

// keys are the locks in Redis, by user.
func (w *lockWorld) keys(ctx context.Context) map[string]lockKey {
	found := map[string]lockKey{}
	for all := w.store.client.Scan(ctx, 0, "relay:lock:*", 1_000).Iterator(); all.Next(ctx); {
		pipe := w.store.client.Pipeline()
		token, ttl := pipe.Get(ctx, all.Val()), pipe.PTTL(ctx, all.Val())
		_, _ = pipe.Exec(ctx)
		if !errors.Is(token.Err(), redis.Nil) && ttl.Val() != -2 { // else gone meanwhile
			found[all.Val()[strings.LastIndexByte(all.Val(), ':')+1:]] = lockKey{token.Val(), ttl.Val()}
		}
	}
	return found
}

// watchTTLs looks at all keys again and again.
func (s *storm) watchTTLs(ctx context.Context) {
	for ctx.Err() == nil {
		keys := s.keys(ctx)
		if ctx.Err() != nil { // in the middle of it
			return
		}
		for _, key := range keys {
			s.looks.Add(1)
			if key.ttl <= 0 || key.ttl > lockTTL {
				s.wrong.Add(1)
			}
		}
		between(ctx, 100*time.Millisecond, 200*time.Millisecond)
	}
}

// held are the locks that the edges say they hold, token by user.
func (s *storm) held() map[string]string {
	tokens := map[string]string{}
	for _, name := range []string{"edge-0", "edge-1"} {
		var told struct {
			Locks []struct {
				User, Edge, Connection string
				Since                  time.Time
			}
		}
		if err := json.Unmarshal([]byte(get(s.t, s.Info().Operations[name]+"/locks")), &told); err != nil {
			s.t.Fatal(err)
		}
		for _, l := range told.Locks {
			tokens[l.User] = fmt.Sprintf("%s/*/%d/%s", l.Edge, l.Since.UnixMicro(), l.Connection)
		}
	}
	return tokens
}

// expectKeys expects a key for each socket, of the edge that it is on, and no other,
// when those who went before are forgotten.
func (s *storm) expectKeys(sockets []*lockSocket) {
	s.t.Helper()
	var problem string
	defer func() {
		if s.t.Failed() {
			s.t.Logf("keys and sockets: %s", problem)
		}
	}()
	eventually(s.t, "there is a key for each socket and no other", func() bool {
		problem = s.compare(sockets)
		return problem == ""
	})
	tokens := s.keys(s.t.Context())
	time.Sleep(2 * time.Second) // refreshes, and whatever was still on its way
	if problem = s.compare(sockets); problem != "" {
		s.t.Error("two seconds later there was not a key for each socket and no other")
	}
	for user, key := range s.keys(s.t.Context()) {
		if key.token != tokens[user].token {
			s.t.Errorf("the token of %s has changed from %s to %s", user, tokens[user].token, key.token)
		}
	}
	counted := 0
	for _, name := range []string{"edge-0", "edge-1"} {
		m, err := operations.New(s.Info().Operations[name]).Metrics(s.t.Context())
		if err != nil {
			s.t.Fatal(err)
		}
		counted += int(m.Sum("relay_edge_locks"))
	}
	if counted != len(sockets) {
		s.t.Errorf("the edges count %d locks for %d sockets", counted, len(sockets))
	}
}

// compare says how keys and sockets differ.
func (s *storm) compare(sockets []*lockSocket) string {
	keys, held := s.keys(s.t.Context()), s.held()
	var problems []string
	for n, socket := range sockets {
		user := fmt.Sprintf("user-%d", 2*n+1)
		key, ok := keys[user]
		delete(keys, user)
		token := held[user]
		delete(held, user)
		parts := strings.Split(key.token, "/")
		edge := parts[0]
		if len(parts) == 4 {
			parts[1] = "*" // of the process, and in no list
		}
		switch {
		case !ok:
			problems = append(problems, user+" has no key")
		case edge != fmt.Sprintf("edge-%d", socket.sight.edge):
			problems = append(problems, fmt.Sprintf("%s is on edge %d and has the key %s", user, socket.sight.edge, key.token))
		case strings.Join(parts, "/") != token:
			problems = append(problems, fmt.Sprintf("%s has the key %s, its edge holds %s", user, key.token, token))
		case key.ttl <= 0 || key.ttl > lockTTL:
			problems = append(problems, fmt.Sprintf("%s: TTL %s", user, key.ttl))
		}
	}
	for user, key := range keys {
		problems = append(problems, fmt.Sprintf("%s has the key %s and no socket", user, key.token))
	}
	for user, token := range held {
		problems = append(problems, fmt.Sprintf("an edge holds %s of %s, who has no socket", token, user))
	}
	slices.Sort(problems)
	return strings.Join(problems, "; ")
}

// expectAnswers expects that nobody was refused without a cause, and says how long
// it took to come back.
func (s *storm) expectAnswers() {
	s.t.Helper()
	f := &lockFigures{name: "storm"}
	var logs []*lockLog
	var took []time.Duration
	for n, u := range s.users {
		u.mu.Lock()
		logs = append(logs, &u.log)
		for _, a := range u.log.attempts {
			if n%3 == 0 && a.verdict == accepted {
				took = append(took, a.decided-a.began)
			}
		}
	}
	f.judge(logs, 0, s.now())
	for _, u := range s.users {
		u.mu.Unlock()
	}
	slices.Sort(took)
	s.t.Logf("refused %v, 4409 because %v; who had left cleanly came in after %s (median), %s (99th percentile), %s (longest)",
		f.refused, f.because, took[len(took)/2], took[len(took)*99/100], took[len(took)-1])
	if f.wrong > 0 {
		s.t.Errorf("%d answers of 4409 that no socket and no lock explain", f.wrong)
	}
}
