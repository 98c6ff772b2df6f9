package auth

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	tracev1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"

	authv1 "github.com/cutemarkets/relay/proto/auth/v1"
	"github.com/cutemarkets/relay/services/auth/internal/admin"
	"github.com/cutemarkets/relay/services/auth/internal/apikey"
	"github.com/cutemarkets/relay/services/auth/internal/store"
	"github.com/cutemarkets/relay/services/internal/grpcx"
	"github.com/cutemarkets/relay/services/internal/ops"
	"github.com/cutemarkets/relay/services/internal/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const pepperText = "canary-pepper-of-a-test"

// newOptions are valid and name a database that does not exist yet.
func newOptions(t testing.TB) Options {
	t.Helper()
	dir := t.TempDir()
	pepper := filepath.Join(dir, "pepper")
	if err := os.WriteFile(pepper, []byte(pepperText+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return Options{
		GRPC:       grpcx.ServerOptions{Listen: "127.0.0.1:0"},
		Database:   filepath.Join(dir, "auth.db"),
		PepperFile: pepper,
		Operations: ops.Options{Listen: "127.0.0.1:0"},
		Telemetry:  telemetry.Options{LogLevel: "debug", LogOutput: io.Discard},
	}
}

// running is a service under test.
type running struct {
	client  authv1.AuthServiceClient
	health  healthv1.HealthClient
	opsURL  string
	options Options
	stop    func() // and wait for the end
}

// start runs a service until stop or the end of the test.
func start(t testing.TB, o Options) *running {
	t.Helper()
	service, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	address, err := service.grpc.Listen()
	if err != nil {
		t.Fatal(err)
	}
	operations, err := service.operations.Listen()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient(address.String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- service.Run(ctx) }()
	r := &running{
		client:  authv1.NewAuthServiceClient(conn),
		health:  healthv1.NewHealthClient(conn),
		opsURL:  "http://" + operations.String(),
		options: o,
	}
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("run: %v", err)
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
		if err := service.Run(t.Context()); !errors.Is(err, errRunTwice) {
			t.Errorf("second run: %v", err)
		}
	})
	t.Cleanup(r.stop)
	r.awaitHealth(t, healthv1.HealthCheckResponse_SERVING)
	return r
}

// awaitHealth watches health until it is as wanted.
func (r *running) awaitHealth(t testing.TB, want healthv1.HealthCheckResponse_ServingStatus) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for _, service := range []string{"", "auth.v1.AuthService"} {
		watch, err := r.health.Watch(ctx, &healthv1.HealthCheckRequest{Service: service}, grpc.WaitForReady(true))
		if err != nil {
			t.Fatal(err)
		}
		for {
			answer, err := watch.Recv()
			if err != nil {
				t.Fatalf("health of %q: %v", service, err)
			}
			if answer.GetStatus() == want {
				break
			}
		}
	}
	check, err := r.health.Check(ctx, &healthv1.HealthCheckRequest{})
	if err != nil || check.GetStatus() != want {
		t.Fatalf("health check: %v, %v", check, err)
	}
	list, err := r.health.List(ctx, &healthv1.HealthListRequest{})
	if err != nil || len(list.GetStatuses()) != 2 {
		t.Fatalf("health list: %v, %v", list, err)
	}
}

// get answers a path of the operations listener.
func (r *running) get(t testing.TB, path string) (code int, body string) {
	t.Helper()
	request, err := http.NewRequestWithContext(context.Background(), http.MethodGet, r.opsURL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	content, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(content)
}

func (r *running) ask(key string) (*authv1.AuthenticateResponse, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return r.client.Authenticate(ctx, &authv1.AuthenticateRequest{Key: key, Product: authv1.Product_PRODUCT_STOCKS})
}

func (r *running) setUser(t testing.TB, id string, plan store.Plan) {
	t.Helper()
	command := admin.UsersSet{Database: admin.Database{Path: r.options.Database}, User: id, PlanStocks: &plan}
	if err := command.Run(t.Context(), admin.Output{Stdout: io.Discard, Stderr: io.Discard}); err != nil {
		t.Fatal(err)
	}
}

func (r *running) createKeys(t testing.TB, user string, count int) []string {
	t.Helper()
	command := admin.KeysCreate{
		Database: admin.Database{Path: r.options.Database}, PepperFile: r.options.PepperFile,
		User: user, Product: store.ProductStocks, Count: count,
	}
	var stdout bytes.Buffer
	if err := command.Run(t.Context(), admin.Output{Stdout: &stdout, Stderr: io.Discard}); err != nil {
		t.Error(err)
	}
	return strings.Fields(stdout.String())
}

func TestNewRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Options)
		says   string
	}{
		"no pepper":       {func(o *Options) { o.PepperFile = "" }, "openssl rand"},
		"missing pepper":  {func(o *Options) { o.PepperFile += ".not" }, "--pepper-file"},
		"no database":     {func(o *Options) { o.Database = "" }, "--database"},
		"gRPC address":    {func(o *Options) { o.GRPC.Listen = "x" }, "address"},
		"ops address":     {func(o *Options) { o.Operations.Listen = "x" }, "--operations-listen"},
		"log level":       {func(o *Options) { o.Telemetry.LogLevel = "loud" }, "--log-level"},
		"key alone":       {func(o *Options) { o.GRPC.TLSKeyFile = "k" }, "go together"},
		"TLS files":       {func(o *Options) { o.GRPC.TLSCertFile, o.GRPC.TLSKeyFile = "/no/c", "/no/k" }, "/no/c"},
		"two at one time": {func(o *Options) { o.Database, o.PepperFile = "", "" }, "--database is empty\n--pepper-file"},
	} {
		o := newOptions(t)
		c.change(&o)
		service, err := New(o)
		if service != nil || err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, %v", name, service, err)
		}
	}
}

func TestRunRefuses(t *testing.T) {
	o := newOptions(t)
	start(t, o).stop()
	for name, c := range map[string]struct {
		change func(*testing.T, *Options)
		says   string
	}{
		"another pepper": {func(t *testing.T, o *Options) {
			other := newOptions(t)
			if err := os.WriteFile(other.PepperFile, []byte("another canary-pepper"), 0o600); err != nil {
				t.Fatal(err)
			}
			o.PepperFile = other.PepperFile
		}, store.ErrPepperMismatch.Error()},
		"no folder": {func(_ *testing.T, o *Options) { o.Database = filepath.Join(o.Database+".d", "auth.db") }, "does not exist"},
		"address in use": {func(t *testing.T, o *Options) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = l.Close() })
			o.GRPC.Listen = l.Addr().String()
		}, "address already in use"},
	} {
		t.Run(name, func(t *testing.T) {
			changed := o
			c.change(t, &changed)
			service, err := New(changed)
			if err != nil {
				t.Fatal(err)
			}
			if err := service.Run(t.Context()); err == nil || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "canary") {
				t.Errorf("run: %v", err)
			}
		})
	}
}

func TestPlansAndRevocationAreSeenAtOnce(t *testing.T) {
	r := start(t, newOptions(t))
	r.setUser(t, "u", store.PlanFree)
	key := r.createKeys(t, "u", 1)[0]
	for _, step := range []struct {
		plan store.Plan
		want authv1.Plan
	}{
		{store.PlanDeveloper, authv1.Plan_PLAN_UNSPECIFIED},
		{store.PlanExpert, authv1.Plan_PLAN_EXPERT},
		{store.PlanCommercial, authv1.Plan_PLAN_COMMERCIAL},
		{store.PlanFree, authv1.Plan_PLAN_UNSPECIFIED},
	} {
		r.setUser(t, "u", step.plan)
		answer, err := r.ask(key)
		if err != nil || answer.GetPrincipal().GetPlan() != step.want {
			t.Errorf("%v: %v, %v", step.plan, answer, err)
		}
		if refused := answer.GetRefusal().GetReason() == authv1.RefusalReason_REFUSAL_REASON_PLAN; refused == (step.want != 0) {
			t.Errorf("%v: %v", step.plan, answer)
		}
	}
	r.setUser(t, "u", store.PlanExpert)
	answer, err := r.ask(key)
	if err != nil || answer.GetPrincipal().GetUserId() != "u" || answer.GetPrincipal().ExpiresAt != nil {
		t.Fatalf("%v, %v", answer, err)
	}
	revoke := admin.KeysRevoke{Database: admin.Database{Path: r.options.Database}, KeyID: answer.GetPrincipal().GetKeyId()}
	if err := revoke.Run(t.Context(), admin.Output{Stdout: io.Discard, Stderr: io.Discard}); err != nil {
		t.Fatal(err)
	}
	answer, err = r.ask(key)
	if err != nil || answer.GetRefusal().GetReason() != authv1.RefusalReason_REFUSAL_REASON_INVALID_KEY {
		t.Errorf("revoked: %v, %v", answer, err)
	}
}

func TestKeysSurviveARestart(t *testing.T) {
	o := newOptions(t)
	first := start(t, o)
	first.setUser(t, "u", store.PlanExpert)
	key := first.createKeys(t, "u", 1)[0]
	first.stop()
	second := start(t, o)
	if answer, err := second.ask(key); err != nil || answer.GetPrincipal() == nil {
		t.Errorf("%v, %v", answer, err)
	}
}

// Answers go on, correct ones, while several admin commands write.
func TestAdminWhileServing(t *testing.T) {
	r := start(t, newOptions(t))
	r.setUser(t, "u", store.PlanExpert)
	known := r.createKeys(t, "u", 1)[0]
	done := make(chan struct{})
	var readers, writers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			for n := 0; ; n++ {
				if answer, err := r.ask(known); err != nil || answer.GetPrincipal() == nil {
					t.Errorf("call %d: %v, %v", n, answer, err)
					return
				}
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	for w := range 3 {
		writers.Go(func() {
			user := fmt.Sprintf("u%d", w)
			r.setUser(t, user, store.PlanExpert)
			for _, key := range r.createKeys(t, user, 1500)[:20] {
				if answer, err := r.ask(key); err != nil || answer.GetPrincipal().GetUserId() != user {
					t.Errorf("new key: %v, %v", answer, err)
				}
			}
		})
	}
	writers.Wait()
	close(done)
	readers.Wait()
}

func TestStoreAway(t *testing.T) {
	r := start(t, newOptions(t))
	r.setUser(t, "u", store.PlanExpert)
	key := r.createKeys(t, "u", 1)[0]
	expect := func(answers bool, code int) {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		state, err := r.client.Status(ctx, &authv1.StatusRequest{})
		if err != nil || state.GetStoreOk() != answers || state.GetStoreLatency().AsDuration() <= 0 {
			t.Errorf("status: %v, %v", state, err)
		}
		answer, err := r.ask(key)
		if answers != (answer.GetPrincipal() != nil) || !answers && status.Code(err) != codes.Unavailable {
			t.Errorf("authenticate: %v, %v", answer, err)
		}
		if err != nil && strings.Contains(err.Error(), "table") {
			t.Errorf("the error shows what is inside: %v", err)
		}
		if got, body := r.get(t, "/readyz"); got != code {
			t.Errorf("readyz: %d %s", got, body)
		}
		if got, _ := r.get(t, "/livez"); got != http.StatusOK {
			t.Errorf("livez: %d", got)
		}
	}
	expect(true, http.StatusOK)
	r.exec(t, "ALTER TABLE keys RENAME TO gone")
	r.awaitHealth(t, healthv1.HealthCheckResponse_NOT_SERVING)
	expect(false, http.StatusServiceUnavailable)
	if _, metrics := r.get(t, "/metrics"); !strings.Contains(metrics, "\nrelay_auth_store_up 0\n") {
		t.Error("relay_auth_store_up is not 0")
	}
	r.exec(t, "ALTER TABLE gone RENAME TO keys")
	r.awaitHealth(t, healthv1.HealthCheckResponse_SERVING)
	expect(true, http.StatusOK)
}

// exec changes the database from outside.
func (r *running) exec(t *testing.T, query string) {
	t.Helper()
	db, err := sql.Open("sqlite", r.options.Database+"?_pragma=busy_timeout(5000)")
	if err != nil {
		t.Fatal(err)
	}
	_, err = db.ExecContext(t.Context(), query)
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
}

// collector is an OpenTelemetry collector that keeps what it gets as text.
type collector struct {
	tracev1.UnimplementedTraceServiceServer

	mu    sync.Mutex
	spans strings.Builder // guarded by mu
}

func (c *collector) Export(_ context.Context, r *tracev1.ExportTraceServiceRequest) (*tracev1.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.spans.WriteString(prototext.Format(r))
	return &tracev1.ExportTraceServiceResponse{}, nil
}

func (c *collector) text() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.spans.String()
}

func startCollector(t *testing.T) (*collector, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &collector{}
	server := grpc.NewServer()
	tracev1.RegisterTraceServiceServer(server, c)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return c, l.Addr().String()
}

// lockedBuffer is a log that may be written from several goroutines.
type lockedBuffer struct {
	mu     sync.Mutex
	buffer bytes.Buffer // guarded by mu
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.String()
}

// A key, and the pepper, appear in nothing but the answer of keys create: not in
// the log at level debug, not in metrics, spans, errors or database files.
func TestSecretsStaySecret(t *testing.T) {
	spans, endpoint := startCollector(t)
	var log lockedBuffer
	o := newOptions(t)
	o.Telemetry.LogOutput, o.Telemetry.OTLPEndpoint, o.Telemetry.OTLPSampleRatio = &log, endpoint, 1
	r := start(t, o)
	r.setUser(t, "u", store.PlanExpert)
	valid := r.createKeys(t, "u", 1)[0]
	unknown, _ := apikey.New()
	canaries := []string{valid, unknown.Reveal(), "cm_canary bad", "Bearer canary", strings.Repeat("canary", 100), pepperText}

	var seen strings.Builder
	askAll := func() {
		for _, key := range canaries {
			for _, product := range []authv1.Product{authv1.Product_PRODUCT_STOCKS, authv1.Product_PRODUCT_OPTIONS, 99} {
				answer, err := r.client.Authenticate(context.Background(), &authv1.AuthenticateRequest{Key: key, Product: product})
				fmt.Fprintln(&seen, answer, err)
			}
		}
	}
	askAll()
	revoke := admin.KeysRevoke{Database: admin.Database{Path: o.Database}, KeyID: valid}
	fmt.Fprintln(&seen, revoke.Run(t.Context(), admin.Output{Stdout: &seen, Stderr: &seen}))
	list := admin.KeysList{Database: admin.Database{Path: o.Database}}
	fmt.Fprintln(&seen, list.Run(t.Context(), admin.Output{Stdout: &seen, Stderr: &seen}))
	r.exec(t, "ALTER TABLE keys RENAME TO gone")
	r.awaitHealth(t, healthv1.HealthCheckResponse_NOT_SERVING)
	askAll()
	_, metrics := r.get(t, "/metrics")
	_, ready := r.get(t, "/readyz")
	fmt.Fprintln(&seen, metrics, ready)
	r.stop()
	fmt.Fprintln(&seen, log.String(), spans.text())
	files, err := filepath.Glob(o.Database + "*")
	if err != nil || len(files) == 0 {
		t.Fatalf("%q, %v", files, err)
	}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		seen.Write(content)
	}

	for _, want := range []string{
		"AuthService/Authenticate", "key look-up failed", "relay_auth_decisions_total", "store: the store does not answer", "CREATE TABLE",
	} {
		if !strings.Contains(seen.String(), want) {
			t.Errorf("%q was not seen: the test looks in the wrong place", want)
		}
	}
	for i, canary := range canaries {
		if strings.Contains(seen.String(), canary) {
			t.Errorf("canary %d was seen", i)
		}
	}
}

func BenchmarkAuthenticate(b *testing.B) {
	r := start(b, newOptions(b))
	r.setUser(b, "u", store.PlanExpert)
	key := r.createKeys(b, "u", 1)[0]
	b.ReportAllocs()
	b.SetParallelism(16)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if answer, err := r.ask(key); err != nil || answer.GetPrincipal() == nil {
				b.Errorf("%v, %v", answer, err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "answers/s")
}
