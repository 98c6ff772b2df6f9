//go:build long

package engine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	farEvent = 150        // bytes
	farFirst = 500_000    // bytes of events per second at the start of the ramp
	farFull  = 12_000_000 // and at its end, and from there on
	farLeast = 10_000_000 // that the client gets
	farRamp  = 5 * time.Second
	farTime  = 10 * time.Second // at the full rate
	farBatch = 2 * time.Millisecond
	farPause = 500 * time.Millisecond // the longest without an event, at the full rate

	oneWay      = 40 * time.Millisecond
	pathPackets = 16 << 20 / pathMTU // on their way in one direction; what comes beyond is dropped
	pathMTU     = 1500

	edgeAddress, clientAddress = "192.168.80.1", "192.168.80.2"

	// farInside is set in the process that has namespaces of its own.
	farInside = "RELAY_TEST_FAR_INSIDE"
)

// TestClientFarAwayGetsItsRate serves a client 80 ms away more than 10 MB/s, by
// each congestion control of this system. The way is a delay of ours between two
// network namespaces, so the test runs itself again in a process that may make
// them. What it measures is speed: it is not parallel, and needs an idle processor
// and no race detector.
func TestClientFarAwayGetsItsRate(t *testing.T) {
	if os.Getenv(farInside) == "" {
		runInNamespaces(t)
		return
	}
	if err := ip("link", "set", "lo", "up"); err != nil {
		t.Fatal(err)
	}
	controls, err := os.ReadFile("/proc/sys/net/ipv4/tcp_available_congestion_control")
	if err != nil {
		t.Fatal(err)
	}
	for _, control := range strings.Fields(string(controls)) {
		t.Run(control, func(t *testing.T) { serveFarClient(t, control) })
	}
}

// runInNamespaces runs this test in a process that is root in a user namespace
// and a network namespace of its own.
func runInNamespaces(t *testing.T) {
	t.Helper()
	runtime.LockOSThread() // the process below ends with the thread that started it
	defer runtime.UnlockOSThread()
	again := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	again.Env = append(os.Environ(), farInside+"=1", "GOMAXPROCS=8", "GOGC=400") // the way and the client do not wait for the engine
	again.Stdout, again.Stderr = t.Output(), t.Output()
	again.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   unix.SIGKILL,
	}
	if err := again.Start(); err != nil {
		t.Fatalf("this system must allow user and network namespaces: %v", err)
	}
	if err := again.Wait(); err != nil {
		t.Fatal(err)
	}
}

// serveFarClient has an engine send to one client, ever more until it is the full
// rate, and then at that. BBR sends next to nothing for 0.3 s in ten seconds, to
// measure the round trip: 4 MB wait meanwhile.
func serveFarClient(t *testing.T, control string) {
	listener := listenWith(t, control)
	conn := dialFromAfar(t, listener.Addr().(*net.TCPAddr).Port)
	r := newRig(t, Epoll, nil)
	server := &httptest.Server{Listener: listener, Config: &http.Server{Handler: r.server.Config.Handler}}
	server.Start()
	t.Cleanup(server.Close)
	p := r.upgrade(conn)
	p.expect("hello", "welcome")
	trip := roundTrip(p)
	if trip < 2*oneWay || trip > 100*time.Millisecond {
		t.Fatalf("a round trip takes %v, want 80 to 100 ms: is this system too busy?", trip)
	}
	p.say("sub T.A")
	p.expect("ok T.A")

	var peak int64
	var sender sync.WaitGroup
	sender.Go(func() { peak = sendAll(t.Context(), r) })
	t.Cleanup(sender.Wait)
	rate, pause := receiveAll(p)
	sender.Wait()
	t.Logf("round trip %v: %.1f MB/s, the longest pause %v, at most %d KiB queued", trip, rate/1e6, pause, peak>>10)
	if rate < farLeast || pause > farPause {
		t.Errorf("got %.1f MB/s with a pause of %v, want at least %.1f MB/s and at most %v", rate/1e6, pause, farLeast/1e6, farPause)
	}
}

// roundTrip is how long a client waits for an answer, at best.
func roundTrip(p *peer) time.Duration {
	p.t.Helper()
	best := time.Hour
	for range 5 {
		start := time.Now()
		p.write(masked(0x89, ""))
		p.expect("pong ")
		best = min(best, time.Since(start))
	}
	return best
}

// farDue is how many events have been sent at a time after the start.
func farDue(at time.Duration) int {
	ramp, full := min(at, farRamp).Seconds(), min(max(0, at-farRamp), farTime).Seconds()
	bytes := farFirst*ramp + (farFull-farFirst)*ramp*ramp/(2*farRamp.Seconds()) + farFull*full
	return int(bytes / farEvent)
}

// farText is an event: its number.
func farText(number int) string { return fmt.Sprintf("%0*d", farEvent, number) }

// sendAll sends all events, each when it is due, and returns the most bytes that
// waited for the client.
func sendAll(ctx context.Context, r *rig) (peak int64) {
	ticker := time.NewTicker(farBatch)
	defer ticker.Stop()
	start := time.Now()
	for sent, all := 0, farDue(farRamp+farTime); sent < all; {
		var batch []event
		for due := farDue(time.Since(start)); sent < due; sent++ {
			batch = append(batch, event{farText(sent), "T.A", ""})
		}
		r.send(batch...)
		peak = max(peak, r.engine.shards[0].stats.queued.Load())
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return peak
		}
	}
	return peak
}

// receiveAll takes all events, each in its turn and nothing else, and returns the
// bytes per second at the full rate and the longest time without any.
func receiveAll(p *peer) (rate float64, pause time.Duration) {
	p.t.Helper()
	first, all := farDue(farRamp), farDue(farRamp+farTime)
	var start, last time.Time
	for seen := 0; seen < all; {
		text := p.next()
		if !strings.HasPrefix(text, "[") {
			p.t.Fatalf("told %q after %d of %d events", text, seen, all)
		}
		for _, got := range strings.Split(text[1:len(text)-1], ",") {
			if got != farText(seen) {
				p.t.Fatalf("got %q, want event %d", got, seen)
			}
			seen++
		}
		now := time.Now()
		switch {
		case seen < first:
		case start.IsZero():
			start, first = now, seen
		default:
			pause = max(pause, now.Sub(last))
		}
		last = now
	}
	return float64((all-first)*farEvent) / last.Sub(start).Seconds(), pause
}

// listenWith listens with a congestion control, which its connections inherit.
func listenWith(t *testing.T, control string) net.Listener {
	t.Helper()
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		failure := raw.Control(func(fd uintptr) {
			err = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, control)
		})
		return errors.Join(failure, err)
	}}
	listener, err := config.Listen(t.Context(), "tcp4", ":0")
	if err != nil {
		t.Fatalf("listen with congestion control %s: %v", control, err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	return listener
}

// dialFromAfar connects to a port of this namespace from another one, with a long
// way in between.
func dialFromAfar(t *testing.T, port int) (conn net.Conn) {
	t.Helper()
	here, err := openTUN(edgeAddress, clientAddress)
	if err != nil {
		t.Fatal(err)
	}
	var there *os.File
	var carriers sync.WaitGroup
	t.Cleanup(func() {
		_ = here.Close()
		_ = there.Close()
		carriers.Wait()
	})
	err = elsewhere(func() (err error) {
		if there, err = openTUN(clientAddress, edgeAddress); err != nil {
			return err
		}
		carry(t, &carriers, here, there)
		carry(t, &carriers, there, here)
		conn, err = net.DialTimeout("tcp4", net.JoinHostPort(edgeAddress, strconv.Itoa(port)), 10*time.Second)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// elsewhere calls f in a network namespace of its own, which stays as long as
// what f opened in it.
func elsewhere(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // until it ends, so that nothing else runs in that namespace
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("this system must allow network namespaces: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}

// openTUN makes a device of this thread's namespace. Who reads the file gets what is
// sent to the peer, and what is written to it comes in.
func openTUN(address, peer string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("this system must allow TUN devices: /dev/net/tun: %w", err)
	}
	const name = "far"
	request, err := unix.NewIfreq(name)
	if err == nil {
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("this system must allow TUN devices: %w", err), unix.Close(fd))
	}
	err = errors.Join(
		ip("address", "add", address, "peer", peer, "dev", name),
		ip("link", "set", name, "mtu", strconv.Itoa(pathMTU), "txqueuelen", strconv.Itoa(pathPackets), "up"),
	)
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), address), nil
}

// ip configures this thread's namespace.
func ip(args ...string) error {
	out, err := exec.Command("ip", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

// carry takes packets from one device to another until they are closed.
func carry(t *testing.T, carriers *sync.WaitGroup, from, to *os.File) {
	underway := make(chan packet, pathPackets)
	carriers.Go(func() { pickUp(t, from, underway) })
	carriers.Go(func() { bring(t, to, underway) })
}

// packet is a packet on its way.
type packet struct {
	due  time.Time
	data []byte
}

// pickUp takes packets from a device, and drops what there is no room for, as a
// router does.
func pickUp(t *testing.T, from *os.File, underway chan<- packet) {
	defer close(underway)
	for {
		data := make([]byte, pathMTU)
		n, err := from.Read(data)
		if err != nil {
			if !errors.Is(err, os.ErrClosed) {
				t.Error(err)
			}
			return
		}
		select {
		case underway <- packet{time.Now().Add(oneWay), data[:n]}:
		default:
		}
	}
}

// bring hands packets to a device when they are due. How late they came tells
// whether this system was too busy to be such a path.
func bring(t *testing.T, to *os.File, underway <-chan packet) {
	var late time.Duration
	for p := range underway {
		time.Sleep(time.Until(p.due))
		late = max(late, time.Since(p.due))
		if _, err := to.Write(p.data); err != nil && !errors.Is(err, os.ErrClosed) {
			t.Error(err)
		}
	}
	t.Logf("packets came to %s at most %v late", to.Name(), late)
}
