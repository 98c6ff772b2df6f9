//go:build long && linux

package e2e

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cutemarkets/relay/hack/cluster"
	"github.com/cutemarkets/relay/hack/loadtest/fleet"
	"github.com/cutemarkets/relay/hack/loadtest/fleet/wire"
)

// Sizes of the long tests, to be made smaller during development.
var (
	soakTime    = flag.Duration("soak", 20*time.Minute, "how long TestSoak takes")
	soakClients = flag.Int("soak-clients", 2_000, "clients of TestSoak")
	stopClients = flag.Int("stop-clients", 10_000, "clients of TestStop")
)

// perSource is how many clients have one address: with more, the kernel
// searches long for a free port.
const perSource = 5_000

// crew is many clients, each of a user of its own, on one goroutine.
type crew struct {
	// Static after construction.
	t       *testing.T
	fleet   *fleet.Fleet
	targets []*fleet.Target
	keys    []string
	topics  func(tag int) string

	mu sync.Mutex
	// Guarded by mu.
	changed    chan struct{} // closed at the next change
	back       bool          // who closed comes back
	live       []*fleet.Conn // by tag; nil: not ready
	ready      int
	joined     int // connections that became ready, all in all
	events     int
	gaps       int
	noticed    []bool // by tag: the drain was announced
	ends       []ending
	unexpected map[string]int
}

// ending is how a client's connection ended that it did not close itself.
type ending struct {
	at      time.Time
	noticed bool
	fleet.End
}

// newCrew makes the clients of edges, a key for each; they are not connected.
func newCrew(t *testing.T, edges, keys []string, topics func(tag int) string) *crew {
	t.Helper()
	c := &crew{
		t: t, keys: keys, topics: topics, changed: make(chan struct{}), live: make([]*fleet.Conn, len(keys)),
		noticed: make([]bool, len(keys)), unexpected: map[string]int{},
	}
	for _, edge := range edges {
		target, err := fleet.NewTarget(t.Context(), edge+"/v1/ws/stocks/")
		if err != nil {
			t.Fatal(err)
		}
		c.targets = append(c.targets, target)
	}
	var err error
	if c.fleet, err = fleet.New(c, fleet.Options{}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.fleet.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return c
}

// join connects everybody, over a while, and waits until all are ready.
func (c *crew) join(over time.Duration) {
	c.t.Helper()
	now := time.Now()
	for tag := range c.keys {
		c.open(tag, now.Add(over*time.Duration(tag)/time.Duration(len(c.keys))))
	}
	c.await("all clients are ready", over+time.Minute, func() bool { return c.ready == len(c.keys) })
}

// open is called from any goroutine.
func (c *crew) open(tag int, at time.Time) {
	p := fleet.Plan{Scheduled: at, Target: c.targets[tag%len(c.targets)], Key: c.keys[tag], Topics: c.topics(tag), Tag: tag}
	if tag >= perSource {
		p.Source = netip.AddrFrom4([4]byte{127, 0, 0, byte(1 + tag/perSource)})
	}
	if err := c.fleet.Open(p); err != nil {
		c.t.Errorf("client %d: %v", tag, err)
	}
}

// leave closes all connections and waits until all have ended.
func (c *crew) leave() {
	c.t.Helper()
	c.mu.Lock()
	c.back = false
	c.mu.Unlock()
	// Those on their way back become ready meanwhile.
	c.await("all clients have left", time.Minute, func() bool {
		for _, conn := range c.live {
			if conn != nil {
				c.fleet.Close(conn, 1000)
			}
		}
		s := c.fleet.Stats()
		return s.Waiting+s.Opening+s.Open == 0
	})
}

// await waits until ok, which is called with mu held.
func (c *crew) await(what string, most time.Duration, ok func() bool) {
	c.t.Helper()
	timeout := time.NewTimer(most)
	defer timeout.Stop()
	for {
		c.mu.Lock()
		is, changed := ok(), c.changed
		c.mu.Unlock()
		if is {
			return
		}
		tick := time.NewTimer(100 * time.Millisecond) // the counters of a fleet are those of its last round
		select {
		case <-changed:
		case <-tick.C:
		case <-timeout.C:
			c.mu.Lock()
			defer c.mu.Unlock()
			c.t.Fatalf("not within %s: %s; ready: %d of %d, unexpected: %v", most, what, c.ready, len(c.keys), c.unexpected)
		}
		tick.Stop()
	}
}

// some returns a client that is connected; nil: the one chosen is not.
func (c *crew) some() *fleet.Conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.live[rand.IntN(len(c.live))]
}

// note takes down something, and tells those who wait.
func (c *crew) note(do func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	do()
	close(c.changed)
	c.changed = make(chan struct{})
}

// Ready implements fleet.Handler.
func (c *crew) Ready(conn *fleet.Conn, _ fleet.Times) {
	c.note(func() {
		c.live[conn.Tag()], c.noticed[conn.Tag()] = conn, false
		c.ready++
		c.joined++
	})
}

// Event implements fleet.Handler.
func (c *crew) Event(*fleet.Conn, []byte, int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.events++
}

// Status implements fleet.Handler.
func (c *crew) Status(conn *fleet.Conn, status, message string, _ []byte) {
	c.note(func() {
		switch {
		case status == "gap":
			c.gaps++
		case status == "draining":
			c.noticed[conn.Tag()] = true
		case status == "success" && strings.HasPrefix(message, "unsubscribed to: "):
		default:
			c.unexpected["status "+status+" "+message]++
		}
	})
}

// Misframed implements fleet.Handler.
func (c *crew) Misframed(_ *fleet.Conn, fault wire.Fault, _ []byte) {
	c.note(func() { c.unexpected["misframed "+string(fault)]++ })
}

// backAfter is how long a client waits at least before it comes back.
const backAfter = time.Second

// Closed implements fleet.Handler.
func (c *crew) Closed(conn *fleet.Conn, e fleet.End) {
	if e.Reason == fleet.ReasonStopped {
		return
	}
	tag := conn.Tag()
	c.note(func() {
		if c.live[tag] != nil {
			c.live[tag] = nil
			c.ready--
		}
		if e.Reason != fleet.ReasonClosed {
			c.ends = append(c.ends, ending{time.Now(), c.noticed[tag], e})
		}
		if c.back {
			c.open(tag, time.Now().Add(backAfter+rand.N(backAfter)))
		}
	})
}

// Round implements fleet.Handler.
func (c *crew) Round(time.Duration) {}

// endings counts the connections that clients did not end themselves, by reason.
func (c *crew) endings() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	counts := map[string]int{}
	for _, e := range c.ends {
		counts[fmt.Sprintf("%s, close code %d, by %s at the stage %s, announced: %v", e.Reason, e.Code, e.By, e.Stage, e.noticed)]++
	}
	return counts
}

// locks counts the keys in Redis: there is nothing in it but locks.
func locks(t *testing.T, client *redis.Client) int {
	t.Helper()
	n, err := client.DBSize(t.Context()).Result()
	if err != nil {
		t.Fatal(err)
	}
	return int(n)
}

// startForCrew runs a cluster for a crew of users, on a Redis of its own.
func startForCrew(t *testing.T, users int, o cluster.Options) (*cluster.Cluster, *redis.Client) {
	t.Helper()
	o.Redis, _, _ = startRedis(t)
	o.Users, o.LogLevel = users, "warn"
	client := redis.NewClient(&redis.Options{Addr: o.Redis})
	t.Cleanup(func() { _ = client.Close() })
	return startCluster(t, o), client
}
