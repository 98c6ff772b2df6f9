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
		step(crowdAfter, "[1]")
		step(burstTime-crowdAfter, "[1]")
		step(warnAfter-burstTime-time.Millisecond, "[1]")
		step(time.Millisecond, "slow", "[1]")
		step(DefaultQueueAge-warnAfter-time.Millisecond, "[1]")
		step(time.Millisecond, "bye slow_consumer", "close 1008 slow_consumer")
	})
}

func TestClientThatCatchesUpIsWarnedAnew(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, b *bench) {
		r := b.connect("T.A")
		for range 3 {
			b.stall(r, DefaultQueueBytes/2+1)
			b.batch(event{"1", "T.A", ""})
			b.round()
			b.expect(r, "[1]")
			time.Sleep(crowdAfter)
			b.round()
			b.expect(r, "slow")
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

// TestTooSlowClientHasTheLastWord: not even events of the same moment, or the rest
// of a frame that has begun, keep it from the client.
func TestTooSlowClientHasTheLastWord(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, b *bench) {
		r := b.connect("T.A")
		b.stall(r, 2*DefaultQueueBytes)
		r.begun = 100
		b.batch(event{"1", "T.A", ""})
		b.round()
		r.take()
		for _, at := range []time.Duration{crowdAfter, burstTime - crowdAfter} {
			time.Sleep(at)
			b.batch(event{"2", "T.A", ""})
			b.round()
		}
		b.expect(r, "slow", "[2]", "bye slow_consumer", "close 1008 slow_consumer")
	})
}

func TestPatience(t *testing.T) {
	t.Parallel()
	p := patience{queue: 1000, burst: 8000, age: 5 * time.Second}
	for _, row := range []struct {
		bytes int
		age   time.Duration
		want  verdict
		next  time.Duration
	}{
		{0, 0, keepsUp, crowdAfter},
		{4000, 0, keepsUp, crowdAfter},
		{4001, 0, lags, crowdAfter},
		{8000, crowdAfter - 1, lags, crowdAfter},
		{8001, 0, tooSlow, crowdAfter},
		{500, crowdAfter, keepsUp, burstTime},
		{501, crowdAfter, lags, burstTime},
		{8000, burstTime - 1, lags, burstTime},
		{1000, burstTime, lags, warnAfter},
		{1001, burstTime, tooSlow, warnAfter},
		{1, warnAfter, lags, 5 * time.Second},
		{1000, 5*time.Second - 1, lags, 5 * time.Second},
		{1, 5 * time.Second, tooSlow, 5 * time.Second},
	} {
		if got := p.judge(row.bytes, row.age); got != row.want {
			t.Errorf("%d bytes for %v: %v, want %v", row.bytes, row.age, got, row.want)
		}
		if got := p.next(row.age); got != row.next {
			t.Errorf("after %v comes %v, want %v", row.age, got, row.next)
		}
	}
	if got := (patience{age: crowdAfter / 2}).next(0); got != crowdAfter/2 {
		t.Errorf("a short age is looked at after %v", got)
	}
}

func TestBurstMayWaitForAShortTime(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, b *bench) {
		r := b.connect("T.A")
		b.stall(r, 2*DefaultQueueBytes)
		b.batch(event{"1", "T.A", ""})
		b.round()
		b.expect(r, "[1]")
		time.Sleep(crowdAfter)
		b.round()
		b.expect(r, "slow")
		time.Sleep(burstTime - crowdAfter)
		b.round()
		b.expect(r, "bye slow_consumer", "close 1008 slow_consumer")
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
			if i*keptCost > 2*DefaultBurstBytes {
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
