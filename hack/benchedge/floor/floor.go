//go:build linux

// Package floor is the cheapest server that can send a shape's events to
// WebSocket clients: what the kernel itself costs, beside which an edge is
// judged. It owns its sockets and nothing else.
//
// It is one goroutine over one level-triggered epoll, with raw non-blocking
// system calls, arrays indexed by file descriptor, and no pointer, map or
// allocation per delivery. It is no server for anything else: the answer to an
// upgrade is a constant, a request or message that does not arrive whole ends
// its connection, and what a full socket does not take is dropped and counted.
// Nothing is queued beyond one flush: maxPending events for each connection
// and maxFrames in all, after which it flushes early.
package floor

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cutemarkets/relay/hack/benchedge/shape"
)

// Mode is how a floor writes.
type Mode string

// The modes.
const (
	Write  Mode = "write"  // one write for each frame and subscriber, as the event is read
	Writev Mode = "writev" // one writev for each touched connection, when the publisher's input is used up
)

// Options say what a floor does.
type Options struct {
	Mode Mode
	// Control ends the floor when it ends. Each byte of it begins or ends a bare
	// loop of write, without a publisher, over the subscribers of topic 0.
	Control  *os.File
	Interval time.Duration // between two rounds of the bare loop
	// Listening is told the addresses for clients and for the publisher.
	Listening func(clients, publisher string)
}

const (
	maxFD      = 32_768  // file descriptors
	maxFrames  = 65_536  // of one flush
	frameSlot  = 256     // bytes that are set aside for a frame
	maxPending = 64      // frames that wait for one connection
	inputSize  = 1 << 16 // bytes that are read at once
	waitEvents = 256
	maxAccepts = 64
	backlog    = 4096
)

// What a file descriptor is.
const (
	unknown uint8 = iota
	listener
	publisherListener
	publisher
	control
	upgrading
	open
	ended
)

// server is a running floor. All of it is owned by Run; not thread-safe.
type server struct {
	mode  Mode
	epoll int
	kinds [maxFD]uint8

	subscribers [shape.MaxTopics][]int32
	input       []byte
	carried     int    // bytes of an incomplete line at the beginning of input
	ack         []byte // scratch
	dropped     int    // writes that a full socket did not take whole

	// Frames of this flush.
	frames  []byte // maxFrames slots
	lengths [maxFrames]uint16
	used    int

	// Which of them wait for whom.
	pending []uint16 // maxPending slots of each file descriptor
	waiting [maxFD]uint8
	dirty   []int32
	vector  [maxPending]iovec

	// The bare loop.
	bare     bool
	interval time.Duration
	next     time.Time
	rounds   int
}

// iovec is the kernel's, without a pointer: frames never move.
type iovec struct {
	base   uintptr
	length uint64
}

var errEnd = errors.New("floor: its control ended")

// Run serves until its control ends. It returns how many writes a full socket
// did not take whole: the figures of such a run are too good.
func Run(o Options) (dropped int, err error) {
	s := newServer(o)
	if s.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return 0, fmt.Errorf("floor: epoll: %w", err)
	}
	defer s.close()
	clients, err := s.listen(listener)
	if err != nil {
		return 0, err
	}
	publishers, err := s.listen(publisherListener)
	if err != nil {
		return 0, err
	}
	if err := s.watch(int(o.Control.Fd()), control); err != nil {
		return 0, err
	}
	o.Listening(clients, publishers)
	if err := s.serve(); !errors.Is(err, errEnd) {
		return 0, err
	}
	return s.dropped, nil
}

func newServer(o Options) *server {
	return &server{
		mode: o.Mode, interval: o.Interval,
		input: make([]byte, inputSize), frames: make([]byte, maxFrames*frameSlot),
		pending: make([]uint16, maxFD*maxPending), dirty: make([]int32, 0, maxFD),
	}
}

func (s *server) listen(kind uint8) (address string, err error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("floor: socket: %w", err)
	}
	if err := errors.Join(
		unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}),
		unix.Listen(fd, backlog),
		s.watch(fd, kind),
	); err != nil {
		return "", fmt.Errorf("floor: listen: %w", err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return "", fmt.Errorf("floor: listen: %w", err)
	}
	in, ok := name.(*unix.SockaddrInet4)
	if !ok {
		return "", errors.New("floor: listen: the address is not IPv4")
	}
	return net.JoinHostPort("127.0.0.1", fmt.Sprint(in.Port)), nil
}

func (s *server) watch(fd int, kind uint8) error {
	if fd >= maxFD {
		return fmt.Errorf("floor: more than %d file descriptors", maxFD)
	}
	s.kinds[fd] = kind
	return unix.EpollCtl(s.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)})
}

func (s *server) close() {
	for fd, kind := range s.kinds {
		if kind != unknown && kind != control {
			_ = unix.Close(fd)
		}
	}
	_ = unix.Close(s.epoll)
}

func (s *server) serve() error {
	var events [waitEvents]unix.EpollEvent
	for {
		n, err := unix.EpollWait(s.epoll, events[:], s.timeout())
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("floor: epoll: %w", err)
		}
		for i := range max(n, 0) {
			if err := s.ready(int(events[i].Fd)); err != nil {
				return err
			}
		}
		if s.bare && !time.Now().Before(s.next) {
			s.round()
		}
	}
}

// timeout is how many milliseconds to wait at most; -1: as long as it takes.
func (s *server) timeout() int {
	if !s.bare {
		return -1
	}
	return int(max(time.Until(s.next)+time.Millisecond-1, 0) / time.Millisecond)
}

func (s *server) ready(fd int) error {
	switch s.kinds[fd] {
	case listener:
		return s.accept(fd, upgrading)
	case publisherListener:
		return s.accept(fd, publisher)
	case publisher:
		return s.publish(fd)
	case control:
		var command [1]byte
		if read(fd, command[:]) == 0 {
			return errEnd
		}
		s.bare, s.next = !s.bare, time.Now()
	case upgrading, open:
		s.client(fd)
	}
	return nil
}

func (s *server) accept(from int, kind uint8) error {
	for range maxAccepts {
		fd, _, errno := syscall.RawSyscall6(unix.SYS_ACCEPT4, uintptr(from), 0, 0, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
		switch errno {
		case 0:
		case unix.EAGAIN, unix.ECONNABORTED, unix.EINTR:
			return nil
		default:
			return fmt.Errorf("floor: accept: %w", errno)
		}
		if err := errors.Join(unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NODELAY, 1), s.watch(int(fd), kind)); err != nil {
			return fmt.Errorf("floor: accept: %w", err)
		}
	}
	return nil
}

// read returns 0 at the end of the input and at an error, -1 when there is none
// now.
func read(fd int, into []byte) int {
	n, _, errno := syscall.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&into[0])), uintptr(len(into))) //nolint:gosec // a raw call: the scheduler would cost more than the read
	switch errno {
	case 0:
		return int(n)
	case unix.EAGAIN, unix.EINTR:
		return -1
	default:
		return 0
	}
}

// write sends the same bytes to many.
func (s *server) write(b []byte, fds []int32) {
	size := uintptr(len(b))
	for _, fd := range fds {
		n, _, errno := syscall.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), size) //nolint:gosec // a raw call: that is what is measured
		if n != size {
			s.failed(errno)
		}
	}
}

// failed takes a write that did not take all; a client that is gone is none.
func (s *server) failed(errno syscall.Errno) {
	if errno == 0 || errno == unix.EAGAIN {
		s.dropped++
	}
}

// round is one of the bare loop.
func (s *server) round() {
	s.next = s.next.Add(s.interval)
	s.used = 0
	var event [shape.EventSize]byte
	frame := s.frame(shape.AppendEvent(event[:0], 0, s.rounds, time.Now().UnixNano()))
	s.rounds++
	s.write(s.bytes(frame), s.subscribers[0])
}
