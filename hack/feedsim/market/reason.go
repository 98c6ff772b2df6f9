package market

import (
	"bytes"
	"fmt"

	"github.com/gobwas/ws"

	"github.com/cutemarkets/relay/hack/feedsim/session"
)

// Reason is why a connection ended.
type Reason uint8

// The reasons.
const (
	Gone        Reason = iota // the client closed or vanished
	BadFrame                  // the client broke RFC 6455 or sent too long a message
	BadKey                    // auth_failed
	NoKey                     // auth_timeout
	Kicked                    // a newer connection took the place
	Rejected                  // an older connection holds the place
	Slow                      // the send buffer ran full, or told so on command
	Dropped                   // reset on command
	Closed                    // closed on command
	Stopped                   // the simulator stops
	reasonCount int    = iota
)

var reasonNames = [reasonCount]string{
	"gone", "bad_frame", "bad_key", "no_key", "kicked", "rejected", "slow", "dropped", "closed", "stopped",
}

// String returns the name of the reason in the statistics.
func (r Reason) String() string {
	if int(r) < reasonCount {
		return reasonNames[r]
	}
	return fmt.Sprintf("Reason(%d)", uint8(r))
}

// ending is how a connection ends: with these frames, and then a close frame
// unless the code is zero. The TCP connection follows in any case.
type ending struct {
	reason Reason
	frames [][]byte
	code   ws.StatusCode
	abort  bool // no frames: TCP reset
	lossy  bool // what was queued is thrown away
}

// kick is what the vendor does to a connection over the limit.
func kick(r Reason) ending {
	return ending{reason: r, frames: [][]byte{[]byte(session.MaxConnections)}, code: ws.StatusPolicyViolation}
}

// appendTo writes the ending's frames to a queue. The close frame has no reason
// text: the vendor sends none.
func (e ending) appendTo(out *bytes.Buffer) {
	for _, f := range e.frames {
		appendFrame(out, ws.NewTextFrame(f))
	}
	if e.code != 0 {
		appendFrame(out, ws.NewCloseFrame(ws.NewCloseFrameBody(e.code, "")))
	}
}

// slow is what the vendor does to a client that does not keep up.
func slow() ending { return ending{reason: Slow, code: ws.StatusPolicyViolation, lossy: true} }

func appendFrame(out *bytes.Buffer, f ws.Frame) {
	if err := ws.WriteFrame(out, f); err != nil {
		panic("market: a frame of our own does not encode: " + err.Error())
	}
}
