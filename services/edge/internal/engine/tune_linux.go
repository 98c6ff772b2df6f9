package engine

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// userTimeout ends a connection whose peer acknowledges nothing; without it
	// retransmission goes on for a quarter of an hour.
	userTimeout = 15 * time.Second
	// unsentBytes is how much the kernel takes beyond what is on the wire, so
	// that a slow client's backlog stays where it is counted and pongs are not
	// stuck behind it.
	unsentBytes = 16 << 10
)

// tune sets the options of a client's socket. A connection without one, or
// that has broken already, stays as it is: it will fail by itself.
func tune(conn net.Conn) {
	tcp, ok := innermost(conn).(*net.TCPConn)
	if !ok {
		return
	}
	_ = tcp.SetNoDelay(true)
	raw, err := tcp.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(userTimeout.Milliseconds()))
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsentBytes)
	})
}
