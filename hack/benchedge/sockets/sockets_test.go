//go:build linux

package sockets

import (
	"net"
	"net/netip"
	"os"
	"testing"
	"time"
)

// TestOf writes to a client that does not read.
func TestOf(t *testing.T) {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	port := listener.Addr().(*net.TCPAddr).AddrPort().Port()
	var served []net.Conn
	var clients []netip.AddrPort
	for range 3 {
		client, err := net.Dial("tcp4", listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = client.Close() }()
		clients = append(clients, client.LocalAddr().(*net.TCPAddr).AddrPort())
		conn, err := listener.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		served = append(served, conn)
	}
	if err := served[1].SetWriteDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	written := 0
	for err == nil {
		var n int
		n, err = served[1].Write(make([]byte, 64<<10))
		written += n
	}
	if !os.IsTimeout(err) {
		t.Fatal(err)
	}
	all, err := Of(port)
	if err != nil || len(all) != len(clients) {
		t.Fatalf("%+v, %v", all, err)
	}
	for i, peer := range clients {
		for _, s := range all {
			if s.Peer != peer {
				continue
			}
			if (s.Send > 16<<10) != (i == 1) || s.Memory() < s.Send {
				t.Errorf("client %d: %+v, %d bytes written", i, s, written)
			}
			peer = netip.AddrPort{}
		}
		if peer.IsValid() {
			t.Errorf("client %d is not among %+v", i, all)
		}
	}
	if some, err := Of(1); err != nil || len(some) != 0 {
		t.Errorf("of a port nobody listens on: %+v, %v", some, err)
	}
}

func TestShort(t *testing.T) {
	if _, _, err := take(nil, make([]byte, messageHeader)); err == nil {
		t.Error("a message of no length was taken")
	}
	if _, err := socket(make([]byte, answerSize-1)); err == nil {
		t.Error("a short socket was taken")
	}
	if _, err := socket(append(make([]byte, answerSize), 200, 0, memoryInfo, 0)); err == nil {
		t.Error("a short attribute was taken")
	}
}
