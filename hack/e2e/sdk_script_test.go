package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/gobwas/ws"
)

// script is what the scripted SDKs have in common: where they connect to, and
// what they have seen. The methods fail the test, so they belong to its
// goroutine.
type script struct {
	t      *testing.T
	edge   string
	moved  string // edge to go to after the first end; empty: the same
	target string
	header []string
	key    string
	topics []string // one subscribe message for each
	ping   time.Duration

	dials    []time.Time
	refused  []*http.Response // HTTP answers instead of an upgrade
	statuses []string         // values of status, of all connections
	frames   []string         // of the connection that is open, or was last
	closes   []int            // codes; 0: no close frame
	data     int              // events that are no status
}

func newScript(t *testing.T, edge, target, key string, topics ...string) script {
	return script{t: t, edge: edge, target: target, key: key, topics: topics}
}

// connect dials once. Without an upgrade it returns nil.
func (s *script) connect() *client {
	s.t.Helper()
	s.dials = append(s.dials, time.Now())
	s.frames = nil
	if s.moved != "" && len(s.closes) > 0 {
		s.edge = s.moved
	}
	conn, in, res := exchange(s.t, s.edge, request(s.target, host(s.edge), s.header...))
	if res.StatusCode != http.StatusSwitchingProtocols {
		s.refused = append(s.refused, res)
		_ = conn.Close()
		return nil
	}
	if s.ping > 0 {
		go pinging(conn, s.ping)
	}
	return &client{t: s.t, conn: conn, in: in}
}

// pinging sends a ping at each interval until the connection ends.
func pinging(conn net.Conn, interval time.Duration) {
	for ticker := time.NewTicker(interval); ; <-ticker.C {
		if _, err := conn.Write(ws.MustCompileFrame(ws.MaskFrame(ws.NewPingFrame([]byte("sdk"))))); err != nil {
			ticker.Stop()
			return
		}
	}
}

// message is a text frame of a client.
func message(action, params string) []byte {
	return ws.MustCompileFrame(ws.MaskFrame(ws.NewTextFrame(fmt.Appendf(nil, `{"action":%q,"params":%q}`, action, params))))
}

// subscribes is all subscribe messages, back to back.
func (s *script) subscribes() []byte {
	var all bytes.Buffer
	for _, topics := range s.topics {
		all.Write(message("subscribe", topics))
	}
	return all.Bytes()
}

// object is an element of a frame.
type object map[string]json.RawMessage

func (o object) text(key string) string {
	var text string
	_ = json.Unmarshal(o[key], &text) // what is no string is not looked at
	return text
}

// read takes the next frame. Whatever the SDKs cannot take fails the test: a
// frame that is no array or too big, or a status without a message.
func (s *script) read(c *client) ([]object, error) {
	s.t.Helper()
	text, err := c.next(patience + s.ping)
	for err == nil && text == "pong:sdk" {
		text, err = c.next(patience + s.ping)
	}
	var end closed
	if errors.As(err, &end) {
		s.closes = append(s.closes, int(end.code))
		return nil, err
	}
	if err != nil {
		s.closes = append(s.closes, 0)
		return nil, err
	}
	s.frames = append(s.frames, text)
	var objects []object
	if err := json.Unmarshal([]byte(text), &objects); err != nil {
		s.t.Fatalf("the frame %.200s is no array of objects: %v", text, err)
	}
	for _, o := range objects {
		if o.text("ev") != "status" {
			s.data++
			continue
		}
		s.statuses = append(s.statuses, o.text("status"))
		if _, there := o["message"]; !there {
			s.t.Fatalf("a status without a message: %s", text)
		}
	}
	return objects, nil
}

// between returns the shortest time from one dial to the next.
func (s *script) between() time.Duration {
	shortest := time.Hour
	for i := 1; i < len(s.dials); i++ {
		shortest = min(shortest, s.dials[i].Sub(s.dials[i-1]))
	}
	return shortest
}

// errAuthFailed ends an SDK for good.
var errAuthFailed = errors.New("auth_failed")

// goSDK behaves like the vendor's Go SDK: it says everything at once, and comes
// back at once after any end, unless it was told auth_failed.
type goSDK struct {
	script
	backOff time.Duration // after an HTTP refusal
}

func newGoSDK(t *testing.T, edge, key string, topics ...string) *goSDK {
	return &goSDK{script: newScript(t, edge, "/v1/ws/stocks", key, topics...)}
}

// goPing is the interval of the SDK's pings.
const goPing = 25 * time.Second

// run is the SDK's life. It asks after each frame and each end whether that is
// enough, and leaves then.
func (s *goSDK) run(enough func() bool) error {
	s.t.Helper()
	for !enough() {
		c := s.connect()
		if c == nil {
			s.backOff = max(500*time.Millisecond, s.backOff*3/2)
			<-time.After(s.backOff)
			continue
		}
		s.backOff = 0
		c.raw(append(message("auth", s.key), s.subscribes()...))
		err := s.connection(c, enough)
		_ = c.conn.Close()
		if errors.Is(err, errAuthFailed) {
			return err
		}
		if last := len(s.closes) - 1; err != nil && s.closes[last] == int(ws.StatusNormalClosure) {
			<-time.After(goPing) // it notices at its next ping
		}
	}
	return nil
}

func (s *goSDK) connection(c *client, enough func() bool) error {
	s.t.Helper()
	for !enough() {
		objects, err := s.read(c)
		if err != nil {
			return err
		}
		for _, o := range objects {
			if o.text("status") == "auth_failed" {
				return errAuthFailed
			}
		}
	}
	c.frame(ws.OpClose, ws.NewCloseFrameBody(ws.StatusNormalClosure, ""))
	c.expectEOF()
	return nil
}

// pythonSDK behaves like the vendor's Python SDK: it takes one frame, sends the
// key, takes one frame that tells whether that was well, and then subscribes. It
// comes back at once after an end, five times in its life.
type pythonSDK struct{ script }

func newPythonSDK(t *testing.T, edge, key string, topics ...string) *pythonSDK {
	s := &pythonSDK{newScript(t, edge, "/v1/ws/stocks", key, topics...)}
	s.header = []string{"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"}
	return s
}

// maxReconnects is the SDK's budget.
const maxReconnects = 5

// errGaveUp is the end of the budget.
var errGaveUp = errors.New("too many reconnects")

// run is the SDK's life, until it is enough. Close codes 1000 and 1001 end it
// without an error.
func (s *pythonSDK) run(enough func() bool) error {
	s.t.Helper()
	for range maxReconnects + 1 {
		c := s.connect()
		if c == nil {
			s.t.Fatalf("refused with HTTP %d", s.refused[0].StatusCode)
		}
		err := s.connection(c, enough)
		_ = c.conn.Close()
		if err == nil || errors.Is(err, errAuthFailed) {
			return err
		}
		switch s.closes[len(s.closes)-1] {
		case 1000, 1001, 1005:
			return nil
		}
	}
	return errGaveUp
}

func (s *pythonSDK) connection(c *client, enough func() bool) error {
	s.t.Helper()
	if _, err := s.read(c); err != nil {
		return err
	}
	c.raw(message("auth", s.key))
	answer, err := s.read(c)
	if err != nil {
		return err
	}
	if len(answer) == 0 || answer[0].text("status") == "" {
		s.t.Fatalf("the frame after the key has no status: %q", s.frames)
	}
	if answer[0].text("status") == "auth_failed" {
		return errAuthFailed
	}
	c.raw(s.subscribes())
	for !enough() {
		if _, err := s.read(c); err != nil {
			return err
		}
	}
	c.frame(ws.OpClose, ws.NewCloseFrameBody(ws.StatusNormalClosure, ""))
	c.expectEOF()
	return nil
}
