package e2e

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gobwas/ws"

	"github.com/cutemarkets/relay/hack/checker"
	"github.com/cutemarkets/relay/hack/cluster"
	"github.com/cutemarkets/relay/hack/truth"
)

// TestZoo lets hostile clients loose on an edge beside good ones: the good ones
// get every event once, in order and unaltered, without a gap, and afterwards
// the edge has as much memory, as many goroutines and files as before.
func TestZoo(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "truth.tsv")
	address, _, _ := startRedis(t)
	c := startCluster(t, cluster.Options{
		Redis: address, Rate: 1000, LogLevel: "info", Users: ofAKind * len(animals),
		Args: map[string][]string{
			"feedsim": {"--truth=" + file},
			// The good clients share a busy process with the zoo: they may stand still for a moment.
			"edge": {"--pprof", "--failure-rate-per-ip=100000", "--failure-burst-per-ip=100000", "--queue-bytes=393216"},
		},
	})
	z := &zoo{t: t, c: c, edge: c.Info().Edges[0], operations: c.Info().Operations["edge-0"]}
	ck := checker.New()
	var leave []func() error
	for i, who := range []struct{ market, topics string }{
		{"stocks", "T.*,T.AAPL,AM.*"}, {"options", "T.*,Q.O:SPY991217C00500000,A.*"}, {"stocks", "Q.*"},
	} {
		s := join(t, c.Info().Edges[i%2], who.market, expert(t, c, who.market))
		s.subscribe(who.topics)
		leave = append(leave, listen(s, ck.Client(fmt.Sprintf("good-%d %s", i, who.topics), who.market)))
	}
	const good = 2 // of them on the edge with the zoo

	z.let(2 * time.Second) // so that what is made once is there
	z.quiet(good)
	before := z.use()
	z.let(15 * time.Second)
	z.quiet(good)
	z.expectReasons()
	var after use
	defer func() { t.Logf("edge before: %v, after: %v; visits: %s", before, after, z.visits()) }()
	eventually(t, "the edge gives back what the zoo took", func() bool {
		after = z.use()
		// The pool of connections to Redis keeps what the rush opened, up to ten for each processor.
		return after.heap < before.heap+8<<20 && after.goroutines < before.goroutines+10 && after.files < before.files+10+10*float64(runtime.NumCPU())
	})
	for _, stop := range leave {
		if err := stop(); err != nil {
			t.Error(err)
		}
	}
	expectPerfect(t, c, ck, file)
}

// expectPerfect stops feedsim, so that its truth is complete, and expects that
// all clients of a checker got what was promised.
func expectPerfect(t *testing.T, c *cluster.Cluster, ck *checker.Checker, file string) {
	t.Helper()
	if err := c.StopPart(t.Context(), "feedsim"); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	report, err := ck.Check(truth.NewReader(f))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("\n%s", report)
	if err := report.Err(); err != nil {
		t.Errorf("a good client suffered: %v", err)
	}
	for _, one := range report.Clients {
		if one.Expected == 0 {
			t.Errorf("%s got no event", one.Name)
		}
	}
}

// listen notes for a checker all that a socket receives, in a goroutine of its
// own, until leave is called or the socket ends, which is an error.
func listen(s *client, c *checker.Client) (leave func() error) {
	_ = s.conn.SetWriteDeadline(time.Time{}) // it may stay for longer than other tests
	var leaving atomic.Bool
	done := make(chan error, 1)
	go func() {
		defer close(done) // also if the client gives up the test
		for !leaving.Load() {
			batch, err := s.events(patience)
			if err != nil {
				done <- fmt.Errorf("a good client: %w", err)
				return
			}
			for _, e := range batch {
				note(c, e)
			}
		}
	}()
	return func() error {
		leaving.Store(true)
		return <-done
	}
}

// note tells a checker of one object.
func note(c *checker.Client, e event) {
	topic, acknowledged := strings.CutPrefix(e.Message, "subscribed to: ")
	switch {
	case e.Ev != "status":
		c.Event([]byte(e.raw))
	case e.Status == "success" && acknowledged:
		c.Subscribed(topic, time.Time{})
	case e.Status == "gap":
		var to time.Time
		from, _ := time.Parse(time.RFC3339Nano, e.From) // null is the zero time
		if e.To != nil {
			to, _ = time.Parse(time.RFC3339Nano, *e.To)
		}
		c.Gap(from, to)
	}
}

// zoo is the hostile clients of one edge.
type zoo struct {
	t          *testing.T
	c          *cluster.Cluster
	edge       string
	operations string
	counts     sync.Map      // name of an animal → *atomic.Int64, its visits
	turn       atomic.Uint64 // next way to break the protocol
}

// animal is one visit of a hostile client; it ends when the edge has had enough
// of it, or the context ends.
type animal func(ctx context.Context, z *zoo, key string) error

var animals = map[string]animal{
	"bad frames":                    badFrames,
	"flood of messages":             flood(message("subscribe", "T.AAPL,Q.*")),
	"flood of nonsense":             flood(masked(true, ws.OpText, []byte("]["))),
	"flood of pings":                flood(masked(true, ws.OpPing, []byte("ping"))),
	"flood without reading":         floodUnread,
	"flapping subscriptions":        flapping,
	"half-open":                     halfOpen,
	"half a handshake":              halfHandshake,
	"100,000 topics in one message": flood(message("subscribe", strings.Repeat("T.A,", 100_000))),
	"100,000 topics in many":        manyTopics,
	"never-ending small fragments":  fragments(0),
	"never-ending slow fragments":   fragments(400 * time.Millisecond),
	"comes and goes":                comesAndGoes,
}

// reasons are the labels of closes that the animals must have caused.
var reasons = []string{"protocol_error", "command_rate", "bad_commands", "control_rate", "message_too_big", "too_many_fragments", "message_timeout", "slow_consumer"}

// ofAKind is how many of each animal there are, each with a user of its own.
const ofAKind = 3

// let runs all animals for a time.
func (z *zoo) let(d time.Duration) {
	z.t.Helper()
	ctx, cancel := context.WithTimeout(z.t.Context(), d)
	defer cancel()
	var group sync.WaitGroup
	keys := z.c.Info().Users
	for name, visit := range animals {
		count, _ := z.counts.LoadOrStore(name, new(atomic.Int64))
		for range ofAKind {
			key := keys[0]
			keys = keys[1:]
			group.Go(func() {
				for ctx.Err() == nil {
					if err := visit(ctx, z, key); err == nil {
						count.(*atomic.Int64).Add(1)
					}
				}
			})
		}
	}
	group.Wait()
}

// visits tells how often each animal was there. It is an error if one never got
// as far as it should.
func (z *zoo) visits() string {
	z.t.Helper()
	var text []string
	for name := range animals {
		n := int64(0)
		if count, there := z.counts.Load(name); there {
			n = count.(*atomic.Int64).Load()
		}
		if n == 0 {
			z.t.Errorf("%s: never got as far as it should", name)
		}
		text = append(text, fmt.Sprintf("%s %d", name, n))
	}
	slices.Sort(text)
	return strings.Join(text, ", ")
}

// quiet waits until only the good clients are connected.
func (z *zoo) quiet(good int) {
	z.t.Helper()
	eventually(z.t, "the zoo is gone", func() bool {
		return gauge(z.t, z.operations+"/metrics", "relay_edge_connections") == float64(good) &&
			gauge(z.t, z.operations+"/metrics", "relay_edge_handshakes") == 0
	})
}

func (z *zoo) expectReasons() {
	z.t.Helper()
	metrics := get(z.t, z.operations+"/metrics")
	for _, reason := range reasons {
		if !counted(metrics, "relay_edge_closes_total", reason) {
			z.t.Errorf("no socket was closed for %s", reason)
		}
	}
}

// use is what an edge uses once its garbage is gone.
type use struct{ heap, goroutines, files float64 }

func (u use) String() string {
	return fmt.Sprintf("%.1f MiB, %.0f goroutines, %.0f files", u.heap/(1<<20), u.goroutines, u.files)
}

func (z *zoo) use() use {
	z.t.Helper()
	for range 2 { // what a pool holds is let go by the second collection
		get(z.t, z.operations+"/debug/pprof/heap?gc=1")
	}
	of := func(name string) float64 { return gauge(z.t, z.operations+"/metrics", name) }
	return use{of("go_memstats_heap_inuse_bytes"), of("go_goroutines"), of("process_open_fds")}
}

var errNotIn = errors.New("not let in")

// enter opens a socket and waits until it is accepted. The context ends it.
func (z *zoo) enter(ctx context.Context, key string) (net.Conn, *bufio.Reader, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", host(z.edge))
	if err != nil {
		return nil, nil, err
	}
	context.AfterFunc(ctx, func() { _ = conn.Close() })
	if _, err := conn.Write(request("/v1/ws/stocks", host(z.edge), bearer(key))); err != nil {
		return nil, nil, errors.Join(err, conn.Close())
	}
	in := bufio.NewReader(conn)
	res, err := http.ReadResponse(in, nil)
	if err != nil || res.StatusCode != http.StatusSwitchingProtocols {
		return nil, nil, errors.Join(errNotIn, err, conn.Close())
	}
	for _, want := range []string{connected, authenticated} {
		if f, err := readFrame(in); err != nil || string(f.Payload) != want {
			return nil, nil, errors.Join(errNotIn, err, conn.Close())
		}
	}
	return conn, in, nil
}

// ended waits until the edge ends a connection. It is an error if the context
// ends before.
func ended(ctx context.Context, conn net.Conn, in io.Reader) error {
	_, _ = io.Copy(io.Discard, in)
	return errors.Join(ctx.Err(), conn.Close())
}

// badFrames breaks the protocol, in another way at each visit.
func badFrames(ctx context.Context, z *zoo, key string) error {
	start := masked(false, ws.OpText, []byte("x"))
	bad := [][]byte{
		ws.MustCompileFrame(ws.NewTextFrame([]byte("unmasked"))),
		headed(0xc1, "x"), headed(0x83, "x"), length64(1 << 62), length64(5),
		append(start, start...), masked(true, ws.OpBinary, []byte("x")), masked(true, ws.OpText, []byte("\xff\xfe")),
		masked(true, ws.OpClose, closeBody(1006, "")), bytes.Repeat([]byte{0xff}, 4096),
	}
	conn, in, err := z.enter(ctx, key)
	if err != nil {
		return err
	}
	_, _ = conn.Write(bad[z.turn.Add(1)%uint64(len(bad))])
	return ended(ctx, conn, in)
}

// flood says the same as fast as it can and reads whatever comes.
func flood(what []byte) animal {
	many := bytes.Repeat(what, max(1, 16<<10/len(what)))
	return func(ctx context.Context, z *zoo, key string) error {
		conn, in, err := z.enter(ctx, key)
		if err != nil {
			return err
		}
		go func() {
			for {
				if _, err := conn.Write(many); err != nil {
					return
				}
			}
		}()
		return ended(ctx, conn, in)
	}
}

// floodUnread makes the edge say much and reads nothing of it.
func floodUnread(ctx context.Context, z *zoo, key string) error {
	conn, _, err := z.enter(ctx, key)
	if err != nil {
		return err
	}
	list := message("subscribe", strings.Repeat("ZZ.A,", 1000))
	for ctx.Err() == nil && err == nil {
		_, err = conn.Write(list)
	}
	return errors.Join(ctx.Err(), conn.Close())
}

// flapping subscribes and unsubscribes as often as it may, and reads.
func flapping(ctx context.Context, z *zoo, key string) error {
	conn, in, err := z.enter(ctx, key)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	go func() { _, _ = io.Copy(io.Discard, in) }()
	for ticker := time.NewTicker(time.Second / 18); ; {
		for _, action := range []string{"subscribe", "unsubscribe"} {
			select {
			case <-ctx.Done():
				ticker.Stop()
				return nil
			case <-ticker.C:
			}
			if _, err := conn.Write(message(action, "T.*,Q.*,A.*,AM.*")); err != nil {
				return err
			}
		}
	}
}

// halfOpen wants everything, reads nothing and is never heard of again.
func halfOpen(ctx context.Context, z *zoo, key string) error {
	conn, in, err := z.enter(ctx, key)
	if err != nil {
		return err
	}
	_ = conn.(*net.TCPConn).SetLinger(0) // it will end with a reset
	if _, err := conn.Write(message("subscribe", "T.*,Q.*,A.*")); err != nil {
		return err
	}
	if _, err := readFrame(in); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// halfHandshake begins a handshake and does not go on.
func halfHandshake(ctx context.Context, z *zoo, key string) error {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", host(z.edge))
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { _ = conn.Close() })
	whole := request("/v1/ws/stocks", host(z.edge), bearer(key))
	if _, err := conn.Write(whole[:len(whole)/2]); err != nil {
		return err
	}
	_, _ = io.Copy(io.Discard, conn)
	return conn.Close()
}

// manyTopics subscribes to 1,000 topics a message, a hundred times over.
func manyTopics(ctx context.Context, z *zoo, key string) error {
	conn, in, err := z.enter(ctx, key)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	go func() { _, _ = io.Copy(io.Discard, in) }()
	ticker := time.NewTicker(time.Second / 18)
	defer ticker.Stop()
	for n := range 100 {
		var topics strings.Builder
		for i := range 1000 {
			fmt.Fprintf(&topics, "T.A%d,", 1000*n+i)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		if _, err := conn.Write(message("subscribe", topics.String())); err != nil {
			return err
		}
	}
	return nil
}

// fragments begins a message and never ends it.
func fragments(interval time.Duration) animal {
	return func(ctx context.Context, z *zoo, key string) error {
		conn, in, err := z.enter(ctx, key)
		if err != nil {
			return err
		}
		go func() {
			part := masked(false, ws.OpText, []byte("x"))
			for {
				if _, err := conn.Write(part); err != nil {
					return
				}
				part = masked(false, ws.OpContinuation, []byte("x"))
				select {
				case <-ctx.Done():
					return
				case <-time.After(interval):
				}
			}
		}()
		return ended(ctx, conn, in)
	}
}

// comesAndGoes leaves without a word as soon as it is in.
func comesAndGoes(ctx context.Context, z *zoo, key string) error {
	conn, _, err := z.enter(ctx, key)
	if err != nil {
		return err
	}
	_ = conn.(*net.TCPConn).SetLinger(0)
	_, _ = conn.Write(message("subscribe", "T.*"))
	return conn.Close()
}
