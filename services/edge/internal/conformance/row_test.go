package conformance

import (
	"encoding/binary"
	"slices"
	"strings"
	"testing"
)

// row is a case: what the client sends, and what it must see.
type row struct {
	name    string
	section string   // of RFC 6455; of docs/PROTOCOL.md where that decides
	send    [][]byte // frames; pause waits for the answer to the latest ping
	cut     cut
	early   bool // goes out together with the handshake
	see     seen
}

// cut is how the octets are divided into writes: a number is that of octets in
// each.
type cut int

const (
	whole   cut = 0
	octets  cut = 1
	byFrame cut = -1
)

// pause stands among the frames of a row where the client waits for the answer to
// its latest ping.
var pause []byte

// seen is what a client sees. Messages come in order, and so do pongs; as no
// control frame waits behind data, nothing is said about their order among each
// other. Of several pings that wait for an answer only the latest gets one, so
// pongs may be left out, but not that of the last ping of a socket that stays
// open. The close frame and then the end of TCP, by the server, come last.
type seen struct {
	texts []string
	pongs []string
	code  uint16 // of the close frame; noCode: it has none; 0: the socket stays open
	flood bool   // more messages than these may come before them
}

// noCode stands for the close frame without a code (RFC 6455 §7.1.5).
const noCode = 1005

// octet makes a masked frame with the first octet, its length in the minimal form
// (RFC 6455 §5.2, §5.3).
func octet(first byte, payload string) []byte {
	switch n := len(payload); {
	case n <= 125:
		return masked([]byte{first, byte(n)}, payload)
	case n <= 0xffff:
		return masked(binary.BigEndian.AppendUint16([]byte{first, 126}, uint16(n)), payload)
	default:
		return masked(binary.BigEndian.AppendUint64([]byte{first, 127}, uint64(n)), payload)
	}
}

// masked makes a frame of a header without mask and a payload.
func masked(header []byte, payload string) []byte {
	mask := [4]byte{0x37, 0xfa, 0x21, 0x3d}
	out := slices.Concat(header, mask[:])
	out[1] |= 0x80
	for i := range len(payload) {
		out = append(out, payload[i]^mask[i%4])
	}
	return out
}

func text(payload string) []byte   { return octet(0x81, payload) }
func binaries(n int) []byte        { return octet(0x82, strings.Repeat("\xfe", n)) }
func begin(payload string) []byte  { return octet(0x01, payload) }
func middle(payload string) []byte { return octet(0x00, payload) }
func end(payload string) []byte    { return octet(0x80, payload) }
func ping(payload string) []byte   { return octet(0x89, payload) }
func pong(payload string) []byte   { return octet(0x8a, payload) }

func closing(code uint16, reason string) []byte {
	return octet(0x88, string(binary.BigEndian.AppendUint16(nil, code))+reason)
}

// reserved sets reserved bits of a frame.
func reserved(bits byte, frame []byte) []byte {
	frame[0] |= bits << 4
	return frame
}

// fragments makes a text message of frames with these payloads.
func fragments(payloads ...string) [][]byte {
	frames := make([][]byte, len(payloads))
	for i, payload := range payloads {
		var first byte
		if i == 0 {
			first |= opText
		}
		if i == len(payloads)-1 {
			first |= 0x80
		}
		frames[i] = octet(first, payload)
	}
	return frames
}

// split divides a text into pieces of n octets.
func split(text string, n int) []string {
	var pieces []string
	for piece := range slices.Chunk([]byte(text), n) {
		pieces = append(pieces, string(piece))
	}
	return pieces
}

func frames(f ...[]byte) [][]byte { return f }

func echoes(texts ...string) seen   { return seen{texts: texts} }
func pongs(payloads ...string) seen { return seen{pongs: payloads} }
func closed(code uint16) seen       { return seen{code: code} }

// trial is one run of a row.
type trial struct {
	*peer
	row    *row
	pieces [][]byte // still to be written; nil: a pause
	got    seen
	ended  bool // the server's close frame has come
	gone   bool // and the end of TCP
}

// run plays a row and compares. first is what the server says before it takes
// messages.
func (r *row) run(t *testing.T, addr string, first ...string) {
	s := r.open(t, addr, first...)
	for len(s.pieces) > 0 {
		s.write()
	}
	s.conclude(first...)
}

// open begins a trial.
func (r *row) open(t *testing.T, addr string, first ...string) *trial {
	t.Helper()
	pieces, early := r.writes()
	p, _ := dial(t, addr, early)
	s := &trial{peer: p, row: r, pieces: pieces}
	if r.early {
		return s
	}
	for range first {
		s.take()
	}
	if !slices.Equal(s.got.texts, first) {
		t.Fatalf("greeted with %q, want %q", s.got.texts, first)
	}
	s.got.texts = nil
	return s
}

// write writes the next piece.
func (s *trial) write() {
	s.t.Helper()
	piece := s.pieces[0]
	s.pieces = s.pieces[1:]
	if piece == nil {
		s.awaitPong()
		return
	}
	if _, err := s.conn.Write(piece); err != nil && s.row.see.code == 0 {
		s.t.Fatal(err) // to a socket that the server may close that can happen
	}
}

// conclude reads what is left to see and compares.
func (s *trial) conclude(first ...string) {
	s.t.Helper()
	if s.row.see.code == 0 {
		for s.row.early && !slices.Contains(s.got.texts, first[0]) {
			s.take() // who closes before the welcome gets no answers
		}
		s.finish()
	}
	for !s.gone {
		s.take()
	}
	if s.row.early && len(s.got.texts) > 0 && s.got.texts[0] == first[0] {
		s.got.texts = s.got.texts[1:] // a frame that ends the socket may come before the welcome
	}
	s.compare()
}

// writes divides what the client sends; nil: a pause. What goes with the handshake
// is apart.
func (r *row) writes() (writes [][]byte, early []byte) {
	var pending []byte
	flush := func() {
		switch {
		case len(pending) == 0:
		case r.cut > 0:
			writes = slices.AppendSeq(writes, slices.Chunk(pending, int(r.cut)))
		default:
			writes = append(writes, pending)
		}
		pending = nil
	}
	for _, f := range r.send {
		if f == nil {
			flush()
			writes = append(writes, nil)
			continue
		}
		pending = append(pending, f...)
		if r.cut == byFrame {
			flush()
		}
	}
	flush()
	if r.early {
		early, writes = writes[0], writes[1:]
	}
	return writes, early
}

// take reads what comes next and keeps it.
func (s *trial) take() {
	s.t.Helper()
	f, more := s.next()
	switch {
	case !more && !s.ended:
		s.t.Fatalf("the end of TCP without a close frame, after %+v", s.got)
	case !more:
		s.gone = true
	case s.ended:
		s.t.Fatalf("behind the close frame: %v", f)
	case f.opcode == opText:
		s.got.texts = append(s.got.texts, f.payload)
	case f.opcode == opPong:
		s.got.pongs = append(s.got.pongs, f.payload)
	case f.opcode == opClose && len(f.payload) == 0:
		s.ended, s.got.code = true, noCode
	case f.opcode == opClose && len(f.payload) >= 2:
		s.ended, s.got.code = true, binary.BigEndian.Uint16([]byte(f.payload))
	default:
		s.t.Fatalf("not asked for: %v", f)
	}
}

// awaitPong reads until one more ping has been answered.
func (s *trial) awaitPong() {
	s.t.Helper()
	for n := len(s.got.pongs); len(s.got.pongs) == n; {
		if s.take(); s.ended {
			s.t.Fatalf("closed with %d, want a pong", s.got.code)
		}
	}
}

// finish shows that a socket is open and closes it in order: the answer to the
// row's last ping, a ping more and its answer, then a close frame and its echo,
// behind which TCP ends.
func (s *trial) finish() {
	s.t.Helper()
	if n := len(s.row.see.pongs); n > 0 {
		s.awaitPongOf(s.row.see.pongs[n-1])
	}
	const last = "still there?"
	if _, err := s.conn.Write(ping(last)); err != nil {
		s.t.Fatal(err)
	}
	s.awaitPongOf(last)
	s.got.pongs = s.got.pongs[:len(s.got.pongs)-1]
	if _, err := s.conn.Write(closing(1000, "")); err != nil {
		s.t.Fatal(err)
	}
	for !s.gone {
		s.take()
	}
	if s.got.code != 1000 {
		s.t.Fatalf("close frame answered with %d", s.got.code)
	}
	s.got.code = 0
}

// awaitPongOf reads until the latest pong is that of a ping.
func (s *trial) awaitPongOf(payload string) {
	s.t.Helper()
	for n := len(s.got.pongs); n == 0 || s.got.pongs[n-1] != payload; n = len(s.got.pongs) {
		s.awaitPong()
	}
}

// compare holds what was seen against the row.
func (s *trial) compare() {
	s.t.Helper()
	got, want := s.got, s.row.see
	if got.code != want.code {
		s.t.Errorf("closed with %d, want %d", got.code, want.code)
	}
	if want.flood && len(got.texts) > len(want.texts) {
		got.texts = got.texts[len(got.texts)-len(want.texts):]
	}
	if !slices.Equal(got.texts, want.texts) {
		s.t.Errorf("messages %.300q, want %.300q", got.texts, want.texts)
	}
	rest := want.pongs
	for _, payload := range got.pongs {
		at := slices.Index(rest, payload)
		if at < 0 {
			s.t.Fatalf("pongs %.300q, want some of %.300q in this order", got.pongs, want.pongs)
		}
		rest = rest[at+1:]
	}
	if len(rest) > 0 && want.code == 0 {
		s.t.Errorf("pongs %.300q, want %.300q up to the last", got.pongs, want.pongs)
	}
}
