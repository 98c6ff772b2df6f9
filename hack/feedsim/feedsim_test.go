package feedsim

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"go.uber.org/goleak"

	"github.com/cutemarkets/relay/hack/feedsim/market"
	"github.com/cutemarkets/relay/hack/feedsim/session"
)

const (
	goodKey = "cm_canary_key_of_the_tests"

	connected      = `[{"ev":"status","status":"connected","message":"Connected Successfully"}]`
	authSuccess    = `[{"ev":"status","status":"auth_success","message":"authenticated"}]`
	authFailed     = `[{"ev":"status","status":"auth_failed","message":"authentication failed"}]`
	authTimeout    = `[{"ev":"status","status":"auth_timeout","message":"No authentication request received."}]`
	maxConnections = `[{"ev":"status","status":"max_connections","message":"Maximum number of websocket connections exceeded. "}]`

	patience = 20 * time.Second // an error of the test when it runs out
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func defaults() Options {
	return Options{
		Listen:         "127.0.0.1:0",
		Keys:           []session.Key{goodKey},
		MaxConnections: 1,
		OnLimit:        LimitRules{market.KickOldest, market.KickOldest},
		AuthTimeout:    patience,
		Buffer:         16 << 20,
		Rate:           Rates{2000, 2000},
		Symbols:        50,
		Minute:         5 * time.Second,
		Seed:           1,
	}
}

// rig is a running simulator.
type rig struct {
	*Simulator
	t    *testing.T
	stop func() // and wait; Run must return nil
}

type syncBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

func serve(t *testing.T, change func(*Options)) *rig {
	t.Helper()
	o := defaults()
	if change != nil {
		change(&o)
	}
	logs := &syncBuffer{}
	s, err := New(o, slog.New(slog.NewTextHandler(logs, &slog.HandlerOptions{Level: slog.LevelDebug})))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	r := &rig{s, t, sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})}
	t.Cleanup(func() {
		r.stop()
		http.DefaultClient.CloseIdleConnections()
		if strings.Contains(logs.String(), goodKey) {
			t.Errorf("a key is in the log:\n%s", logs)
		}
	})
	return r
}

// client is a WebSocket of the other library, so that two implementations meet.
type client struct {
	*websocket.Conn
	t   *testing.T
	ctx context.Context
}

func (r *rig) url(path string) string { return "ws://" + r.Addr().String() + path }

func (r *rig) tryDial(path string) (*client, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	r.t.Cleanup(cancel)
	conn, response, err := websocket.Dial(ctx, r.url(path), nil)
	if err != nil {
		if response != nil {
			return nil, fmt.Errorf("%d", response.StatusCode)
		}
		return nil, err
	}
	conn.SetReadLimit(session.MaxFrame)
	r.t.Cleanup(func() { _ = conn.CloseNow() })
	return &client{conn, r.t, ctx}, nil
}

func (r *rig) dial(path string) *client {
	r.t.Helper()
	c, err := r.tryDial(path)
	if err != nil {
		r.t.Fatalf("dial %s: %v", path, err)
	}
	c.expect(connected)
	return c
}

// login dials and authenticates.
func (r *rig) login(path string) *client {
	r.t.Helper()
	c := r.dial(path)
	c.say("auth", goodKey)
	c.expect(authSuccess)
	return c
}

func (c *client) say(action, params string) {
	c.t.Helper()
	c.write(fmt.Sprintf(`{"action":%q,"params":%q}`, action, params))
}

func (c *client) write(text string) {
	c.t.Helper()
	if err := c.Write(c.ctx, websocket.MessageText, []byte(text)); err != nil {
		c.t.Fatalf("write: %v", err)
	}
}

func (c *client) expect(frame string) {
	c.t.Helper()
	kind, got, err := c.Read(c.ctx)
	if err != nil {
		c.t.Fatalf("waiting for %s: %v", frame, err)
	}
	if string(got) != frame || kind != websocket.MessageText {
		c.t.Fatalf("\n got %s\nwant %s", got, frame)
	}
}

// expectStatus skips events until the frame comes.
func (c *client) expectStatus(frame string) {
	c.t.Helper()
	for {
		_, got, err := c.Read(c.ctx)
		if err != nil {
			c.t.Fatalf("waiting for %s: %v", frame, err)
		}
		if bytes.HasPrefix(got, []byte(`[{"ev":"status"`)) {
			if string(got) != frame {
				c.t.Fatalf("\n got %s\nwant %s", got, frame)
			}
			return
		}
	}
}

type event struct {
	Ev, Sym string
	Q       int64
	raw     string
}

// events reads frames until it has n events.
func (c *client) events(n int) []event {
	c.t.Helper()
	var out []event
	for len(out) < n {
		_, frame, err := c.Read(c.ctx)
		if err != nil {
			c.t.Fatalf("after %d of %d events: %v", len(out), n, err)
		}
		var objects []json.RawMessage
		if err := json.Unmarshal(frame, &objects); err != nil || len(objects) == 0 {
			c.t.Fatalf("no array of events: %s", frame)
		}
		for _, o := range objects {
			e := event{raw: string(o)}
			if err := json.Unmarshal(o, &e); err != nil {
				c.t.Fatal(err)
			}
			out = append(out, e)
		}
	}
	return out
}

// expectClose wants a close frame with this code and no reason.
func (c *client) expectClose(code websocket.StatusCode) {
	c.t.Helper()
	for {
		_, _, err := c.Read(c.ctx)
		if err == nil {
			continue
		}
		var closed websocket.CloseError
		if !errors.As(err, &closed) || closed.Code != code || closed.Reason != "" {
			c.t.Fatalf("got %v, want close %d", err, code)
		}
		return
	}
}

// expectCut wants the connection to end without a close frame.
func (c *client) expectCut() {
	c.t.Helper()
	for {
		_, got, err := c.Read(c.ctx)
		if err == nil && !bytes.HasPrefix(got, []byte(`[{"ev":"status"`)) {
			continue
		}
		if err == nil || websocket.CloseStatus(err) != -1 || c.ctx.Err() != nil {
			c.t.Fatalf("got %q, %v, want the connection cut", got, err)
		}
		return
	}
}

func (r *rig) post(path string) {
	r.t.Helper()
	if code := r.request(http.MethodPost, path); code != http.StatusNoContent {
		r.t.Fatalf("POST %s: %d", path, code)
	}
}

func (r *rig) request(method, path string) int {
	r.t.Helper()
	req, err := http.NewRequest(method, "http://"+r.ControlAddr().String()+path, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	_ = response.Body.Close()
	return response.StatusCode
}

// until waits for a condition that only the counters show.
func (r *rig) until(what string, ok func(Stats) bool) {
	r.t.Helper()
	for deadline := time.Now().Add(patience); !ok(r.Stats()); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("never: %s; %+v", what, r.Stats())
		}
	}
}

func TestKeysFromFile(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(file, []byte("\nfirst\n  second  \n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := serve(t, func(o *Options) { o.Keys, o.KeyFile, o.MaxConnections = nil, file, 2 })
	for _, key := range []string{"first", "second"} {
		c := r.dial("/stocks")
		c.say("auth", key)
		c.expect(authSuccess)
	}
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, []byte("\n\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{empty, filepath.Join(t.TempDir(), "none")} {
		o := defaults()
		o.Keys, o.KeyFile = nil, path
		if _, err := New(o, slog.New(slog.DiscardHandler)); err == nil {
			t.Errorf("started with the key file %s", path)
		}
	}
}

func TestValidate(t *testing.T) {
	t.Parallel()
	good := defaults()
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*Options){
		"--listen":          func(o *Options) { o.Listen = "" },
		"--key or":          func(o *Options) { o.Keys = nil },
		"--key:":            func(o *Options) { o.Keys = []session.Key{""} },
		"--max-connections": func(o *Options) { o.MaxConnections = 0 },
		"--auth-timeout":    func(o *Options) { o.AuthTimeout = 0 },
		"--buffer":          func(o *Options) { o.Buffer = 10 },
		"--rate":            func(o *Options) { o.Rate.Options = 0 },
		"--symbols":         func(o *Options) { o.Symbols = 20_001 },
		"--minute":          func(o *Options) { o.Minute = 1500 * time.Millisecond },
		"--unauthorized":    func(o *Options) { o.Unauthorized = []string{"XX"} },
		"--on-limit":        func(o *Options) { o.OnLimit.Options = "shrug" },
	} {
		o := defaults()
		spoil(&o)
		if err := o.Validate(); err == nil || !strings.Contains(err.Error(), name) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if text := fmt.Sprintf("%+v %#v", good, good); strings.Contains(text, goodKey) {
		t.Errorf("the key is in %s", text)
	}
}

func TestRates(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]Rates{"200": {200, 200}, "options=1,stocks=150000": {150_000, 1}} {
		var got Rates
		if err := got.UnmarshalText([]byte(text)); err != nil || got != want {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "many", "crypto=1", "stocks=1,options=x"} {
		var got Rates
		if err := got.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is taken as %v", text, got)
		}
	}
}

func TestLimitRules(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]LimitRules{
		"kick-oldest":   {market.KickOldest, market.KickOldest},
		"reject-newest": {market.RejectNewest, market.RejectNewest},
		"options=reject-newest,stocks=kick-oldest": {market.KickOldest, market.RejectNewest},
	} {
		var got LimitRules
		if err := got.UnmarshalText([]byte(text)); err != nil || got != want {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "both", "stocks=kick-oldest", "crypto=kick-oldest", "stocks=kick-oldest,options=x"} {
		var got LimitRules
		if err := got.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is taken as %v", text, got)
		}
	}
}
