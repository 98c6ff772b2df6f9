// Package wire is the client's side of the protocol over byte slices: WebSocket
// frames, the answer to the upgrade, the arrays of objects in the messages, and
// the numbers that a load test looks for in events. It decodes no JSON but a
// status of unusual form.
//
// The package is pure: no I/O, no clock, no goroutine. What a server sends
// wrong is named by a Fault, and no input makes it panic. Nothing is allocated
// for a frame or an event; results lie in the input.
package wire

import (
	"encoding/binary"
	"unicode/utf8"
)

// Fault names what is wrong with what a server sent; empty: nothing. The set is
// bounded, so that a Fault can be a metric label.
type Fault string

// The faults of a frame, after which nothing of the stream can be trusted.
const (
	FrameOpcode       Fault = "frame_opcode"       // a reserved opcode
	FrameReserved     Fault = "frame_reserved"     // a reserved bit that was not negotiated
	FrameMasked       Fault = "frame_masked"       // a server must not mask
	FrameLength       Fault = "frame_length"       // not in its shortest form, or beyond 63 bits
	FrameControl      Fault = "frame_control"      // a control frame that is split or longer than 125 bytes
	FrameContinuation Fault = "frame_continuation" // a continuation of nothing, or a message inside another
	FrameClose        Fault = "frame_close"        // a close frame with a code that must not be sent, or no UTF-8
	MessageTooBig     Fault = "message_too_big"
	Inflate           Fault = "inflate" // the compressed bytes are broken
)

// The faults of a message; the connection goes on.
const (
	Binary    Fault = "binary"     // not a text message
	NotArray  Fault = "not_array"  // something else than [object,object,…]
	NotObject Fault = "not_object" // an element of the array is no object
	Truncated Fault = "truncated"  // the array does not end
	Trailing  Fault = "trailing"   // something follows the array
	NotStatus Fault = "not_status" // a status object without its fields
	Early     Fault = "early"      // an event before authentication
)

// The opcodes.
const (
	OpContinuation = 0x0
	OpText         = 0x1
	OpBinary       = 0x2
	OpClose        = 0x8
	OpPing         = 0x9
	OpPong         = 0xa
)

// MaxHeader is the longest header of a frame of a server, in bytes.
const MaxHeader = 10

// maxControl is the longest payload of a control frame, in bytes.
const maxControl = 125

// Header is the header of a frame of a server.
type Header struct {
	Opcode     byte
	Final      bool
	Compressed bool
	Size       int // bytes of the header
	Length     int // bytes of the payload
}

// Control reports whether the frame is a close, ping or pong.
func (h Header) Control() bool { return h.Opcode&0x8 != 0 }

// ParseHeader reads the header at the beginning of b; ok is false while bytes
// of it are missing. compress says whether compression was negotiated.
func ParseHeader(b []byte, compress bool) (h Header, ok bool, fault Fault) {
	if len(b) < 2 {
		return h, false, ""
	}
	h = Header{Opcode: b[0] & 0x0f, Final: b[0]&0x80 != 0, Compressed: b[0]&0x40 != 0, Size: 2, Length: int(b[1] & 0x7f)}
	switch {
	case h.Opcode > OpPong || (h.Opcode > OpBinary && h.Opcode < OpClose):
		return h, false, FrameOpcode
	case b[0]&0x30 != 0, h.Compressed && (!compress || h.Control() || h.Opcode == OpContinuation):
		return h, false, FrameReserved
	case b[1]&0x80 != 0:
		return h, false, FrameMasked
	case h.Control() && (!h.Final || h.Length > maxControl):
		return h, false, FrameControl
	}
	switch h.Length {
	case 126:
		if len(b) < 4 {
			return h, false, ""
		}
		h.Size, h.Length = 4, int(binary.BigEndian.Uint16(b[2:]))
		if h.Length < 126 {
			return h, false, FrameLength
		}
	case 127:
		if len(b) < MaxHeader {
			return h, false, ""
		}
		h.Size, h.Length = MaxHeader, int(binary.BigEndian.Uint64(b[2:]))
		if h.Length <= 0xffff {
			return h, false, FrameLength
		}
	}
	return h, true, ""
}

// AppendFrame appends a whole frame of a client, masked with mask.
func AppendFrame(dst []byte, opcode byte, payload []byte, mask uint32) []byte {
	dst = append(dst, 0x80|opcode)
	switch n := len(payload); {
	case n <= maxControl:
		dst = append(dst, 0x80|byte(n))
	case n <= 0xffff:
		dst = binary.BigEndian.AppendUint16(append(dst, 0x80|126), uint16(n))
	default:
		dst = binary.BigEndian.AppendUint64(append(dst, 0x80|127), uint64(n))
	}
	dst = binary.LittleEndian.AppendUint32(dst, mask)
	for i, b := range payload {
		dst = append(dst, b^byte(mask>>(i%4*8)))
	}
	return dst
}

// ParseClose reads the payload of a close frame. The code is 0 when there is
// none. Codes 1012 to 1014, registered after RFC 6455, are good ones.
func ParseClose(payload []byte) (code int, text []byte, fault Fault) {
	if len(payload) == 0 {
		return 0, nil, ""
	}
	if len(payload) == 1 {
		return 0, nil, FrameClose
	}
	code, text = int(binary.BigEndian.Uint16(payload)), payload[2:]
	known := (code >= 1000 && code <= 1003) || (code >= 1007 && code <= 1014) || (code >= 3000 && code <= 4999)
	if !known || !utf8.Valid(text) {
		return code, text, FrameClose
	}
	return code, text, ""
}
