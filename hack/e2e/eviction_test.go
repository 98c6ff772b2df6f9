package e2e

import (
	"context"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
)

// TestEdgeRefusesARedisThatEvicts: it does not start, and says what to do.
func TestEdgeRefusesARedisThatEvicts(t *testing.T) {
	t.Parallel()
	address, _, _ := startRedis(t)
	server := redis.NewClient(&redis.Options{Addr: address})
	t.Cleanup(func() { _ = server.Close() })
	for name, value := range map[string]string{"maxmemory": "100mb", "maxmemory-policy": "allkeys-lru"} {
		if err := server.ConfigSet(t.Context(), name, value).Err(); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, filepath.Join(binaries, "edge"),
		"--listen=127.0.0.1:0", "--operations-listen=127.0.0.1:0", "--redis-address="+address,
		"--auth-address=127.0.0.1:1", "--fanout-address=127.0.0.1:1").CombinedOutput()
	if err == nil || ctx.Err() != nil {
		t.Fatalf("%v, want it to refuse:\n%s", err, out)
	}
	for _, part := range []string{"allkeys-lru", "CONFIG SET maxmemory-policy noeviction"} {
		if !strings.Contains(string(out), part) {
			t.Errorf("%q is not in:\n%s", part, out)
		}
	}
}
