//go:build linux

package floor

import (
	"bytes"
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/cutemarkets/relay/hack/benchedge/shape"
)

// answer is what every request gets: the upgrade for the sample nonce of
// RFC 6455, which the fleet's clients send, the greeting, and the word that the
// key is good.
var answer = slices.Concat(
	[]byte("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"),
	shortFrame(`[{"ev":"status","status":"connected","message":"Connected Successfully"}]`),
	shortFrame(`[{"ev":"status","status":"auth_success","message":"authenticated"}]`),
)

func shortFrame(payload string) []byte {
	return append([]byte{textFrame, byte(len(payload))}, payload...)
}

// client takes what a client sent: the request, or messages.
func (s *server) client(fd int) {
	n := read(fd, s.input)
	if n < 0 {
		return
	}
	input := s.input[:max(n, 0)]
	switch {
	case n == 0:
		s.end(fd)
	case s.kinds[fd] == open:
		if !s.messages(fd, input) {
			s.end(fd)
		}
	case bytes.HasSuffix(input, []byte("\r\n\r\n")):
		s.kinds[fd] = open
		s.reply(fd, answer)
	default:
		s.end(fd)
	}
}

func (s *server) reply(fd int, b []byte) {
	one := [1]int32{int32(fd)}
	s.write(b, one[:])
}

// end ends a connection. Its descriptor stays open, for topics still have its
// number; what is written to it goes nowhere.
func (s *server) end(fd int) {
	s.kinds[fd] = ended
	_ = unix.EpollCtl(s.epoll, unix.EPOLL_CTL_DEL, fd, nil)
	_ = unix.Shutdown(fd, unix.SHUT_RDWR)
}

// messages takes whole masked frames; false asks for the end.
func (s *server) messages(fd int, b []byte) bool {
	const opText, opClose, maskSize = 0x81, 0x88, 4
	for len(b) > 0 {
		header, length := 2, 0
		if len(b) >= headerSize {
			length = int(b[1] & 0x7f)
			if length == minLength {
				header, length = headerSize, int(binary.BigEndian.Uint16(b[2:]))
			}
		}
		end := header + maskSize + length
		if end > len(b) || b[0] == opClose {
			return false
		}
		mask, payload := b[header:header+maskSize], b[header+maskSize:end]
		for i := range payload {
			payload[i] ^= mask[i%maskSize]
		}
		if b[0] == opText {
			s.subscribe(fd, payload)
		}
		b = b[end:]
	}
	return true
}

// subscribe takes any text for a subscription to the trades it names.
func (s *server) subscribe(fd int, text []byte) {
	const success = `{"ev":"status","status":"success","message":"subscribed to: T.`
	s.ack = append(s.ack[:0], "????["...) // a header of four bytes, or of the last two
	for {
		at := bytes.Index(text, []byte("T."))
		if at < 0 {
			break
		}
		text = text[at+2:]
		topic, ok := shape.ParseSymbol(text)
		if !ok {
			continue
		}
		s.subscribers[topic] = append(s.subscribers[topic], int32(fd))
		if len(s.ack) > headerSize+1 {
			s.ack = append(s.ack, ',')
		}
		s.ack = append(shape.AppendSymbol(append(s.ack, success...), topic), `"}`...)
	}
	s.ack = append(s.ack, ']')
	length := len(s.ack) - headerSize
	if length < minLength {
		s.ack[2], s.ack[3] = textFrame, byte(length)
		s.reply(fd, s.ack[2:])
		return
	}
	s.ack[0], s.ack[1] = textFrame, minLength
	binary.BigEndian.PutUint16(s.ack[2:], uint16(length))
	s.reply(fd, s.ack)
}
