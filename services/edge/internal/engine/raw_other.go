//go:build !linux

package engine

import (
	"net"

	"github.com/cutemarkets/relay/services/edge/internal/frame"
)

// rawSockets tells that connections cannot be carried by raw sockets.
const rawSockets = false

// poller is what raw sockets would need.
type poller struct{}

func (*poller) watch(chan struct{}) error { return nil }
func (*poller) close() error              { return nil }

func (s *shard) open(bool) error { return nil }

func (s *shard) poll() {}

// transport makes the transport of a connection.
func (s *shard) transport(conn net.Conn, early []byte, parser frame.Parser) (transport, error) {
	return newStream(s, conn, early, parser), nil
}

// written would write without asking the transport; no slot allows it.
func (*shard) written(*slot, []byte) bool { panic("engine: no raw sockets on this system") }

// deliverAll sends to every connection with pending events.
func (s *shard) deliverAll() {
	for i := 0; i < len(s.pending); i++ {
		s.attend(s.pending[i].slot)
	}
}
