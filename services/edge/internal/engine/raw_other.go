//go:build !linux

package engine

import (
	"net"
)

// rawSockets tells that connections cannot be carried by raw sockets.
const rawSockets = false

// poller is what raw sockets would need.
type poller struct{}

func (*poller) watch(chan struct{}) error { return nil }
func (*poller) close() error              { return nil }

func (s *shard) open(bool) error { return nil }

func (s *shard) poll() {}

// takeOver makes what carries a connection.
func (s *shard) takeOver(a *attachment, conn net.Conn, early []byte) error {
	a.carrier, a.fd = newStream(s, conn, early, newParser(a.dialect.Policy().MaxMessage, a.deflate)), -1
	return nil
}

// abandon closes the socket of a connection that never comes to be.
func (a *attachment) abandon() { a.carrier.abandon() }

func (c *connection) transport() transport { return *c.carrier }

// start begins to carry.
func (c *connection) start([]byte) { (*c.carrier).start(c.ref) }

// written would write without asking the transport; no slot allows it.
func (*shard) written(*slot, []byte) bool { panic("engine: no raw sockets on this system") }

// deliverAll sends to every connection with pending events.
func (s *shard) deliverAll() {
	for i := 0; i < len(s.pending); i++ {
		s.attend(s.pending[i].slot)
	}
}
