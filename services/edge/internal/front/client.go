package front

import (
	"net/netip"
	"slices"
	"strings"
)

// clientAddr is the address of the client: the peer's, or, where the peer is a
// trusted proxy, the rightmost X-Forwarded-For entry that is not one. An entry
// that is no address ends the search at the proxy that vouched for it, so what a
// client makes up never counts.
func clientAddr(peer netip.Addr, forwarded []string, trusted []netip.Prefix) netip.Addr {
	addr := canonical(peer)
	for i := len(forwarded) - 1; i >= 0; i-- {
		for list, more := forwarded[i], true; more; {
			if !isTrusted(addr, trusted) {
				return addr
			}
			var entry string
			if entry, list, more = cutLast(list); entry == "" {
				continue // an empty element of a list (RFC 9110 §5.6.1)
			}
			next, ok := parseForwarded(entry)
			if !ok {
				return addr
			}
			addr = next
		}
	}
	return addr
}

func isTrusted(addr netip.Addr, trusted []netip.Prefix) bool {
	return slices.ContainsFunc(trusted, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// cutLast takes the last element off a list.
func cutLast(list string) (last, rest string, more bool) {
	if i := strings.LastIndexByte(list, ','); i >= 0 {
		last, rest, more = list[i+1:], list[:i], true
	} else {
		last = list
	}
	return strings.Trim(last, " \t"), rest, more
}

// parseForwarded reads an address as proxies write it: with or without a port,
// IPv6 with or without brackets.
func parseForwarded(entry string) (netip.Addr, bool) {
	if a, err := netip.ParseAddr(entry); err == nil {
		return canonical(a), true
	}
	if ap, err := netip.ParseAddrPort(entry); err == nil {
		return canonical(ap.Addr()), true
	}
	if inner, ok := strings.CutPrefix(entry, "["); ok {
		if inner, ok = strings.CutSuffix(inner, "]"); ok {
			a, err := netip.ParseAddr(inner)
			return canonical(a), err == nil
		}
	}
	return netip.Addr{}, false
}

// canonical makes the several spellings of an address one.
func canonical(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }

// bucketKey is whose bucket an address draws from: its own, or that of its /64
// with IPv6, as a subscriber commonly has one of these for himself.
func bucketKey(a netip.Addr) netip.Addr {
	if a = canonical(a); a.Is6() {
		p, _ := a.Prefix(64) // never fails for IPv6
		return p.Addr()
	}
	return a
}
