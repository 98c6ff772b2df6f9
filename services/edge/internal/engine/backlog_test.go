package engine

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gobwas/ws"
	"pgregory.net/rapid"

	"github.com/cutemarkets/relay/services/edge/internal/frame"
)

// TestBacklogFollowsAModel queues, takes, hastens and discards at random. What a
// client sees has to be whole frames, the sent ones in order; those that are
// missing have been discarded before they began.
func TestBacklogFollowsAModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var b backlog
		var wire []byte
		var sent, hastened []string
		discarded := 0
		start := time.Now()
		take := func(n int) {
			piece := b.next()
			n = min(n, len(piece))
			wire = append(wire, piece[:n]...)
			if n > 0 {
				b.took(n)
			}
		}
		for i := range rapid.IntRange(1, 60).Draw(t, "steps") {
			switch rapid.IntRange(0, 7).Draw(t, "what") {
			case 0, 1, 2:
				var frames []byte
				for k := range rapid.IntRange(1, 3).Draw(t, "frames") {
					text := fmt.Sprintf("%d.%d %s", i, k, strings.Repeat("x", rapid.IntRange(0, 3000).Draw(t, "size")))
					frames = frame.AppendText(frames, []byte(text))
					sent = append(sent, text)
				}
				begun := 0
				if b.empty() { // as a socket does that writes before it queues
					begun = rapid.IntRange(0, len(frames)-1).Draw(t, "begun")
					wire = append(wire, frames[:begun]...)
				}
				b.add(frames, begun, start.Add(time.Duration(i)))
			case 3:
				text := fmt.Sprintf("h%d", i)
				b.hasten(frame.AppendText(nil, []byte(text)))
				hastened = append(hastened, text)
			case 4:
				b.answer(fmt.Appendf(nil, "p%d", i))
			case 5, 6:
				take(rapid.IntRange(1, 5000).Draw(t, "taken"))
			case 7:
				piece := b.next() // as a writer does whose write is still in flight
				b.claim(len(piece))
				discarded += b.discard()
				if len(piece) > 0 {
					wire = append(wire, piece...)
					b.took(len(piece))
				}
			}
			if b.empty() != (len(b.next()) == 0) {
				t.Fatalf("empty is %v, next has %d bytes", b.empty(), len(b.next()))
			}
		}
		for !b.empty() {
			take(1 << 20)
		}
		check(t, wire, sent, hastened, discarded)
		if b.held() != 0 || len(b.pieces) != 0 || !b.since().IsZero() {
			t.Fatalf("%d bytes and %d pieces in the end", b.held(), len(b.pieces))
		}
	})
}

func check(t *rapid.T, wire []byte, sent, hastened []string, discarded int) {
	for in := bytes.NewReader(wire); in.Len() > 0; {
		f, err := ws.ReadFrame(in) //nolint:staticcheck // the frames are ours
		if err != nil {
			t.Fatalf("broken frame: %v", err)
		}
		text := string(f.Payload)
		switch {
		case f.Header.OpCode == ws.OpPong:
		case strings.HasPrefix(text, "h"):
			if len(hastened) == 0 || hastened[0] != text {
				t.Fatalf("%q is not the hastened frame that was due", text)
			}
			hastened = hastened[1:]
		default:
			at := slices.Index(sent, text)
			if at < 0 {
				t.Fatalf("%.20q is out of order", text)
			}
			for _, missing := range sent[:at] {
				discarded -= len(textFrame(missing))
			}
			sent = sent[at+1:]
		}
	}
	for _, missing := range sent {
		discarded -= len(textFrame(missing))
	}
	if discarded != 0 || len(hastened) != 0 {
		t.Fatalf("%d discarded bytes too many, %d hastened frames missing", discarded, len(hastened))
	}
}

// TestBacklogKeepsOneAnswer: of several pings that wait only the latest is answered.
func TestBacklogKeepsOneAnswer(t *testing.T) {
	t.Parallel()
	var b backlog
	whole := textFrame("whole")
	b.add(whole, 1, time.Now())
	b.add(textFrame("later"), 0, time.Now())
	b.answer([]byte("one"))
	b.answer([]byte("two"))
	var wire []byte
	for !b.empty() {
		piece := b.next()
		wire = append(wire, piece[0])
		b.took(1)
	}
	want := slices.Concat(whole[1:], frame.AppendPong(nil, []byte("two")), textFrame("later"))
	if !bytes.Equal(wire, want) {
		t.Errorf("%q, want %q", wire, want)
	}
}

// TestMemoryOfABacklogIsBounded fills a backlog with frames of all sizes.
func TestMemoryOfABacklogIsBounded(t *testing.T) {
	t.Parallel()
	for _, size := range []int{1, 20, 135, 1000, smallBuffer, largeBuffer - 10, largeBuffer + 10, maxFrame} {
		var b backlog
		one := textFrame(strings.Repeat("x", size))
		for b.held()+len(one) <= DefaultQueueBytes {
			b.add(one, 0, time.Now())
		}
		held := cap(b.frames) * waitingCost
		for _, piece := range b.pieces {
			held += cap(piece.data)
		}
		if most := DefaultQueueBytes + DefaultQueueBytes/4 + largeBuffer; held > most {
			t.Errorf("frames of %d bytes: %d bytes of memory, at most %d", size, held, most)
		}
		b.release()
	}
}

// TestDrainingALongBacklogIsLinear: what was written is not moved again for each
// write.
func TestDrainingALongBacklogIsLinear(t *testing.T) {
	t.Parallel()
	var b backlog
	one := textFrame(strings.Repeat("x", 150))
	for range 100_000 {
		b.add(one, 0, time.Now())
	}
	moved := 0
	for !b.empty() {
		before := b.first
		b.took(len(b.next()))
		if b.first < before {
			moved += len(b.frames)
		}
	}
	if moved > 200_000 {
		t.Errorf("%d frames moved for 100,000", moved)
	}
}
