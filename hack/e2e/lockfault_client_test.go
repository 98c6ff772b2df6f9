package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/gobwas/ws"
)

const (
	// upgradeWait is how long a client waits for the answer to its upgrade, which
	// needs nothing but the edge.
	upgradeWait = 1500 * time.Millisecond
	// verdictWait is how long it then waits for more: an edge may wait for auth, and
	// twice for Redis, and hold a refusal.
	verdictWait = 15 * time.Second
)

// lockUser is a user and what its clients saw.
type lockUser struct {
	// Static after construction.
	world *lockWorld
	key   string

	mu sync.Mutex
	// Guarded by mu.
	log lockLog
}

// lockSocket is a socket that an edge has accepted.
type lockSocket struct {
	// Static after construction.
	user  *lockUser
	conn  net.Conn
	in    *bufio.Reader
	sight *sighting // guarded by user.mu
	over  chan struct{}

	writes sync.Mutex // held while a frame is written

	// Guarded by user.mu.
	leaving time.Duration // its client sent a close frame then
}

// note runs do with the user's log.
func (u *lockUser) note(do func(now time.Duration)) {
	u.mu.Lock()
	defer u.mu.Unlock()
	do(u.world.now())
}

// connect makes one attempt. It returns the socket, or nil when it was refused,
// after the edge has ended that connection.
func (u *lockUser) connect(ctx context.Context, edge int) *lockSocket {
	a := &attempt{edge: edge}
	u.note(func(now time.Duration) {
		a.began = now
		u.log.attempts = append(u.log.attempts, a)
	})
	decide := func(v verdict) {
		u.note(func(now time.Duration) {
			if a.decided == 0 && ctx.Err() == nil {
				a.decided, a.verdict = now, v
			}
		})
	}
	s := &lockSocket{user: u, over: make(chan struct{})}
	if v := s.upgrade(ctx, edge); v != accepted {
		decide(v)
		return nil
	}
	stop := context.AfterFunc(ctx, func() { _ = s.conn.Close() })
	v := s.greet(decide)
	if v != accepted {
		stop()
		_ = s.conn.Close()
		decide(v)
		return nil
	}
	u.note(func(now time.Duration) {
		a.decided, a.verdict = now, accepted
		s.sight = &sighting{edge: edge, began: a.began, accepted: now}
		u.log.sockets = append(u.log.sockets, s.sight)
	})
	u.world.readers.Go(func() {
		defer stop()
		s.read()
	})
	s.write(ws.OpText, []byte(`{"action":"subscribe","params":"`+allTopics+`"}`))
	return s
}

// allTopics is everything of a market.
const allTopics = "T.*,Q.*,A.*,AM.*,LULD.*,NOI.*,FMV.*,LV.*"

// upgrade opens the connection.
func (s *lockSocket) upgrade(ctx context.Context, edge int) verdict {
	dialer := net.Dialer{Timeout: upgradeWait}
	conn, err := dialer.DialContext(ctx, "tcp", host(s.user.world.edges[edge]))
	if err != nil {
		return "unreachable"
	}
	s.conn, s.in = conn, bufio.NewReaderSize(conn, 2<<10)
	_ = conn.SetDeadline(time.Now().Add(upgradeWait))
	_, err = conn.Write(request("/v1/ws/stocks/", host(s.user.world.edges[edge]), bearer(s.user.key)))
	var res *http.Response
	if err == nil {
		res, err = http.ReadResponse(s.in, nil)
	}
	switch {
	case err != nil:
		_ = conn.Close()
		return failed(err)
	case res.StatusCode != http.StatusSwitchingProtocols:
		_ = conn.Close()
		return verdict("http " + strconv.Itoa(res.StatusCode))
	}
	return accepted
}

func failed(err error) verdict {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return noAnswer
	}
	return lost
}

// greet reads until the edge has accepted the user, or has ended the connection;
// refused is told as soon as the edge says why it will.
func (s *lockSocket) greet(refused func(verdict)) verdict {
	_ = s.conn.SetDeadline(time.Now().Add(verdictWait))
	for {
		f, err := readFrame(s.in)
		switch {
		case err != nil:
			return failed(err)
		case f.Header.OpCode == ws.OpClose:
			return closeVerdict(f)
		case bytes.Contains(f.Payload, []byte("auth_success")):
			_ = s.conn.SetDeadline(time.Time{})
			return accepted
		case bytes.Contains(f.Payload, []byte("max_connections")):
			refused(held)
		case bytes.Contains(f.Payload, []byte("the connection lock is not available")):
			refused(unavailable)
		}
	}
}

func closeVerdict(f ws.Frame) verdict {
	if len(f.Payload) < 2 {
		return "1005"
	}
	return verdict(strconv.Itoa(int(binary.BigEndian.Uint16(f.Payload))))
}

// read takes what comes until the connection ends.
func (s *lockSocket) read() {
	end := lost
	for {
		f, err := readFrame(s.in)
		if err != nil {
			break
		}
		if f.Header.OpCode == ws.OpClose {
			end = closeVerdict(f)
			break
		}
		if f.Header.OpCode == ws.OpPing {
			s.write(ws.OpPong, f.Payload)
		}
		if f.Header.OpCode == ws.OpText && !bytes.HasPrefix(f.Payload, []byte(`[{"ev":"status"`)) {
			s.user.note(func(now time.Duration) { s.user.log.event(s.sight, now) })
		}
	}
	s.user.note(func(now time.Duration) {
		if s.leaving != 0 && end == "1000" {
			end = left
			if now-s.leaving > lockWait*9/10 {
				end = leftLate
			}
		}
		s.sight.ended, s.sight.end = now, end
	})
	_ = s.conn.Close()
	close(s.over)
}

// leave closes cleanly and waits for the edge's close frame.
func (s *lockSocket) leave(ctx context.Context) {
	s.user.note(func(now time.Duration) { s.leaving = now })
	s.write(ws.OpClose, ws.NewCloseFrameBody(ws.StatusNormalClosure, ""))
	select {
	case <-s.over:
	case <-ctx.Done():
	}
}

// write sends a frame; should it fail, the reader finds out.
func (s *lockSocket) write(op ws.OpCode, payload []byte) {
	s.writes.Lock()
	defer s.writes.Unlock()
	_ = s.conn.SetWriteDeadline(time.Now().Add(upgradeWait))
	_, _ = s.conn.Write(ws.MustCompileFrame(ws.MaskFrame(ws.NewFrame(op, true, bytes.Clone(payload)))))
}

// silent reports whether no event came for long.
func (s *lockSocket) silent() bool {
	s.user.mu.Lock()
	defer s.user.mu.Unlock()
	return s.user.world.now()-max(s.sight.last, s.sight.accepted) > forsakeAfter
}
