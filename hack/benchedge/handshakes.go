//go:build linux

package benchedge

import (
	"context"
	"errors"
	"fmt"
)

// Handshakes is one measurement of handshakes without topics, from connect to
// auth_success, with a real auth and locks in a real Redis.
type Handshakes struct {
	Round       int  `json:"round"` // from 0
	Known       bool `json:"known"` // the edge had auth's answer for each key
	Connections int  `json:"connections"`

	CPU       float64 `json:"cpu_ms_per_1000"`
	UserCPU   float64 `json:"user_cpu_ms_per_1000"`
	PerSecond float64 `json:"handshakes_per_second"`
	Hits      float64 `json:"auth_cache_hits"`

	Troubles map[string]int `json:"troubles"`
}

// never is the time to what did not happen.
const never = -1

// Storm is one measurement of connects that come all at once. Times are in
// seconds from the first connect; less than 0: not within two minutes.
type Storm struct {
	Round       int `json:"round"` // from 0
	Connections int `json:"connections"`

	Half float64 `json:"seconds_to_half"`
	Most float64 `json:"seconds_to_99_percent"`
	All  float64 `json:"seconds_to_all"`
	CPU  float64 `json:"cpu_ms_per_1000"`

	Refused int            `json:"refused"` // connects that had to be made again
	Reasons map[string]int `json:"reasons"`
}

// handshakes measures handshakes and storms, in turns.
func (b *bench) handshakes(ctx context.Context) error {
	for round := range b.options.Rounds {
		if err := b.inTurn(ctx, round); err != nil {
			return err
		}
		s, err := b.storm(ctx, round)
		if err != nil {
			return fmt.Errorf("storm: %w", err)
		}
		b.result.Storms = append(b.result.Storms, s)
		b.say("%d/%d storm of %d: half in %s s, 99 %% in %s s, all in %s s, refused %d%s",
			round+1, b.options.Rounds, s.Connections, seconds(s.Half), seconds(s.Most), seconds(s.All), s.Refused, list("; ", s.Reasons))
	}
	return nil
}

// inTurn measures handshakes of keys that a fresh edge does not know, and then
// of the same keys: they are so few that the edge has not forgotten any.
func (b *bench) inTurn(ctx context.Context, round int) (err error) {
	t, err := b.launch(ctx, b.edge(), kind{awake: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.stop(ctx)) }()
	for _, known := range []bool{false, true} {
		if known {
			if err := t.gather(ctx, kind{awake: true}); err != nil {
				return err
			}
		}
		h := Handshakes{Round: round, Known: known, Connections: b.options.Connections}
		if err := t.shake(ctx, &h); err != nil {
			return err
		}
		b.result.Handshakes = append(b.result.Handshakes, h)
		b.say("%d/%d handshakes, %s: %.1f ms of CPU per 1,000 (%.1f user), %s/s%s",
			round+1, b.options.Rounds, keysOf(known), h.CPU, h.UserCPU, thousands(h.PerSecond), list("; ", h.Troubles))
		if err := t.leave(ctx); err != nil {
			return err
		}
	}
	return nil
}

// shake makes the handshakes.
func (t *trial) shake(ctx context.Context, h *Handshakes) error {
	const hits = "relay_edge_auth_cache_hits_total"
	before, err := t.instance.operations.Metrics(ctx)
	if err != nil {
		return err
	}
	o, err := t.connect(ctx, 0, h.Connections, 0)
	if err != nil {
		return err
	}
	after, err := t.instance.operations.Metrics(ctx)
	if err != nil {
		return err
	}
	n := float64(h.Connections)
	h.CPU = milliseconds(o.used.Run) / n * 1000
	h.UserCPU = h.CPU * o.used.UserShare()
	h.PerSecond = n / o.took.Seconds()
	h.Hits = after.Sum(hits) - before.Sum(hits)
	h.Troubles = t.clients.trouble()
	return nil
}

// storm connects all at once to a fresh edge.
func (b *bench) storm(ctx context.Context, round int) (s Storm, err error) {
	n := b.options.Sockets
	s = Storm{Round: round, Connections: n}
	t, err := b.launch(ctx, b.edge(), kind{awake: true, together: true, persistent: true})
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, t.stop(ctx)) }()
	o, err := t.connect(ctx, 0, n, 0)
	if err != nil && !errors.Is(err, errNotReady) {
		return s, err
	}
	at := func(part float64) float64 {
		if ready, ok := t.clients.readyAt(part); ok {
			return ready.Sub(o.begin).Seconds()
		}
		return never
	}
	s.Half, s.Most, s.All = at(0.5), at(0.99), at(1)
	s.CPU = milliseconds(o.used.Run) / float64(n) * 1000
	s.Reasons = t.clients.trouble()
	for _, count := range s.Reasons {
		s.Refused += count
	}
	return s, t.leave(ctx)
}

func keysOf(known bool) string {
	if known {
		return "known keys"
	}
	return "unknown keys"
}
