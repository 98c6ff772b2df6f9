package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cutemarkets/relay/hack/cluster"
	"github.com/cutemarkets/relay/hack/feedsim"
	"github.com/cutemarkets/relay/hack/watch"
	"github.com/cutemarkets/relay/hack/watch/judge"
)

// crowd runs a watch of some clients for each market until the test ends, and
// returns the address of its API.
func crowd(t *testing.T, c *cluster.Cluster, clients int) (api string) {
	t.Helper()
	dir := t.TempDir()
	for _, product := range cluster.Products {
		keys := make([]string, clients)
		for i := range keys {
			keys[i] = expert(t, c, product)
		}
		if err := os.WriteFile(filepath.Join(dir, product), []byte(strings.Join(keys, "\n")), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	o := watch.Options{
		URL: "ws://" + host(c.Info().Edges[0]), StocksKeys: filepath.Join(dir, "stocks"), OptionsKeys: filepath.Join(dir, "options"),
		Listen: "127.0.0.1:0", Tickers: 6,
	}
	var log bytes.Buffer
	w, err := watch.New(o, slog.New(slog.NewJSONHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log(log.String())
		}
	})
	return "http://" + w.Addr().String()
}

func summary(t *testing.T, text string) (s judge.Summary) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// TestWatch lets a crowd of clients judge an upstream that is reset, and a second
// socket of a user at the other edge.
func TestWatch(t *testing.T) {
	t.Parallel()
	redis, _, _ := startRedis(t)
	c := startCluster(t, cluster.Options{Redis: redis, LogLevel: "info", Args: map[string][]string{"feedsim": {"--number=topic", "--stamp"}}})
	const clients = 6
	api := crowd(t, c, clients)
	streaming := func() bool { return summary(t, get(t, api+"/summary")).Streaming == 2*clients }
	eventually(t, "all stream", streaming)

	start := summary(t, call(t, "POST", api+"/mark?phase=reset"))
	if start.Silent+start.Duplicates+start.Disordered != 0 || start.Notices != 0 || len(start.Closes)+len(start.Refusals) != 0 {
		t.Errorf("in peace: %+v", start)
	}
	post(t, c.Info().Feedsim+"/outage?for=1s") // so that events of each client are missing
	post(t, c.Info().Feedsim+"/drop")
	eventually(t, "all are told of the gap, and of some events that are missing", func() bool {
		s := summary(t, get(t, api+"/summary"))
		return s.Told == 2*clients && s.Announced > 0
	})
	eventually(t, "all stream", streaming)
	reset := summary(t, call(t, "POST", api+"/mark?phase=second"))
	if reset.Silent+reset.Duplicates+reset.Disordered != 0 || reset.Notices != 2*clients || len(reset.Closes) != 0 {
		t.Errorf("after a reset: %+v", reset)
	}

	for _, edge := range c.Info().Edges {
		var end watch.Ending
		if err := json.Unmarshal([]byte(call(t, "POST", fmt.Sprintf("%s/second?client=3&address=%s", api, host(edge)))), &end); err != nil {
			t.Fatal(err)
		}
		if end.Code != 4409 || end.Error != "" || strings.Join(end.Statuses, " ") != "connected max_connections" {
			t.Errorf("second socket: %+v", end)
		}
	}
	var sockets feedsim.History
	if err := json.Unmarshal([]byte(get(t, c.Info().Feedsim+"/sockets")), &sockets); err != nil {
		t.Fatal(err)
	}
	if n := len(sockets.Stocks); n != 3 || sockets.Stocks[1].Authenticated != 0 || sockets.Stocks[2].Authenticated != 1 {
		t.Errorf("upstream sockets of stocks: %+v", sockets.Stocks)
	}

	if err := c.StopPart(t.Context(), "edge-0"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the edge has closed all", func() bool { return summary(t, get(t, api+"/summary")).Closes["1012"] == 2*clients })
	if end := summary(t, get(t, api+"/summary")); len(end.Closes) != 1 || end.Silent != 0 {
		t.Errorf("while the edge stops: %+v", end)
	}
}
