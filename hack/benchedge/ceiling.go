//go:build linux

package benchedge

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cutemarkets/relay/hack/benchedge/shape"
)

const (
	firstRate   = 100 // events per second of the first step
	ceilingStep = 1.25
	maxTries    = 3
	settleTime  = 500 * time.Millisecond // with events, before the window of each step
)

// ceilings finds out what each server can hold.
func (b *bench) ceilings(ctx context.Context) error {
	for _, server := range b.servers() {
		c, err := b.ceiling(ctx, server)
		if err != nil {
			return fmt.Errorf("%s: %w", server.name, err)
		}
		b.result.Ceilings = append(b.result.Ceilings, c)
	}
	return nil
}

// ceiling raises the rate of S2 until a server falls behind.
func (b *bench) ceiling(ctx context.Context, s server) (c Ceiling, err error) {
	sh, _ := shape.ByName("S2r95")
	sh.Name = "S2"
	c = Ceiling{Server: s.name}
	t, err := b.begins(ctx, s, sh, &Sample{})
	if err != nil {
		return c, err
	}
	defer func() { err = errors.Join(err, t.stop(ctx)) }()
	t.clients.forget()
	for rate := float64(firstRate); rate <= float64(b.options.Ceiling); rate *= ceilingStep {
		sh.Rate = int(rate)
		step, err := t.step(ctx, sh, s.name)
		if err != nil {
			return c, err
		}
		if step.heldUp() || len(step.Troubles) > 0 {
			c.Failed = &step
			return c, nil
		}
		c.Held = &step
	}
	return c, nil
}

// step measures one rate, and again if it was not for want of the server's core
// that it fell behind.
func (t *trial) step(ctx context.Context, sh shape.Shape, server string) (step Sample, err error) {
	for range maxTries {
		if err := t.drain(ctx); err != nil {
			return step, err
		}
		step = Sample{Server: server, Shape: sh.Name, Connections: t.bench.options.Connections}
		if err := t.stream(ctx, sh, settleTime, &step); err != nil {
			return step, err
		}
		t.bench.say("ceiling %s at %d events/s: %s", sh.Name, sh.Rate, step)
		if !step.elsewhere() || t.instance.stop == nil {
			break
		}
	}
	return step, nil
}

// drain waits until nothing has arrived for a while, so that a backlog is not
// counted for the next step.
func (t *trial) drain(ctx context.Context) error {
	const tick, most = 100 * time.Millisecond, 100
	before := t.fleet.Stats().Events
	for range most {
		if err := wait(ctx, tick); err != nil {
			return err
		}
		now := t.fleet.Stats().Events
		if now == before {
			break
		}
		before = now
	}
	return nil
}
