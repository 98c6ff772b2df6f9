package engine

import (
	"net"

	"github.com/cutemarkets/relay/services/edge/internal/frame"
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

// transport makes the transport of a connection.
func (s *shard) transport(conn net.Conn, early []byte, parser frame.Parser) (transport, error) {
	tcp, ok := conn.(*net.TCPConn)
	if !ok || s.poller == nil {
		return newStream(s, conn, early, parser), nil
	}
	fd, err := detach(tcp)
	if err != nil {
		return nil, err
	}
	t := &socket{shard: s, fd: int32(fd)}
	if len(early) > 0 {
		t.in = &inbound{early: early}
	}
	return t, nil
}
