package lock

import (
	"strconv"
	"strings"
)

// Kinds of messages between edges.
const (
	probeMessage = "probe" // does the holder of a lock still live?
	aliveMessage = "alive" // it does, or nobody can tell yet
	goneMessage  = "gone"  // its connection has gone
)

// edgeMessage is what an edge says to another: probe/<number>/<edge that asks>/<token>,
// or alive/<number>, gone/<number>.
type edgeMessage struct {
	kind   string
	number uint64 // of the probe
	edge   string // that asks
	token  string // of the lock
}

func (m edgeMessage) String() string {
	text := m.kind + "/" + strconv.FormatUint(m.number, 16)
	if m.kind == probeMessage {
		text += "/" + m.edge + "/" + m.token
	}
	return text
}

// parse reads a message; false: it is none.
func parse(text string) (edgeMessage, bool) {
	parts := strings.SplitN(text, "/", 4)
	if len(parts) < 2 {
		return edgeMessage{}, false
	}
	number, err := strconv.ParseUint(parts[1], 16, 64)
	m := edgeMessage{kind: parts[0], number: number}
	switch {
	case err != nil:
		return edgeMessage{}, false
	case m.kind == probeMessage && len(parts) == 4:
		m.edge, m.token = parts[2], parts[3]
		return m, m.edge != "" && holderOf(m.token).Edge != ""
	}
	return m, len(parts) == 2 && (m.kind == aliveMessage || m.kind == goneMessage)
}

// channelOf is the channel on which an edge receives messages.
func channelOf(edge string) string { return "relay:edge:" + edge }
