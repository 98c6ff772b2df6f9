package engine

import (
	"context"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cutemarkets/relay/services/edge/internal/dialect"
	"github.com/cutemarkets/relay/services/edge/internal/frame"
)

// answers is what probes were answered, in order.
type answers chan bool

func (a answers) take(alive bool) { a <- alive }

// got returns the answers that have come.
func (a answers) got() (got []bool) {
	for len(a) > 0 {
		got = append(got, <-a)
	}
	return got
}

// probing is a client that has the lock of its user.
type probing struct {
	*bench
	client  *recorder
	answers answers
}

func probed(t *testing.T, test func(p *probing)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		p := &probing{bench: newBench(t, nil), answers: make(answers, 10)}
		p.dialect.policy.Exclusive = true
		p.client = p.connect("T.A")
		test(p)
	})
}

func (p *probing) probe() {
	p.shard.engine.Probe(ownerOf(p.shard, p.client.ref), p.answers.take)
	p.round()
}

func (p *probing) after(d time.Duration) {
	time.Sleep(d)
	p.round()
}

func (p *probing) expectAnswers(want ...bool) {
	p.t.Helper()
	if got := p.answers.got(); !slices.Equal(got, want) {
		p.t.Fatalf("answers %v, want %v", got, want)
	}
}

func (p *probing) pong() {
	p.shard.clients.post(input{kind: inputFrame, frame: frame.Pong, ref: p.client.ref}, nil)
	p.round()
}

func TestProbeOfALivingClient(t *testing.T) {
	t.Parallel()
	probed(t, func(p *probing) {
		p.probe()
		p.expect(p.client, "ping")
		p.after(probeWait - time.Millisecond)
		p.expectAnswers()
		p.pong()
		p.expectAnswers(true)
		for range 9 { // somebody comes all the time
			p.after(probeRest / 10)
			p.probe()
			p.expectAnswers(true)
		}
		p.expect(p.client)
		p.after(probeRest / 10)
		p.probe()
		p.expect(p.client, "ping")
		p.pong()
		p.expectAnswers(true)
		p.after(pingAfter - time.Second)
		p.expect(p.client)
		if p.shard.slots[p.client.ref.slot].connection.aside != nil {
			t.Error("a probe that is over is kept")
		}
	})
}

func TestProbeOfADeadClient(t *testing.T) {
	t.Parallel()
	probed(t, func(p *probing) {
		p.probe()
		p.after(time.Second)
		p.probe() // shares the answer
		p.expect(p.client, "ping")
		p.after(probeWait - time.Second - time.Millisecond)
		p.expectAnswers()
		p.after(time.Millisecond)
		p.expectAnswers(false, false)
		p.expect(p.client, "bye pong_timeout", "close 1008 pong_timeout")
		p.probe()
		p.expectAnswers(false)
	})
}

// A probe neither puts off nor hides the end of a ping's time.
func TestProbeWhileAPingWaits(t *testing.T) {
	t.Parallel()
	probed(t, func(p *probing) {
		p.after(pingAfter)
		p.after(pongWait - time.Second)
		p.probe()
		p.expect(p.client, "ping", "ping")
		p.after(time.Second)
		p.expectAnswers(false)
		p.expect(p.client, "bye pong_timeout", "close 1008 pong_timeout")
	})
}

func TestProbeOfAClientThatIsBehind(t *testing.T) {
	t.Parallel()
	probed(t, func(p *probing) {
		p.probe()
		p.client.stir = true // it takes of what waits
		p.after(probeWait)
		p.expectAnswers(true)
		p.client.stir = false
		p.after(probeRest)
		p.probe()
		p.after(probeWait)
		p.expectAnswers(false)
	})
}

// The answer waits until the lock has been given back, for the second that the
// close frame waits too, also where the connection was ending for another reason.
func TestProbeOfAClosingConnection(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name     string
		released time.Duration // 0: never
		want     time.Duration
	}{{"released", 300 * time.Millisecond, 300 * time.Millisecond}, {"not released", 0, time.Second}} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				backend := &anyone{acquire: func(context.Context, Owner) (Lock, dialect.Reason) { return lock{}, dialect.OK }}
				p := &probing{bench: newBench(t, func(c *Config) { c.Backend = backend }), answers: make(answers, 10)}
				p.dialect.policy.Exclusive = true
				p.client = p.connect("T.A")
				p.probe()
				p.pong()
				p.expectAnswers(true)
				p.shard.clients.post(input{kind: inputFrame, frame: frame.Close, ref: p.client.ref, code: 1000}, nil)
				p.probe()
				p.pong() // too late
				if row.released > 0 {
					p.after(row.released - time.Millisecond)
					p.expectAnswers()
					p.shard.engine.Released(ownerOf(p.shard, p.client.ref))
				} else {
					p.after(row.want - time.Millisecond)
					p.expectAnswers()
				}
				p.after(time.Millisecond)
				p.expectAnswers(false)
			})
		})
	}
}

func TestProbeOfNobody(t *testing.T) {
	t.Parallel()
	probed(t, func(p *probing) {
		for _, o := range []Owner{255 << 56, 0xffffff << 32, ownerOf(p.shard, p.client.ref) + 1} {
			p.shard.engine.Probe(o, p.answers.take)
			p.round()
			p.expectAnswers(false)
		}
		p.shard.clients.close()
		p.shard.engine.Probe(ownerOf(p.shard, p.client.ref), p.answers.take)
		p.expectAnswers(false)
		p.shard.refuse(input{kind: inputProbe, body: p.answers.take})
		p.expectAnswers(false)
	})
}

// A refused connection waits for the probe without a turn, and takes the lock if
// that is free then.
func TestRefusedConnectionProbesAndTriesAgain(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct {
		first  dialect.Reason // of the probe
		second dialect.Reason // of the second try
		want   string
		tries  int
	}{
		"dead":             {dialect.OK, dialect.OK, "welcome", 2},
		"nobody answers":   {dialect.HolderSilent, dialect.OK, "bye holder_silent", 1},
		"alive":            {dialect.DuplicateConnection, dialect.OK, "bye duplicate_connection", 1},
		"dead, then taken": {dialect.OK, dialect.DuplicateConnection, "bye duplicate_connection", 2},
		"dead, then Redis": {dialect.OK, dialect.LockUnavailable, "bye lock_unavailable", 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				tries, answer := 0, make(chan dialect.Reason)
				backend := &anyone{}
				backend.acquire = func(_ context.Context, o Owner) (Lock, dialect.Reason) {
					tries++
					switch {
					case o.isFirst() && tries == 1:
						return nil, dialect.DuplicateConnection
					case o.isFirst() && row.second != dialect.OK:
						return nil, row.second
					}
					return lock{engine: backend.engine, owner: o}, dialect.OK
				}
				backend.probe = func(context.Context) dialect.Reason { return <-answer }
				b := newBench(t, func(c *Config) { c.Backend, c.MaxHandshakes = backend, 1 })
				backend.engine = b.shard.engine
				b.dialect.policy.Exclusive = true
				first := b.connect()
				b.expect(first, "hello")
				asked := tries
				b.expect(b.connect(), "hello", "welcome") // the only turn is free
				tries = asked
				answer <- row.first
				b.round()
				if got := first.take(); got[0] != row.want || tries != row.tries {
					t.Errorf("told %q after %d tries, want %q after %d", got, tries, row.want, row.tries)
				}
			})
		})
	}
}

func (o Owner) isFirst() bool {
	_, r := o.split()
	return r.slot == 0
}

// A connection that ends meanwhile ends its probe.
func TestProbeEndsWithTheConnection(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		backend := &anyone{
			acquire: func(context.Context, Owner) (Lock, dialect.Reason) { return nil, dialect.DuplicateConnection },
			probe: func(ctx context.Context) dialect.Reason {
				<-ctx.Done()
				return dialect.DuplicateConnection
			},
		}
		b := newBench(t, func(c *Config) { c.Backend = backend })
		b.dialect.policy.Exclusive = true
		r := b.connect()
		b.shard.clients.post(input{kind: inputGone, ref: r.ref}, nil)
		b.round()
		b.expect(r, "hello", "closed")
	})
}

// probe probes the first connection of a rig.
func (r *rig) probe(a answers) { r.engine.Probe(0, a.take) }

// TestProbeOfRealClients probes clients that answer, say something else, have
// stopped in the middle of a message, or are silent with their TCP alive.
func TestProbeOfRealClients(t *testing.T) {
	t.Parallel()
	bothKinds(t, func(t *testing.T, kind Kind) {
		for _, row := range []struct {
			name  string
			alive bool
			act   func(p *peer) // once it is pinged
		}{
			{"pong", true, func(p *peer) { p.write(masked(0x8a, "")) }},
			{"message", true, func(p *peer) { p.say("sub T.B") }},
			{"part of a message", true, func(p *peer) { p.write(masked(0x81, "sub T.B")[:3]) }},
			{"silent", false, func(p *peer) { p.expect("bye pong_timeout", "close 1008 pong_timeout") }},
		} {
			t.Run(row.name, func(t *testing.T) {
				t.Parallel()
				r := newRig(t, kind, nil)
				r.dialect.policy.Exclusive = true
				p := r.dial()
				p.expect("hello", "welcome")
				p.say("sub T.A")
				p.expect("ok T.A")
				a := make(answers, 1)
				r.probe(a)
				p.expect("ping")
				row.act(p)
				if alive := <-a; alive != row.alive {
					t.Errorf("alive: %v", alive)
				}
			})
		}
	})
}

// TestProbeOfASlowClient probes a client that has megabytes to read and never says
// a word, while it reads, and after it has stopped.
func TestProbeOfASlowClient(t *testing.T) {
	t.Parallel()
	bothKinds(t, func(t *testing.T, kind Kind) {
		r := newRig(t, kind, func(c *Config) { c.QueueBytes, c.QueueAge = DefaultBurstBytes, time.Minute })
		r.dialect.policy.Exclusive = true
		p := r.dial()
		if err := p.conn.(*net.TCPConn).SetReadBuffer(128 << 10); err != nil {
			t.Fatal(err)
		}
		p.expect("hello", "welcome")
		p.say("sub T.A")
		p.expect("ok T.A")
		big := event{strings.Repeat("1", 60<<10), "T.A", ""}
		for r.waits() < 4<<20 {
			r.send(big)
		}
		a := make(answers, 1)
		r.probe(a)
		reading := time.NewTicker(20 * time.Millisecond)
		defer reading.Stop()
		buf, read := make([]byte, 16<<10), 0
		var alive bool
		for waiting := true; waiting; {
			select {
			case alive = <-a:
				waiting = false
			case <-reading.C:
				n, err := p.conn.Read(buf)
				if err != nil {
					t.Fatal(err)
				}
				read += n
			}
		}
		if !alive {
			t.Errorf("a client that has read %d bytes meanwhile is taken for dead", read)
		}
		rest := time.NewTimer(probeRest + 100*time.Millisecond)
		<-rest.C
		r.probe(a)
		if <-a {
			t.Error("a client that has stopped reading lives")
		}
	})
}

// waits is what waits for the clients of a rig.
func (r *rig) waits() int64 {
	var bytes int64
	for _, s := range r.engine.shards {
		bytes += s.stats.queued.Load()
	}
	return bytes
}
