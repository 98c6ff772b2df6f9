package engine

import (
	"net"

	"golang.org/x/sys/unix"
)

// rawSockets tells that connections can be carried by raw sockets.
const rawSockets = true

// open makes what the shard needs for raw sockets, if it is to have any.
func (s *shard) open(raw bool) (err error) {
	if raw {
		s.input = make([]byte, inputBuffer)
		s.poller, err = newPoller()
	}
	return err
}

// takeOver makes what carries a connection: the raw socket where it can be.
func (s *shard) takeOver(a *attachment, conn net.Conn, early []byte) error {
	tcp, ok := conn.(*net.TCPConn)
	if !ok || s.poller == nil {
		a.carrier, a.fd = newStream(s, conn, early, newParser(a.dialect.Policy().MaxMessage, a.deflate)), -1
		return nil
	}
	fd, err := detach(tcp)
	a.fd, a.early = int32(fd), early
	return err
}

// abandon closes the socket of a connection that never comes to be.
func (a *attachment) abandon() {
	if a.carrier != nil {
		a.carrier.abandon()
		return
	}
	_ = unix.Close(int(a.fd)) // nothing can be done about it
}

func (c *connection) transport() transport {
	if c.carrier != nil {
		return *c.carrier
	}
	return (*socket)(c)
}

// start begins to carry.
func (c *connection) start(early []byte) {
	if c.carrier != nil {
		(*c.carrier).start(c.ref)
		return
	}
	(*socket)(c).start(early)
}
