package watch

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/gobwas/ws"

	"github.com/cutemarkets/relay/hack/watch/judge"
)

const (
	// restartSpread is over which time clients come back that were asked to
	// connect again (1012).
	restartSpread = 3 * time.Second

	// The pause after a refusal grows from one to the other.
	firstPause = 250 * time.Millisecond
	lastPause  = 5 * time.Second

	serviceRestart = 1012
)

// client is one user with one socket.
type client struct {
	// Static after construction.
	log    *slog.Logger
	url    string
	path   string
	key    string
	topics []string

	mu    sync.Mutex
	judge *judge.Client
}

func newClient(w *Watch, number int, market, key string, topics []string, now time.Time) *client {
	return &client{
		log:    w.log.With("client", number, "market", market),
		url:    w.url,
		path:   "/v1/ws/" + market + "/",
		key:    key,
		topics: topics,
		judge:  judge.New(now),
	}
}

// run connects again and again until ctx is done.
func (c *client) run(ctx context.Context) {
	failures := 0
	for ctx.Err() == nil {
		streamed, err := c.connect(ctx)
		if ctx.Err() != nil {
			return
		}
		if streamed {
			failures = 0
		}
		wait := backOff(failures)
		failures++
		if end := (closed{}); errors.As(err, &end) && end.code == serviceRestart {
			wait, failures = rand.N(restartSpread), 0
		}
		c.log.Info("away", "why", err.Error(), "wait_ms", wait.Milliseconds())
		if !pause(ctx, wait) {
			return
		}
	}
}

// backOff is the pause after so many failures in a row: from half of it to all.
func backOff(failures int) time.Duration {
	most := lastPause
	if failures < 5 {
		most = min(lastPause, firstPause<<failures)
	}
	return most/2 + rand.N(most/2)
}

// connect holds one socket until it ends and returns why.
func (c *client) connect(ctx context.Context) (streamed bool, err error) {
	s, err := dial(ctx, c.url+c.path, c.key)
	if err != nil {
		if why := (refused{}); errors.As(err, &why) && ctx.Err() == nil {
			c.locked(func(j *judge.Client) { j.Refused(why.why) })
		}
		return false, err
	}
	defer s.conn.Close()
	defer context.AfterFunc(ctx, func() {
		_ = s.write(ws.OpClose, ws.NewCloseFrameBody(ws.StatusNormalClosure, "")) // we leave anyway
		_ = s.conn.SetReadDeadline(time.Now().Add(stopTimeout))
	})()
	c.locked(func(j *judge.Client) { j.Opened(time.Now()) })
	streamed, err = c.read(s)
	if end := (closed{}); errors.As(err, &end) && ctx.Err() == nil {
		c.locked(func(j *judge.Client) { j.Closed(end.code, time.Now()) })
	}
	return streamed, err
}

// read judges frames until the socket ends.
func (c *client) read(s *socket) (streamed bool, err error) {
	for {
		frame, err := s.next()
		if err != nil {
			return streamed, err
		}
		c.mu.Lock()
		statuses, err := c.judge.Frame(frame, time.Now())
		c.mu.Unlock()
		if err != nil {
			c.log.Error("a frame that cannot be judged", "problem", err.Error())
			return streamed, closed{1007, err.Error()}
		}
		streamed = streamed || len(statuses) == 0
		for i := range statuses {
			if err := c.status(s, &statuses[i]); err != nil {
				return streamed, lost(err)
			}
		}
	}
}

func (c *client) status(s *socket, status *judge.Status) error {
	switch status.Status {
	case "connected", "success":
		return nil
	case "auth_success":
		c.locked(func(j *judge.Client) { j.Subscribed(time.Now()) })
		c.log.Info("back")
		message, err := json.Marshal(map[string]string{"action": "subscribe", "params": strings.Join(c.topics, ",")})
		if err != nil {
			return err
		}
		return s.write(ws.OpText, message)
	case "gap":
		c.log.Info("gap", "from", status.From, "to", status.To, "topics", status.Topics)
	default:
		c.log.Info("status", "status", status.Status, "message", status.Message)
	}
	return nil
}

func (c *client) locked(do func(*judge.Client)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	do(c.judge)
}

func (c *client) figures(now time.Time) (f judge.Figures) {
	c.locked(func(j *judge.Client) { f = j.Figures(now) })
	return f
}

func (c *client) mark(now time.Time) (f judge.Figures) {
	c.locked(func(j *judge.Client) {
		f = j.Figures(now)
		j.Mark(now)
	})
	return f
}

// second opens another socket of the user and waits for its end.
func (c *client) second(ctx context.Context, address string) (end Ending) {
	s, err := dial(ctx, "ws://"+address+c.path, c.key)
	if err != nil {
		return Ending{Error: err.Error()}
	}
	defer s.conn.Close()
	fresh := judge.New(time.Now())
	for {
		_ = s.conn.SetReadDeadline(time.Now().Add(dialTimeout)) // a failure shows at the read
		s.limit = time.Now().Add(quiet)
		frame, err := s.next()
		if over := (closed{}); errors.As(err, &over) {
			end.Code, end.Text = over.code, over.text
			return end
		}
		statuses, err := fresh.Frame(frame, time.Now())
		if err != nil {
			end.Error = err.Error()
			return end
		}
		if len(statuses) == 0 {
			end.Error = "it got events"
			return end
		}
		for _, status := range statuses {
			end.Statuses = append(end.Statuses, status.Status)
		}
	}
}
