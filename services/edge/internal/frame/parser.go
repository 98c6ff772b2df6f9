// Package frame reads and builds WebSocket frames (RFC 6455) for the server's
// side of a socket, over byte slices. It owns the rules of the wire: what a
// client may send, in which order and how much. It does no I/O and starts no
// goroutine. Input beyond a limit ends the parser with a typed reason; nothing
// is ever allocated for a length that was only declared.
package frame

import (
	"encoding/binary"
	"math"
	"sync"
	"unicode/utf8"

	"github.com/gobwas/ws"

	"github.com/cutemarkets/relay/services/edge/internal/dialect"
)

// MaxFragments is how many frames may carry one message. The RFC has no limit;
// without one, empty continuation frames are free of charge for a client.
const MaxFragments = 16

// rsv1 is the bit of a frame's first byte that says its message is compressed.
const rsv1 = 0x40

// NoStatus is the close code of a close frame without one (RFC 6455 §7.1.5).
const NoStatus = 1005

// Kind is what the parser found.
type Kind uint8

// The kinds.
const (
	None  Kind = iota // all input is used up
	Text              // one whole text message; its payload is for Inflated
	Ping              // to be answered with its payload
	Pong              // an answer, or unsolicited
	Close             // the last one: whatever follows is ignored
)

// Event is what the parser found. Its payload is valid until the next call of
// Next, and lies in the input wherever that is possible.
type Event struct {
	Kind       Kind
	Compressed bool   // text messages only: the payload is DEFLATE, not yet UTF-8
	Code       uint16 // close frames only; NoStatus: none
	Payload    []byte // of a close frame: the reason
}

// Error is a violation. It ends the parser: every later Next returns it again.
type Error struct {
	Reason dialect.Reason
	Text   string
}

// Error implements error.
func (e *Error) Error() string { return "frame: " + e.Text }

// The violations.
var (
	errUnmasked     = &Error{dialect.ProtocolError, "frame of a client is not masked"}              // RFC 6455 §5.1
	errReservedBits = &Error{dialect.ProtocolError, "reserved bit set that nothing was agreed for"} // §5.2, RFC 7692 §6
	errOpcode       = &Error{dialect.ProtocolError, "reserved opcode"}                              // §5.2
	errControlLong  = &Error{dialect.ProtocolError, "control frame longer than 125 bytes"}          // §5.5
	errControlSplit = &Error{dialect.ProtocolError, "fragmented control frame"}                     // §5.5
	errContinuation = &Error{dialect.ProtocolError, "continuation frame without a message"}         // §5.4
	errInterleaved  = &Error{dialect.ProtocolError, "new message inside a fragmented one"}          // §5.4
	errLengthForm   = &Error{dialect.ProtocolError, "length not in its minimal form"}               // §5.2
	errLengthBit    = &Error{dialect.ProtocolError, "most significant bit of the length is set"}    // §5.2
	errCloseShort   = &Error{dialect.ProtocolError, "close frame with one byte"}                    // §5.5.1
	errCloseCode    = &Error{dialect.ProtocolError, "close code that must not be sent"}             // §7.4
	errBinary       = &Error{dialect.UnsupportedData, "binary message"}                             // §7.4.1, 1003
	errDeflate      = &Error{dialect.ProtocolError, "compressed message is no DEFLATE stream"}      // RFC 7692 §7.2.2
	errText         = &Error{dialect.InvalidUTF8, "text message is not UTF-8"}                      // §8.1
	errCloseText    = &Error{dialect.InvalidUTF8, "close reason is not UTF-8"}                      // §8.1
	errTooBig       = &Error{dialect.MessageTooBig, "message larger than the limit"}                // §10.4
	errFragments    = &Error{dialect.TooManyFragments, "message in more than 16 frames"}            // §10.4
)

// buffers holds what a parser collects while a message or frame is incomplete.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

// Parser reads the frames of one client. An idle parser (nothing begun) holds
// no buffer. Not safe for concurrent use.
type Parser struct {
	// Static after construction.
	maxMessage int

	// Owned by the caller of Next; not thread-safe.
	failed    *Error
	collected *[]byte // fragments of the message, then the frame in progress; nil when neither
	message   int     // bytes of *collected that belong to the fragmented message
	left      int     // payload bytes of the frame in progress still to come
	position  int     // payload bytes of the frame in progress that have come
	begun     uint32  // counts messages and frames begun, for Pending
	oldest    uint32  // what begun was for the oldest unfinished one
	header    [ws.MaxHeaderSize]byte
	headerLen uint8
	fragments uint8 // frames of the fragmented message; 0: there is none
	opcode    ws.OpCode
	final     bool
	inPayload bool
	last      bool // collected holds a message that has been yielded
	closed    bool
	deflated  bool // the message in progress is compressed
	mask      [4]byte

	// Static after AcceptDeflate; here it takes no room.
	deflate bool
}

// NewParser makes a parser that takes messages of at most maxMessage bytes,
// over all fragments.
func NewParser(maxMessage int) Parser { return Parser{maxMessage: maxMessage} }

// AcceptDeflate makes the parser take compressed messages, as permessage-deflate
// was negotiated. It is called before the first Next. The limit of a message
// then counts its compressed bytes; Inflated counts the others.
func (p *Parser) AcceptDeflate() { p.deflate = true }

// Next takes bytes of the client in order and returns what it found first and
// the bytes it has not used. The caller calls it with those until it yields
// None, which uses up everything. The input is unmasked in place.
func (p *Parser) Next(in []byte) (Event, []byte, error) {
	p.drop()
	if p.failed != nil {
		return Event{}, nil, p.failed
	}
	for len(in) > 0 && !p.closed {
		if !p.inPayload {
			var done bool
			var err *Error
			if in, done, err = p.takeHeader(in); err != nil {
				return p.fail(err)
			}
			if !done {
				break
			}
		}
		n := min(p.left, len(in))
		chunk := in[:n]
		in = in[n:]
		ws.Cipher(chunk, p.mask, p.position)
		p.position += n
		p.left -= n
		whole := p.left == 0 && p.position == n && (p.opcode.IsControl() || (p.final && p.fragments == 1))
		if !whole && n > 0 {
			p.collect(chunk)
		}
		if p.left > 0 {
			break
		}
		p.inPayload = false
		event, err := p.finish(chunk)
		if err != nil {
			return p.fail(err)
		}
		if event.Kind != None {
			return event, in, nil
		}
	}
	return Event{}, nil, nil
}

// Pending names the oldest message or frame that has begun and not ended: zero
// for none, and another number for each. A caller that limits the time of a
// message starts its clock when the number changes.
func (p *Parser) Pending() uint32 {
	if p.closed || p.failed != nil || (p.fragments == 0 && !p.inPayload && p.headerLen == 0) {
		return 0
	}
	return p.oldest
}

// begin notes that a frame begins outside a fragmented message.
func (p *Parser) begin() {
	if p.fragments > 0 {
		return
	}
	p.begun++
	if p.begun == 0 {
		p.begun = 1
	}
	p.oldest = p.begun
}

// takeHeader collects a frame header and checks it as early as its bytes allow.
// Which violation is found depends on the bytes alone, not on how they arrive.
func (p *Parser) takeHeader(in []byte) (rest []byte, done bool, err *Error) {
	for len(in) > 0 {
		if p.headerLen == 0 {
			p.begin()
		}
		p.header[p.headerLen] = in[0]
		p.headerLen++
		in = in[1:]
		need := p.headerSize()
		switch p.headerLen {
		case 2:
			if err := p.checkStart(); err != nil {
				return nil, false, err
			}
		case need - 4:
			if err := p.checkLength(); err != nil {
				return nil, false, err
			}
		case need:
			copy(p.mask[:], p.header[need-4:need])
			p.headerLen = 0
			p.position = 0
			p.inPayload = true
			return in, true, nil
		}
	}
	return nil, false, nil
}

// headerSize is known once two bytes are there.
func (p *Parser) headerSize() uint8 {
	if p.headerLen < 2 {
		return ws.MaxHeaderSize
	}
	switch p.header[1] & 0x7f {
	case 126:
		return 8
	case 127:
		return 14
	default:
		return 6
	}
}

// checkStart checks the first two bytes of a header.
func (p *Parser) checkStart() *Error {
	first, second := p.header[0], p.header[1]
	p.final = first&0x80 != 0
	p.opcode = ws.OpCode(first & 0x0f)
	length := second & 0x7f
	reserved := first & 0x70
	if p.deflate && (p.opcode == ws.OpText || p.opcode == ws.OpBinary) {
		reserved &^= rsv1
	}
	switch {
	case reserved != 0:
		return errReservedBits
	case p.opcode.IsReserved():
		return errOpcode
	case second&0x80 == 0:
		return errUnmasked
	case p.opcode.IsControl():
		if !p.final {
			return errControlSplit
		}
		if length > ws.MaxControlFramePayloadSize {
			return errControlLong
		}
	case p.opcode == ws.OpContinuation && p.fragments == 0:
		return errContinuation
	case p.opcode != ws.OpContinuation && p.fragments > 0:
		return errInterleaved
	case p.opcode == ws.OpBinary:
		return errBinary
	case p.fragments == MaxFragments:
		return errFragments
	}
	if !p.opcode.IsControl() {
		if p.fragments == 0 {
			p.deflated = first&rsv1 != 0
		}
		p.fragments++
	}
	if length <= 125 {
		return p.setLength(uint64(length))
	}
	return nil
}

// checkLength checks a length of 16 or 64 bits.
func (p *Parser) checkLength() *Error {
	if p.header[1]&0x7f == 126 {
		length := binary.BigEndian.Uint16(p.header[2:])
		if length <= 125 {
			return errLengthForm
		}
		return p.setLength(uint64(length))
	}
	length := binary.BigEndian.Uint64(p.header[2:])
	switch {
	case length>>63 != 0:
		return errLengthBit
	case length <= 0xffff:
		return errLengthForm
	}
	return p.setLength(length)
}

func (p *Parser) setLength(length uint64) *Error {
	if length > math.MaxInt || !p.opcode.IsControl() && int(length) > p.maxMessage-p.message {
		return errTooBig
	}
	p.left = int(length)
	return nil
}

// finish handles a whole frame. chunk is its payload where nothing of it, nor
// of its message, had to be collected.
func (p *Parser) finish(chunk []byte) (Event, *Error) {
	payload := chunk
	if p.opcode.IsControl() {
		if p.collected != nil && len(*p.collected) > p.message {
			payload = (*p.collected)[p.message:]
		}
		switch p.opcode {
		case ws.OpPing:
			return Event{Kind: Ping, Payload: payload}, nil
		case ws.OpPong:
			return Event{Kind: Pong, Payload: payload}, nil
		default:
			return p.finishClose(payload)
		}
	}
	if p.collected != nil {
		p.message = len(*p.collected)
		payload = *p.collected
	}
	if !p.final {
		return Event{}, nil
	}
	p.fragments = 0
	p.last = p.collected != nil
	if !p.deflated && !utf8.Valid(payload) {
		return Event{}, errText
	}
	return Event{Kind: Text, Compressed: p.deflated, Payload: payload}, nil
}

func (p *Parser) finishClose(payload []byte) (Event, *Error) {
	code := uint16(NoStatus)
	switch {
	case len(payload) == 1:
		return Event{}, errCloseShort
	case len(payload) >= 2:
		code = binary.BigEndian.Uint16(payload)
		payload = payload[2:]
		if !mayArrive(code) {
			return Event{}, errCloseCode
		}
		if !utf8.Valid(payload) {
			return Event{}, errCloseText
		}
	}
	p.closed = true
	return Event{Kind: Close, Code: code, Payload: payload}, nil
}

// mayArrive reports whether a close code may be on the wire: RFC 6455 §7.4 and
// the codes 1012 to 1014 registered with IANA since.
func mayArrive(code uint16) bool {
	switch {
	case code >= 1000 && code <= 1003, code >= 1007 && code <= 1014:
		return true
	default:
		return code >= 3000 && code <= 4999
	}
}

// collect keeps bytes for later; the buffer grows with what has arrived.
func (p *Parser) collect(chunk []byte) {
	if p.collected == nil {
		p.collected = buffers.Get().(*[]byte)
	}
	*p.collected = append(*p.collected, chunk...)
}

// drop gives up what the event yielded last was made of.
func (p *Parser) drop() {
	if p.collected == nil || p.inPayload {
		return
	}
	if p.last || p.closed {
		p.last = false
		p.message = 0
	}
	*p.collected = (*p.collected)[:p.message]
	if p.message == 0 {
		buffers.Put(p.collected)
		p.collected = nil
	}
}

func (p *Parser) fail(err *Error) (Event, []byte, error) {
	p.failed = err
	p.inPayload, p.last, p.message = false, true, 0
	p.drop()
	return Event{}, nil, err
}
