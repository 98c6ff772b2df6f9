//go:build long && linux

package e2e

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cutemarkets/relay/hack/benchedge/operations"
	"github.com/cutemarkets/relay/hack/benchedge/process"
	"github.com/cutemarkets/relay/hack/cluster"
	"github.com/cutemarkets/relay/hack/feedsim/tape"
	"github.com/cutemarkets/relay/hack/loadtest/fleet"
)

const (
	soakTickers = 200
	soakRate    = 500 // events per second of the vendor
	churnShare  = 20  // one client in so many comes back each second
	flapShare   = 20  // one in so many changes its topics each second
	flapTopics  = 5   // that it adds or drops
	soakTick    = 50 * time.Millisecond
	soakLooks   = 200 // at the memory, over the whole time
)

// TestSoak lets clients come and go, subscribe and unsubscribe, while the
// upstream is lost each minute. When all have left, what the programs hold is
// what they held before, and meanwhile their memory did not grow.
//
// Before is after a first such round: pools of connections, caches of keys and
// arrays have grown by then to what this load needs, and stay.
func TestSoak(t *testing.T) {
	profiles := []string{"--pprof"}
	marketed := []string{"--pprof", "--markets=stocks"}
	c, client := startForCrew(t, *soakClients, cluster.Options{Edges: 2, Rate: soakRate, Args: map[string][]string{
		"edge": marketed, "fanout": marketed, "auth": profiles,
	}})
	s := &soak{t: t, Cluster: c, locks: client, rss: map[string][]int64{}, tickers: tape.Tickers(tape.Stocks, soakTickers)}
	s.crew = newCrew(t, c.Info().Edges, c.Info().Users, func(tag int) string { return "T." + s.tickers[tag%len(s.tickers)] })

	cold := s.look()
	s.round(*soakTime / 20)
	clear(s.rss)
	before := s.settled(nil)
	s.round(*soakTime)
	after := s.settled(before)
	for _, name := range slices.Sorted(maps.Keys(before)) {
		t.Logf("%-9s at the start %+v\n%10s before       %+v\n%10s after        %+v", name, cold[name], "", before[name], "", after[name])
	}
	s.compare(before, after)
	s.drift()
	if ends := s.crew.endings(); len(ends) > 0 || len(s.crew.unexpected) > 0 {
		t.Errorf("connections ended that clients did not end: %v; unexpected: %v", ends, s.crew.unexpected)
	}
	t.Logf("%d connections, %d events, %d gap notices", s.crew.joined, s.crew.events, s.crew.gaps)
}

// soak is a relay with a crew.
type soak struct {
	*cluster.Cluster

	t       *testing.T
	crew    *crew
	locks   *redis.Client
	tickers []string
	rss     map[string][]int64 // of each program, over the time
}

// round has everybody come, do what clients do for a while, and leave.
func (s *soak) round(d time.Duration) {
	s.t.Helper()
	s.crew.join(time.Duration(len(s.crew.keys)) * 2 * time.Millisecond)
	s.crew.mu.Lock()
	s.crew.back = true
	s.crew.mu.Unlock()
	done := make(chan struct{})
	var busy sync.WaitGroup
	busy.Go(func() { s.comeAndGo(done) })
	losses := time.NewTicker(min(time.Minute, d/3))
	defer losses.Stop()
	looks := time.NewTicker(d / soakLooks)
	defer looks.Stop()
	for end := time.After(d); ; {
		select {
		case <-losses.C:
			post(s.t, s.Info().Feedsim+"/drop?market=stocks")
		case <-looks.C:
			for name, pid := range s.pids() {
				rss, err := process.RSS(pid)
				if err != nil {
					s.t.Fatal(err)
				}
				s.rss[name] = append(s.rss[name], rss)
			}
		case <-end:
			close(done)
			busy.Wait()
			s.crew.await("events still come", patience, s.moreEvents())
			s.crew.leave()
			return
		}
	}
}

// moreEvents says whether events came since the call.
func (s *soak) moreEvents() func() bool {
	s.crew.mu.Lock()
	defer s.crew.mu.Unlock()
	before := s.crew.events
	return func() bool { return s.crew.events > before }
}

// comeAndGo closes connections, whose clients come back, and changes topics.
func (s *soak) comeAndGo(done <-chan struct{}) {
	ticker := time.NewTicker(soakTick)
	defer ticker.Stop()
	begin := time.Now()
	added := map[*fleet.Conn]string{} // what they subscribed to and have not dropped
	closed, changed := 0, 0
	for {
		select {
		case <-done:
			return
		case <-ticker.C:
		}
		due := int(time.Since(begin).Seconds() * float64(len(s.crew.keys)))
		for ; closed < due/churnShare; closed++ {
			if conn := s.crew.some(); conn != nil {
				delete(added, conn)
				s.crew.fleet.Close(conn, 1000)
			}
		}
		for ; changed < due/flapShare; changed++ {
			conn := s.crew.some()
			if conn == nil {
				continue
			}
			action, topics := "unsubscribe", added[conn]
			if delete(added, conn); topics == "" {
				action, topics = "subscribe", s.someTopics()
				added[conn] = topics
			}
			s.crew.fleet.Say(conn, fmt.Sprintf(`{"action":%q,"params":%q}`, action, topics))
		}
	}
}

func (s *soak) someTopics() string {
	var topics []string
	for range flapTopics {
		topics = append(topics, []string{"Q.", "T.", "AM."}[rand.IntN(3)]+s.tickers[rand.IntN(len(s.tickers))])
	}
	return strings.Join(append(topics, "A.*"), ",")
}

// holdings is what a program holds.
type holdings struct {
	Goroutines, Files, Heap, Topics, Connections, Locks int
}

// pids are those of the programs of the relay.
func (s *soak) pids() map[string]int {
	pids := s.Info().Pids
	delete(pids, "feedsim")
	return pids
}

// look takes down what each program holds, the heap after two collections.
func (s *soak) look() map[string]holdings {
	s.t.Helper()
	all := map[string]holdings{}
	for name, pid := range s.pids() {
		listener := operations.New(s.Info().Operations[name])
		heap, err := listener.Heap(s.t.Context())
		if err != nil {
			s.t.Fatal(err)
		}
		m, err := listener.Metrics(s.t.Context())
		if err != nil {
			s.t.Fatal(err)
		}
		files, err := process.Descriptors(pid)
		if err != nil {
			s.t.Fatal(err)
		}
		all[name] = holdings{
			Goroutines: int(m.Sum("go_goroutines")), Files: files, Heap: int(heap.Live),
			Topics:      int(m.Sum("relay_edge_feed_topics") + m.Sum("relay_fanout_interest_topics")),
			Connections: int(m.Sum("relay_edge_connections")), Locks: int(m.Sum("relay_edge_locks")),
		}
	}
	return all
}

// settled looks when nothing is left of the clients, and, if there is something
// to compare with, waits a while for the rest: a socket that closes lingers.
func (s *soak) settled(before map[string]holdings) map[string]holdings {
	s.t.Helper()
	var now map[string]holdings
	eventually(s.t, "connections, subscriptions and locks are gone", func() bool {
		now = s.look()
		for _, h := range now {
			if h.Topics+h.Connections+h.Locks > 0 {
				return false
			}
		}
		return locks(s.t, s.locks) == 0
	})
	for deadline := time.Now().Add(patience); before != nil && time.Now().Before(deadline); time.Sleep(time.Second) {
		if now = s.look(); len(exceeding(before, now)) == 0 {
			break
		}
	}
	return now
}

// What a program may hold more than before.
const (
	// A request of the operations listener under way, and the kept connections of
	// those before it.
	moreGoroutines = 8
	// The heap is measured while the program runs: timers, buffers of its
	// heartbeats and what fragments of arrays hold.
	moreHeap = 1 << 20
)

// moreFiles: the pool of connections to Redis grows to ten for each processor.
var moreFiles = 10*runtime.GOMAXPROCS(0) + 4

// exceeding says what is held beyond what was before.
func exceeding(before, now map[string]holdings) []string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(before)) {
		b, n := before[name], now[name]
		check := func(what string, now, most int) {
			if now > most {
				out = append(out, fmt.Sprintf("%s: %s: %d, want at most %d", name, what, now, most))
			}
		}
		check("goroutines", n.Goroutines, b.Goroutines+moreGoroutines)
		check("open files", n.Files, b.Files+moreFiles)
		check("bytes of live heap", n.Heap, b.Heap+max(moreHeap, b.Heap/10))
	}
	return out
}

func (s *soak) compare(before, after map[string]holdings) {
	s.t.Helper()
	for _, text := range exceeding(before, after) {
		s.t.Error(text)
		name, _, _ := strings.Cut(text, ":")
		stacks, err := operations.New(s.Info().Operations[name]).Stacks(s.t.Context())
		s.t.Logf("goroutines of %s (%v):\n%.5000s", name, err, stacks)
	}
}

// drift compares the memory of the third quarter of the time with that of the
// last one: it goes up and down with collections, and must not rise.
func (s *soak) drift() {
	s.t.Helper()
	for _, name := range slices.Sorted(maps.Keys(s.rss)) {
		rss := s.rss[name]
		third, last := mean(rss[len(rss)/2:len(rss)*3/4]), mean(rss[len(rss)*3/4:])
		s.t.Logf("%-9s RSS, first quarter %.1f MB, third %.1f MB, last %.1f MB", name, mean(rss[:len(rss)/4])/1e6, third/1e6, last/1e6)
		if last > third*1.05+2e6 {
			s.t.Errorf("%s: RSS rose from %.1f MB in the third quarter to %.1f MB in the last one", name, third/1e6, last/1e6)
		}
	}
}

func mean(values []int64) float64 {
	sum := 0.0
	for _, v := range values {
		sum += float64(v)
	}
	return sum / float64(max(len(values), 1))
}
