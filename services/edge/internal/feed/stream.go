package feed

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	feedv1 "github.com/cutemarkets/relay/proto/feed/v1"
	"github.com/cutemarkets/relay/services/internal/lifecycle"
)

const (
	// silence is how long a stream may go without a message; pods send a
	// heartbeat each second.
	silence = 3 * time.Second
	// perTopic is how much longer the first message may take for each topic of the
	// hello: one of 131,072 topics has 10 MB, and a busy pod needs seconds for it.
	perTopic = 50 * time.Microsecond
)

// stream is one stream to one fanout pod, from its opening to its end.
type stream struct {
	// Static after construction.
	client *Client
	market *market
	conn   *grpc.ClientConn
	log    *slog.Logger

	// Owned by run; not thread-safe.
	received bool // a message has come
}

// run opens the stream and receives until it ends.
func (s *stream) run(parent context.Context) ending {
	ctx, cancel := context.WithCancelCause(parent)
	defer cancel(nil)
	// Only the wait for the pod counts as silence, not the wait for the Sink.
	watchdog := time.AfterFunc(silence, func() { cancel(errSilent) })
	defer watchdog.Stop()
	call, err := feedv1.NewFeedServiceClient(s.conn).Subscribe(ctx, grpc.WaitForReady(true))
	if err != nil {
		return s.ended(ctx, err)
	}
	number := s.market.lastStream.Add(1)
	topics, w := s.market.interest.watch()
	defer w.close()
	watchdog.Reset(patience(len(topics)))
	if !s.market.put(ctx, input{stream: number}) {
		return s.ended(ctx, ctx.Err())
	}
	defer s.market.put(parent, input{stream: number, ended: true})

	var sender sync.WaitGroup
	sender.Add(1)
	lifecycle.Go("feed sender "+s.market.name, func() {
		defer sender.Done()
		if err := s.send(ctx, call, topics, w); err != nil {
			s.log.Debug("fanout stream send", slog.Any("error", err)) // Recv tells why
		}
	})
	defer sender.Wait()
	defer cancel(nil)
	for {
		m, err := call.Recv()
		if err != nil {
			return s.ended(ctx, err)
		}
		watchdog.Stop()
		if !s.received {
			s.received = true
			s.market.stats.streams.Add(1)
			defer s.market.stats.streams.Add(-1)
		}
		if !s.market.put(ctx, input{stream: number, message: m, reject: func() { cancel(errBroken) }}) {
			return s.ended(ctx, ctx.Err())
		}
		watchdog.Reset(silence)
	}
}

// send says Hello, then each change of interest. It ends with ctx or the stream.
func (s *stream) send(ctx context.Context, call feedv1.FeedService_SubscribeClient, topics []*feedv1.Topic, w *watcher) error {
	e, covered := s.market.position()
	hello := &feedv1.Hello{
		EdgeId: s.client.config.EdgeID, Market: s.market.name, Topics: topics,
		ResumeEpoch: e.proto(), ResumeSequence: covered,
	}
	if err := call.Send(&feedv1.SubscribeRequest{Message: &feedv1.SubscribeRequest_Hello{Hello: hello}}); err != nil {
		return err
	}
	for {
		if change := w.changes(); change != nil {
			err := call.Send(&feedv1.SubscribeRequest{Message: &feedv1.SubscribeRequest_InterestChange{InterestChange: change}})
			if err != nil {
				return err
			}
		}
		select {
		case <-w.wake:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// patience is how long the first message of a stream may take.
func patience(topics int) time.Duration { return silence + time.Duration(topics)*perTopic }

var (
	errSilent = errors.New("feed: no message from the fanout pod for 3 s or more")
	errBroken = errors.New("feed: the fanout pod broke the protocol")
)

// ended names why a stream ended and logs it.
func (s *stream) ended(ctx context.Context, err error) ending {
	why := endingError
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, errSilent):
		why, err = endingSilent, cause
	case errors.Is(cause, errBroken):
		why, err = endingBroken, cause
	case cause != nil:
		return why // the client ends
	case status.Code(err) == codes.ResourceExhausted:
		why = endingCut
	}
	level := slog.LevelInfo
	if !s.received || errors.Is(err, io.EOF) {
		level = slog.LevelDebug
	}
	if why == endingBroken {
		level = slog.LevelError
	}
	s.log.Log(ctx, level, "fanout stream ended", slog.String("cause", endingNames[why]), slog.Any("error", err))
	return why
}
