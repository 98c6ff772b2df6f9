//go:build linux

package floor

import (
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cutemarkets/relay/hack/benchedge/shape"
	"github.com/cutemarkets/relay/hack/loadtest/fleet"
	"github.com/cutemarkets/relay/hack/loadtest/fleet/wire"
)

// client collects what each connection gets.
type client struct {
	t      *testing.T
	mu     sync.Mutex
	ready  int
	events map[int][]string
	change chan struct{}
}

func (c *client) changed() {
	select {
	case c.change <- struct{}{}:
	default:
	}
}

func (c *client) Ready(*fleet.Conn, fleet.Times) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ready++
	c.changed()
}

func (c *client) Event(conn *fleet.Conn, raw []byte, _ int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.events[conn.Tag()] = append(c.events[conn.Tag()], string(raw))
	c.changed()
}

func (c *client) Status(_ *fleet.Conn, status, message string, _ []byte) {
	c.t.Errorf("status %s %s", status, message)
}

func (c *client) Misframed(_ *fleet.Conn, fault wire.Fault, raw []byte) {
	c.t.Errorf("misframed: %s %q", fault, raw)
}

func (c *client) Closed(_ *fleet.Conn, e fleet.End) {
	if e.Reason != fleet.ReasonStopped {
		c.t.Errorf("closed: %+v", e)
	}
}

func (c *client) Round(time.Duration) {}

// await waits until ok holds.
func (c *client) await(what string, ok func() bool) {
	c.t.Helper()
	timeout := time.After(30 * time.Second)
	for {
		c.mu.Lock()
		done := ok()
		c.mu.Unlock()
		if done {
			return
		}
		select {
		case <-c.change:
		case <-timeout:
			c.t.Fatalf("%s: not after 30 s", what)
		}
	}
}

// start runs a floor and clients with these topics each.
func start(t *testing.T, o Options, topics [][]int) (c *client, publisher net.Conn, control *os.File) {
	t.Helper()
	in, control, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	addresses := make(chan [2]string, 1)
	o.Control, o.Listening = in, func(clients, publisher string) { addresses <- [2]string{clients, publisher} }
	floorEnded, fleetEnded := make(chan error, 1), make(chan error, 1)
	go func() {
		dropped, err := Run(o)
		if err == nil && dropped > 0 {
			err = fmt.Errorf("%d writes were dropped", dropped)
		}
		floorEnded <- err
	}()
	address := <-addresses
	target, err := fleet.NewTarget(t.Context(), "ws://"+address[0]+"/stocks")
	if err != nil {
		t.Fatal(err)
	}
	c = &client{t: t, events: map[int][]string{}, change: make(chan struct{}, 1)}
	f, err := fleet.New(c, fleet.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() { fleetEnded <- f.Run(ctx) }()
	for i, list := range topics {
		if err := f.Open(fleet.Plan{Scheduled: time.Now(), Target: target, Topics: shape.TopicList(list), Tag: i}); err != nil {
			t.Fatal(err)
		}
	}
	c.await("all are ready", func() bool { return c.ready == len(topics) })
	if publisher, err = net.Dial("tcp", address[1]); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		if err := <-fleetEnded; err != nil {
			t.Error(err)
		}
		_ = publisher.Close()
		_ = control.Close()
		if err := <-floorEnded; err != nil {
			t.Error(err)
		}
		_ = in.Close()
	})
	return c, publisher, control
}

func TestDelivery(t *testing.T) {
	topics := [][]int{{0}, {0, 1}, {1999}, make([]int, 0, 20)}
	for i := range cap(topics[3]) {
		topics[3] = append(topics[3], i)
	}
	for _, mode := range []Mode{Write, Writev} {
		t.Run(string(mode), func(t *testing.T) {
			c, publisher, _ := start(t, Options{Mode: mode}, topics)
			want := map[int][]string{}
			const events = 3 * maxPending
			total := 0
			var lines []byte
			for n := range events {
				topic := []int{0, 1, 1999, 7, 0}[n%5]
				event := shape.AppendEvent(nil, topic, n, 1778851800000000000+int64(n))
				lines = append(append(append(shape.AppendSymbol(lines, topic), ' '), event...), '\n')
				for i, list := range topics {
					if slices.Contains(list, topic) {
						want[i] = append(want[i], string(event))
						total++
					}
				}
			}
			cut := len(lines)/2 + 17 // a line comes in two parts
			for _, part := range [][]byte{lines[:cut], lines[cut:]} {
				if _, err := publisher.Write(part); err != nil {
					t.Fatal(err)
				}
			}
			c.await("all events", func() bool {
				n := 0
				for _, events := range c.events {
					n += len(events)
				}
				return n >= total
			})
			for i := range topics {
				if !slices.Equal(c.events[i], want[i]) {
					t.Errorf("connection %d got %d events, want %d, or in another order", i, len(c.events[i]), len(want[i]))
				}
			}
		})
	}
}

func TestBareLoop(t *testing.T) {
	c, _, control := start(t, Options{Mode: Write, Interval: time.Millisecond}, [][]int{{0}, {1}, {0}})
	if _, err := control.Write([]byte{'b'}); err != nil {
		t.Fatal(err)
	}
	c.await("events of the bare loop", func() bool { return len(c.events[0]) > 5 && len(c.events[2]) > 5 })
	if _, err := control.Write([]byte{'b'}); err != nil {
		t.Fatal(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.events[1]) > 0 {
		t.Error("events for a subscriber of another topic")
	}
	if _, ok := shape.Stamp([]byte(c.events[0][0])); !ok {
		t.Errorf("an event without a stamp: %s", c.events[0][0])
	}
}

func TestBadLines(t *testing.T) {
	for _, line := range []string{"", "X0000 {}", "S0000 short"} {
		s := &server{mode: Write}
		if s.event([]byte(line)) == nil {
			t.Errorf("%q was taken", line)
		}
	}
}

// TestAllocations: nothing is allocated for an event or a delivery, also when
// sockets are full.
func TestAllocations(t *testing.T) {
	for _, mode := range []Mode{Write, Writev} {
		s := newServer(Options{Mode: mode})
		for range 10 {
			pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(pair[0])
			defer unix.Close(pair[1])
			s.subscribers[7] = append(s.subscribers[7], int32(pair[0]))
		}
		line := append(shape.AppendEvent([]byte("S0007 "), 7, 1, 1778851800000000000), '\n')
		if n := testing.AllocsPerRun(1000, func() {
			for range 3 {
				if err := s.event(line[:len(line)-1]); err != nil {
					t.Fatal(err)
				}
			}
			s.flush()
		}); n != 0 {
			t.Errorf("%s: %v allocations for 3 events", mode, n)
		}
		if s.dropped == 0 {
			t.Errorf("%s: full sockets were not counted", mode)
		}
	}
}
