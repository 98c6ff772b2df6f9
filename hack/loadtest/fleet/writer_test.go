package fleet

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cutemarkets/relay/hack/loadtest/fleet/wire"
)

// The raw writer is a process of its own: this test program, with writerEnv set
// to the number of frames it writes in a second, all sockets together; 0: none.
const writerEnv = "FLEET_TEST_WRITER"

// perFrame is how many events a frame of the raw writer joins.
const perFrame = 20

const writerEvent = `{"ev":"T","sym":"S0001","x":4,"i":"12345","z":3,"p":187.231,"s":100,"c":[14,41],"t":1700000000000,"q":1000001,"ts":1700000000000000001}`

func writerWanted() bool { return os.Getenv(writerEnv) != "" }

// writer starts the raw writer and returns its URL.
func writer(t testing.TB, framesPerSecond int) string {
	t.Helper()
	command := exec.Command(os.Args[0])
	command.Env = append(os.Environ(), writerEnv+"="+strconv.Itoa(framesPerSecond))
	command.Stderr = os.Stderr
	in, err := command.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = command.Wait()
	})
	address, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return "ws://" + strings.TrimSpace(address) + "/"
}

// writeForever is the raw writer: it answers by constants and writes until its
// standard input ends.
func writeForever() error {
	rate, err := strconv.Atoi(os.Getenv(writerEnv))
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(ended)
	}()
	fds := make(chan int, 1<<15)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				if readRequest(conn) != nil {
					return
				}
				_, _ = io.WriteString(conn, accepted)
				raw, err := conn.(*net.TCPConn).SyscallConn()
				if err != nil {
					return
				}
				_ = raw.Control(func(fd uintptr) { fds <- int(fd) })
				_, _ = io.Copy(io.Discard, conn)
				if rate == 0 { // nobody writes to a descriptor that may be another one's by then
					_ = conn.Close()
				}
			}()
		}
	}()
	fmt.Println(listener.Addr())
	w := rawWriter{rests: map[int]string{}, frame: text("[" + strings.Repeat(writerEvent+",", perFrame-1) + writerEvent + "]")}
	for began := time.Now(); ; {
		select {
		case <-ended:
			return nil
		case fd := <-fds:
			w.fds = append(w.fds, fd)
			began, w.written = time.Now(), 0
			continue
		default:
		}
		due := int(time.Since(began).Seconds() * float64(rate))
		if len(w.fds) == 0 || w.written >= due {
			time.Sleep(time.Millisecond)
			continue
		}
		w.write(min(due-w.written, 1000))
	}
}

type rawWriter struct {
	frame   string
	fds     []int
	rests   map[int]string // what the kernel did not take
	next    int
	written int
}

func (w *rawWriter) write(frames int) {
	full := 0
	for range frames {
		fd := w.fds[w.next%len(w.fds)]
		w.next++
		rest := w.rests[fd]
		if rest == "" {
			rest = w.frame
			w.written++
		}
		n, err := syscall.Write(fd, []byte(rest))
		if err != nil && !errors.Is(err, syscall.EAGAIN) {
			n = len(rest)
		}
		if rest = rest[max(n, 0):]; rest == "" {
			delete(w.rests, fd)
			full = 0
			continue
		}
		w.rests[fd] = rest
		if full++; full == len(w.fds) {
			runtime.Gosched()
			return
		}
	}
}

// counter is a Handler that only counts.
type counter struct {
	ready  chan struct{}
	closed int
	events uint64
}

func (c *counter) Ready(*Conn, Times)                   { c.ready <- struct{}{} }
func (c *counter) Event(*Conn, []byte, int64)           { c.events++ }
func (c *counter) Status(*Conn, string, string, []byte) {}
func (c *counter) Misframed(*Conn, wire.Fault, []byte)  { panic("misframed") }
func (c *counter) Closed(*Conn, End)                    { c.closed++ }
func (c *counter) Round(time.Duration)                  {}

// connect opens connections and waits until they are ready.
func connect(t testing.TB, f *Fleet, c *counter, url string, count int) {
	t.Helper()
	to := target(t, url)
	for tag := range count {
		// The search for a free port takes the longer the fewer there are.
		source := netip.AddrFrom4([4]byte{127, 0, 1, byte(1 + tag/2000)})
		open(t, f, Plan{Target: to, Topics: "T.A", Source: source, Tag: tag})
	}
	for range count {
		select {
		case <-c.ready:
		case <-time.After(patience):
			t.Fatalf("not ready: %+v", f.Stats())
		}
	}
}
