package engine

import (
	"context"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cutemarkets/relay/services/edge/internal/dialect"
	"github.com/cutemarkets/relay/services/edge/internal/principal"
)

// TestRefusalCountsOnce lets clients be refused for all kinds of reasons, and
// then go.
func TestRefusalCountsOnce(t *testing.T) {
	t.Parallel()
	refusal := func(r dialect.Reason) authenticated { return authenticated{reason: r} }
	good := authenticated{principal: principal.Principal{UserID: "u"}}
	for name, row := range map[string]struct {
		opening dialect.Opening
		answers []authenticated // of the backend
		say     []string
		want    int
	}{
		"market":               {dialect.Opening{Refuse: dialect.MarketUnsupported}, nil, nil, 1},
		"stream":               {dialect.Opening{Refuse: dialect.StreamNotConfigured}, nil, nil, 1},
		"no key":               {dialect.Opening{Refuse: dialect.CredentialMissing}, nil, nil, 1},
		"bad key":              {dialect.Opening{Refuse: dialect.CredentialInvalid}, nil, nil, 1},
		"two keys":             {dialect.Opening{Refuse: dialect.CredentialConflict}, nil, nil, 1},
		"no key in time":       {dialect.Opening{Market: "stocks"}, nil, nil, 1},
		"impossible key":       {dialect.Opening{Market: "stocks"}, nil, []string{"key"}, 1},
		"unknown key":          {opening(), []authenticated{refusal(dialect.CredentialInvalid)}, nil, 1},
		"unknown key in band":  {dialect.Opening{Market: "stocks"}, []authenticated{refusal(dialect.CredentialInvalid)}, []string{"key k"}, 1},
		"wrong product":        {opening(), []authenticated{refusal(dialect.ProductMismatch)}, nil, 1},
		"low plan":             {opening(), []authenticated{refusal(dialect.PlanTooLow)}, nil, 1},
		"auth away":            {opening(), []authenticated{refusal(dialect.AuthUnavailable)}, nil, 0},
		"good key":             {opening(), []authenticated{good}, nil, 0},
		"later key impossible": {opening(), []authenticated{good}, []string{"key"}, 1},
		"later keys unknown":   {opening(), []authenticated{good, refusal(dialect.CredentialInvalid), refusal(dialect.CredentialInvalid)}, []string{"key k", "key l"}, 2},
		"later key unchecked":  {opening(), []authenticated{good, refusal(dialect.AuthUnavailable)}, []string{"key k"}, 0},
		"later key good":       {opening(), []authenticated{good, good}, []string{"key k"}, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			counted := 0
			backend := &anyone{authenticate: func(context.Context) (principal.Principal, dialect.Reason) {
				next := row.answers[0]
				row.answers = row.answers[1:]
				return next.principal, next.reason
			}}
			b := newBench(t, func(c *Config) {
				c.Backend = backend
				c.Refused = func(client netip.Addr) {
					if client != netip.MustParseAddr("192.0.2.1") {
						t.Errorf("%s: %v counted", name, client)
					}
					counted++
				}
			})
			r := b.open(row.opening)
			for _, text := range row.say {
				b.say(r, text)
				b.round()
			}
			time.Sleep(b.dialect.policy.CredentialWait)
			b.round()
			if counted != row.want {
				t.Errorf("%s: counted %d times, want %d", name, counted, row.want)
			}
			b.shard.clients.post(input{kind: inputGone, ref: r.ref}, nil)
			b.round()
			if counted != row.want || b.shard.live != 0 || len(row.answers) != 0 {
				t.Errorf("%s: in the end counted %d times, want %d; %d connections, %d answers left",
					name, counted, row.want, b.shard.live, len(row.answers))
			}
		})
	}
}

// TestHangingAuthDoesNotHoldUpLocks lets one client take the only turn of
// authentication while the one before it wants its lock.
func TestHangingAuthDoesNotHoldUpLocks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		answer := make(chan struct{})
		asked := 0
		backend := &anyone{authenticate: func(ctx context.Context) (principal.Principal, dialect.Reason) {
			if asked++; asked == 1 {
				<-answer
				return principal.Principal{UserID: "u"}, dialect.OK
			}
			<-ctx.Done()
			return principal.Principal{}, dialect.AuthUnavailable
		}}
		b := newBench(t, func(c *Config) { c.Backend, c.MaxHandshakes = backend, 1 })
		b.dialect.policy.Exclusive = true
		first, second := b.connect(), b.connect() // the second waits for its turn
		close(answer)
		b.round()
		b.expect(first, "hello", "welcome")
		b.expect(second, "hello")
		time.Sleep(authenticateWait)
		b.round()
		b.expect(second, "bye auth_unavailable", "close 1011 auth_unavailable")
	})
}

// second is a bench whose user has a connection elsewhere, unless it is free.
func second(t *testing.T, free *bool) *bench {
	t.Helper()
	b := newBench(t, func(c *Config) {
		c.Backend = &anyone{acquire: func(context.Context, Owner) (Lock, dialect.Reason) {
			if *free {
				return lock{}, dialect.OK
			}
			return nil, dialect.DuplicateConnection
		}}
	})
	b.dialect.policy.Exclusive, b.dialect.hold = true, time.Second
	return b
}

// held expects a second connection to be closed after so long, and no sooner.
func (b *bench) held(hold time.Duration) {
	b.t.Helper()
	r := b.connect()
	b.expect(r, "hello", "bye duplicate_connection")
	time.Sleep(hold - time.Millisecond)
	b.round()
	if hold > 20*time.Second { // it is looked after as any connection
		b.expect(r, "ping")
	}
	b.expect(r)
	time.Sleep(2 * time.Millisecond)
	b.round()
	b.expect(r, "close 4409 duplicate_connection")
}

// TestSecondConnectionIsHeldEverLonger dials as an SDK does: as soon as it is closed.
func TestSecondConnectionIsHeldEverLonger(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		free := false
		b := second(t, &free)
		for _, seconds := range []int{1, 2, 4, 8, 16, 30, 30} {
			b.held(time.Duration(seconds) * time.Second)
		}
		free = true
		b.expect(b.connect(), "hello", "welcome")
		free = false
		b.held(time.Second) // an accident, as the first was
		b.held(2 * time.Second)
	})
}

// TestDrainEndsLongHolds: an edge that stops waits for nobody's 30 s.
func TestDrainEndsLongHolds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := second(t, new(bool))
		for _, seconds := range []int{1, 2, 4} {
			b.held(time.Duration(seconds) * time.Second)
		}
		r := b.connect() // for 8 s
		window := time.Duration(0)
		b.shard.clients.force(input{kind: inputDrain, body: &window})
		b.round()
		b.expect(r, "hello", "bye duplicate_connection")
		time.Sleep(time.Second + time.Millisecond)
		b.round()
		b.expect(r, "close 4409 duplicate_connection")
	})
}
