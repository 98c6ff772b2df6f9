package fleet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// ErrTarget is the error of a URL that no connection can be made to.
var ErrTarget = errors.New("fleet: want ws://HOST[:PORT]/PATH or wss://HOST[:PORT]/PATH")

// Target is a server and a path on it. It is safe for concurrent use.
type Target struct {
	// Static after construction.
	addresses []netip.AddrPort
	host      string // as in the Host header
	name      string // without the port
	path      string // with the query
	secure    bool

	next atomic.Uint32 // into addresses, for the next connection
}

// NewTarget parses a URL and looks its host up, once. The addresses of the host
// take turns. The error is ErrTarget or that of the look-up.
func NewTarget(ctx context.Context, text string) (*Target, error) {
	u, err := url.Parse(text)
	if err != nil || (u.Scheme != "ws" && u.Scheme != "wss") || u.Hostname() == "" || u.User != nil || u.Fragment != "" {
		return nil, ErrTarget
	}
	t := &Target{host: u.Host, name: u.Hostname(), path: u.RequestURI(), secure: u.Scheme == "wss"}
	port := u.Port()
	switch {
	case port == "" && t.secure:
		port = "443"
	case port == "":
		port = "80"
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("%w: port %s", ErrTarget, port)
	}
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", t.name)
	if err != nil {
		return nil, fmt.Errorf("fleet: look-up of the target: %w", err)
	}
	for _, address := range found {
		t.addresses = append(t.addresses, netip.AddrPortFrom(address.Unmap(), uint16(number)))
	}
	return t, nil
}

// Host is the target's host and port, as given.
func (t *Target) Host() string { return t.host }

// address returns the address for the next connection: the next one of the
// source's family, where there is one.
func (t *Target) address(source netip.Addr) netip.AddrPort {
	first := int(t.next.Add(1) - 1)
	for i := range t.addresses {
		a := t.addresses[(first+i)%len(t.addresses)]
		if !source.IsValid() || a.Addr().Is4() == source.Unmap().Is4() {
			return a
		}
	}
	return t.addresses[first%len(t.addresses)]
}

// requestPath is the path with the key, where it goes into the query.
func (t *Target) requestPath(key string, inQuery bool) string {
	if !inQuery {
		return t.path
	}
	separator := "?"
	if strings.Contains(t.path, "?") {
		separator = "&"
	}
	return t.path + separator + "api_key=" + url.QueryEscape(key)
}

// Plan is one connection to make.
type Plan struct {
	Scheduled time.Time  // when it is due; latencies count from here
	Target    *Target    // needed
	Source    netip.Addr // zero: the system chooses; beyond 5,000 connections from one to one target address the kernel searches long for a free port
	Key       string     // sent as Authorization: Bearer, or as api_key in the query; "": none
	InQuery   bool
	Topics    string // subscribed after auth_success, with commas between them; "": none
	Deflate   bool   // offer permessage-deflate
	ReadLimit int    // bytes per second that are read at most once ready; 0: no limit; -1: nothing is read
	Tag       int    // the caller's, such as an index of its accounts
}

// topics counts the topics of a list: an acknowledgement is due for each.
func topics(list string) int {
	n := 0
	for topic := range strings.SplitSeq(list, ",") {
		if strings.TrimSpace(topic) != "" {
			n++
		}
	}
	return n
}

// Times say when a connection reached what, since Plan.Scheduled; 0: not
// reached.
type Times struct {
	Begun         time.Duration // the fleet began to connect: its own delay
	Connected     time.Duration // TCP, and TLS where there is
	Upgraded      time.Duration
	Authenticated time.Duration
	Subscribed    time.Duration
}
