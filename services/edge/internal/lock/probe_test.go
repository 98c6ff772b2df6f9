package lock

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	sdk "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"pgregory.net/rapid"

	"github.com/cutemarkets/relay/services/edge/internal/dialect"
	"github.com/cutemarkets/relay/services/internal/redisx"
	"github.com/cutemarkets/relay/services/internal/redisx/redistest"
)

// holder is an edge that holds the lock of user-1 for the owner 7, and what its
// engine would answer.
type holder struct {
	manager *Manager
	lease   *Lease
	asked   chan uint64 // owners
	answer  chan bool   // gone: the lease is released first
}

func newHolder(t *testing.T, o redisx.Options) *holder {
	h := &holder{asked: make(chan uint64, 100), answer: make(chan bool, 100)}
	released := make(chan struct{}, 1)
	h.manager = newManager(t, Config{
		EdgeID:   "holder",
		Released: func(uint64) { released <- struct{}{} },
		Probe: func(owner uint64, answer func(alive bool)) {
			h.asked <- owner
			go func() {
				alive, answers := <-h.answer
				switch {
				case !answers:
					return
				case !alive:
					h.lease.Release()
					<-released
				}
				answer(alive)
			}()
		},
	}, o)
	var r dialect.Reason
	if h.lease, r = h.manager.Acquire(t.Context(), "user-1", 7); r != dialect.OK {
		t.Fatal(r)
	}
	return h
}

// listening waits until all hear each other.
func listening(t *testing.T, all ...*Manager) {
	for _, m := range all {
		eventually(t, m.config.EdgeID+" listens", m.probes.listening.Load)
	}
}

func (h *holder) expectAsked(t *testing.T, times int) {
	t.Helper()
	if len(h.asked) != times {
		t.Fatalf("asked %d times, want %d", len(h.asked), times)
	}
	for range times {
		if owner := <-h.asked; owner != 7 {
			t.Fatalf("asked about %d", owner)
		}
	}
}

func TestProbe(t *testing.T) {
	o := redisx.Options{Address: []string{startRedis(t)}}
	probeOverRedis(t, o, plain(t, o.Address[0]))
}

// In a Cluster messages go through the node that has the channel's slot.
func TestProbeInACluster(t *testing.T) {
	address := startRedis(t, "--cluster-enabled", "yes", "--cluster-config-file", filepath.Join(t.TempDir(), "nodes"))
	look := plain(t, address)
	if err := look.ClusterAddSlotsRange(t.Context(), 0, 16383).Err(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the cluster is well", func() bool {
		return strings.Contains(look.ClusterInfo(t.Context()).Val(), "cluster_state:ok")
	})
	probeOverRedis(t, redisx.Options{Address: []string{address, address}}, look)
}

func probeOverRedis(t *testing.T, o redisx.Options, look *redis.Client) {
	h := newHolder(t, o)
	b := newManager(t, Config{EdgeID: "b"}, o)
	listening(t, h.manager, b)

	if r := b.Probe(t.Context(), "user-0"); r != dialect.OK {
		t.Error("a lock that nobody holds must be free")
	}
	h.expectAsked(t, 0)
	for _, m := range []*Manager{b, h.manager} {
		h.answer <- true
		if r := m.Probe(t.Context(), "user-1"); r != dialect.DuplicateConnection {
			t.Errorf("%s: the holder lives", m.config.EdgeID)
		}
		h.expectAsked(t, 1)
		if v := look.Get(t.Context(), h.lease.key()).Val(); v != h.lease.token() {
			t.Fatalf("the holder's lock became %q", v)
		}
	}
	h.answer <- false
	if r := b.Probe(t.Context(), "user-1"); r != dialect.OK {
		t.Error("the holder has gone")
	}
	h.expectAsked(t, 1)
	mustAcquire(t, b, "user-1")
}

func TestProbesOfAUserAreShared(t *testing.T) {
	o := redisx.Options{Address: []string{startRedis(t)}}
	h := newHolder(t, o)
	b := newManager(t, Config{EdgeID: "b"}, o)
	listening(t, h.manager, b)
	var all sync.WaitGroup
	var free atomic.Int64
	probe := func() {
		if b.Probe(t.Context(), "user-1") == dialect.OK {
			free.Add(1)
		}
	}
	all.Go(probe)
	owner := <-h.asked
	h.asked <- owner
	for range 20 {
		all.Go(probe)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if b.Probe(ctx, "user-1") == dialect.OK {
		t.Error("an answer after the end of the context")
	}
	h.answer <- false
	all.Wait()
	if free.Load() == 0 {
		t.Error("nobody was told that the lock is free")
	}
	h.expectAsked(t, 1)
}

func TestProbeEndsWithRun(t *testing.T) {
	o := redisx.Options{Address: []string{startRedis(t)}}
	h := newHolder(t, o)
	defer close(h.answer)
	b := newIdleManager(t, Config{EdgeID: "b"}, o)
	ctx, cancel := context.WithCancel(t.Context())
	ended, answer := make(chan error, 1), make(chan dialect.Reason, 1)
	go func() { ended <- b.Run(ctx) }()
	listening(t, h.manager, b)
	go func() { answer <- b.Probe(t.Context(), "user-1") }()
	<-h.asked
	began := time.Now()
	cancel()
	if err := <-ended; err != nil || <-answer == dialect.OK || time.Since(began) > answerWait/2 {
		t.Errorf("ended after %v: %v", time.Since(began), err)
	}
}

// Edges that cannot or will not answer leave all as it is.
func TestProbeWithoutAnswer(t *testing.T) {
	address := startRedis(t)
	o, look := redisx.Options{Address: []string{address}}, plain(t, address)
	h := newHolder(t, o)
	b, reader := newCounted(t, Config{EdgeID: "b"}, o)
	run(t, b)
	listening(t, h.manager, b)

	began := time.Now()
	close(h.answer) // never answers
	if r := b.Probe(t.Context(), "user-1"); r != dialect.HolderSilent {
		t.Errorf("the holder has not answered: %v", r)
	}
	if took := time.Since(began); took < answerWait || took > 2*answerWait {
		t.Errorf("waited for %v", took)
	}
	h.expectAsked(t, 1)

	began = time.Now()
	key := string(appendKey(nil, bucketOf("user-2"), "user-2"))
	for name, token := range map[string]string{"a killed edge": "nobody/00/1/7", "not ours": "x"} {
		look.Set(t.Context(), key, token, time.Minute)
		if r := b.Probe(t.Context(), "user-2"); r != dialect.HolderSilent {
			t.Errorf("%s: %v", name, r)
		}
		if v := look.Get(t.Context(), key).Val(); v != token {
			t.Errorf("%s: the lock became %q", name, v)
		}
	}
	if took := time.Since(began); took > answerWait {
		t.Errorf("waited for %v with nobody there", took)
	}
	if got := counts(t, reader, "relay_edge_lock_probes"); !slices.Equal(got, []string{"alive 0", "failed 0", "gone 0", "no_answer 3"}) {
		t.Errorf("counted %v", got)
	}
}

// newCounted makes a manager whose metrics can be read.
func newCounted(t *testing.T, c Config, o redisx.Options) (*Manager, *sdk.ManualReader) {
	t.Helper()
	m, reader := newIdleManager(t, c, o), sdk.NewManualReader()
	var err error
	if m.metrics, err = newMetrics(sdk.NewMeterProvider(sdk.WithReader(reader)).Meter("test"), &m.held); err != nil {
		t.Fatal(err)
	}
	return m, reader
}

// counts returns the values of a counter with one attribute.
func counts(t *testing.T, reader *sdk.ManualReader, name string) (got []string) {
	t.Helper()
	var all metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &all); err != nil {
		t.Fatal(err)
	}
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			if m.Name != name {
				continue
			}
			for _, p := range m.Data.(metricdata.Sum[int64]).DataPoints {
				label := ""
				for _, a := range p.Attributes.ToSlice() {
					label = a.Value.AsString() + " "
				}
				got = append(got, fmt.Sprint(label, p.Value))
			}
		}
	}
	slices.Sort(got)
	return got
}

// What is no message, or about another process, is not answered, and what nobody
// waits for is dropped.
func TestStrangeMessagesAreIgnored(t *testing.T) {
	m, reader := newCounted(t, Config{
		EdgeID: "a", Probe: func(owner uint64, _ func(alive bool)) { t.Errorf("asked about %d", owner) },
	}, redisx.Options{Address: []string{"localhost:1"}})
	for _, text := range []string{"", "x", "probe/1", "alive/", "gone/x", "probe/1/b/token"} {
		m.heard(text)
	}
	for _, text := range []string{"alive/1", "gone/1", "probe/1/b/a/00/1/7", "probe/1/b/other/00/1/7"} {
		m.heard(text)
	}
	if got := counts(t, reader, "relay_edge_lock_bad_messages"); !slices.Equal(got, []string{"6"}) {
		t.Errorf("counted %v", got)
	}
}

func TestProbesAreBounded(t *testing.T) {
	o := redisx.Options{Address: []string{startRedis(t)}}
	h := newHolder(t, o)
	defer close(h.answer)
	h.manager.probes.answering.Store(maxProbes)
	h.manager.heard(edgeMessage{kind: probeMessage, number: 1, edge: "b", token: h.lease.token()}.String())
	h.manager.probes.answering.Store(0)
	h.manager.probes.asking.Store(maxProbes)
	if h.manager.Probe(t.Context(), "nobody") != dialect.DuplicateConnection {
		t.Error("one probe too many")
	}
	h.manager.probes.asking.Store(0)
	h.expectAsked(t, 0)
}

// A user of Redis that may not do it costs the probes, and one line in the log.
func TestProbeNotPermitted(t *testing.T) {
	for name, row := range map[string]struct {
		rights []string
		want   bool
	}{
		"all that is needed": {[]string{"+ssubscribe", "+spublish", "&relay:edge:*"}, true},
		"not the channels":   {[]string{"+ssubscribe", "+spublish", "resetchannels"}, false},
		"not the commands":   {[]string{"&relay:edge:*"}, false},
		"only to listen":     {[]string{"+ssubscribe", "&relay:edge:*"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			address := startRedis(t)
			rights := append([]string{
				"on", ">s3cret", "~relay:lock:*", "-@all",
				"+get", "+mget", "+set", "+pexpire", "+pttl", "+del", "+eval", "+ping", "+hello", "+client|setname",
			}, row.rights...)
			if err := plain(t, address).ACLSetUser(t.Context(), "relay", rights...).Err(); err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(t.TempDir(), "password")
			if err := os.WriteFile(file, []byte("s3cret\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			h := newHolder(t, redisx.Options{Address: []string{address}})
			b := newIdleManager(t, Config{EdgeID: "b"}, redisx.Options{Address: []string{address}, Username: "relay", PasswordFile: file})
			var log lines
			b.log = slog.New(slog.NewTextHandler(&log, nil))
			run(t, b)
			listening(t, h.manager)
			eventually(t, "it listens or may not", func() bool { return b.probes.listening.Load() || log.count("+ssubscribe") > 0 })
			h.answer <- false
			for range 2 {
				if free := b.Probe(t.Context(), "user-1") == dialect.OK; free != row.want {
					t.Errorf("free: %v", free)
				}
			}
			if !row.want && log.count("level=WARN") != 1 || row.want && log.count("level=WARN") != 0 {
				t.Errorf("logged:\n%s", log.all())
			}
		})
	}
}

// lines is a log.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) all() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *lines) count(part string) int { return strings.Count(l.all(), part) }

// An edge whose connection to Redis breaks, or goes silent, listens anew.
func TestListensAgain(t *testing.T) {
	address := startRedis(t)
	p := redistest.NewProxy(t, address)
	h := newHolder(t, redisx.Options{Address: []string{p.Address}})
	b := newManager(t, Config{EdgeID: "b"}, redisx.Options{Address: []string{address}})
	listening(t, h.manager, b)
	look := plain(t, address)
	subscribers := func() int64 {
		return look.PubSubShardNumSub(t.Context(), channelOf("holder")).Val()[channelOf("holder")]
	}
	if n := subscribers(); n != 1 {
		t.Fatalf("%d subscribers", n)
	}
	if err := look.ClientKillByFilter(t.Context(), "TYPE", "pubsub").Err(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it listens again", func() bool { return subscribers() == 1 })
	p.Hold()
	eventually(t, "it notices the silence", func() bool { return !h.manager.probes.listening.Load() })
	p.Resume()
	listening(t, h.manager, b)
	h.answer <- true
	if b.Probe(t.Context(), "user-1") != dialect.DuplicateConnection {
		t.Error("the holder lives")
	}
	h.expectAsked(t, 1)
}

func TestMessages(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		number := rapid.Uint64().Draw(t, "number")
		m := edgeMessage{kind: rapid.SampledFrom([]string{probeMessage, aliveMessage, goneMessage}).Draw(t, "kind"), number: number}
		if m.kind == probeMessage {
			name := rapid.StringMatching(`[^/]{1,20}`)
			m.edge = name.Draw(t, "edge")
			m.token = fmt.Sprintf("%s/%032x/%d/%x", name.Draw(t, "holder"), number, number>>1, number)
		}
		if got, ok := parse(m.String()); !ok || got != m {
			t.Fatalf("%q became %+v, %v", m, got, ok)
		}
	})
	for _, text := range []string{
		"", "/", "probe", "alive", "alive/", "alive/g", "alive/1/", "alive/1/b/c", "gone/-1", "gone/10000000000000000",
		"probe/1/b", "probe/1//a/0/1/7", "probe/1/b/a/0/1", "probe/1/b/a/0/1/7/8", "probe/1/b//0/1/7", "probe/1/b/a/0/x/7", "other/1",
	} {
		if m, ok := parse(text); ok {
			t.Errorf("%q became %+v", text, m)
		}
	}
}
