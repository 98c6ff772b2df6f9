package frame

import (
	"bytes"
	"strings"
	"testing"

	"github.com/gobwas/ws"
)

func TestBuiltFramesAreThoseOfGobwas(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 1, 125, 126, 127, 0xffff, 0x10000, 256 << 10} {
		body := bytes.Repeat([]byte("x"), n)
		got := AppendText([]byte("before"), body)[len("before"):]
		if want := ws.MustCompileFrame(ws.NewTextFrame(body)); !bytes.Equal(got, want) {
			t.Errorf("text of %d differs", n)
		}
		compressed := ws.NewTextFrame(body)
		compressed.Header.Rsv = ws.Rsv(true, false, false)
		if want := ws.MustCompileFrame(compressed); !bytes.Equal(append(AppendCompressedHeader(nil, n), body...), want) {
			t.Errorf("compressed text of %d differs", n)
		}
		if HeaderSize(n) != len(got)-n {
			t.Errorf("header size of %d: %d", n, HeaderSize(n))
		}
	}
	for name, pair := range map[string][2][]byte{
		"ping":        {AppendPing(nil), ws.CompiledPing},
		"pong":        {AppendPong(nil, []byte("abc")), ws.MustCompileFrame(ws.NewPongFrame([]byte("abc")))},
		"close":       {AppendClose(nil, 1008, "slow"), ws.MustCompileFrame(ws.NewCloseFrame(ws.NewCloseFrameBody(1008, "slow")))},
		"close empty": {AppendClose(nil, NoStatus, ""), ws.CompiledClose},
	} {
		if !bytes.Equal(pair[0], pair[1]) {
			t.Errorf("%s: got %x, want %x", name, pair[0], pair[1])
		}
	}
}

func TestCloseTextIsCutBetweenCharacters(t *testing.T) {
	t.Parallel()
	got := AppendClose(nil, 1000, strings.Repeat("a", 122)+"é")
	if string(got[4:]) != strings.Repeat("a", 122) {
		t.Errorf("got %q", got[4:])
	}
}

func TestBuildingAllocatesNothing(t *testing.T) {
	dst := make([]byte, 0, 4096)
	body := bytes.Repeat([]byte("x"), 1000)
	if n := testing.AllocsPerRun(100, func() {
		dst = AppendText(dst[:0], body)
		dst = AppendPong(dst, body[:10])
		dst = AppendClose(dst, 1000, "bye")
	}); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}
