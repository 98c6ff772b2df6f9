//go:build !linux

package engine

import "net"

// tune sets the options of a client's socket.
func tune(conn net.Conn) {
	if tcp, ok := innermost(conn).(*net.TCPConn); ok {
		_ = tcp.SetNoDelay(true)
	}
}
