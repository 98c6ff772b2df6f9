//go:build linux

// Package sockets asks the kernel (sock_diag) what memory each TCP socket of a
// port holds. It starts no goroutine and holds nothing; the kernel looks through
// all sockets of the machine for it, which takes milliseconds where there are
// thousands.
package sockets

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Socket is one end of a connection.
type Socket struct {
	Peer     netip.AddrPort
	Receive  int64 // bytes held for what came and was not read
	Send     int64 // bytes held for what was written and not acknowledged
	SetAside int64 // bytes held for what may come
}

// Memory is what the kernel holds for the buffers of a socket, in bytes. The
// socket itself comes to some 4 KiB more.
func (s Socket) Memory() int64 { return s.Receive + s.Send + s.SetAside }

// The kernel's interface: linux/netlink.h, sock_diag.h, inet_diag.h.
const (
	messageHeader   = 16
	requestSize     = 56 // inet_diag_req_v2
	answerSize      = 72 // inet_diag_msg
	attributeHeader = 4

	byFamily   = 20 // SOCK_DIAG_BY_FAMILY
	memoryInfo = 7  // INET_DIAG_SKMEMINFO

	receiveAlloc, forwardAlloc, sendQueued, memoryFields = 0, 4, 5, 6 // fields of memoryInfo

	// Sockets that have data, or may get some: established, and those that close.
	states = 1<<unix.BPF_TCP_ESTABLISHED | 1<<unix.BPF_TCP_FIN_WAIT1 | 1<<unix.BPF_TCP_FIN_WAIT2 |
		1<<unix.BPF_TCP_CLOSE_WAIT | 1<<unix.BPF_TCP_LAST_ACK | 1<<unix.BPF_TCP_CLOSING
)

var native = binary.NativeEndian

// Of returns the IPv4 sockets with a local port.
func Of(port uint16) ([]Socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, fmt.Errorf("sockets: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.Sendto(fd, request(port), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("sockets: %w", err)
	}
	var all []Socket
	buf := make([]byte, 1<<18)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("sockets: %w", err)
		}
		var done bool
		if all, done, err = take(all, buf[:n]); err != nil || done {
			return all, err
		}
	}
}

func request(port uint16) []byte {
	b := make([]byte, messageHeader+requestSize)
	native.PutUint32(b, uint32(len(b)))
	native.PutUint16(b[4:], byFamily)
	native.PutUint16(b[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	r := b[messageHeader:]
	r[0], r[1], r[2] = unix.AF_INET, unix.IPPROTO_TCP, 1<<(memoryInfo-1)
	native.PutUint32(r[4:], states)
	binary.BigEndian.PutUint16(r[8:], port)
	return b
}

var errShort = errors.New("sockets: an answer of the kernel is too short")

// take reads the messages of an answer; done: there are no more.
func take(all []Socket, b []byte) (_ []Socket, done bool, err error) {
	for len(b) >= messageHeader {
		length := int(native.Uint32(b))
		if length < messageHeader || length > len(b) {
			return all, false, errShort
		}
		kind, body := native.Uint16(b[4:]), b[messageHeader:length]
		b = b[min(align(length), len(b)):]
		switch kind {
		case unix.NLMSG_DONE:
			return all, true, nil
		case unix.NLMSG_ERROR:
			if len(body) < 4 {
				return all, false, errShort
			}
			return all, false, fmt.Errorf("sockets: %w", unix.Errno(-int32(native.Uint32(body))))
		case byFamily:
			s, err := socket(body)
			if err != nil {
				return all, false, err
			}
			all = append(all, s)
		}
	}
	return all, false, nil
}

// socket reads an inet_diag_msg and the attributes behind it.
func socket(b []byte) (s Socket, err error) {
	if len(b) < answerSize {
		return s, errShort
	}
	// State and the like, ports, and 16 bytes for each address.
	s.Peer = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[24:28])), binary.BigEndian.Uint16(b[6:]))
	for b = b[answerSize:]; len(b) >= attributeHeader; {
		length, kind := int(native.Uint16(b)), native.Uint16(b[2:])
		if length < attributeHeader || length > len(b) {
			return s, errShort
		}
		if fields := b[attributeHeader:length]; kind == memoryInfo && len(fields) >= 4*memoryFields {
			field := func(i int) int64 { return int64(native.Uint32(fields[4*i:])) }
			s.Receive, s.SetAside, s.Send = field(receiveAlloc), field(forwardAlloc), field(sendQueued)
		}
		b = b[min(align(length), len(b)):]
	}
	return s, nil
}

func align(n int) int { return (n + 3) &^ 3 }
