package feed

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc"
)

// pool keeps one connection per fanout address and one stream per market on it.
type pool struct {
	// Static after construction.
	client *Client
	ctx    context.Context // of Run
	root   func(name string, fn func())

	mu sync.Mutex
	// Guarded by mu.
	peers map[string]*peer
}

// peer is a fanout pod.
type peer struct {
	// Static after construction.
	address string

	// Guarded by pool.mu.
	conn    *grpc.ClientConn
	wanted  bool
	markets map[string]bool // those whose streams are kept
}

// set makes the pool follow the addresses. A stream to an address that is gone
// goes on until it breaks: a pod leaves the name before it ends its streams.
func (p *pool) set(addresses []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, known := range p.peers {
		known.wanted = false
	}
	for _, address := range addresses {
		known := p.peers[address]
		if known == nil {
			conn, err := p.client.dial(address)
			if err != nil {
				p.client.log.Error("fanout address cannot be dialled",
					slog.String("address", address), slog.Any("error", err))
				continue
			}
			known = &peer{address: address, conn: conn, markets: make(map[string]bool)}
			p.peers[address] = known
		}
		known.wanted = true
		for name, m := range p.client.markets {
			if !known.markets[name] {
				known.markets[name] = true
				p.root("feed stream "+name, func() { p.keep(known, m) })
			}
		}
	}
}

// keep keeps the stream of a market to a pod until the pod is no longer wanted
// and its stream broken, or the pool ends.
func (p *pool) keep(peer *peer, m *market) {
	log := p.client.log.With(slog.String("market", m.name), slog.String("address", peer.address))
	pause := minBackoff
	for {
		s := stream{client: p.client, market: m, conn: p.connection(peer), log: log}
		why := s.run(p.ctx)
		if why == endingSilent {
			p.renew(peer, s.conn)
		}
		if s.received {
			pause = minBackoff
		}
		if p.leave(peer, m.name) {
			return
		}
		m.stats.endings[why].Add(1)
		if why == endingCut && s.received {
			continue
		}
		sleep(p.ctx, jitter(pause))
		pause = min(2*pause, maxBackoff)
		if p.leave(peer, m.name) {
			return
		}
	}
}

func (p *pool) connection(peer *peer) *grpc.ClientConn {
	p.mu.Lock()
	defer p.mu.Unlock()
	return peer.conn
}

// renew replaces a connection that fell silent, for all markets. If the network
// lost its packets it would wait for the next one to be sent again, and that may
// be twice as long as the network was away: longer than the pod's ring lasts.
func (p *pool) renew(peer *peer, silent *grpc.ClientConn) {
	conn, err := p.client.dial(peer.address)
	if err != nil {
		p.client.log.Error("fanout address cannot be dialled",
			slog.String("address", peer.address), slog.Any("error", err))
		return
	}
	p.mu.Lock()
	if peer.conn == silent {
		peer.conn, conn = conn, silent
	}
	p.mu.Unlock()
	p.hangUp(conn)
}

func (p *pool) hangUp(conn *grpc.ClientConn) {
	if err := conn.Close(); err != nil {
		p.client.log.Debug("fanout connection close", slog.Any("error", err))
	}
}

// leave reports whether the stream is not to be opened again; the last one to
// leave a pod closes its connection.
func (p *pool) leave(peer *peer, market string) bool {
	p.mu.Lock()
	if peer.wanted && p.ctx.Err() == nil {
		p.mu.Unlock()
		return false
	}
	delete(peer.markets, market)
	last := len(peer.markets) == 0
	if last {
		delete(p.peers, peer.address)
	}
	p.mu.Unlock()
	if last {
		p.hangUp(p.connection(peer))
	}
	return true
}

const (
	minBackoff = 100 * time.Millisecond
	maxBackoff = time.Second
)
