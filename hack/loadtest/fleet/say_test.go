package fleet

import (
	"io"
	"net"
	"reflect"
	"testing"

	"github.com/cutemarkets/relay/hack/loadtest/scripted"
)

// TestSay sends a message on a ready connection, and none on one that has ended.
func TestSay(t *testing.T) {
	t.Parallel()
	const message = `{"action":"unsubscribe","params":"T.A"}`
	url := rawServer(t, func(conn net.Conn) {
		_, _ = io.WriteString(conn, accepted)
		for {
			_, payload, err := scripted.ReadFrame(conn)
			if err != nil {
				return
			}
			if string(payload) == message {
				_, _ = io.WriteString(conn, text(`[{"ev":"status","status":"success","message":"unsubscribed to: T.A"}]`)+closeFrame(1000, ""))
			}
		}
	})
	r := newRecorder()
	f := start(t, r, Options{})
	open(t, f, Plan{Target: target(t, url), Topics: "T.A"})
	r.awaitReady(t, 0)
	f.Say(r.live[0], message)
	got := r.awaitEnd(t, 0)
	if want := []string{"success: unsubscribed to: T.A"}; !reflect.DeepEqual(got.statuses, want) {
		t.Errorf("statuses %q, want %q", got.statuses, want)
	}
	f.Say(r.live[0], message)
	open(t, f, Plan{Target: target(t, url), Topics: "T.A", Tag: 1}) // the loop has had a round since
	r.awaitReady(t, 1)
}
