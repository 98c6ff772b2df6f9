package fleet

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// waitEvents is how many sockets one wait reports at most.
const waitEvents = 256

// poller waits for sockets, edge-triggered: a socket that has been read to less
// than the room there was reports again when more has come, and the kernel does
// not look at it in between.
type poller struct {
	epoll, waker int
	events       [waitEvents]unix.EpollEvent
	ready        [waitEvents]readiness
}

// readiness is what one socket can do.
type readiness struct {
	fd                         int
	readable, writable, hangup bool
}

func newPoller() (*poller, error) {
	p := &poller{}
	var err error
	if p.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("fleet: epoll: %w", err)
	}
	if p.waker, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err == nil {
		err = p.add(p.waker)
	}
	if err != nil {
		return nil, fmt.Errorf("fleet: eventfd: %w", errors.Join(err, unix.Close(p.epoll)))
	}
	return p, nil
}

func (p *poller) add(fd int) error {
	return unix.EpollCtl(p.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{
		Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET, Fd: int32(fd),
	})
}

// wait waits for so many milliseconds at most; -1: as long as it takes. The
// result is valid until the next call.
func (p *poller) wait(ms int) ([]readiness, error) {
	n, err := unix.EpollWait(p.epoll, p.events[:], ms)
	if errors.Is(err, unix.EINTR) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("fleet: epoll: %w", err)
	}
	ready := p.ready[:0]
	for i := range n {
		e := &p.events[i]
		if e.Fd == int32(p.waker) {
			var count [8]byte
			_, _ = unix.Read(p.waker, count[:])
			continue
		}
		const hangup = unix.EPOLLRDHUP | unix.EPOLLHUP | unix.EPOLLERR
		ready = append(ready, readiness{int(e.Fd), e.Events&(unix.EPOLLIN|hangup) != 0, e.Events&unix.EPOLLOUT != 0, e.Events&hangup != 0})
	}
	return ready, nil
}

func (p *poller) wake() {
	_, _ = unix.Write(p.waker, []byte{1, 0, 0, 0, 0, 0, 0, 0})
}

func (p *poller) close() {
	_ = unix.Close(p.waker)
	_ = unix.Close(p.epoll)
}

// dial begins a connection.
func dial(to netip.AddrPort, from netip.Addr) (fd int, err error) {
	family := unix.AF_INET
	if !to.Addr().Is4() {
		family = unix.AF_INET6
	}
	fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err = bind(fd, to, from); err == nil {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	}
	if err == nil {
		err = unix.Connect(fd, sockaddr(to))
	}
	if err != nil && !errors.Is(err, unix.EINPROGRESS) {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// bind sets the source address and leaves the port to connect, which needs one
// that is free towards the target only.
func bind(fd int, to netip.AddrPort, from netip.Addr) error {
	if !from.IsValid() {
		return nil
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1); err != nil {
		return err
	}
	from = from.Unmap()
	if from.Is4() != to.Addr().Is4() || unix.Bind(fd, sockaddr(netip.AddrPortFrom(from, 0))) != nil {
		return errSource
	}
	return nil
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// connectError is the error of a connection that began.
func connectError(fd int) error {
	code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil || code == 0 {
		return err
	}
	return unix.Errno(code)
}

// bindLater makes a socket of the standard library choose its port as bind does.
func bindLater(fd uintptr) error {
	return unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
}

// errAgain is the error of a socket that has nothing, or no room, now.
const errAgain = unix.EAGAIN

func readSocket(fd int, b []byte) (int, error) {
	for {
		if n, err := unix.Read(fd, b); err != unix.EINTR {
			return n, err
		}
	}
}

func writeSocket(fd int, b []byte) (int, error) {
	for {
		if n, err := unix.Write(fd, b); err != unix.EINTR {
			return n, err
		}
	}
}

func closeSocket(fd int) { _ = unix.Close(fd) }

// abortSocket resets the connection.
func abortSocket(fd int) {
	_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	_ = unix.Close(fd)
}
