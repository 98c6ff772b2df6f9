//go:build linux

package benchfanout

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/gobwas/ws"
	"github.com/gobwas/ws/wsutil"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	feedv1 "github.com/cutemarkets/relay/proto/feed/v1"
)

// topics are what is subscribed.
var topics = []string{"T.*", "Q.*", "A.*", "AM.*"}

// counted is what has come.
type counted struct{ Events, Bytes uint64 }

// tally is counted while it grows.
type tally struct{ events, bytes atomic.Uint64 }

// answer says "ready" once something has come, and answers each line with what has come so
// far, until the input ends.
func (t *tally) answer(first <-chan struct{}, in io.Reader, out io.Writer) error {
	<-first
	if _, err := fmt.Fprintln(out, "ready"); err != nil {
		return err
	}
	for lines := bufio.NewScanner(in); lines.Scan(); {
		if _, err := fmt.Fprintln(out, t.events.Load(), t.bytes.Load()); err != nil {
			return err
		}
	}
	return nil
}

func writeKey(file, key string) error { return os.WriteFile(file, []byte(key), 0o600) }

const (
	readBuffer = 64 << 10
	// lifeSign is how often a reader says that it lives, so that nobody pings it.
	lifeSign = 5 * time.Second
)

// Read subscribes to everything at a WebSocket and then reads the socket, without
// a look at what comes, until in ends. It counts bytes alone.
func Read(ctx context.Context, url, keyFile string, in io.Reader, out io.Writer) error {
	key, err := os.ReadFile(keyFile)
	if err != nil {
		return fmt.Errorf("benchfanout: %w", err)
	}
	conn, early, _, err := ws.Dial(ctx, url)
	if err != nil {
		return fmt.Errorf("benchfanout: %w", err)
	}
	defer func() { _ = conn.Close() }()
	if early == nil {
		early = bufio.NewReaderSize(conn, readBuffer)
	}
	if err := subscribe(conn, early, strings.TrimSpace(string(key))); err != nil {
		return fmt.Errorf("benchfanout: %w", err)
	}
	t, first := &tally{}, make(chan struct{})
	ctx, cancel := context.WithCancel(ctx)
	group := new(errgroup.Group)
	group.Go(func() error { return t.read(conn, first) })
	group.Go(func() error { return pong(ctx, conn) })
	err = t.answer(first, in, out)
	cancel()
	_ = conn.Close()
	return errors.Join(err, group.Wait())
}

// subscribe returns when the topics are acknowledged; events may have come by then.
func subscribe(conn net.Conn, in io.Reader, key string) error {
	rw := struct {
		io.Reader
		io.Writer
	}{in, conn}
	for _, step := range []struct{ say, answer string }{
		{"", `"connected"`},
		{fmt.Sprintf(`{"action":"auth","params":%q}`, key), `"auth_success"`},
		{fmt.Sprintf(`{"action":"subscribe","params":%q}`, strings.Join(topics, ",")), "subscribed to"},
	} {
		if step.say != "" {
			if err := wsutil.WriteClientText(conn, []byte(step.say)); err != nil {
				return err
			}
		}
		for {
			frame, err := wsutil.ReadServerText(rw)
			if err != nil {
				return err
			}
			if bytes.Contains(frame, []byte(step.answer)) {
				break
			}
			if bytes.Contains(frame, []byte(`"auth_failed"`)) {
				return errors.New("the key is refused")
			}
		}
	}
	return nil
}

func (t *tally) read(conn net.Conn, first chan<- struct{}) error {
	buffer := make([]byte, readBuffer)
	for {
		n, err := conn.Read(buffer)
		if n > 0 && t.bytes.Add(uint64(n)) == uint64(n) {
			close(first)
		}
		switch {
		case errors.Is(err, net.ErrClosed):
			return nil
		case err != nil:
			return fmt.Errorf("benchfanout: read: %w", err)
		}
	}
}

func pong(ctx context.Context, conn net.Conn) error {
	ticker := time.NewTicker(lifeSign)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			if err := ws.WriteFrame(conn, ws.MaskFrame(ws.NewPongFrame(nil))); err != nil {
				return fmt.Errorf("benchfanout: pong: %w", err)
			}
		}
	}
}

// window of the gRPC streams of a stand-in, so that the other end does not wait
// for its leave.
const window = 16 << 20

// StandIn takes the feed of stocks from a fanout as an edge does, and does
// nothing with it, until in ends. It counts events.
func StandIn(ctx context.Context, address, name string, in io.Reader, out io.Writer) error {
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithInitialWindowSize(window), grpc.WithInitialConnWindowSize(window),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(window)))
	if err != nil {
		return fmt.Errorf("benchfanout: %w", err)
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := feedv1.NewFeedServiceClient(conn).Subscribe(ctx, grpc.WaitForReady(true))
	if err != nil {
		return fmt.Errorf("benchfanout: %w", err)
	}
	hello := &feedv1.Hello{EdgeId: name, Market: "stocks"}
	for i, topic := range topics {
		hello.Topics = append(hello.Topics, &feedv1.Topic{Id: uint32(i + 1), Name: topic})
	}
	if err := stream.Send(&feedv1.SubscribeRequest{Message: &feedv1.SubscribeRequest_Hello{Hello: hello}}); err != nil {
		return fmt.Errorf("benchfanout: %w", err)
	}
	t, first := &tally{}, make(chan struct{})
	group := new(errgroup.Group)
	group.Go(func() error { return t.take(ctx, stream, first) })
	err = t.answer(first, in, out)
	cancel()
	return errors.Join(err, group.Wait())
}

func (t *tally) take(ctx context.Context, stream feedv1.FeedService_SubscribeClient, first chan<- struct{}) error {
	for {
		m, err := stream.Recv()
		if ctx.Err() != nil {
			return nil //nolint:nilerr // the end that was asked for
		}
		if err != nil {
			return fmt.Errorf("benchfanout: %w", err)
		}
		batch := m.GetBatch()
		if n := uint64(len(batch.GetEnds())); n > 0 && t.events.Add(n) == n {
			close(first)
		}
		t.bytes.Add(uint64(len(batch.GetPayload())))
	}
}
