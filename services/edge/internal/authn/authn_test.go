package authn

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.opentelemetry.io/otel/metric/noop"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	authv1 "github.com/cutemarkets/relay/proto/auth/v1"
	"github.com/cutemarkets/relay/services/edge/internal/dialect"
	"github.com/cutemarkets/relay/services/edge/internal/principal"
	"github.com/cutemarkets/relay/services/internal/secret"
)

func TestMain(m *testing.M) {
	if address := os.Getenv(serveVariable); address != "" {
		serve(address)
		return
	}
	goleak.VerifyTestMain(m)
}

// fakeAuth answers as told and counts its calls.
type fakeAuth struct {
	authv1.UnimplementedAuthServiceServer
	calls, statuses atomic.Int64
	answer          func(ctx context.Context, r *authv1.AuthenticateRequest) (*authv1.AuthenticateResponse, error)
	status          func() (*authv1.StatusResponse, error)
}

func (f *fakeAuth) Authenticate(ctx context.Context, r *authv1.AuthenticateRequest) (*authv1.AuthenticateResponse, error) {
	f.calls.Add(1)
	return f.answer(ctx, r)
}

func (f *fakeAuth) Status(context.Context, *authv1.StatusRequest) (*authv1.StatusResponse, error) {
	f.statuses.Add(1)
	return f.status()
}

type rig struct {
	*Authenticator
	auth   *fakeAuth
	server *grpc.Server
	log    *bytes.Buffer
	offset atomic.Int64 // of the clock
}

func newRig(t *testing.T, answer func(context.Context, *authv1.AuthenticateRequest) (*authv1.AuthenticateResponse, error)) *rig {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{auth: &fakeAuth{answer: answer}, server: grpc.NewServer(), log: &bytes.Buffer{}}
	authv1.RegisterAuthServiceServer(r.server, r.auth)
	served := make(chan error, 1)
	go func() { served <- r.server.Serve(listener) }()
	conn, err := grpc.NewClient("passthrough:///"+listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		r.server.Stop()
		<-served
	})
	r.Authenticator, err = New(conn, noop.Meter{}, slog.New(slog.NewTextHandler(r.log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	r.now = func() time.Time { return time.Now().Add(time.Duration(r.offset.Load())) }
	return r
}

func (r *rig) pass(d time.Duration) { r.offset.Add(int64(d)) }

func good(p *authv1.Principal) *authv1.AuthenticateResponse {
	return &authv1.AuthenticateResponse{Result: &authv1.AuthenticateResponse_Principal{Principal: p}}
}

func refusal(r authv1.RefusalReason) *authv1.AuthenticateResponse {
	return &authv1.AuthenticateResponse{Result: &authv1.AuthenticateResponse_Refusal{Refusal: &authv1.Refusal{Reason: r}}}
}

func expert(r *authv1.AuthenticateRequest) *authv1.Principal {
	return &authv1.Principal{UserId: "u-" + r.GetKey(), KeyId: "k", Product: r.GetProduct(), Plan: authv1.Plan_PLAN_EXPERT}
}

func accept(_ context.Context, r *authv1.AuthenticateRequest) (*authv1.AuthenticateResponse, error) {
	return good(expert(r)), nil
}

func TestJudgement(t *testing.T) {
	stocks := func(change func(*authv1.Principal)) *authv1.AuthenticateResponse {
		p := &authv1.Principal{UserId: "u", KeyId: "k", Product: authv1.Product_PRODUCT_STOCKS, Plan: authv1.Plan_PLAN_COMMERCIAL}
		change(p)
		return good(p)
	}
	expiry := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	for name, c := range map[string]struct {
		response *authv1.AuthenticateResponse
		err      error
		want     dialect.Reason
		expires  time.Time
	}{
		"good":              {response: stocks(func(*authv1.Principal) {}), want: dialect.OK},
		"good, expires":     {response: stocks(func(p *authv1.Principal) { p.ExpiresAt = timestamppb.New(expiry) }), want: dialect.OK, expires: expiry},
		"expired":           {response: stocks(func(p *authv1.Principal) { p.ExpiresAt = timestamppb.New(time.Now().Add(-time.Second)) }), want: dialect.CredentialInvalid},
		"free plan":         {response: stocks(func(p *authv1.Principal) { p.Plan = authv1.Plan_PLAN_FREE }), want: dialect.PlanTooLow},
		"no user":           {response: stocks(func(p *authv1.Principal) { p.UserId = "" }), want: dialect.AuthUnavailable},
		"another product":   {response: stocks(func(p *authv1.Principal) { p.Product = authv1.Product_PRODUCT_OPTIONS }), want: dialect.AuthUnavailable},
		"no result":         {response: &authv1.AuthenticateResponse{}, want: dialect.AuthUnavailable},
		"no reason":         {response: refusal(0), want: dialect.AuthUnavailable},
		"unknown reason":    {response: refusal(99), want: dialect.AuthUnavailable},
		"invalid":           {response: refusal(authv1.RefusalReason_REFUSAL_REASON_INVALID_KEY), want: dialect.CredentialInvalid},
		"product":           {response: refusal(authv1.RefusalReason_REFUSAL_REASON_PRODUCT_MISMATCH), want: dialect.ProductMismatch},
		"plan":              {response: refusal(authv1.RefusalReason_REFUSAL_REASON_PLAN), want: dialect.PlanTooLow},
		"unauthenticated":   {err: status.Error(codes.Unauthenticated, "x"), want: dialect.AuthUnavailable},
		"permission denied": {err: status.Error(codes.PermissionDenied, "x"), want: dialect.AuthUnavailable},
		"internal":          {err: status.Error(codes.Internal, "x"), want: dialect.AuthUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, func(context.Context, *authv1.AuthenticateRequest) (*authv1.AuthenticateResponse, error) {
				return c.response, c.err
			})
			p, reason := r.Authenticate(t.Context(), "stocks", secret.New("K"))
			if reason != c.want {
				t.Fatalf("reason = %v, want %v", reason, c.want)
			}
			want := principal.Principal{}
			if c.want == dialect.OK {
				want = principal.Principal{UserID: "u", Expires: c.expires}
			}
			if p != want {
				t.Fatalf("principal = %+v, want %+v", p, want)
			}
		})
	}
}

func TestNoCall(t *testing.T) {
	r := newRig(t, accept)
	if _, reason := r.Authenticate(t.Context(), "crypto", secret.New("K")); reason != dialect.MarketUnsupported {
		t.Errorf("unknown market: %v", reason)
	}
	if _, reason := r.Authenticate(t.Context(), "stocks", secret.Secret{}); reason != dialect.CredentialMissing {
		t.Errorf("no credential: %v", reason)
	}
	if n := r.auth.calls.Load(); n != 0 {
		t.Errorf("%d calls", n)
	}
}

func TestCache(t *testing.T) {
	r := newRig(t, accept)
	ask := func(market, key string, want dialect.Reason, calls int64) {
		t.Helper()
		p, reason := r.Authenticate(t.Context(), market, secret.New(key))
		if reason != want || want == dialect.OK && p.UserID != "u-"+key {
			t.Fatalf("Authenticate(%s, %s) = %+v, %v; want %v", market, key, p, reason, want)
		}
		if n := r.auth.calls.Load(); n != calls {
			t.Fatalf("%d calls, want %d", n, calls)
		}
	}
	ask("stocks", "a", dialect.OK, 1)
	ask("stocks", "a", dialect.OK, 1)
	ask("options", "a", dialect.OK, 2) // a product is its own entry
	ask("stocks", "b", dialect.OK, 3)

	// Auth away: known keys still pass for the cache time, others are told so.
	r.auth.answer = func(context.Context, *authv1.AuthenticateRequest) (*authv1.AuthenticateResponse, error) {
		return nil, status.Error(codes.Internal, "store")
	}
	r.pass(59 * time.Second)
	ask("stocks", "a", dialect.OK, 3)
	ask("stocks", "c", dialect.AuthUnavailable, 4)
	r.pass(2 * time.Second)
	ask("stocks", "a", dialect.AuthUnavailable, 5) // and this is never cached
	ask("stocks", "a", dialect.AuthUnavailable, 6)
}

func TestCacheEndsWithPrincipal(t *testing.T) {
	r := newRig(t, nil)
	expires := r.now().Add(10 * time.Second)
	r.auth.answer = func(_ context.Context, q *authv1.AuthenticateRequest) (*authv1.AuthenticateResponse, error) {
		p := expert(q)
		p.ExpiresAt = timestamppb.New(expires)
		return good(p), nil
	}
	for _, want := range []dialect.Reason{dialect.OK, dialect.OK} {
		if _, reason := r.Authenticate(t.Context(), "stocks", secret.New("a")); reason != want {
			t.Fatal(reason)
		}
	}
	r.pass(10 * time.Second)
	for range 2 { // what is kept from now on is that the key has expired
		if _, reason := r.Authenticate(t.Context(), "stocks", secret.New("a")); reason != dialect.CredentialInvalid || r.auth.calls.Load() != 2 {
			t.Fatalf("%v after %d calls", reason, r.auth.calls.Load())
		}
	}
}

func TestNegativeCache(t *testing.T) {
	reason := authv1.RefusalReason_REFUSAL_REASON_INVALID_KEY
	r := newRig(t, func(context.Context, *authv1.AuthenticateRequest) (*authv1.AuthenticateResponse, error) {
		return refusal(reason), nil
	})
	ask := func(key string, calls int64) {
		t.Helper()
		r.Authenticate(t.Context(), "stocks", secret.New(key))
		if n := r.auth.calls.Load(); n != calls {
			t.Fatalf("%d calls, want %d", n, calls)
		}
	}
	ask("a", 1)
	ask("a", 1)
	r.pass(5 * time.Second)
	ask("a", 2)
	reason = authv1.RefusalReason_REFUSAL_REASON_PLAN // a plan may be bought any moment
	ask("b", 3)
	ask("b", 4)
}

func TestSingleFlight(t *testing.T) {
	release := make(chan struct{})
	arrived := make(chan struct{}, 1)
	r := newRig(t, func(_ context.Context, q *authv1.AuthenticateRequest) (*authv1.AuthenticateResponse, error) {
		arrived <- struct{}{}
		<-release
		return good(expert(q)), nil
	})
	first, cancel := context.WithCancel(t.Context())
	firstDone := make(chan dialect.Reason, 1)
	go func() {
		_, reason := r.Authenticate(first, "stocks", secret.New("a"))
		firstDone <- reason
	}()
	<-arrived
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if _, reason := r.Authenticate(t.Context(), "stocks", secret.New("a")); reason != dialect.OK {
				t.Errorf("a sharing caller got %v", reason)
			}
		})
	}
	cancel() // the caller that began the call goes; the others still get the answer
	if reason := <-firstDone; reason != dialect.AuthUnavailable {
		t.Errorf("the cancelled caller got %v", reason)
	}
	close(release)
	wg.Wait()
	if n := r.auth.calls.Load(); n != 1 {
		t.Fatalf("%d calls for one credential", n)
	}
}

func TestRetryAndDeadline(t *testing.T) {
	var calls atomic.Int64
	r := newRig(t, func(ctx context.Context, q *authv1.AuthenticateRequest) (*authv1.AuthenticateResponse, error) {
		switch calls.Add(1) {
		case 1:
			return nil, status.Error(codes.Unavailable, "restarting")
		case 2:
			return good(expert(q)), nil
		}
		if deadline, ok := ctx.Deadline(); !ok || time.Until(deadline) > callTimeout {
			t.Error("a call without a deadline of 2 s")
		}
		<-ctx.Done()
		return nil, ctx.Err()
	})
	if _, reason := r.Authenticate(t.Context(), "stocks", secret.New("a")); reason != dialect.OK || calls.Load() != 2 {
		t.Fatalf("%v after %d calls", reason, calls.Load())
	}
	began := time.Now()
	if _, reason := r.Authenticate(t.Context(), "stocks", secret.New("b")); reason != dialect.AuthUnavailable || calls.Load() != 3 {
		t.Fatalf("%v after %d calls", reason, calls.Load())
	}
	if took := time.Since(began); took > callTimeout+time.Second {
		t.Fatalf("took %v", took)
	}
	r.server.Stop()
	if _, reason := r.Authenticate(t.Context(), "stocks", secret.New("c")); reason != dialect.AuthUnavailable {
		t.Fatal(reason)
	}
	if p, reason := r.Authenticate(t.Context(), "stocks", secret.New("a")); reason != dialect.OK || p.UserID != "u-a" {
		t.Fatal("a known key must pass while auth is away")
	}
}

func TestStatus(t *testing.T) {
	r := newRig(t, accept)
	r.auth.status = func() (*authv1.StatusResponse, error) {
		return &authv1.StatusResponse{StoreOk: true, StoreLatency: durationpb.New(3 * time.Millisecond)}, nil
	}
	want := Status{OK: true, Latency: 3 * time.Millisecond}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if s := r.Status(t.Context()); s != want {
				t.Errorf("Status = %+v", s)
			}
		})
	}
	wg.Wait()
	if n := r.auth.statuses.Load(); n != 1 {
		t.Fatalf("%d calls", n)
	}
	r.auth.status = func() (*authv1.StatusResponse, error) { return nil, status.Error(codes.Unavailable, "") }
	r.pass(time.Second)
	if s := r.Status(t.Context()); s.OK {
		t.Fatalf("Status = %+v with auth away", s)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r.pass(time.Second)
	if s := r.Status(ctx); s.OK {
		t.Fatalf("Status = %+v", s)
	}
	r.Status(t.Context()) // waits for the shared call
}

func TestKeysStayOut(t *testing.T) {
	const canary = "cm_live_CANARY"
	r := newRig(t, func(context.Context, *authv1.AuthenticateRequest) (*authv1.AuthenticateResponse, error) {
		return nil, status.Error(codes.Internal, "no row for "+canary)
	})
	r.Authenticate(t.Context(), "stocks", secret.New(canary))
	r.auth.answer = func(context.Context, *authv1.AuthenticateRequest) (*authv1.AuthenticateResponse, error) {
		return &authv1.AuthenticateResponse{}, nil
	}
	r.Authenticate(t.Context(), "stocks", secret.New(canary))
	if r.log.Len() == 0 || strings.Contains(r.log.String(), canary) {
		t.Fatalf("log: %s", r.log)
	}
}
