//go:build linux

package process

import (
	"os"
	"testing"
)

func TestKernelTCP(t *testing.T) {
	k, err := KernelTCP()
	if err != nil || k.Buffers < 0 || k.Objects == 0 || k.Objects < -1 {
		t.Errorf("%+v, %v", k, err)
	}
	pages, err := tcpPages([]byte("sockets: used 9\nTCP: inuse 7 orphan 0 tw 8 alloc 9 mem 965\nUDP: inuse 0 mem 1\n"))
	if err != nil || pages != 965 {
		t.Errorf("%d pages, %v", pages, err)
	}
	if _, err := tcpPages([]byte("UDP: inuse 0 mem 1\n")); err == nil {
		t.Error("memory of TCP where there is none")
	}
	bytes, err := slabs([]byte("slabinfo - version: 2.1\n# name <active_objs> <num_objs> <objsize>\nTCP 10 13 2368 13 8 : tunables\nfilp 5 9 256 1 : x\nother 99 99 99\n"))
	if err != nil || bytes != 10*2368+5*256 {
		t.Errorf("%d bytes, %v", bytes, err)
	}
	if _, err := slabs([]byte("TCP x 13 2368 13\n")); err == nil {
		t.Error("objects that are no number were taken")
	}
}

func TestDescriptors(t *testing.T) {
	before, err := Descriptors(os.Getpid())
	if err != nil || before == 0 {
		t.Fatalf("%d, %v", before, err)
	}
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if after, err := Descriptors(os.Getpid()); err != nil || after != before+1 {
		t.Errorf("%d, before %d, %v", after, before, err)
	}
}
