package cluster

import (
	"context"
	"fmt"
	"net"
)

// Ports says how listeners get their ports.
type Ports uint8

const (
	// FreePorts takes ports that are free at the moment: for tests.
	FreePorts Ports = iota
	// FixedPorts takes the ports that the README names: edges 8000 and up.
	FixedPorts
)

// First port of each kind of listener with FixedPorts; the n-th part of a kind
// adds n.
const (
	edgePort             = 8000
	feedsimPort          = 8080
	authPort             = 8090
	fanoutPort           = 8100
	redisPort            = 8179
	edgeOperationsPort   = 8200
	fanoutOperationsPort = 8300
	authOperationsPort   = 8400
)

func (p Ports) address(ctx context.Context, first, n int) (string, error) {
	if p == FixedPorts {
		return fmt.Sprintf("127.0.0.1:%d", first+n), nil
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("cluster: find a free port: %w", err)
	}
	address := l.Addr().String()
	return address, l.Close()
}
