package wire

import (
	"bytes"
	"strconv"
	"strings"
	"time"
)

// The key that every connection sends and the answer to it. A nonce for each
// would guard against caches that answer an upgrade, and cost a hash for each
// connection; with one for all, the simplest of servers can answer by a constant.
const (
	Key    = "dGhlIHNhbXBsZSBub25jZQ=="
	Accept = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
)

// Offer is what is offered when compression is wanted: each message by itself,
// so that no connection needs a window of its own.
const Offer = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"

// MaxAnswer is the longest answer to an upgrade that is read, in bytes.
const MaxAnswer = 16 << 10

// The faults of an answer to an upgrade.
const (
	BadAnswer    Fault = "bad_answer"    // no HTTP/1.1 answer, or longer than MaxAnswer
	BadUpgrade   Fault = "bad_upgrade"   // 101 without the right headers
	BadExtension Fault = "bad_extension" // an extension that was not offered, or not like this
)

// Answer is what a server answers to the request for an upgrade.
type Answer struct {
	Size       int // bytes of the answer, without a body
	Code       int // HTTP status
	RetryAfter time.Duration
	Deflate    bool
}

// AppendRequest appends the request for an upgrade.
func AppendRequest(dst []byte, host, path, bearer string, deflate bool) []byte {
	dst = append(append(append(dst, "GET "...), path...), " HTTP/1.1\r\nHost: "...)
	dst = append(append(dst, host...), "\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: "+Key+"\r\n"...)
	if bearer != "" {
		dst = append(append(append(dst, "Authorization: Bearer "...), bearer...), "\r\n"...)
	}
	if deflate {
		dst = append(dst, "Sec-WebSocket-Extensions: "+Offer+"\r\n"...)
	}
	return append(dst, "\r\n"...)
}

// ParseAnswer reads the answer at the beginning of b; ok is false while bytes
// of it are missing. deflate says whether compression was offered.
func ParseAnswer(b []byte, deflate bool) (a Answer, ok bool, fault Fault) {
	end := bytes.Index(b, []byte("\r\n\r\n"))
	if end < 0 {
		if len(b) > MaxAnswer {
			fault = BadAnswer
		}
		return a, false, fault
	}
	a.Size = end + 4
	first, lines, _ := strings.Cut(string(b[:end]), "\r\n")
	status, found := strings.CutPrefix(first, "HTTP/1.1 ")
	status, _, _ = strings.Cut(status, " ")
	code, err := strconv.Atoi(status)
	if !found || err != nil || code < 101 || code > 599 {
		return a, false, BadAnswer
	}
	a.Code = code
	var upgrade, accept, extensions string
	for line := range strings.SplitSeq(lines, "\r\n") {
		name, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch strings.ToLower(name) {
		case "upgrade":
			upgrade = value
		case "sec-websocket-accept":
			accept = value
		case "sec-websocket-extensions":
			extensions += value
		case "retry-after":
			if seconds, err := strconv.ParseUint(value, 10, 31); err == nil {
				a.RetryAfter = time.Duration(seconds) * time.Second
			}
		}
	}
	switch {
	case code != 101:
		return a, true, ""
	case !strings.EqualFold(upgrade, "websocket") || accept != Accept:
		return a, false, BadUpgrade
	case extensions == "":
		return a, true, ""
	case !deflate || !strings.HasPrefix(extensions, "permessage-deflate") || !strings.Contains(extensions, "server_no_context_takeover"):
		return a, false, BadExtension
	}
	a.Deflate = true
	return a, true, ""
}
