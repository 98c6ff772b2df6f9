package feed

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"time"
)

const (
	lookupEvery   = time.Second
	lookupTimeout = 2 * time.Second
)

// target is one host:port of the configuration.
type target struct {
	host, port string
	literal    bool // host is an address
}

func parseTargets(s string) ([]target, error) {
	var all []target
	for part := range strings.SplitSeq(s, ",") {
		host, port, err := net.SplitHostPort(strings.TrimSpace(part))
		if err != nil {
			return nil, fmt.Errorf("feed: fanout target: %w", err)
		}
		if host == "" || port == "" {
			return nil, fmt.Errorf("feed: fanout target %q needs a host and a port", part)
		}
		_, err = netip.ParseAddr(host)
		all = append(all, target{host: host, port: port, literal: err == nil})
	}
	return all, nil
}

// follow looks the fanout name up every second ±20 % (grpc-go's own resolver
// does not poll) and keeps the pool at what it finds.
func (c *Client) follow(ctx context.Context, p *pool) {
	known := make(map[target][]string)
	failing := false
	for {
		failed := c.resolve(ctx, known)
		if failed != nil && !failing {
			c.log.Warn("fanout look-up fails; the known addresses stay", slog.Any("error", failed))
		}
		if failed == nil && failing {
			c.log.Info("fanout look-up works again")
		}
		failing = failed != nil
		var addresses []string
		for _, t := range c.targets {
			addresses = append(addresses, known[t]...)
		}
		p.set(addresses)
		if !sleep(ctx, jitter(lookupEvery)) {
			return
		}
	}
}

// resolve brings known up to date. A target whose look-up fails keeps what was
// known; the first failure is returned.
func (c *Client) resolve(ctx context.Context, known map[target][]string) error {
	var failed error
	for _, t := range c.targets {
		if t.literal {
			known[t] = []string{net.JoinHostPort(t.host, t.port)}
			continue
		}
		hosts, err := c.lookupHost(ctx, t.host)
		if ctx.Err() != nil {
			return failed
		}
		if err == nil && len(hosts) == 0 {
			err = fmt.Errorf("%s has no address", t.host)
		}
		if err != nil {
			c.lookupFailures.Add(1)
			if failed == nil {
				failed = err
			}
			continue
		}
		var addresses []string
		for _, h := range oneFamily(hosts) {
			addresses = append(addresses, net.JoinHostPort(h, t.port))
		}
		known[t] = addresses
	}
	return failed
}

// oneFamily keeps the IPv4 addresses if there are any: in a dual-stack cluster
// each pod has one of both, and a pod keeps only one stream per edge.
func oneFamily(hosts []string) []string {
	var v4 []string
	for _, h := range hosts {
		if ip, err := netip.ParseAddr(h); err == nil && ip.Is4() {
			v4 = append(v4, h)
		}
	}
	if len(v4) > 0 {
		return v4
	}
	return hosts
}

func (c *Client) lookupHost(ctx context.Context, host string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	return c.lookup(ctx, host)
}

// jitter spreads a pause by ±20 %.
func jitter(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (0.8 + 0.4*rand.Float64()))
}

// sleep waits; false: ctx is done.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
