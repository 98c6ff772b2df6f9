package watch

import (
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cutemarkets/relay/hack/feedsim/tape"
)

// TestTopics: clients have different topics, each as many, and none twice.
func TestTopics(t *testing.T) {
	t.Parallel()
	tickers := tape.Tickers(tape.Stocks, popular)
	seen := map[string]bool{}
	for client := range popular {
		list := topics(tickers, client, 6)
		seen[strings.Join(list, ",")] = true
		if slices.Sort(list); len(list) != 13 || len(slices.Compact(list)) != 13 {
			t.Errorf("client %d: %v", client, list)
		}
	}
	if len(seen) != popular {
		t.Errorf("%d different lists, want %d", len(seen), popular)
	}
}

func TestBackOff(t *testing.T) {
	t.Parallel()
	for failures, most := range map[int]int{0: 250, 1: 500, 4: 4_000, 5: 5_000, 1_000: 5_000} {
		for range 100 {
			if ms := int(backOff(failures).Milliseconds()); ms < most/2 || ms > most {
				t.Fatalf("after %d failures %d ms, want %d to %d", failures, ms, most/2, most)
			}
		}
	}
}

func TestNewSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	empty := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(empty, []byte("\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	good := Options{URL: "ws://x:80", StocksKeys: empty, Listen: "127.0.0.1:0", Tickers: 6}
	for text, change := range map[string]func(*Options){
		"url":             func(o *Options) { o.URL = "http://x" },
		"--stocks-keys":   func(o *Options) { o.StocksKeys = "" },
		"--tickers":       func(o *Options) { o.Tickers = 0 },
		"no such file":    func(o *Options) { o.StocksKeys += "x" },
		"files have none": func(*Options) {},
	} {
		o := good
		change(&o)
		if _, err := New(o, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// TestFolder makes a folder, for the user of this process, who may give it to
// himself.
func TestFolder(t *testing.T) {
	t.Parallel()
	f := Folder{Path: filepath.Join(t.TempDir(), "a", "b"), Owner: os.Getuid()}
	out, log := io.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	kept := make(chan error, 1)
	go func() { kept <- f.Keep(ctx, slog.New(slog.NewTextHandler(log, nil))) }()
	if _, err := out.Read(make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(f.Path, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-kept; err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(f.Path); !os.IsNotExist(err) {
		t.Errorf("the folder is still there: %v", err)
	}
}
