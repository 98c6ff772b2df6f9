package engine

import (
	"bytes"
	"compress/flate"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/gobwas/ws"

	"github.com/cutemarkets/relay/services/edge/internal/deflate"
)

// nextCompressed reads a frame and inflates it if it is compressed.
func (p *peer) nextCompressed() (text string, compressed bool) {
	p.t.Helper()
	_ = p.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	f, err := ws.ReadFrame(p.conn) //nolint:staticcheck // the peer is ours
	if err != nil {
		p.t.Fatal(err)
	}
	if !f.Header.Rsv1() {
		return string(f.Payload), false
	}
	whole := io.MultiReader(bytes.NewReader(f.Payload), strings.NewReader("\x00\x00\xff\xff\x01\x00\x00\xff\xff"))
	inflated, err := io.ReadAll(flate.NewReader(whole))
	if err != nil {
		p.t.Fatal(err)
	}
	return string(inflated), true
}

// packed is a compressed message of a client.
func packed(text string) []byte {
	b := masked(0x81, string(deflate.Append(nil, []byte(text))))
	b[0] |= 0x40
	return b
}

func TestEventsAreCompressedWhereThatWasNegotiated(t *testing.T) {
	t.Parallel()
	bothKinds(t, func(t *testing.T, kind Kind) {
		r := newRig(t, kind, nil)
		plain := r.dial()
		plain.expect("hello", "welcome")
		plain.say("sub T.A T.B")
		plain.expect("ok T.A T.B")
		r.deflate.Store(true)
		var peers []*peer
		for i := range 3 {
			p := r.dial()
			p.expect("hello", "welcome")
			topics := []string{"T.A T.B", "T.B", "T.A T.B"}[i]
			p.write(packed("sub " + topics))
			p.expect("ok " + topics)
			peers = append(peers, p)
		}
		var events []event
		var all, some []string
		for i := range 40 {
			text := fmt.Sprintf(`{"ev":"T","sym":"A","i":%d,"p":187.231,"s":100}`, i)
			topic := []string{"T.A", "T.B"}[i%2]
			events = append(events, event{text, topic, ""})
			all = append(all, text)
			if i%2 == 1 {
				some = append(some, text)
			}
		}
		r.send(events...)
		plain.expect("[" + strings.Join(all, ",") + "]")
		for i, want := range [][]string{all, some, all} {
			if got, compressed := peers[i].nextCompressed(); !compressed || got != "["+strings.Join(want, ",")+"]" {
				t.Errorf("client %d: compressed %v, %.200q", i, compressed, got)
			}
		}
		r.send(event{"1", "T.A", ""})
		if got, compressed := peers[0].nextCompressed(); compressed || got != "[1]" {
			t.Errorf("a short frame: compressed %v, %.200q", compressed, got)
		}
	})
}

func TestMessageThatInflatesTooFarIsRefused(t *testing.T) {
	t.Parallel()
	bothKinds(t, func(t *testing.T, kind Kind) {
		r := newRig(t, kind, nil)
		r.deflate.Store(true)
		p := r.dial()
		p.expect("hello", "welcome")
		p.write(packed(strings.Repeat("0", 1<<20)))
		p.expect("bye message_too_big", "close 1009 message_too_big", "eof")
	})
}
