package probe_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/cutemarkets/relay/hack/feedsim"
	"github.com/cutemarkets/relay/hack/feedsim/market"
	"github.com/cutemarkets/relay/hack/feedsim/probe"
	"github.com/cutemarkets/relay/hack/feedsim/session"
)

const key = "cm_canary_key_of_the_probe"

func ask(url string, change func(*probe.Options)) (string, error) {
	o := probe.Options{URL: url, Key: key, Topics: "T.AAPL, Q.AAPL", Count: 2, Timeout: 10 * time.Second, Verbose: true}
	if change != nil {
		change(&o)
	}
	var out bytes.Buffer
	err := probe.Run(context.Background(), o, &out)
	return out.String(), err
}

// TestVendor probes the simulator, which takes keys in the band only.
func TestVendor(t *testing.T) {
	t.Parallel()
	s, err := feedsim.New(feedsim.Options{
		Listen: "127.0.0.1:0", Keys: []session.Key{key}, MaxConnections: 1,
		OnLimit:     feedsim.LimitRules{Stocks: market.KickOldest, Options: market.KickOldest},
		AuthTimeout: time.Minute, Buffer: 16 << 20, Rate: feedsim.Rates{Stocks: 5000, Options: 5000}, Symbols: 10, Minute: time.Second, Seed: 1,
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	url := "ws://" + s.Addr().String() + "/stocks"

	out, err := ask(url, func(o *probe.Options) { o.InBand, o.Count = true, 100 })
	if err != nil || !strings.Contains(out, "ok: 2 of 2 topics acknowledged, 100 of 100 events") || !strings.Contains(out, `"sym":"AAPL"`) {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err = ask(url, func(o *probe.Options) { o.InBand, o.Count, o.Topics = true, 0, "T.NOSUCH" }); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	for name, c := range map[string]struct {
		url    string
		change func(*probe.Options)
		want   error
		text   string
	}{
		"bad key":       {url, func(o *probe.Options) { o.InBand, o.Key = true, "wrong" }, probe.ErrAborted, "auth_failed"},
		"no such path":  {url + "/", nil, probe.ErrRefused, "404"},
		"header only":   {url, func(o *probe.Options) { o.Timeout = 50 * time.Millisecond }, probe.ErrTimeout, "--in-band"},
		"no such topic": {url, func(o *probe.Options) { o.InBand, o.Topics, o.Timeout = true, "ZZ.A", 200*time.Millisecond }, probe.ErrTimeout, "0 of 1 topics"},
		"nobody there":  {"ws://127.0.0.1:1/?api_key=" + key, nil, probe.ErrUnreachable, "refused"},
		"no URL":        {"http//" + key, nil, probe.ErrUnreachable, ""},
	} {
		out, err := ask(c.url, c.change)
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && strings.Contains(err.Error()+out, key) {
			t.Errorf("%s: the key is in %v\n%s", name, err, out)
		}
	}
}

// TestRelay probes a server that takes the key from the header.
func TestRelay(t *testing.T) {
	t.Parallel()
	const (
		connected = `[{"ev":"status","status":"connected","message":"Connected Successfully"}]`
		success   = `[{"ev":"status","status":"auth_success","message":"authenticated"}]`
		acks      = `[{"ev":"status","status":"success","message":"subscribed to: T.AAPL"},{"ev":"status","status":"success","message":"subscribed to: Q.AAPL"}]`
		events    = `[{"ev":"T","sym":"AAPL"},{"ev":"Q","sym":"AAPL"}]`
	)
	for name, c := range map[string]struct {
		frames []string
		code   websocket.StatusCode
		want   error
		text   string
	}{
		"served":       {[]string{connected, success, acks, events}, 0, nil, ""},
		"refused":      {[]string{connected, `[{"ev":"status","status":"auth_failed","message":"no such key ` + key + `"}]`}, 4401, probe.ErrClosed, "4401"},
		"second":       {[]string{connected, `[{"ev":"status","status":"max_connections","message":"one connection per user"}]`}, 4409, probe.ErrClosed, "one connection per user"},
		"cut off":      {[]string{connected, success, acks}, 0, probe.ErrAborted, "2 of 2 topics"},
		"no array":     {[]string{`{"ev":"status"}`}, 1000, probe.ErrProtocol, "array"},
		"no event":     {[]string{connected, success, acks, `[{"sym":"AAPL"}]`}, 1000, probe.ErrProtocol, "ev"},
		"not even hey": {nil, 1011, probe.ErrClosed, "no greeting"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Authorization") != "Bearer "+key {
					http.Error(w, "no key", http.StatusUnauthorized)
					return
				}
				conn, err := websocket.Accept(w, r, nil)
				if err != nil {
					return
				}
				for _, f := range c.frames {
					_ = conn.Write(r.Context(), websocket.MessageText, []byte(f))
				}
				if c.code != 0 {
					_ = conn.Close(c.code, "told so")
				}
				if c.want == nil {
					_, message, _ := conn.Read(r.Context())
					if string(message) != `{"action":"subscribe","params":"T.AAPL,Q.AAPL"}` {
						t.Errorf("the server got %s", message)
					}
					_, _, _ = conn.Read(r.Context()) // until the probe closes
				}
				_ = conn.CloseNow()
			}))
			defer srv.Close()
			out, err := ask(strings.Replace(srv.URL, "http", "ws", 1), nil)
			if !errors.Is(err, c.want) || (err != nil && !strings.Contains(err.Error(), c.text)) {
				t.Errorf("%v\n%s", err, out)
			}
			if strings.Contains(out, key) || (err != nil && strings.Contains(err.Error(), key)) {
				t.Errorf("the key is in %v\n%s", err, out)
			}
		})
	}
}

func TestCancelled(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	o := probe.Options{URL: "ws://127.0.0.1:1/", Topics: "T.A", Timeout: time.Second}
	if err := probe.Run(ctx, o, &bytes.Buffer{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
