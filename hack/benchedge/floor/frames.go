//go:build linux

package floor

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cutemarkets/relay/hack/benchedge/shape"
)

// maxEvent is the longest event, in bytes.
const maxEvent = frameSlot - headerSize - len("[]")

const (
	headerSize = 4    // of a frame of 126 bytes or more
	minLength  = 126  // of the payload of such a frame
	textFrame  = 0x81 // final, text
)

// publish reads lines "SYMBOL EVENT" until there is no more input, and sends
// the events.
func (s *server) publish(fd int) error {
	for {
		n := read(fd, s.input[s.carried:])
		if n <= 0 {
			s.flush()
			if n == 0 {
				s.end(fd)
				s.carried = 0
			}
			return nil
		}
		rest := s.input[:s.carried+n]
		for {
			end := bytes.IndexByte(rest, '\n')
			if end < 0 {
				break
			}
			if err := s.event(rest[:end]); err != nil {
				return err
			}
			rest = rest[end+1:]
		}
		s.carried = copy(s.input, rest)
		if s.carried == len(s.input) {
			return fmt.Errorf("floor: a line of the publisher is longer than %d bytes", inputSize)
		}
	}
}

func (s *server) event(line []byte) error {
	topic, ok := shape.ParseSymbol(line)
	body := line[min(shape.SymbolSize+1, len(line)):]
	if !ok || len(body) < minLength || len(body) > maxEvent {
		return fmt.Errorf("floor: a line of the publisher is not a symbol, a space and an event of %d to %d bytes", minLength, maxEvent)
	}
	if s.used == maxFrames {
		s.flush()
	}
	frame := s.frame(body)
	if s.mode == Write {
		s.write(s.bytes(frame), s.subscribers[topic])
		s.used = 0
		return nil
	}
	for _, fd := range s.subscribers[topic] {
		n := s.waiting[fd]
		if n == maxPending {
			s.flushOne(fd)
			n = 0
		}
		if n == 0 {
			s.dirty = append(s.dirty, fd)
		}
		s.pending[int(fd)*maxPending+int(n)] = uint16(frame)
		s.waiting[fd] = n + 1
	}
	return nil
}

// frame builds the frame of an event in the next slot.
func (s *server) frame(event []byte) int {
	i := s.used
	s.used++
	slot := s.frames[i*frameSlot : (i+1)*frameSlot]
	slot[0], slot[1] = textFrame, minLength
	binary.BigEndian.PutUint16(slot[2:], uint16(len(event)+len("[]")))
	slot[headerSize] = '['
	n := headerSize + 1 + copy(slot[headerSize+1:], event)
	slot[n] = ']'
	s.lengths[i] = uint16(n + 1)
	return i
}

// bytes is the frame in a slot.
func (s *server) bytes(frame int) []byte {
	return s.frames[frame*frameSlot:][:s.lengths[frame]]
}

// flush writes what waits, the connection first that was touched first.
func (s *server) flush() {
	for _, fd := range s.dirty {
		if s.waiting[fd] > 0 {
			s.flushOne(fd)
		}
	}
	s.dirty, s.used = s.dirty[:0], 0
}

func (s *server) flushOne(fd int32) {
	pending := s.pending[int(fd)*maxPending:][:s.waiting[fd]]
	s.waiting[fd] = 0
	if len(pending) == 1 {
		one := [1]int32{fd}
		s.write(s.bytes(int(pending[0])), one[:])
		return
	}
	size := uintptr(0)
	for i, frame := range pending {
		b := s.bytes(int(frame))
		s.vector[i] = iovec{uintptr(unsafe.Pointer(&b[0])), uint64(len(b))} //nolint:gosec // frames never move, and s holds them
		size += uintptr(len(b))
	}
	n, _, errno := syscall.RawSyscall(unix.SYS_WRITEV, uintptr(fd), uintptr(unsafe.Pointer(&s.vector[0])), uintptr(len(pending))) //nolint:gosec // a raw call: that is what is measured
	if n != size {
		s.failed(errno)
	}
}
