package authn

import (
	"bufio"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"

	authv1 "github.com/cutemarkets/relay/proto/auth/v1"
	"github.com/cutemarkets/relay/services/edge/internal/dialect"
	"github.com/cutemarkets/relay/services/internal/grpcx"
	"github.com/cutemarkets/relay/services/internal/secret"
	"github.com/cutemarkets/relay/services/internal/telemetry"
)

// serveVariable makes the test binary an auth service that accepts every key.
const serveVariable = "AUTHN_TEST_SERVE"

func serve(address string) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		panic(err)
	}
	server := grpc.NewServer()
	authv1.RegisterAuthServiceServer(server, &fakeAuth{answer: accept})
	fmt.Println(listener.Addr())
	_ = server.Serve(listener)
}

// newRemote makes an authenticator, connected as an edge is, of an auth service
// in a process of its own.
func newRemote(b *testing.B) *Authenticator {
	command := exec.Command(os.Args[0])
	command.Env = append(os.Environ(), serveVariable+"=127.0.0.1:0")
	out, err := command.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := command.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = command.Process.Kill()
		_ = command.Wait()
	})
	lines := bufio.NewScanner(out)
	if !lines.Scan() {
		b.Fatal("the auth service did not start")
	}
	t := telemetry.Discard()
	conn, err := grpcx.Dial("passthrough:///"+lines.Text(), grpcx.ClientTLS{}, t)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = conn.Close() })
	a, err := New(conn, t.Meter("authn"), slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	return a
}

// BenchmarkAuthenticate reports the processor time of an authentication, of this
// process alone.
func BenchmarkAuthenticate(b *testing.B) {
	a := newRemote(b)
	same := secret.New("cm_live_00000000000000000000000000000000")
	var number atomic.Int64
	keys := map[string]func() secret.Secret{
		"cached": func() secret.Secret { return same },
		"asked":  func() secret.Secret { return secret.New(fmt.Sprintf("cm_live_%032d", number.Add(1))) },
	}
	for _, kind := range []string{"cached", "asked"} {
		for _, callers := range []int{1, 16, 1000} {
			b.Run(fmt.Sprint(kind, "/", callers, " callers"), func(b *testing.B) {
				b.ReportAllocs()
				before := processorTime()
				var left atomic.Int64
				left.Store(int64(b.N))
				var wg sync.WaitGroup
				for range callers {
					wg.Go(func() {
						for left.Add(-1) >= 0 {
							if _, r := a.Authenticate(b.Context(), "stocks", keys[kind]()); r != dialect.OK {
								b.Errorf("Authenticate = %v", r)
							}
						}
					})
				}
				wg.Wait()
				b.ReportMetric(float64((processorTime()-before).Nanoseconds())/float64(b.N)/1000, "us-cpu/op")
			})
		}
	}
}

// processorTime is what this process has used, user and system.
func processorTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// TestCachedAllocations: a known key costs no allocation.
func TestCachedAllocations(t *testing.T) {
	r := newRig(t, accept)
	key := secret.New("cm_live_00000000000000000000000000000000")
	ask := func() {
		if _, reason := r.Authenticate(t.Context(), "stocks", key); reason != dialect.OK {
			t.Fatal(reason)
		}
	}
	ask()
	if got := testing.AllocsPerRun(1000, ask); got > 0 {
		t.Errorf("%v allocations, want none", got)
	}
}

// BenchmarkIdle reports the live heap of a known key while its answer lasts, and
// what is left of it when that is over.
func BenchmarkIdle(b *testing.B) {
	const items = 10_000
	for b.Loop() {
		before := liveHeap()
		c := newCache[known](time.Second, 2*spans*items, time.Now)
		ended := make(chan struct{})
		time.AfterFunc(1500*time.Millisecond, func() { close(ended) })
		asked := time.Now()
		for n := range items {
			c.put(numbered(n), known{user: fmt.Sprint("user-", n)}, asked)
		}
		b.ReportMetric((liveHeap()-before)/items, "B/entry")
		<-ended
		b.ReportMetric((liveHeap()-before)/items, "B/entry-ended")
		runtime.KeepAlive(c)
	}
}

func liveHeap() float64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc)
}
