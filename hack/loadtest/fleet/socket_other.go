//go:build !linux

package fleet

import (
	"errors"
	"fmt"
	"net/netip"
)

var errAgain = fmt.Errorf("fleet needs Linux: %w", errors.ErrUnsupported)

type poller struct{}

type readiness struct {
	fd                         int
	readable, writable, hangup bool
}

func newPoller() (*poller, error) { return nil, errAgain }

func (*poller) add(int) error                      { return errAgain }
func (*poller) wait(int) ([]readiness, error)      { return nil, errAgain }
func (*poller) wake()                              {}
func (*poller) close()                             {}
func dial(netip.AddrPort, netip.Addr) (int, error) { return -1, errAgain }
func connectError(int) error                       { return errAgain }
func bindLater(uintptr) error                      { return errAgain }
func readSocket(int, []byte) (int, error)          { return 0, errAgain }
func writeSocket(int, []byte) (int, error)         { return 0, errAgain }
func closeSocket(int)                              {}
func abortSocket(int)                              {}
