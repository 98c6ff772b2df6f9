package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/gobwas/ws"
)

const patience = 15 * time.Second

// client is a WebSocket client that shows every byte: what a library would
// answer or hide is up to the test.
type client struct {
	t    *testing.T
	conn net.Conn
	in   *bufio.Reader
}

// closed is a close frame.
type closed struct {
	code uint16
	text string
}

func (c closed) Error() string { return fmt.Sprintf("closed with %d %q", c.code, c.text) }

// request is the raw bytes of a handshake; extra header lines may override.
func request(target, host string, header ...string) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "GET %s HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", target, host)
	for _, h := range header {
		b.WriteString(h + "\r\n")
	}
	b.WriteString("\r\n")
	return b.Bytes()
}

func bearer(key string) string { return "Authorization: Bearer " + key }

// open upgrades a socket at an edge and fails the test when that is refused.
func open(t *testing.T, edge, target string, header ...string) *client {
	t.Helper()
	return openWith(t, edge, target, nil, header...)
}

// openWith sends early bytes in the same segment as the handshake.
func openWith(t *testing.T, edge, target string, early []byte, header ...string) *client {
	t.Helper()
	conn, in, res := exchange(t, edge, append(request(target, host(edge), header...), early...))
	if res.StatusCode != http.StatusSwitchingProtocols {
		body, _ := io.ReadAll(res.Body)
		t.Fatalf("upgrade of %s: status %d: %s", strings.SplitN(target, "?", 2)[0], res.StatusCode, body)
	}
	return &client{t: t, conn: conn, in: in}
}

// exchange sends raw bytes and reads one HTTP answer.
func exchange(t *testing.T, edge string, raw []byte) (net.Conn, *bufio.Reader, *http.Response) {
	t.Helper()
	conn := dial(t, edge)
	if _, err := conn.Write(raw); err != nil {
		t.Fatalf("write handshake: %v", err)
	}
	in := bufio.NewReader(conn)
	res, err := http.ReadResponse(in, nil)
	if err != nil {
		t.Fatalf("read handshake answer: %v", err)
	}
	return conn, in, res
}

func dial(t *testing.T, edge string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", host(edge))
	if err != nil {
		t.Fatalf("dial: %v", err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	return conn
}

func host(edge string) string {
	u, err := url.Parse(edge)
	if err != nil {
		panic(err)
	}
	return u.Host
}

// frame sends one masked frame.
func (c *client) frame(op ws.OpCode, payload []byte) {
	c.t.Helper()
	c.raw(ws.MustCompileFrame(ws.MaskFrame(ws.NewFrame(op, true, payload))))
}

// raw sends bytes as they are.
func (c *client) raw(b []byte) {
	c.t.Helper()
	if _, err := c.conn.Write(b); err != nil {
		c.t.Fatalf("write: %v", err)
	}
}

// maxPayload is what the vendor's SDKs take; a server frame must be smaller.
const maxPayload = 1_000_000

func readFrame(in io.Reader) (ws.Frame, error) {
	header, err := ws.ReadHeader(in)
	if err != nil {
		return ws.Frame{}, err
	}
	if header.Length > maxPayload {
		return ws.Frame{}, fmt.Errorf("frame of %d bytes", header.Length)
	}
	payload := make([]byte, header.Length)
	_, err = io.ReadFull(in, payload)
	return ws.Frame{Header: header, Payload: payload}, err
}

func (c *client) send(text string) {
	c.t.Helper()
	c.frame(ws.OpText, []byte(text))
}

func (c *client) subscribe(topics string) {
	c.t.Helper()
	c.send(fmt.Sprintf(`{"action":"subscribe","params":%q}`, topics))
}

// next reads the next frame that is no ping and returns its text; a close frame
// and the end of the stream are errors.
func (c *client) next(within time.Duration) (string, error) {
	if err := c.conn.SetReadDeadline(time.Now().Add(within)); err != nil {
		return "", err
	}
	for {
		f, err := readFrame(c.in)
		if err != nil {
			return "", err
		}
		switch f.Header.OpCode {
		case ws.OpText:
			if !f.Header.Fin || f.Header.Masked {
				return "", errors.New("a server frame must be whole and unmasked")
			}
			return string(f.Payload), nil
		case ws.OpPing:
			c.frame(ws.OpPong, f.Payload)
		case ws.OpPong:
			return "pong:" + string(f.Payload), nil
		case ws.OpClose:
			if len(f.Payload) < 2 {
				return "", closed{code: 1005}
			}
			return "", closed{code: binary.BigEndian.Uint16(f.Payload), text: string(f.Payload[2:])}
		default:
			return "", fmt.Errorf("unexpected opcode %v", f.Header.OpCode)
		}
	}
}

// expect reads the next frame and compares it to the letter.
func (c *client) expect(want string) {
	c.t.Helper()
	got, err := c.next(patience)
	if err != nil {
		c.t.Fatalf("waiting for %s: %v", want, err)
	}
	if got != want {
		c.t.Fatalf("got  %s\nwant %s", got, want)
	}
}

// expectClose reads until the close frame and then the end of the stream.
// Frames before it are returned.
func (c *client) expectClose(code uint16) (frames []string, text string) {
	c.t.Helper()
	for {
		got, err := c.next(patience)
		var end closed
		switch {
		case err == nil:
			frames = append(frames, got)
			continue
		case !errors.As(err, &end):
			c.t.Fatalf("waiting for close %d after %q: %v", code, frames, err)
		case end.code != code:
			c.t.Fatalf("closed with %d %q, want %d; frames before: %q", end.code, end.text, code, frames)
		}
		c.expectEOF()
		return frames, end.text
	}
}

// expectEOF expects the server to end the TCP connection.
func (c *client) expectEOF() {
	c.t.Helper()
	if err := c.conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		c.t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, c.in); err != nil {
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			c.t.Fatal("the server did not end the connection")
		}
	}
}

var errStopped = errors.New("told to stop")

// attend reads and answers pings until stop, as every client does whose program is
// busy with something else; one that does not is taken for dead when its user
// connects once more. stop tells how many pings there were, and other frames.
func (c *client) attend() (stop func() (pings, others int)) {
	var pings, others int
	stopping, failure := make(chan struct{}), make(chan error, 1)
	one := func() error {
		select {
		case <-stopping:
			return errStopped
		default:
		}
		_ = c.conn.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		var silence net.Error
		if _, err := c.in.Peek(1); errors.As(err, &silence) && silence.Timeout() {
			return nil
		} else if err != nil {
			return err
		}
		_ = c.conn.SetReadDeadline(time.Now().Add(patience))
		f, err := readFrame(c.in)
		if err != nil || f.Header.OpCode != ws.OpPing {
			others++
			return err
		}
		pings++
		_, err = c.conn.Write(ws.MustCompileFrame(ws.MaskFrame(ws.NewPongFrame(f.Payload))))
		return err
	}
	go func() {
		err := one()
		for err == nil {
			err = one()
		}
		failure <- err
	}()
	return func() (int, int) {
		c.t.Helper()
		close(stopping)
		if err := <-failure; !errors.Is(err, errStopped) {
			c.t.Errorf("a client that reads: %v", err)
		}
		return pings, others
	}
}

// event is the part of a message's object that tests look at.
type event struct {
	Ev      string  `json:"ev"`
	Sym     string  `json:"sym"`
	Status  string  `json:"status"`
	Message string  `json:"message"`
	Market  string  `json:"market"`
	From    string  `json:"from"`
	To      *string `json:"to"`
	raw     string
}

// events reads one frame and splits it.
func (c *client) events(within time.Duration) ([]event, error) {
	text, err := c.next(within)
	if err != nil {
		return nil, err
	}
	var raws []json.RawMessage
	if err := json.Unmarshal([]byte(text), &raws); err != nil {
		return nil, fmt.Errorf("frame is no JSON array: %w", err)
	}
	out := make([]event, len(raws))
	for i, raw := range raws {
		if err := json.Unmarshal(raw, &out[i]); err != nil {
			// LULD and NOI have other types under some keys; ev is all that is needed of them.
			out[i] = event{Ev: "other"}
		}
		out[i].raw = string(raw)
	}
	return out, nil
}

// await reads until an event satisfies want.
func (c *client) await(what string, want func(event) bool) event {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for ctx.Err() == nil {
		events, err := c.events(patience)
		if err != nil {
			c.t.Fatalf("waiting for %s: %v", what, err)
		}
		for _, e := range events {
			if want(e) {
				return e
			}
		}
	}
	c.t.Fatalf("waiting for %s: not seen in %s", what, patience)
	return event{}
}

const (
	connected     = `[{"ev":"status","status":"connected","message":"Connected Successfully"}]`
	authenticated = `[{"ev":"status","status":"auth_success","message":"authenticated"}]`
)

// join opens a socket by header and reads its greeting.
func join(t *testing.T, edge, market, key string) *client {
	t.Helper()
	c := open(t, edge, "/v1/ws/"+market+"/", bearer(key))
	c.expect(connected)
	c.expect(authenticated)
	return c
}

// leave closes cleanly and waits for the end, so that the lock is free again.
func (c *client) leave() {
	c.t.Helper()
	c.frame(ws.OpClose, ws.NewCloseFrameBody(ws.StatusNormalClosure, ""))
	c.expectClose(1000)
}
