package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"

	"github.com/cutemarkets/relay/hack/feedsim"
	"github.com/cutemarkets/relay/hack/feedsim/market"
)

func parse(args ...string) (cli, error) {
	var c cli
	p, err := kong.New(&c)
	if err != nil {
		return c, err
	}
	_, err = p.Parse(args)
	return c, err
}

func TestFlags(t *testing.T) {
	t.Parallel()
	c, err := parse("serve", "--key", "a", "--key", "b", "--on-limit", "stocks=kick-oldest,options=reject-newest",
		"--start", "2026-05-15T13:30:00Z", "--unauthorized", "NOI", "--rate", "1000",
		"--replay", "/x", "--replay-speed", "2.5x", "--truth", "/t", "--stamp", "--number", "market", "--quiesced")
	if err != nil {
		t.Fatal(err)
	}
	o := c.Serve.Options
	if len(o.Keys) != 2 || o.Keys[1] != "b" || o.Rate != (feedsim.Rates{Stocks: 1000, Options: 1000}) || o.Seed != 1 || o.Minute != 5*time.Second ||
		o.OnLimit != (feedsim.LimitRules{Stocks: market.KickOldest, Options: market.RejectNewest}) ||
		!o.Start.Equal(time.Date(2026, 5, 15, 13, 30, 0, 0, time.UTC)) || o.Unauthorized[0] != "NOI" ||
		o.Replay != "/x" || o.ReplaySpeed != 2.5 || o.Truth != "/t" || !o.Stamp || o.Number != "market" || !o.Quiesced {
		t.Errorf("%+v", o)
	}
	if c, err = parse("probe", "ws://x", "k", "T.*", "--count", "5", "-v"); err != nil || c.Probe.Count != 5 || !c.Probe.Verbose || c.Probe.Timeout != 10*time.Second {
		t.Errorf("%+v, %v", c.Probe.Options, err)
	}
	if c.Probe.Key != "k" || c.Probe.Topics != "T.*" {
		t.Error("the key or the topics are others than those given")
	}
	for text, args := range map[string][]string{
		"--key or --key-file": {"serve"},
		"--rate":              {"serve", "--key", "k", "--rate", "0"},
		"limit rule":          {"serve", "--key", "k", "--on-limit", "x"},
		"speed":               {"serve", "--key", "k", "--replay-speed", "fast"},
		"two files":           {"serve", "--key", "k", "--replay", "/x", "--record", "/x"},
		"--count":             {"probe", "ws://x", "k", "T.*", "--count=-1"},
		"a key and topics":    {"probe", "ws://x", "T.*"},
	} {
		if _, err := parse(args...); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%v: %v", args, err)
		}
	}
}

func TestProbeTakesTheKeyFromAFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file, empty := filepath.Join(dir, "key"), filepath.Join(dir, "empty")
	for name, text := range map[string]string{file: " cm_canary\n", empty: "\n"} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, err := parse("probe", "ws://x", "T.*,AM.*", "--key-file", file)
	if err != nil || c.Probe.Key != "cm_canary" || c.Probe.Topics != "T.*,AM.*" {
		t.Errorf("%+v, %v", c.Probe.Options, err)
	}
	for text, args := range map[string][]string{
		"no such file": {"ws://x", "T.*", "--key-file", file + "x"},
		"no key":       {"ws://x", "T.*", "--key-file", empty},
		"and no key":   {"ws://x", "cm_other", "T.*", "--key-file", file},
	} {
		_, err := parse(append([]string{"probe"}, args...)...)
		if err == nil || !strings.Contains(err.Error(), text) || strings.Contains(err.Error(), "cm_") {
			t.Errorf("%v: %v", args, err)
		}
	}
}
