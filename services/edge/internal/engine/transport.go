package engine

import "time"

// transport carries the bytes of one connection. The shard calls it, on its own
// goroutine; no call blocks. It tells the shard what the client says, that the
// socket broke and, after close, at last that the socket is closed.
type transport interface {
	// send sends whole frames, or queues what the kernel does not take. They are
	// the caller's again when it returns.
	send(frames []byte)
	// hasten sends frames ahead of what is queued, but never inside a frame that
	// has begun. They are few and small and do not count towards the bound.
	hasten(frames []byte)
	// pong answers a ping like hasten; of several pings that wait for an answer
	// only the latest gets one (RFC 6455 §5.5.3).
	pong(payload []byte)
	// discard drops what is queued, but the rest of what has begun.
	discard()
	// backlog is how many bytes are queued, and since when the oldest of them is.
	backlog() (bytes int, since time.Time)
	// stirred reports whether the client has done something since it was last asked:
	// sent a byte, or made room for what had been stuck.
	stirred() bool
	// close ends the connection: what is queued is sent, then the close frame
	// (nil: none), within closeWait.
	close(frame []byte)
	// deadline is when expire wants to be called; zero: never.
	deadline() time.Time
	// expire tells that the deadline has passed.
	expire(c *connection)
}

// carrier is a transport that is not the connection itself.
type carrier interface {
	transport
	// start begins to carry for the connection of the ref.
	start(r ref)
	// abandon closes the socket of a carrier that is never started.
	abandon()
}

const (
	// closeWait bounds what is still to be written once a connection closes, and
	// lingerWait how long the client's side is read after that: closing with
	// unread input would make the kernel reset the connection and drop the close
	// frame (RFC 9112 §9.6).
	closeWait  = time.Second
	lingerWait = 500 * time.Millisecond
)
