// Package scripted is a server that speaks the client's protocol and does wrong
// exactly what a script says: it drops, duplicates, delays, misorders and
// misframes known events, so that a load tester can be tested by what it
// reports. Each connection that subscribes gets the whole script, the events of
// its topics.
//
// Each connection has two goroutines. A client that does not read makes its own
// one wait. Serving ends with the listener and the context of the requests.
package scripted

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gobwas/ws"

	"github.com/cutemarkets/relay/hack/truth"
)

// Fault is what is done to one event.
type Fault uint8

// The faults.
const (
	None      Fault = iota
	Drop            // it is left out
	Announce        // it is left out, and a gap status tells so
	Duplicate       // it comes twice, at once
	Late            // it comes behind the next one in good order
	Delay           // it comes Script.Delay after its stamp, and so does all that follows
	Bare            // it comes as an object in no array
	Cut             // it comes cut off, in an array without an end

	Faults int = iota // how many there are
)

// Script is what a server does. It must not be changed while a server uses it.
type Script struct {
	Key      string   // the one key that is good; "": all are
	Market   string   // named by the ground truth and by gaps
	Topics   []string // such as T.A; event n is of Topics[n % len(Topics)]
	Events   uint64   // numbered from 1
	PerFrame int      // events that are joined in a frame
	Fault    func(n uint64) Fault
	Delay    time.Duration
	Pings    bool          // a ping behind each frame
	Code     ws.StatusCode // of the close frame at the end
}

// WriteTruth writes the ground truth of the script.
func (s *Script) WriteTruth(w *truth.Writer) error {
	for n := uint64(1); n <= s.Events; n++ {
		w.Event(s.Market, n, time.Unix(0, 1), s.topic(n), s.event(nil, n, 1))
	}
	return w.Flush()
}

func (s *Script) topic(n uint64) string { return s.Topics[n%uint64(len(s.Topics))] }

// event appends an event.
func (s *Script) event(dst []byte, n uint64, stamp int64) []byte {
	kind, ticker, _ := strings.Cut(s.topic(n), ".")
	return fmt.Appendf(dst, `{"ev":"%s","sym":"%s","p":187.231,"s":100,"c":[14,41],"x":"}{\"","ts":%d,"n":%d}`, kind, ticker, stamp, n)
}

// Server plays a script. It is an http.Handler for the path of the WebSocket.
type Server struct {
	// Static after construction.
	script *Script

	did   [Faults]atomic.Uint64
	sent  atomic.Uint64
	pings atomic.Uint64
	pongs atomic.Uint64
}

// New makes a server.
func New(s *Script) *Server { return &Server{script: s} }

// Did is how many events a fault was done to, over all connections.
func (s *Server) Did(f Fault) uint64 { return s.did[f].Load() }

// Sent is how many events were sent in good order, duplicates included.
func (s *Server) Sent() uint64 { return s.sent.Load() }

// Pings and Pongs count the pings sent and their answers.
func (s *Server) Pings() uint64 { return s.pings.Load() }

// Pongs counts the answers to pings.
func (s *Server) Pongs() uint64 { return s.pongs.Load() }

// ServeHTTP upgrades the request and plays the script.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	conn, _, _, err := ws.UpgradeHTTP(r, w)
	if err != nil {
		return
	}
	defer conn.Close()
	p := &play{Server: s, conn: conn, subscribed: make(chan string, 1)}
	stop := context.AfterFunc(r.Context(), func() { conn.Close() })
	defer stop()
	var reader sync.WaitGroup
	reader.Go(p.read)
	p.run(r)
	reader.Wait()
}

// play is a script on one connection.
type play struct {
	*Server

	// Static after construction.
	conn       net.Conn
	subscribed chan string // the list of topics; closed when the client ended

	// Owned by run; not thread-safe.
	frame  []byte // without its last bracket
	joined int
	held   [][]byte // late events
	failed bool     // the client does not take anything any more
}

// read takes what the client sends.
func (p *play) read() {
	defer close(p.subscribed)
	for {
		h, payload, err := ReadFrame(p.conn)
		if err != nil || h.OpCode == ws.OpClose {
			return
		}
		var command struct{ Action, Params string }
		switch {
		case h.OpCode == ws.OpPong:
			p.pongs.Add(1)
		case json.Unmarshal(payload, &command) == nil && command.Action == "subscribe":
			select {
			case p.subscribed <- command.Params:
			default:
			}
		}
	}
}

// maxFrame is the longest payload of a client, in bytes.
const maxFrame = 64 << 10

var errTooLong = errors.New("scripted: the frame is longer than 64 KiB")

// ReadFrame reads a frame of a client and unmasks its payload.
func ReadFrame(r io.Reader) (ws.Header, []byte, error) {
	h, err := ws.ReadHeader(r)
	if err != nil {
		return h, nil, err
	}
	if h.Length > maxFrame {
		return h, nil, errTooLong
	}
	payload := make([]byte, h.Length)
	if _, err := io.ReadFull(r, payload); err != nil {
		return h, nil, err
	}
	ws.Cipher(payload, h.Mask, 0)
	return h, payload, nil
}

func (p *play) run(r *http.Request) {
	key := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	if key == "" {
		key = r.URL.Query().Get("api_key")
	}
	p.text(`[{"ev":"status","status":"connected","message":"Connected Successfully"}]`)
	if p.script.Key != "" && key != p.script.Key {
		p.text(`[{"ev":"status","status":"auth_failed","message":"authentication failed: invalid API key"}]`)
		p.close(4401, "invalid API key")
		return
	}
	p.text(`[{"ev":"status","status":"auth_success","message":"authenticated"}]`)
	list, ok := <-p.subscribed
	if !ok {
		return
	}
	wanted := map[string]bool{}
	var acks [][]byte
	for topic := range strings.SplitSeq(list, ",") {
		topic = strings.TrimSpace(topic)
		wanted[topic] = true
		acks = append(acks, fmt.Appendf(nil, `{"ev":"status","status":"success","message":"subscribed to: %s"}`, topic))
	}
	p.text("[" + string(bytes.Join(acks, []byte(","))) + "]")
	for n := uint64(1); n <= p.script.Events && !p.failed; n++ {
		topic := p.script.topic(n)
		kind, _, _ := strings.Cut(topic, ".")
		if wanted[topic] || wanted[kind+".*"] {
			p.event(r.Context(), n)
		}
	}
	p.release()
	p.flush()
	p.close(p.script.Code, "")
}

// event sends an event as its fault wants it.
func (p *play) event(ctx context.Context, n uint64) {
	fault := p.script.Fault(n)
	p.did[fault].Add(1)
	raw := p.script.event(nil, n, time.Now().UnixNano())
	switch fault {
	case Drop:
		return
	case Announce:
		p.flush()
		p.text(`[{"ev":"status","status":"gap","message":"events may be missing between from and to","market":` +
			strconv.Quote(p.script.Market) + `,"from":"2026-05-15T13:30:00.001Z","to":"2026-05-15T13:30:02.417Z"}]`)
		return
	case Late:
		p.held = append(p.held, raw)
		return
	case Delay:
		p.flush()
		select {
		case <-time.After(p.script.Delay):
		case <-ctx.Done():
		}
	case Bare:
		p.flush()
		p.text(string(raw))
		return
	case Cut:
		p.flush()
		p.text("[" + string(raw[:len(raw)-5]))
		return
	case Duplicate:
		p.join(raw)
	}
	p.join(raw)
	p.release()
}

// release sends the late events.
func (p *play) release() {
	for _, raw := range p.held {
		p.join(raw)
	}
	p.held = nil
}

func (p *play) join(raw []byte) {
	p.sent.Add(1)
	separator := byte(',')
	if p.joined == 0 {
		separator = '['
	}
	p.frame = append(append(p.frame, separator), raw...)
	if p.joined++; p.joined >= p.script.PerFrame {
		p.flush()
	}
}

func (p *play) flush() {
	if p.joined == 0 {
		return
	}
	p.text(string(append(p.frame, ']')))
	p.frame, p.joined = p.frame[:0], 0
	if p.script.Pings {
		p.pings.Add(1)
		p.write(ws.NewPingFrame([]byte("ping")))
	}
}

func (p *play) text(s string) { p.write(ws.NewTextFrame([]byte(s))) }

func (p *play) close(code ws.StatusCode, text string) {
	p.write(ws.NewCloseFrame(ws.NewCloseFrameBody(code, text)))
}

func (p *play) write(f ws.Frame) {
	p.failed = p.failed || ws.WriteFrame(p.conn, f) != nil
}
