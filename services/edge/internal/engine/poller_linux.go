package engine

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/cutemarkets/relay/services/internal/lifecycle"
)

// pollEvents is how many sockets one look tells of.
const pollEvents = 256

// poller is the epoll instance of one shard. Sockets are registered once, edge
// triggered for both directions. Its own goroutine only sleeps: epoll instances
// can be waited for like sockets, so it is the runtime's poller that wakes it,
// and it wakes the shard. A shard that waited in epoll_wait itself would keep a
// processor from all other goroutines until the runtime notices.
type poller struct {
	// Static after construction.
	file *os.File
	fd   int

	closing atomic.Bool

	// Owned by the shard; not thread-safe.
	events [pollEvents]unix.EpollEvent
}

func newPoller() (*poller, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll_create1: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // or os would not wait for it
		return nil, errors.Join(fmt.Errorf("epoll: %w", err), unix.Close(fd))
	}
	return &poller{file: os.NewFile(uintptr(fd), "epoll"), fd: fd}, nil
}

// watch leaves a token in wake whenever there may be something to take, until
// close.
func (p *poller) watch(wake chan struct{}) error {
	raw, err := p.file.SyscallConn()
	if err != nil {
		return fmt.Errorf("epoll: %w", err)
	}
	lifecycle.Go("engine poller", func() {
		err := raw.Read(func(uintptr) bool {
			select {
			case wake <- struct{}{}:
			default:
			}
			return false
		})
		if !p.closing.Load() {
			panic(fmt.Sprintf("engine: the runtime cannot wait for epoll on this system, use --engine portable: %v", err))
		}
	})
	return nil
}

func (p *poller) close() error {
	p.closing.Store(true)
	return p.file.Close()
}

// add registers a socket under a ref.
func (p *poller) add(fd int, r ref) error {
	event := unix.EpollEvent{
		Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET,
		Fd:     r.slot,
		Pad:    int32(r.generation),
	}
	return unix.EpollCtl(p.fd, unix.EPOLL_CTL_ADD, fd, &event)
}

// take returns what has happened since the last time, and whether there may be
// more.
func (p *poller) take() (events []unix.EpollEvent, more bool) {
	n := pollNow(p.fd, p.events[:])
	return p.events[:n], n == len(p.events)
}
