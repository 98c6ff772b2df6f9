package frame

import (
	"encoding/binary"

	"github.com/gobwas/ws"
)

// MaxCloseText is the longest close reason in bytes (RFC 6455 §5.5: 125 with the code).
const MaxCloseText = ws.MaxControlFramePayloadSize - 2

// HeaderSize returns the bytes of the header of a server's frame with a payload
// of n bytes.
func HeaderSize(n int) int { return ws.HeaderSize(ws.Header{Length: int64(n)}) }

// AppendTextHeader appends the header of a text message of n bytes in one frame.
func AppendTextHeader(dst []byte, n int) []byte { return appendHeader(dst, ws.OpText, n) }

// AppendCompressedHeader appends the header of a compressed text message of n
// compressed bytes in one frame.
func AppendCompressedHeader(dst []byte, n int) []byte { return appendHeader(dst, rsv1|ws.OpText, n) }

// AppendText appends a text message in one frame.
func AppendText(dst, payload []byte) []byte {
	return append(AppendTextHeader(dst, len(payload)), payload...)
}

// AppendPing appends a ping without payload.
func AppendPing(dst []byte) []byte { return appendHeader(dst, ws.OpPing, 0) }

// AppendPong appends the answer to a ping with this payload, at most 125 bytes.
func AppendPong(dst, payload []byte) []byte {
	return append(appendHeader(dst, ws.OpPong, len(payload)), payload...)
}

// AppendClose appends a close frame. A code of NoStatus gives an empty one; a
// text longer than MaxCloseText is cut between characters.
func AppendClose(dst []byte, code uint16, text string) []byte {
	if code == NoStatus {
		return appendHeader(dst, ws.OpClose, 0)
	}
	if len(text) > MaxCloseText {
		end := MaxCloseText
		for end > 0 && text[end]&0xc0 == 0x80 {
			end--
		}
		text = text[:end]
	}
	dst = appendHeader(dst, ws.OpClose, 2+len(text))
	dst = binary.BigEndian.AppendUint16(dst, code)
	return append(dst, text...)
}

// Size returns the bytes of the frame of a server that data begins with.
func Size(data []byte) int {
	switch n := int(data[1]); n {
	case 126:
		return 4 + int(binary.BigEndian.Uint16(data[2:]))
	case 127:
		return 10 + int(binary.BigEndian.Uint64(data[2:]))
	default:
		return 2 + n
	}
}

func appendHeader(dst []byte, opcode ws.OpCode, n int) []byte {
	dst = append(dst, 0x80|byte(opcode))
	switch {
	case n <= 125:
		return append(dst, byte(n))
	case n <= 0xffff:
		return binary.BigEndian.AppendUint16(append(dst, 126), uint16(n))
	default:
		return binary.BigEndian.AppendUint64(append(dst, 127), uint64(n))
	}
}
