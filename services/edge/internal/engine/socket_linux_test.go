package engine

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/cutemarkets/relay/services/edge/internal/frame"
)

// join connects a client over TCP to a shard whose rounds the test runs.
func (b *bench) join() net.Conn {
	b.t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.t.Fatal(err)
	}
	defer listener.Close()
	far, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = far.Close() })
	near, err := listener.Accept()
	if err != nil {
		b.t.Fatal(err)
	}
	if !b.shard.engine.Attach(near, nil, b.dialect, opening(), netip.Addr{}, false) {
		b.t.Fatal("not attached")
	}
	return far
}

// until runs rounds until the client has read so many bytes.
func (b *bench) until(far net.Conn, into []byte) {
	b.t.Helper()
	for got := 0; got < len(into); {
		b.shard.round()
		_ = far.SetReadDeadline(time.Now().Add(time.Millisecond))
		n, err := far.Read(into[got:])
		if errors.Is(err, io.EOF) {
			b.t.Fatal("closed")
		}
		got += n
	}
	_ = far.SetReadDeadline(time.Time{})
}

// TestHotPathsOfASocketAllocateNothing: a command, a ping and an event, from the
// bytes of one side to those of the other.
func TestHotPathsOfASocketAllocateNothing(t *testing.T) {
	b := newBench(t, func(c *Config) { c.Kind = Epoll })
	b.dialect.policy.CommandRate = 0
	far := b.join()
	greeted := make([]byte, len(textFrame("hello"))+len(textFrame("welcome")))
	b.until(far, greeted)
	if _, err := far.Write(masked(0x81, "sub T.A")); err != nil {
		t.Fatal(err)
	}
	b.until(far, make([]byte, len(textFrame("ok T.A"))))
	c := b.shard.slots[0].connection
	socket := (*socket)(c)

	command := masked(0x81, "?")
	ping := masked(0x89, "ping")
	batch := batchOf(b.topics, event{`{"ev":"T","sym":"A"}`, "T.A", "T.*"})
	in := make([]byte, 64)
	for name, path := range map[string]func(){
		"read":  func() { socket.take(c, append(in[:0], ping...)) },
		"pong":  func() { socket.pong(ping[:4]) },
		"frame": func() { parse(t, append(in[:0], command...)) },
		"route": func() {
			b.shard.feed.post(input{kind: inputBatch, size: len(batch.Payload), body: batch}, nil)
			<-b.shard.wake
			b.shard.round()
		},
	} {
		sink := make(chan struct{})
		go func() {
			defer close(sink)
			_, _ = io.Copy(io.Discard, far)
		}()
		n := testing.AllocsPerRun(100, func() {
			c.controls = 0
			path()
		})
		if n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
		_ = far.SetReadDeadline(time.Now())
		<-sink
		_ = far.SetReadDeadline(time.Time{})
	}
}

// parse reads a command as far as its frame: what a session makes of it is measured
// there.
func parse(t *testing.T, in []byte) {
	parser := frame.NewParser(1000)
	if event, _, err := parser.Next(in); err != nil || event.Kind != frame.Text {
		t.Fatal("no message")
	}
}
