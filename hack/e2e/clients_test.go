package e2e

import (
	"bufio"
	"context"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cutemarkets/relay/hack/cluster"
)

// TestExampleClients runs the README's clients: each must print an event of the
// topic it subscribed to.
func TestExampleClients(t *testing.T) {
	t.Parallel()
	address, _, _ := startRedis(t)
	c := startCluster(t, cluster.Options{Redis: address})
	npm := exec.CommandContext(t.Context(), "npm", "ci", "--prefix", "clients", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
	if out, err := npm.CombinedOutput(); err != nil {
		t.Fatalf("install what the JavaScript client needs (see `make deps`): %v\n%s", err, out)
	}
	url := c.Info().Edges[0] + "/v1/ws/stocks/"
	for name, command := range map[string][]string{
		"go":         {filepath.Join(binaries, "go")},
		"javascript": {"node", "clients/javascript/client.mjs"},
		"python":     {"/usr/bin/python3", "clients/python/client.py"},
		"probe":      {filepath.Join(binaries, "feedsim"), "probe", "--verbose", "--count=5000"},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			cmd := exec.CommandContext(ctx, command[0], append(command[1:], url, expert(t, c, "stocks"), "T.*,AM.*")...)
			var errs strings.Builder
			cmd.Stderr = &errs
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatalf("start (see `make deps`): %v", err)
			}
			seen := false
			for lines := bufio.NewScanner(out); !seen && lines.Scan(); {
				seen = strings.Contains(strings.ReplaceAll(lines.Text(), " ", ""), `"ev":"T"`)
			}
			cancel()
			_ = cmd.Wait() // it has been stopped, or it failed and printed no event
			if !seen {
				t.Errorf("no event was printed; standard error: %s", errs.String())
			}
		})
	}
}
