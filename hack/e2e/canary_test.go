package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gobwas/ws"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/prototext"

	"github.com/cutemarkets/relay/hack/cluster"
)

// tracesCapture is an OTLP collector that keeps what it gets as text.
type tracesCapture struct {
	collector.UnimplementedTraceServiceServer

	mu   sync.Mutex
	text bytes.Buffer
}

func (c *tracesCapture) Export(_ context.Context, req *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.text.WriteString(prototext.Format(req))
	return &collector.ExportTraceServiceResponse{}, nil
}

func (c *tracesCapture) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.String()
}

func startCollector(t *testing.T) (*tracesCapture, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &tracesCapture{}
	server := grpc.NewServer()
	collector.RegisterTraceServiceServer(server, c)
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)
	return c, l.Addr().String()
}

// TestNoSecretIsShown uses keys in every way a client can, good and bad, with
// everything up and with Redis, auth and the upstream down, and then looks for
// them in all that the services print: logs at debug level, metrics, traces,
// goroutine dumps.
func TestNoSecretIsShown(t *testing.T) {
	t.Parallel()
	traces, endpoint := startCollector(t)
	address, stopRedis, _ := startRedis(t)
	flags := []string{"--otlp-endpoint=" + endpoint, "--pprof"}
	c := startCluster(t, cluster.Options{
		Redis: address,
		Args: map[string][]string{
			"edge":   append([]string{"--failure-burst-per-ip=100000"}, flags...),
			"fanout": flags,
			"auth":   flags,
			"edge-1": {"--markets=stocks", "--no-in-band-auth"},
		},
	})
	edges := c.Info().Edges
	secrets := []string{read(t, c, "vendor.key"), read(t, c, "pepper")}
	plans := map[string]string{}
	for _, plan := range cluster.Plans {
		_, plans[plan] = newUser(t, c, "stocks", plan)
		secrets = append(secrets, plans[plan])
	}
	_, uncached := newUser(t, c, "stocks", "expert")
	options := expert(t, c, "options")
	const bad = "cm_canaryCANARYcanary0123456789canaryCANARY"
	const odd = "canary+odd/key= with%20blank"
	secrets = append(secrets, uncached, options, bad, odd)
	keys := []string{plans["expert"], plans["free"], plans["developer"], uncached, options, bad, odd}

	everyWay := func() {
		var tries sync.WaitGroup
		for _, edge := range edges {
			for _, key := range keys {
				for _, target := range []string{"/v1/ws/stocks/", "/v1/ws/options", "/v1/ws/crypto/", "/elsewhere", "/v1/status/"} {
					tries.Go(func() { useKey(t, edge, target, key) })
				}
			}
		}
		tries.Wait()
	}
	everyWay()
	if err := c.StopPart(t.Context(), "auth"); err != nil {
		t.Fatal(err)
	}
	everyWay()
	stopRedis()
	everyWay()
	if err := c.StopPart(t.Context(), "feedsim"); err != nil {
		t.Fatal(err)
	}
	everyWay()

	shown := map[string]string{}
	for name, operations := range c.Info().Operations {
		if name == "auth" {
			continue // stopped
		}
		shown[name+" metrics"] = get(t, operations+"/metrics")
		shown[name+" goroutines"] = get(t, operations+"/debug/pprof/goroutine?debug=2")
		shown[name+" command line"] = get(t, operations+"/debug/pprof/cmdline")
		if strings.HasPrefix(name, "edge-") {
			shown[name+" locks"] = get(t, operations+"/locks")
		}
	}
	// A fatal signal makes the runtime print all stacks, as a panic does.
	for _, name := range []string{"edge-0", "edge-1", "fanout-0"} {
		if err := c.Kill(name, syscall.SIGQUIT); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"edge-0", "edge-1", "fanout-0", "auth"} {
		log, err := c.Log(name)
		if err != nil {
			t.Fatal(err)
		}
		shown[name+" log"] = string(log)
		if name != "auth" && !strings.Contains(string(log), "goroutine 1 gp=") {
			t.Errorf("%s: the log has no goroutine dump", name)
		}
	}
	shown["traces"] = traces.String()
	if !strings.Contains(shown["traces"], "relay.handshake") {
		t.Error("no handshake was traced")
	}
	for where, text := range shown {
		for _, secret := range secrets {
			for _, form := range []string{secret, url.QueryEscape(secret), url.PathEscape(secret), base64.StdEncoding.EncodeToString([]byte(secret))} {
				if at := strings.Index(text, form); at >= 0 {
					t.Errorf("%s shows a secret: …%s…", where, text[max(0, at-100):min(len(text), at+len(form)+50)])
				}
			}
		}
	}
}

func read(t *testing.T, c *cluster.Cluster, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(c.Dir(), name))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

// useKey presents a key by header, query, both and in band; the answers do not
// matter here.
func useKey(t *testing.T, edge, target, key string) {
	query := target + "?api_key=" + url.QueryEscape(key)
	for _, raw := range [][]byte{
		request(target, host(edge), bearer(key)),
		request(query, host(edge)),
		request(query, host(edge), bearer(key+"x")),
		request(target+"?api_key="+key, host(edge)),
		request(target, host(edge), "Authorization: Basic "+key),
		[]byte("GET " + query + " HTTP/1.1\r\nHost: x\r\n\r\n"),
		[]byte("POST " + query + " HTTP/1.1\r\nHost: x\r\n\r\n"),
		[]byte("GET " + query + "\r\nAuthorization : Bearer " + key + "\r\n\r\n"),
		request(query, host(edge), "X-Bad\x00: "+key),
		append(request(target, host(edge)), inBand(key)...),
	} {
		conn, err := net.Dial("tcp", host(edge))
		if err != nil {
			t.Errorf("dial: %v", err)
			return
		}
		_ = conn.SetDeadline(time.Now().Add(300 * time.Millisecond))
		_, _ = conn.Write(raw)
		_, _ = bytes.NewBuffer(nil).ReadFrom(conn)
		_ = conn.Close()
	}
}

func inBand(key string) []byte {
	var out []byte
	for _, text := range []string{
		fmt.Sprintf(`{"action":"auth","params":%q}`, key),
		fmt.Sprintf(`{"action":"auth","params":%q,"action":7}`, key),
		fmt.Sprintf(`{"action":"subscribe","params":%q}`, key),
		key,
	} {
		out = append(out, ws.MustCompileFrame(ws.MaskFrame(ws.NewTextFrame([]byte(text))))...)
	}
	return out
}
