package engine

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/cutemarkets/relay/services/edge/internal/dialect"
	"github.com/cutemarkets/relay/services/edge/internal/principal"
)

func TestClientIsServed(t *testing.T) {
	t.Parallel()
	bothKinds(t, func(t *testing.T, kind Kind) {
		r := newRig(t, kind, nil)
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		c, _, err := websocket.Dial(ctx, r.server.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.CloseNow() }()
		expect := func(want string) {
			t.Helper()
			if _, got, err := c.Read(ctx); err != nil || string(got) != want {
				t.Fatalf("got %q, %v, want %q", got, err, want)
			}
		}
		expect("hello")
		expect("welcome")
		if err := c.Write(ctx, websocket.MessageText, []byte("sub T.A T.*")); err != nil {
			t.Fatal(err)
		}
		expect("ok T.A T.*")
		r.send(event{"1", "T.A", "T.*"}, event{"2", "T.B", "T.*"}, event{"3", "T.A", ""})
		expect("[1,2,3]")
		if err := c.Close(4000, "enough"); err != nil {
			t.Fatal(err)
		}
		r.stop()
		if n := r.topics.held(); n != 0 {
			t.Errorf("%d topics still held", n)
		}
	})
}

func TestClientIsServedOverTLS(t *testing.T) {
	t.Parallel()
	r := newRig(t, Auto, nil)
	secure := httptest.NewTLSServer(r.server.Config.Handler)
	defer secure.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, _, err := websocket.Dial(ctx, secure.URL, &websocket.DialOptions{HTTPClient: secure.Client()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.CloseNow() }()
	for _, want := range []string{"hello", "welcome"} {
		if _, got, err := c.Read(ctx); err != nil || string(got) != want {
			t.Fatalf("got %q, %v, want %q", got, err, want)
		}
	}
	if err := c.Close(websocket.StatusNormalClosure, ""); err != nil {
		t.Fatal(err)
	}
	if err := r.engine.Drain(ctx, 0); err != nil {
		t.Fatal(err)
	}
}

func TestTopicsOfASocketAreLimited(t *testing.T) {
	t.Parallel()
	bothKinds(t, func(t *testing.T, kind Kind) {
		r := newRig(t, kind, nil)
		r.dialect.policy.MaxTopics = 2
		p := r.dial()
		p.expect("hello", "welcome")
		p.say("sub T.A T.A T.B T.C")
		p.expect("ok T.A T.A T.B T.C" + dialect.TopicLimit)
		p.say("unsub T.A T.A T.X")
		p.expect("ok T.A T.A T.X")
		p.say("sub T.C")
		p.expect("ok T.C")
		r.send(event{"1", "T.A", ""}, event{"2", "T.B", ""}, event{"3", "T.C", ""})
		p.expect("[2,3]")
	})
}

func TestQuotesOfOptionsAreLimited(t *testing.T) {
	t.Parallel()
	bothKinds(t, func(t *testing.T, kind Kind) {
		for market, problem := range map[string]string{"stocks": "", "options": dialect.ScarceLimit} {
			r := newRig(t, kind, func(c *Config) { c.Markets["options"] = newTable() })
			r.dialect.market, r.dialect.policy.MaxScarce = market, 2
			p := r.dial()
			p.expect("hello", "welcome")
			p.say("sub Q.A T.A Q.B Q.A T.B Q.C T.C")
			p.expect("ok Q.A T.A Q.B Q.A T.B Q.C" + problem + " T.C")
			p.say("unsub Q.A")
			p.expect("ok Q.A")
			p.say("sub Q.C")
			p.expect("ok Q.C")
		}
	})
}

func TestBytesSentWithTheHandshakeAreNotLost(t *testing.T) {
	t.Parallel()
	bothKinds(t, func(t *testing.T, kind Kind) {
		r := newRig(t, kind, nil)
		second := masked(0x81, "sub T.B")
		p := r.dial(append(masked(0x81, "sub T.A"), second[:3]...)...)
		p.expect("hello", "welcome", "ok T.A")
		p.write(second[3:])
		p.expect("ok T.B")
	})
}

func TestBadFramesAreAnsweredWithTheirCode(t *testing.T) {
	t.Parallel()
	bothKinds(t, func(t *testing.T, kind Kind) {
		r := newRig(t, kind, nil)
		fragments := masked(0x01, "a")
		for range 16 {
			fragments = append(fragments, masked(0x00, "")...)
		}
		for name, row := range map[string]struct {
			in     []byte
			code   int
			reason dialect.Reason
		}{
			"unmasked":         {[]byte{0x81, 0x01, 'a'}, 1002, dialect.ProtocolError},
			"reserved bit":     {masked(0xc1, "a"), 1002, dialect.ProtocolError},
			"reserved opcode":  {masked(0x83, "a"), 1002, dialect.ProtocolError},
			"fragmented ping":  {masked(0x09, "a"), 1002, dialect.ProtocolError},
			"no start":         {masked(0x80, "a"), 1002, dialect.ProtocolError},
			"close of a byte":  {masked(0x88, "a"), 1002, dialect.ProtocolError},
			"huge":             {[]byte{0x81, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, 1009, dialect.MessageTooBig},
			"too big":          {masked(0x81, strings.Repeat("a", 16<<10+1)), 1009, dialect.MessageTooBig},
			"binary":           {masked(0x82, "a"), 1003, dialect.UnsupportedData},
			"not UTF-8":        {masked(0x81, "\xff"), 1007, dialect.InvalidUTF8},
			"many fragments":   {fragments, 1008, dialect.TooManyFragments},
			"many pings":       {bytes.Repeat(masked(0x89, "p"), 40), 1008, dialect.ControlRate},
			"many commands":    {bytes.Repeat(masked(0x81, "unsub T.A"), 60), 1008, dialect.CommandRate},
			"many bad options": {bytes.Repeat(masked(0x81, "x"), 5), 1008, dialect.BadCommands},
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				p := r.dial()
				p.t = t
				p.expect("hello", "welcome")
				p.write(row.in)
				p.write([]byte("and whatever comes after it"))
				got := p.next()
				for strings.HasPrefix(got, "ok") || strings.HasPrefix(got, "pong") || got == "what?" {
					got = p.next()
				}
				if want := "bye " + row.reason.String(); got != want {
					t.Fatalf("got %q, want %q", got, want)
				}
				p.expect(fmt.Sprintf("close %d %s", row.code, row.reason), "eof")
			})
		}
	})
}

func TestCloseOfTheClientIsEchoedOnceAfterTheRelease(t *testing.T) {
	t.Parallel()
	bothKinds(t, func(t *testing.T, kind Kind) {
		for payload, want := range map[string]string{"": "close 0 ", "\x03\xe8": "close 1000 ", "\x0f\xa0bye": "close 4000 "} {
			r := newRig(t, kind, nil)
			r.dialect.policy.Exclusive = true
			released := make(chan struct{})
			r.backend.acquire = func(_ context.Context, o Owner) (Lock, dialect.Reason) {
				return lock{r.engine, o, func() { close(released) }}, dialect.OK
			}
			p := r.dial()
			p.expect("hello", "welcome")
			p.write(append(masked(0x88, payload), masked(0x81, "sub T.A")...))
			p.expect(want)
			select {
			case <-released:
			default:
				t.Error("the close frame came before the release")
			}
			p.expect("eof")
		}
	})
}

func TestPongsAnswerPings(t *testing.T) {
	t.Parallel()
	bothKinds(t, func(t *testing.T, kind Kind) {
		r := newRig(t, kind, nil)
		p := r.dial()
		p.expect("hello", "welcome")
		p.write(masked(0x89, "one"))
		p.expect("pong one")
		p.write(append(masked(0x01, "sub "), append(masked(0x89, "inside"), masked(0x80, "T.A")...)...))
		p.expect("pong inside", "ok T.A")
	})
}

// TestSlowClientIsCutAndOthersGoOn lets one client stop reading while two take
// the same events.
func TestSlowClientIsCutAndOthersGoOn(t *testing.T) {
	t.Parallel()
	bothKinds(t, func(t *testing.T, kind Kind) {
		r := newRig(t, kind, func(c *Config) { c.QueueBytes, c.BurstBytes = MinQueueBytes, MinQueueBytes })
		slow, quick := r.dial(), r.dial()
		for _, p := range []*peer{slow, quick} {
			p.expect("hello", "welcome")
			p.say("sub T.A")
			p.expect("ok T.A")
		}
		stats := r.engine.shards[0].stats
		filler := strings.Repeat("x", 32<<10)
		sent := 0
		for stats.closes[dialect.SlowConsumer].Load() == 0 {
			if sent++; sent > 2000 {
				t.Fatal("nobody was cut")
			}
			text := fmt.Sprintf(`"%d %s"`, sent, filler)
			r.send(event{text, "T.A", ""})
			if got := quick.collect(1); len(got) != 1 || got[0] != text {
				t.Fatalf("event %d: %.40q", sent, got)
			}
			if queued := stats.queued.Load(); queued > 2*MinQueueBytes {
				t.Fatalf("%d bytes queued", queued)
			}
		}
		seen, last := 0, ""
		for got := slow.next(); got != "eof"; got = slow.next() {
			if strings.HasPrefix(got, "[") {
				if want := fmt.Sprintf(`["%d `, seen+1); last != "" && last != "slow;" || !strings.HasPrefix(got, want) {
					t.Fatalf("event out of order: %.40q after %d and %q", got, seen, last)
				}
				seen++
				continue
			}
			if got != "slow" || last != "slow;" { // it may have caught up once
				last += got + ";"
			}
		}
		if want := "slow;bye slow_consumer;close 1008 slow_consumer;"; last != want && (kind == Epoll || last != "") {
			t.Errorf("the slow client saw %q, want %q", last, want)
		}
		r.stop()
		if queued := stats.queued.Load(); queued != 0 {
			t.Errorf("%d bytes counted as queued in the end", queued)
		}
	})
}

func TestSlowClientThatReadsAgainIsToldWhy(t *testing.T) {
	t.Parallel()
	bothKinds(t, func(t *testing.T, kind Kind) {
		r := newRig(t, kind, func(c *Config) { c.QueueBytes, c.BurstBytes = MinQueueBytes, MinQueueBytes })
		r.dialect.hold = time.Second
		slow := r.dial()
		slow.expect("hello", "welcome")
		slow.say("sub T.A")
		slow.expect("ok T.A")
		stats := r.engine.shards[0].stats
		text := `"` + strings.Repeat("x", 10<<10) + `"`
		for stats.discarded.Load() == 0 {
			r.send(event{text, "T.A", ""})
		}
		told := ""
		for got := slow.next(); got != "eof"; got = slow.next() {
			again := got == "slow" && told == "slow;" // as above
			if !strings.HasPrefix(got, "[") && !again {
				told += got + ";"
			}
		}
		if want := "slow;bye slow_consumer;close 1008 slow_consumer;"; told != want {
			t.Errorf("told %q, want %q", told, want)
		}
	})
}

func TestFullEngineAndDrainRefuse(t *testing.T) {
	t.Parallel()
	bothKinds(t, func(t *testing.T, kind Kind) {
		r := newRig(t, kind, func(c *Config) { c.MaxConnections, c.Shards = 3, 2 })
		var peers []*peer
		for range 3 {
			p := r.dial()
			p.expect("hello", "welcome")
			peers = append(peers, p)
		}
		if got := r.dial().next(); got != "eof" {
			t.Fatalf("one too many: %q", got)
		}
		if n := r.engine.Connections(); n != 3 {
			t.Fatalf("%d connections", n)
		}
		drained := make(chan error, 1)
		go func() { drained <- r.engine.Drain(context.Background(), 100*time.Millisecond) }()
		for _, p := range peers {
			p.expect("bye draining", "close 1012 draining", "eof")
			_ = p.conn.Close()
		}
		if err := <-drained; err != nil {
			t.Fatal(err)
		}
		if got := r.dial().next(); got != "eof" {
			t.Fatalf("while draining: %q", got)
		}
	})
}

func TestDrainEndsWithItsContext(t *testing.T) {
	t.Parallel()
	bothKinds(t, func(t *testing.T, kind Kind) {
		r := newRig(t, kind, nil)
		for range 2 { // of whom the second stays for half an hour
			r.dial().expect("hello", "welcome")
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
		defer cancel()
		if err := r.engine.Drain(ctx, time.Hour); err == nil || r.engine.Connections() == 0 {
			t.Fatalf("%v, %d connections", err, r.engine.Connections())
		}
	})
}

func TestBackendAnswers(t *testing.T) {
	t.Parallel()
	bothKinds(t, func(t *testing.T, kind Kind) {
		t.Run("refused", func(t *testing.T) {
			t.Parallel()
			var told atomic.Value
			r := newRig(t, kind, func(c *Config) { c.Refused = func(client netip.Addr) { told.Store(client) } })
			r.backend.authenticate = func(context.Context) (principal.Principal, dialect.Reason) {
				return principal.Principal{}, dialect.CredentialInvalid
			}
			r.dial().expect("hello", "bye credential_invalid", "close 4401 credential_invalid", "eof")
			if told.Load() != netip.MustParseAddr("192.0.2.1") {
				t.Errorf("the failure was told of %v", told.Load())
			}
		})
		t.Run("duplicate", func(t *testing.T) {
			t.Parallel()
			r := newRig(t, kind, nil)
			r.dialect.policy.Exclusive = true
			r.backend.acquire = func(context.Context, Owner) (Lock, dialect.Reason) {
				return nil, dialect.DuplicateConnection
			}
			r.dial().expect("hello", "bye duplicate_connection", "close 4409 duplicate_connection", "eof")
		})
		t.Run("no turn", func(t *testing.T) {
			t.Parallel()
			r := newRig(t, kind, func(c *Config) { c.MaxHandshakes = 1 })
			r.backend.authenticate = func(ctx context.Context) (principal.Principal, dialect.Reason) {
				<-ctx.Done()
				return principal.Principal{}, dialect.AuthUnavailable
			}
			one, two := r.dial(), r.dial()
			one.expect("hello", "bye auth_unavailable", "close 1011 auth_unavailable", "eof")
			two.expect("hello", "bye auth_unavailable", "close 1011 auth_unavailable", "eof")
		})
		t.Run("lost", func(t *testing.T) {
			t.Parallel()
			r := newRig(t, kind, nil)
			r.dialect.policy.Exclusive = true
			losers := make(chan Owner, 1)
			released := make(chan struct{})
			r.backend.acquire = func(_ context.Context, o Owner) (Lock, dialect.Reason) {
				losers <- o
				return lock{r.engine, o, func() { close(released) }}, dialect.OK
			}
			p := r.dial()
			p.expect("hello", "welcome")
			r.engine.Lost(<-losers, dialect.LockLost)
			p.expect("bye lock_lost")
			<-released
			p.expect("close 1008 lock_lost", "eof")
		})
		t.Run("lost while the process stood still", func(t *testing.T) {
			t.Parallel()
			r := newRig(t, kind, nil)
			r.dialect.policy.Exclusive = true
			owners := make(chan Owner, 1)
			r.backend.acquire = func(_ context.Context, o Owner) (Lock, dialect.Reason) {
				owners <- o
				return lock{engine: r.engine, owner: o}, dialect.OK
			}
			p := r.dial()
			p.expect("hello", "welcome")
			p.say("sub T.A")
			p.expect("ok T.A")
			r.send(event{"1", "T.A", ""})
			p.expect("[1]")
			var once sync.Once
			fence := func() {
				once.Do(func() { // an event waits, and the lock has ended
					r.send(event{"2", "T.A", ""})
					r.engine.Lost(<-owners, dialect.LockUnavailable)
				})
			}
			r.backend.fence.Store(&fence)
			p.say("sub T.B")
			p.expect("bye lock_unavailable", "close 1011 lock_unavailable", "eof")
		})
		t.Run("gone meanwhile", func(t *testing.T) {
			t.Parallel()
			r := newRig(t, kind, nil)
			r.dialect.policy.Exclusive = true
			asked, released := make(chan struct{}), make(chan struct{})
			r.backend.acquire = func(ctx context.Context, o Owner) (Lock, dialect.Reason) {
				close(asked)
				<-ctx.Done()
				return lock{r.engine, o, func() { close(released) }}, dialect.OK
			}
			p := r.dial()
			p.expect("hello")
			<-asked
			_ = p.conn.Close()
			<-released
			r.stop()
		})
	})
}

func TestMessageThatNeverEndsIsCut(t *testing.T) {
	t.Parallel()
	bothKinds(t, func(t *testing.T, kind Kind) {
		r := newRig(t, kind, nil)
		p := r.dial()
		p.expect("hello", "welcome")
		p.write(masked(0x01, "sub "))
		p.expect("bye message_timeout", "close 1008 message_timeout", "eof")
	})
}

func TestClientThatFloodsAfterItsCloseIsClosed(t *testing.T) {
	t.Parallel()
	bothKinds(t, func(t *testing.T, kind Kind) {
		r := newRig(t, kind, nil)
		p := r.dial()
		p.expect("hello", "welcome")
		p.write(masked(0x88, ""))
		flooded := make(chan struct{})
		go func() {
			defer close(flooded)
			_, _ = io.Copy(p.conn, endless{})
		}()
		p.expect("close 0 ")
		<-flooded
	})
}

type endless struct{}

func (endless) Read(b []byte) (int, error) { return len(b), nil }
