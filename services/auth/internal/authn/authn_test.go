package authn

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"

	authv1 "github.com/cutemarkets/relay/proto/auth/v1"
	"github.com/cutemarkets/relay/services/auth/internal/apikey"
	"github.com/cutemarkets/relay/services/auth/internal/store"
	"github.com/cutemarkets/relay/services/auth/internal/store/sqlite"
	"github.com/cutemarkets/relay/services/internal/secret"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	stocks  = authv1.Product_PRODUCT_STOCKS
	options = authv1.Product_PRODUCT_OPTIONS
	paper   = authv1.Product_PRODUCT_PAPER
	noProd  = authv1.Product_PRODUCT_UNSPECIFIED
)

func newPepper(t testing.TB) apikey.Pepper {
	t.Helper()
	p, err := apikey.NewPepper(secret.New("a pepper of 16 or more bytes"))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func newServer(t testing.TB, s store.Store, log *slog.Logger, meter metric.Meter) *Server {
	t.Helper()
	server, err := New(s, newPepper(t), log, meter)
	if err != nil {
		t.Fatal(err)
	}
	return server
}

func quiet(t testing.TB, s store.Store) *Server {
	t.Helper()
	return newServer(t, s, slog.New(slog.DiscardHandler), noop.Meter{})
}

// newStore is a database with user "free" of plans stocks expert, options
// developer, and user "rich" of commercial ones.
func newStore(t testing.TB) *sqlite.Store {
	t.Helper()
	path := filepath.Join(t.TempDir(), "auth.db")
	if _, err := sqlite.Migrate(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	s, err := sqlite.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	expert, developer, commercial := store.PlanExpert, store.PlanDeveloper, store.PlanCommercial
	for id, change := range map[string]store.PlanChange{
		"half": {Stocks: &expert, Options: &developer},
		"rich": {Stocks: &commercial, Options: &commercial},
		"free": {},
	} {
		if _, _, err := s.SetUser(t.Context(), id, change, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func addKey(t testing.TB, s store.Store, user string, product store.Product) (key, id string) {
	t.Helper()
	k, id := apikey.New()
	err := s.CreateKeys(t.Context(), store.KeyBatch{
		Product: product, Created: time.Now(),
		Keys: []store.NewKey{{ID: id, UserID: user, Digest: newPepper(t).Digest(k.Reveal())}},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return k.Reveal(), id
}

func principal(user, id string, product authv1.Product, plan authv1.Plan) *authv1.AuthenticateResponse {
	return &authv1.AuthenticateResponse{Result: &authv1.AuthenticateResponse_Principal{
		Principal: &authv1.Principal{UserId: user, KeyId: id, Product: product, Plan: plan},
	}}
}

func refusal(reason authv1.RefusalReason) *authv1.AuthenticateResponse {
	return &authv1.AuthenticateResponse{Result: &authv1.AuthenticateResponse_Refusal{Refusal: &authv1.Refusal{Reason: reason}}}
}

func TestAuthenticate(t *testing.T) {
	s := newStore(t)
	halfStocks, halfStocksID := addKey(t, s, "half", store.ProductStocks)
	halfOptions, _ := addKey(t, s, "half", store.ProductOptions)
	richOptions, richOptionsID := addKey(t, s, "rich", store.ProductOptions)
	richPaper, _ := addKey(t, s, "rich", store.ProductPaper)
	freeStocks, _ := addKey(t, s, "free", store.ProductStocks)
	revoked, revokedID := addKey(t, s, "rich", store.ProductStocks)
	if _, err := s.RevokeKey(t.Context(), revokedID, time.Now()); err != nil {
		t.Fatal(err)
	}
	unknown, _ := apikey.New()

	invalid := refusal(authv1.RefusalReason_REFUSAL_REASON_INVALID_KEY)
	mismatch := refusal(authv1.RefusalReason_REFUSAL_REASON_PRODUCT_MISMATCH)
	plan := refusal(authv1.RefusalReason_REFUSAL_REASON_PLAN)
	reader := sdkmetric.NewManualReader()
	server := newServer(t, s, slog.New(slog.DiscardHandler), sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader)).Meter("auth"))
	for _, c := range []struct {
		name    string
		key     string
		product authv1.Product
		want    *authv1.AuthenticateResponse
	}{
		{"expert", halfStocks, stocks, principal("half", halfStocksID, stocks, authv1.Plan_PLAN_EXPERT)},
		{"commercial", richOptions, options, principal("rich", richOptionsID, options, authv1.Plan_PLAN_COMMERCIAL)},
		{"stocks key for options", halfStocks, options, mismatch},
		{"options key for stocks", richOptions, stocks, mismatch},
		{"paper key for stocks", richPaper, stocks, mismatch},
		{"stocks key for paper", halfStocks, paper, mismatch},
		{"paper has no stream", richPaper, paper, plan},
		{"developer", halfOptions, options, plan},
		{"free", freeStocks, stocks, plan},
		{"revoked", revoked, stocks, invalid},
		{"revoked, wrong product", revoked, options, invalid},
		{"unknown", unknown.Reveal(), stocks, invalid},
		{"a character more", halfStocks + "0", stocks, invalid},
		{"other case", strings.ToUpper(halfStocks), stocks, invalid},
		{"empty", "", stocks, invalid},
		{"too long", "cm_" + strings.Repeat("a", 254), stocks, invalid},
		{"request id", "cm_adce10cb073745c7b859fc8131b203b0", stocks, invalid},
		{"not a key", "Bearer x", stocks, invalid},
	} {
		got, err := server.Authenticate(t.Context(), &authv1.AuthenticateRequest{Key: c.key, Product: c.product})
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if diff := cmp.Diff(c.want, got, protocmp.Transform()); diff != "" {
			t.Errorf("%s: -want +got:\n%s", c.name, diff)
		}
	}
	for _, product := range []authv1.Product{noProd, 4, -1} {
		_, err := server.Authenticate(t.Context(), &authv1.AuthenticateRequest{Key: halfStocks, Product: product})
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("product %d: %v", product, err)
		}
	}
	if diff := cmp.Diff(map[string]int64{
		"allowed none": 2, "refused product_mismatch": 4, "refused plan": 3, "refused revoked_key": 2, "refused unknown_key": 3,
		"refused malformed_key": 4, "error bad_product": 3,
		"error overloaded": 0, "error store_failed": 0, "error store_slow": 0, "error caller_gone": 0,
	}, decisions(t, reader)); diff != "" {
		t.Errorf("decisions: -want +got:\n%s", diff)
	}
}

// decisions reads relay_auth_decisions by "result reason".
func decisions(t *testing.T, reader sdkmetric.Reader) map[string]int64 {
	t.Helper()
	var all metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &all); err != nil {
		t.Fatal(err)
	}
	counts := map[string]int64{}
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			sum, ok := m.Data.(metricdata.Sum[int64])
			if !ok || m.Name != "relay_auth_decisions" {
				continue
			}
			for _, p := range sum.DataPoints {
				result, _ := p.Attributes.Value("result")
				reason, _ := p.Attributes.Value("reason")
				counts[result.AsString()+" "+reason.AsString()] = p.Value
			}
		}
	}
	return counts
}

func TestDecisionsStartAtZero(t *testing.T) {
	reader := sdkmetric.NewManualReader()
	newServer(t, &fakeStore{}, slog.New(slog.DiscardHandler), sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader)).Meter("auth"))
	counts := decisions(t, reader)
	if len(counts) != outcomes {
		t.Errorf("%d label sets for %d outcomes", len(counts), outcomes)
	}
	for labels, n := range counts {
		if n != 0 {
			t.Errorf("%s is %d", labels, n)
		}
	}
}

// fakeStore answers Lookup and Ping as told; nothing else may be called.
type fakeStore struct {
	store.Store
	lookup func(ctx context.Context) (store.Match, error)
	ping   func(ctx context.Context) error
}

func (f *fakeStore) Lookup(ctx context.Context, _ store.Digest) (store.Match, error) {
	return f.lookup(ctx)
}
func (f *fakeStore) Ping(ctx context.Context) error { return f.ping(ctx) }

// stuck is a store that answers only when it is given up.
func stuck() *fakeStore {
	return &fakeStore{
		lookup: func(ctx context.Context) (store.Match, error) { <-ctx.Done(); return store.Match{}, ctx.Err() },
		ping:   func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
	}
}

func ask(ctx context.Context, s *Server) error {
	_, err := s.Authenticate(ctx, &authv1.AuthenticateRequest{Key: "cm_canary", Product: stocks})
	return err
}

func TestStoreErrorIsNeutral(t *testing.T) {
	var log bytes.Buffer
	broken := &fakeStore{lookup: func(context.Context) (store.Match, error) {
		return store.Match{}, errors.New("disk of host db-7 is full")
	}}
	server := newServer(t, broken, slog.New(slog.NewTextHandler(&log, nil)), noop.Meter{})
	for range 100 {
		err := ask(t.Context(), server)
		if status.Code(err) != codes.Unavailable || strings.Contains(err.Error(), "db-7") {
			t.Fatal(err)
		}
	}
	if n := strings.Count(log.String(), "disk of host db-7 is full"); n != 1 {
		t.Errorf("the cause was logged %d times:\n%s", n, log.String())
	}
	if strings.Contains(log.String(), "cm_canary") {
		t.Error("the key was logged")
	}
	if got := server.metrics.decisions[storeFailed].Load(); got != 100 {
		t.Errorf("counted %d", got)
	}
}

func TestOtherDigestIsUnknown(t *testing.T) {
	odd := &fakeStore{lookup: func(context.Context) (store.Match, error) {
		return store.Match{Key: store.Key{Product: store.ProductStocks}, Plans: store.Plans{Stocks: store.PlanExpert}}, nil
	}}
	server := quiet(t, odd)
	if err := ask(t.Context(), server); err != nil || server.metrics.decisions[unknownKey].Load() != 1 {
		t.Errorf("%v, counted %d", err, server.metrics.decisions[unknownKey].Load())
	}
}

func TestGivesUpBeforeTheCaller(t *testing.T) {
	for _, c := range []struct{ deadline, want time.Duration }{
		{0, maxWait},
		{time.Minute, maxWait},
		{time.Second, 950 * time.Millisecond},
		{100 * time.Millisecond, 90 * time.Millisecond},
	} {
		synctest.Test(t, func(t *testing.T) {
			ctx := t.Context()
			if c.deadline > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, c.deadline)
				defer cancel()
			}
			server := quiet(t, stuck())
			start := time.Now()
			if err := ask(ctx, server); status.Code(err) != codes.Unavailable {
				t.Error(err)
			}
			if got := time.Since(start); got != c.want {
				t.Errorf("deadline %v: gave up after %v", c.deadline, got)
			}
			if server.metrics.decisions[storeSlow].Load() != 1 {
				t.Error("not counted as slow")
			}
			start = time.Now()
			answer, err := server.Status(ctx, &authv1.StatusRequest{})
			if c.deadline == 0 && (err != nil || answer.GetStoreOk() || answer.GetStoreLatency().AsDuration() != time.Since(start)) {
				t.Errorf("status: %v, %v", answer, err)
			}
		})
	}
}

func TestCallerGone(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	server := quiet(t, &fakeStore{lookup: func(ctx context.Context) (store.Match, error) {
		cancel()
		<-ctx.Done()
		return store.Match{}, ctx.Err()
	}})
	if err := ask(ctx, server); status.Code(err) != codes.Canceled || server.metrics.decisions[callerGone].Load() != 1 {
		t.Error(err)
	}
}

func TestOverload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := quiet(t, stuck())
		ctx, cancel := context.WithCancel(t.Context())
		var group sync.WaitGroup
		for range maxInFlight {
			group.Go(func() { _ = ask(ctx, server) })
		}
		synctest.Wait()
		if err := ask(t.Context(), server); status.Code(err) != codes.Unavailable {
			t.Error(err)
		}
		if server.metrics.decisions[overloaded].Load() != 1 {
			t.Error("not counted as overload")
		}
		cancel()
		group.Wait()
		if got := server.metrics.inFlight.Load(); got != 0 {
			t.Errorf("%d calls in flight at the end", got)
		}
	})
}

func TestMonitor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var failure error
		var told []string
		fail := func(err error) {
			mu.Lock()
			defer mu.Unlock()
			failure = err
			told = nil
		}
		server := quiet(t, &fakeStore{ping: func(context.Context) error {
			mu.Lock()
			defer mu.Unlock()
			return failure
		}})
		monitor := NewMonitor(server, func(serving bool) {
			mu.Lock()
			defer mu.Unlock()
			told = append(told, fmt.Sprint(serving))
		})
		step := func(name string, ready error, want ...string) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if got := monitor.Ready(); !errors.Is(got, ready) {
				t.Errorf("%s: ready: %v", name, got)
			}
			if diff := cmp.Diff(want, told); diff != "" {
				t.Errorf("%s: told -want +got:\n%s", name, diff)
			}
			if server.metrics.storeUp.Load() != (ready == nil) {
				t.Errorf("%s: gauge", name)
			}
		}
		step("before", errStarting)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- monitor.Run(ctx) }()
		step("answers", nil, "true")
		fail(errors.New("no disk"))
		time.Sleep(3 * pingInterval)
		step("fails", errStore, "false")
		fail(nil)
		time.Sleep(3 * pingInterval)
		step("answers again", nil, "true")
		fail(nil)
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		step("stopped", errStopping, "false")
	})
}

func TestMonitorOfAStuckStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		monitor := NewMonitor(quiet(t, stuck()), func(bool) {})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- monitor.Run(ctx) }()
		time.Sleep(pingTimeout + time.Millisecond)
		if err := monitor.Ready(); !errors.Is(err, errStore) {
			t.Errorf("ready: %v", err)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func BenchmarkAuthenticate(b *testing.B) {
	s := newStore(b)
	server := quiet(b, s)
	key, _ := addKey(b, s, "half", store.ProductStocks)
	for name, k := range map[string]string{"allowed": key, "unknown": key + "0", "malformed": "Bearer"} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, err := server.Authenticate(b.Context(), &authv1.AuthenticateRequest{Key: k, Product: stocks}); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}
