package engine

import (
	"crypto/tls"
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// wrapper is a connection as the front's listener makes it.
type wrapper struct{ net.Conn }

func (w wrapper) NetConn() net.Conn { return w.Conn }

func TestSocketOptionsAreSetUnderWhateverWrapsTheSocket(t *testing.T) {
	t.Parallel()
	for name, wrap := range map[string]func(c net.Conn) net.Conn{
		"plain":             func(c net.Conn) net.Conn { return c },
		"TLS":               func(c net.Conn) net.Conn { return tls.Server(c, nil) },
		"TLS of the front":  func(c net.Conn) net.Conn { return tls.Server(wrapper{c}, nil) },
		"wrapped once more": func(c net.Conn) net.Conn { return wrapper{tls.Server(wrapper{c}, nil)} },
	} {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = listener.Close() }()
		conn, err := net.Dial("tcp", listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		tune(wrap(conn))
		raw, err := conn.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		for option, want := range map[int]int{
			unix.TCP_USER_TIMEOUT:  int(userTimeout.Milliseconds()),
			unix.TCP_NOTSENT_LOWAT: unsentBytes,
		} {
			var got int
			if err := raw.Control(func(fd uintptr) { got, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, option) }); err != nil || got != want {
				t.Errorf("%s: option %d is %d, %v, want %d", name, option, got, err, want)
			}
		}
	}
}
