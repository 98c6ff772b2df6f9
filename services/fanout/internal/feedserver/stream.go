package feedserver

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	feedv1 "github.com/cutemarkets/relay/proto/feed/v1"
	"github.com/cutemarkets/relay/services/fanout/internal/router"
	"github.com/cutemarkets/relay/services/internal/lifecycle"
)

const (
	// maxEdgeID bounds the name of an edge, in bytes.
	maxEdgeID = 128
	// servedWait is how long a stream may wait for the vendor to acknowledge its
	// topics before its coverage begins: a topic that the vendor never
	// acknowledges must not keep the others waiting.
	servedWait = 500 * time.Millisecond
)

// errBadInput is the cause of all errors about what an edge said.
var errBadInput = errors.New("bad input")

// stream is one stream of an edge.
type stream struct {
	// Static after construction.
	server   *Server
	wire     feedv1.FeedService_SubscribeServer
	received chan error    // takes the receiver's end
	sent     chan struct{} // closed at the sender's end
	open     chan struct{} // closed when the edge has said hello

	// Written before open is closed.
	market string
	edgeID string
	edge   *router.Edge
}

func newStream(s *Server, wire feedv1.FeedService_SubscribeServer) *stream {
	return &stream{
		server:   s,
		wire:     wire,
		received: make(chan error, 1),
		sent:     make(chan struct{}),
		open:     make(chan struct{}),
	}
}

// opened reports whether the edge has said hello.
func (st *stream) opened() bool {
	select {
	case <-st.open:
		return true
	default:
		return false
	}
}

// supervise returns why the stream ends. What waits on the wire then is freed
// by the return of the handler, and waited for by the server.
func (st *stream) supervise() (Reason, error) {
	st.start("feed receive", func() { st.received <- st.receive() })
	late := time.NewTimer(helloWait)
	defer late.Stop()
	select {
	case <-st.open:
	case err := <-st.received:
		return receiveReason(err)
	case <-late.C:
		return ReasonHelloTimeout, nil
	case <-st.server.draining:
		return ReasonDraining, nil
	}
	st.server.log.Info("stream opened", slog.String("market", st.market), slog.String("edge", st.edgeID))
	st.start("feed send", st.send)
	select {
	case err := <-st.received:
		return receiveReason(err)
	case <-st.sent:
		// The sender ends by itself when it has told the edge of the drain.
		return st.drained(), nil
	case <-st.edge.Gone():
		if st.edge.Ended() == router.EndedReplaced {
			return ReasonReplaced, nil
		}
		return ReasonCut, nil
	case <-st.server.draining:
		late.Reset(drainWait)
		select {
		case <-st.sent:
		case <-late.C:
		}
		return ReasonDraining, nil
	}
}

// start runs fn in a goroutine of its own, which the server waits for.
func (st *stream) start(name string, fn func()) {
	st.server.streams.Add(1)
	lifecycle.Go(name, func() {
		defer st.server.streams.Done()
		fn()
	})
}

// drained tells whether the end of the sender is that of the process or that of
// the connection.
func (st *stream) drained() Reason {
	select {
	case <-st.server.draining:
		return ReasonDraining
	default:
		return ReasonGone
	}
}

func receiveReason(err error) (Reason, error) {
	if errors.Is(err, errBadInput) {
		return ReasonBadInput, err
	}
	return ReasonGone, nil
}

// receive takes what the edge says until the stream ends.
func (st *stream) receive() error {
	request, err := st.wire.Recv()
	if err != nil {
		return err
	}
	if err := st.hello(request.GetHello()); err != nil {
		return err
	}
	edge := st.server.routers[st.market].Attach(st.edgeID)
	err = st.follow(edge, request.GetHello())
	if errors.Is(err, io.EOF) { // the edge has closed its side
		edge.Leave()
	} else {
		edge.Detach()
	}
	return err
}

// follow begins the edge's coverage and takes its changes of interest until the
// stream ends.
func (st *stream) follow(edge *router.Edge, hello *feedv1.Hello) error {
	if err := change(edge, nil, hello.GetTopics()); err != nil {
		return err
	}
	st.server.routers[st.market].AwaitServed(st.wire.Context(), servedWait)
	if err := st.wire.Context().Err(); err != nil {
		return err // what it asks for can no longer be answered
	}
	edge.Resume(hello.GetResumeEpoch(), hello.GetResumeSequence(), time.Now())
	st.edge = edge
	close(st.open)
	for {
		request, err := st.wire.Recv()
		if err != nil {
			return err
		}
		c := request.GetInterestChange()
		if c == nil {
			return fmt.Errorf("%w: only an interest change can follow the hello", errBadInput)
		}
		if err := change(edge, c.GetRemove(), c.GetAdd()); err != nil {
			return err
		}
	}
}

// hello checks and notes who the edge is and what market it asks for.
func (st *stream) hello(h *feedv1.Hello) error {
	switch {
	case h == nil:
		return fmt.Errorf("%w: the first message must be a hello", errBadInput)
	case h.GetEdgeId() == "" || len(h.GetEdgeId()) > maxEdgeID:
		return fmt.Errorf("%w: an edge id has 1 to %d bytes", errBadInput, maxEdgeID)
	case st.server.routers[h.GetMarket()] == nil:
		return fmt.Errorf("%w: unknown market", errBadInput)
	}
	st.market, st.edgeID = h.GetMarket(), h.GetEdgeId()
	return nil
}

func change(edge *router.Edge, remove []uint32, add []*feedv1.Topic) error {
	if err := edge.Change(remove, add); err != nil {
		return fmt.Errorf("%w: %w", errBadInput, err)
	}
	return nil
}

// send sends what there is, as soon as the one before has been taken, until the
// stream ends, which the supervisor sees too, or the process is about to stop.
func (st *stream) send() {
	defer close(st.sent)
	ticker := time.NewTicker(heartbeatEvery)
	defer ticker.Stop()
	draining := st.server.draining
	for {
		if m := st.edge.Next(time.Now()); m != nil {
			if st.wire.Send(m) != nil {
				return
			}
			select {
			case now := <-ticker.C:
				st.edge.Heartbeat(now)
			default:
			}
			continue
		}
		if draining == nil {
			_ = st.wire.Send(&feedv1.SubscribeResponse{
				Message: &feedv1.SubscribeResponse_Draining{Draining: &feedv1.Draining{}},
			})
			return
		}
		select {
		case <-st.wire.Context().Done():
			return
		case <-st.edge.Ready():
		case now := <-ticker.C:
			st.edge.Heartbeat(now)
		case <-draining:
			draining = nil
		}
	}
}
