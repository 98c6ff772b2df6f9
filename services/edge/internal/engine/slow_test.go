package engine

import (
	"testing"
	"time"

	"github.com/cutemarkets/relay/services/edge/internal/dialect"
	"github.com/cutemarkets/relay/services/edge/internal/frame"
)

// stall has a client say that so many bytes wait for it from now on.
func (b *bench) stall(r *recorder, bytes int) {
	r.queued, r.since = bytes, time.Now()
}

func TestClientThatLagsIsWarnedOnceAndThenEnded(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, b *bench) {
		r := b.connect("T.A")
		b.stall(r, 100)
		step := func(d time.Duration, want ...string) {
			t.Helper()
			time.Sleep(d)
			b.batch(event{"1", "T.A", ""})
			b.round()
			b.expect(r, want...)
		}
		step(0, "[1]")
		step(warnAfter-time.Millisecond, "[1]")
		step(time.Millisecond, "slow", "[1]")
		step(DefaultQueueAge-warnAfter-time.Millisecond, "[1]")
		step(time.Millisecond, "[1]", "bye slow_consumer", "close 1008 slow_consumer")
	})
}

func TestClientThatCatchesUpIsWarnedAnew(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, b *bench) {
		r := b.connect("T.A")
		for range 3 {
			b.stall(r, b.shard.engine.queueBytes/2+1)
			b.batch(event{"1", "T.A", ""})
			b.round()
			b.expect(r, "[1]", "slow")
			b.batch(event{"2", "T.A", ""})
			b.round()
			b.expect(r, "[2]")
			time.Sleep(DefaultQueueAge / 2)
			b.round()
			b.expect(r)
			r.queued = 0
			b.shard.clients.force(input{kind: inputRelieved, ref: r.ref})
			b.round()
			time.Sleep(DefaultQueueAge)
			b.shard.clients.force(input{kind: inputFrame, frame: frame.Pong, ref: r.ref})
			b.round()
			b.expect(r)
		}
		if n := b.shard.stats.warned.Load(); n != 3 {
			t.Errorf("%d warnings counted", n)
		}
	})
}

// TestSilentFeedEndsAStalledClientToo: the age of what waits does not depend on
// further events.
func TestSilentFeedEndsAStalledClientToo(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, b *bench) {
		r := b.connect("T.A")
		b.stall(r, 100)
		b.batch(event{"1", "T.A", ""})
		b.round()
		b.expect(r, "[1]")
		for range 6 {
			at := b.shard.nextDeadline()
			time.Sleep(time.Until(b.shard.started.Add(time.Duration(at))))
			b.round()
		}
		b.expect(r, "slow", "bye slow_consumer", "close 1008 slow_consumer")
	})
}

func TestQuotesOfASlowClientAreConflated(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, b *bench) {
		o := opening()
		o.Conflate = true
		r, plain := b.open(o), b.connect("T.A")
		b.say(r, "sub T.A")
		b.round()
		r.take()
		events := func(texts ...string) {
			t.Helper()
			for _, text := range texts {
				b.batch(event{text, "T.A", ""})
			}
			b.round()
		}
		events("A=1", "x")
		b.expect(r, "[A=1,x]") // it keeps up
		b.stall(r, 100)
		events("A=2")
		b.expect(r, "[A=2]") // it does not for long
		time.Sleep(conflateAfter)
		events("A=3", "y", "B=1", "A=4")
		b.expect(r, "[y]")
		events("B=2")
		b.expect(r)
		r.queued = 0
		b.shard.clients.force(input{kind: inputRelieved, ref: r.ref})
		events("A=5")
		b.expect(r, "[A=4,B=2,A=5]")
		b.expect(plain, "[A=1,x]", "[A=2]", "[A=3,y,B=1,A=4]", "[B=2]", "[A=5]")
		if n := b.shard.stats.conflated.Load(); n != 2 {
			t.Errorf("%d events counted as conflated", n)
		}
	})
}

func TestConflationIsBounded(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, b *bench) {
		o := opening()
		o.Conflate = true
		r := b.open(o)
		b.say(r, "sub T.A")
		b.round()
		r.take()
		b.stall(r, 100)
		time.Sleep(conflateAfter)
		for i := 0; r.seen == nil || r.seen[len(r.seen)-1] != "close 1008 slow_consumer"; i++ {
			if i*keptCost > 2*DefaultQueueBytes {
				t.Fatal("it is never ended")
			}
			b.batch(event{string(frame.AppendText(nil, []byte{byte(i), byte(i >> 8), byte(i >> 16)})) + "=1", "T.A", ""})
			if i%100 == 0 {
				b.round()
			}
		}
		if n := b.shard.stats.closes[dialect.SlowConsumer].Load(); n != 1 {
			t.Errorf("%d closes", n)
		}
	})
}
