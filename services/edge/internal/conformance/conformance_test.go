package conformance

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cutemarkets/relay/services/edge/internal/dialect/cutemarkets"
	"github.com/cutemarkets/relay/services/edge/internal/engine"
)

// group is a table by what it is about. Where that is a group of the well-known
// conformance cases of RFC 6455, its size is known.
type group struct {
	name string
	size int // 0: as many as there are
	rows []row
}

func groups() []group {
	return []group{
		{"framing", 16, framingRows()},
		{"ping and pong", 11, pingRows()},
		{"reserved bits", 7, reservedBitRows()},
		{"opcodes", 10, opcodeRows()},
		{"fragmentation", 20, fragmentationRows()},
		{"UTF-8", 145, utf8Rows()},
		{"closing", 37, closingRows()},
		{"miscellaneous", 1, miscellaneousRows()},
		{"with the handshake", 0, handshakeRows()},
		{"hostile input", 0, hostileRows()},
	}
}

func TestEngineFollowsTheRFC(t *testing.T) {
	t.Parallel()
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel()
			addr := serve(t, kind.choose, echo{})
			for _, g := range groups() {
				for _, r := range g.rows {
					t.Run(g.name+"/"+r.name, func(t *testing.T) {
						t.Parallel()
						r.run(t, addr, "welcome")
					})
				}
			}
		})
	}
}

func TestCommandsFollowTheContract(t *testing.T) {
	t.Parallel()
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel()
			addr := serve(t, kind.choose, cutemarkets.New(cutemarkets.Options{Markets: []string{"stocks"}}))
			for _, r := range commandRows() {
				t.Run(r.name, func(t *testing.T) {
					t.Parallel()
					r.run(t, addr, status("connected", "Connected Successfully"), status("auth_success", "authenticated"))
				})
			}
		})
	}
}

func TestTablesAreWhole(t *testing.T) {
	t.Parallel()
	names := make(map[string]bool)
	for _, g := range groups() {
		if g.size != 0 && len(g.rows) != g.size {
			t.Errorf("%s has %d rows, want %d", g.name, len(g.rows), g.size)
		}
		for _, r := range g.rows {
			if name := g.name + "/" + r.name; names[name] {
				t.Errorf("two rows are called %s", name)
			} else {
				names[name] = true
			}
			if r.section == "" {
				t.Errorf("%s/%s does not say which section it is from", g.name, r.name)
			}
		}
	}
}

// TestSocketsAreKeptApart has clients write in turn, a few octets each, so that
// the frames of all of them are unfinished at the same time.
func TestSocketsAreKeptApart(t *testing.T) {
	t.Parallel()
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel()
			addr := serve(t, kind.choose, echo{})
			var trials []*trial
			for i := range 20 {
				own := fmt.Sprintf("%d ", i)
				parts := fragments(strings.Repeat(own, 300), strings.Repeat(own, 200))
				r := row{
					send: frames(text(own), parts[0], ping(own), parts[1]), cut: cut(7 + i),
					see: seen{texts: []string{own, strings.Repeat(own, 500)}, pongs: []string{own}},
				}
				trials = append(trials, r.open(t, addr, "welcome"))
			}
			for writing := true; writing; {
				writing = false
				for _, s := range trials {
					if len(s.pieces) > 0 {
						s.write()
						writing = true
					}
				}
			}
			for _, s := range trials {
				s.conclude()
			}
		})
	}
}

// TestCompressionIsDeclined offers it in good and in bad order: neither keeps a
// client out.
func TestCompressionIsDeclined(t *testing.T) {
	t.Parallel()
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel()
			addr := serve(t, kind.choose, echo{})
			for _, offer := range []string{
				"permessage-deflate",
				"permessage-deflate; client_max_window_bits; server_no_context_takeover",
				"permessage-deflate; unknown=1; client_max_window_bits=15; client_max_window_bits=8, x-webkit-deflate-frame",
				"permessage-deflate; \"=,;",
			} {
				t.Run(offer, func(t *testing.T) {
					t.Parallel()
					p, answer := dial(t, addr, nil, "Sec-WebSocket-Extensions: "+offer)
					if got := answer.Header.Values("Sec-WebSocket-Extensions"); len(got) != 0 {
						t.Fatalf("accepted: %q", got)
					}
					if f, _ := p.next(); f.payload != "welcome" {
						t.Fatalf("got %v", f)
					}
				})
			}
		})
	}
}

// TestDataBehindTheCloseFrameEndsTCP has a client go on for ever: the socket does
// not stay for it.
func TestDataBehindTheCloseFrameEndsTCP(t *testing.T) {
	t.Parallel()
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel()
			p, _ := dial(t, serve(t, kind.choose, echo{}), nil)
			late := text("late")
			_, err := p.conn.Write(closing(1000, ""))
			for err == nil {
				_, err = p.conn.Write(late)
			}
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal("the socket is still open")
			}
		})
	}
}

// TestSilentClientIsEnded lets the engine's time pass, so its sockets are pipes.
func TestSilentClientIsEnded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		e := newEngine(t, func(c *engine.Config) { c.Kind = engine.Portable })
		ran := make(chan error, 1)
		go func() { ran <- e.Run(t.Context()) }()
		p := attach(t, e, echo{})
		for _, want := range []frame{{opText, "welcome"}, {opPing, ""}} {
			if f, _ := p.next(); f != want {
				t.Fatalf("got %v, want %v", f, want)
			}
		}
		pinged := time.Now()
		if f, _ := p.next(); f.opcode != opClose || f.payload[:2] != "\x03\xf0" {
			t.Fatalf("got %v, want a close frame with 1008", f)
		}
		if waited := time.Since(pinged); waited < 5*time.Second || waited > 15*time.Second {
			t.Errorf("ended after %v, want 10 s", waited)
		}
		if f, more := p.next(); more {
			t.Errorf("behind the close frame: %v", f)
		}
	})
}
