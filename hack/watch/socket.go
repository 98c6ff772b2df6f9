package watch

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/gobwas/ws"
)

const (
	dialTimeout = 5 * time.Second

	// quiet is how long a socket may be without a byte: the relay pings after 20 s.
	quiet = 40 * time.Second

	// maxFrame is more than a relay sends in one frame.
	maxFrame = 1_000_000

	readBuffer = 16 << 10
)

// socket is one WebSocket. Its bytes are read as they are: what a library answers
// or refuses by itself (some refuse 1012) would not be seen.
type socket struct {
	conn    net.Conn
	in      *bufio.Reader
	payload []byte // of the last frame
	limit   time.Time
}

// closed is the end of a socket.
type closed struct {
	code int // 1006: without a close frame
	text string
}

func (c closed) Error() string { return fmt.Sprintf("closed with %d %q", c.code, c.text) }

// refused is a handshake that failed.
type refused struct{ why string }

func (r refused) Error() string { return "refused: " + r.why }

// dial opens a socket. Its errors are refused.
func dial(ctx context.Context, url, key string) (*socket, error) {
	dialer := ws.Dialer{
		Timeout:        dialTimeout,
		ReadBufferSize: readBuffer,
		Header:         ws.HandshakeHeaderHTTP(http.Header{"Authorization": {"Bearer " + key}}),
	}
	conn, in, _, err := dialer.Dial(ctx, url)
	if err != nil {
		return nil, refused{reason(err)}
	}
	if in == nil {
		in = bufio.NewReaderSize(conn, readBuffer)
	}
	return &socket{conn: conn, in: in}, nil
}

// reason tells causes apart without addresses, so that they can be counted.
func reason(err error) string {
	var status ws.StatusError
	var timeout net.Error
	var name *net.DNSError
	switch {
	case errors.As(err, &status):
		return "HTTP " + strconv.Itoa(int(status))
	case errors.As(err, &name):
		return "name"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "connection lost"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "timeout"
	default:
		return "other"
	}
}

// next returns the text of the next message, valid until the next call. Its
// errors are closed.
func (s *socket) next() ([]byte, error) {
	for {
		if now := time.Now(); s.limit.Sub(now) < quiet/2 {
			s.limit = now.Add(quiet)
			if err := s.conn.SetReadDeadline(s.limit); err != nil {
				return nil, lost(err)
			}
		}
		header, err := ws.ReadHeader(s.in)
		if err != nil {
			return nil, lost(err)
		}
		if header.Length > maxFrame || !header.Fin || header.Masked {
			return nil, closed{1002, "the server broke the protocol"}
		}
		if int64(cap(s.payload)) < header.Length {
			s.payload = make([]byte, header.Length)
		}
		s.payload = s.payload[:header.Length]
		if _, err := io.ReadFull(s.in, s.payload); err != nil {
			return nil, lost(err)
		}
		switch header.OpCode {
		case ws.OpText:
			return s.payload, nil
		case ws.OpPing:
			if err := s.write(ws.OpPong, s.payload); err != nil {
				return nil, lost(err)
			}
		case ws.OpClose:
			if len(s.payload) < 2 {
				return nil, closed{1005, ""}
			}
			_ = s.write(ws.OpClose, s.payload[:2]) // the server may be gone already
			return nil, closed{int(binary.BigEndian.Uint16(s.payload)), string(s.payload[2:])}
		}
	}
}

func lost(err error) closed {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return closed{1006, "not a byte in " + quiet.String()}
	}
	return closed{1006, reason(err)}
}

func (s *socket) write(op ws.OpCode, payload []byte) error {
	frame, err := ws.CompileFrame(ws.MaskFrame(ws.NewFrame(op, true, payload)))
	if err != nil {
		return err
	}
	if err := s.conn.SetWriteDeadline(time.Now().Add(dialTimeout)); err != nil {
		return err
	}
	_, err = s.conn.Write(frame)
	return err
}
