package fleet

import (
	"crypto/tls"
	"errors"
	"io"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Stage is how far a connection came.
type Stage uint8

// The stages, each named for what it was about to do.
const (
	StageConnect Stage = iota
	StageTLS
	StageUpgrade
	StageAuth
	StageSubscribe
	StageLive
)

// String returns the stage's label.
func (s Stage) String() string {
	return [...]string{"connect", "tls", "upgrade", "auth", "subscribe", "live"}[s]
}

// By is who ended a connection.
type By uint8

// Who ends connections.
const (
	ByUs By = iota
	ByServer
	ByNetwork
)

// String returns the label.
func (b By) String() string { return [...]string{"us", "server", "network"}[b] }

// End is how a connection ended.
type End struct {
	Stage      Stage
	Code       int           // of the close frame, ours or the server's; 0: there was none, or it had none
	HTTP       int           // status of a refused upgrade; 0: none
	RetryAfter time.Duration // of a refused upgrade; 0: not said
	Reason     string        // a label; the set of them is bounded
	By         By
}

// The reasons of connections that did not end by what the server said.
const (
	ReasonClosed       = "closed"        // by Close
	ReasonStopped      = "stopped"       // Run returned
	ReasonTimeout      = "timeout"       // not ready within Options.HandshakeTimeout
	ReasonMisframed    = "misframed"     // the server broke the rules of the wire; Misframed told which
	ReasonNoTopic      = "no_topic"      // none of the topics was granted
	ReasonLost         = "lost"          // TCP ended without a close frame
	ReasonReset        = "reset"         // TCP reset
	ReasonRefused      = "refused"       // nobody listens
	ReasonUnreachable  = "unreachable"   // no route, or no answer
	ReasonNoPort       = "no_port"       // ours: all ports of the source address are taken
	ReasonNoDescriptor = "no_descriptor" // ours: the limit of open files is reached
	ReasonBadSource    = "bad_source"    // ours: the source address is not of this machine
	ReasonCertificate  = "certificate"   // it does not verify
	ReasonOther        = "other"
)

// closeTexts are the reasons of a relay by the text of its close frame.
var closeTexts = map[string]string{
	"missing API key":                                             "credential_missing",
	"invalid API key":                                             "credential_invalid",
	"two different API keys were presented":                       "credential_conflict",
	"the API key is for another product":                          "product_mismatch",
	"unsupported market; stocks and options are supported":        "market_unsupported",
	"stream access is not configured for this market":             "stream_not_configured",
	"the plan has no live stream; Expert or Commercial is needed": "plan_too_low",
	"the API key has expired or was revoked":                      "credential_expired",
	"authentication timeout":                                      "credential_timeout",
	"this user already has an active connection":                  "duplicate_connection",
	"an earlier connection of this user has not ended yet":        "holder_silent",
	"another connection of this user took over":                   "lock_lost",
	"protocol error":                                              "protocol_error",
	"only text messages are supported":                            "unsupported_data",
	"invalid UTF-8":                                               "invalid_utf8",
	"message too big":                                             "message_too_big",
	"too many fragments":                                          "too_many_fragments",
	"message not finished in time":                                "message_timeout",
	"too many messages":                                           "command_rate",
	"too many control frames":                                     "control_rate",
	"too many malformed messages":                                 "bad_commands",
	"slow consumer":                                               "slow_consumer",
	"pong timeout":                                                "pong_timeout",
	"service restart":                                             "draining",
	"try again later":                                             "pod_full",
	"stream gateway error: the connection lock is not available":  "lock_unavailable",
	"stream gateway error: authentication is not available":       "auth_unavailable",
	"stream gateway error: the upstream feed is not available":    "upstream_gone",
	"stream gateway error: internal error":                        "internal",
}

// closeCodes are the reasons of servers with other texts.
var closeCodes = map[int]string{
	0: "no_status", 1000: "normal", 1001: "going_away", 1002: "protocol_error", 1003: "unsupported_data",
	1007: "invalid_utf8", 1008: "policy_violation", 1009: "message_too_big", 1010: "extension_missing",
	1011: "internal", 1012: "draining", 1013: "try_again_later", 1014: "bad_gateway",
	4401: "unauthorized", 4409: "duplicate_connection",
}

// closeReason returns the label of a close frame.
func closeReason(code int, text []byte) string {
	if reason, ok := closeTexts[string(text)]; ok {
		return reason
	}
	if reason, ok := closeCodes[code]; ok {
		return reason
	}
	return ReasonOther
}

// statusReason returns the label of a status that came before a connection was
// authenticated and was not granted: the vendor says no more before TCP ends.
func statusReason(status, message []byte) string {
	switch s := string(status); s {
	case "auth_failed", "auth_timeout", "max_connections":
		return s
	case "error":
		return closeReason(-1, message)
	default:
		return ""
	}
}

func httpReason(code int) string { return "http_" + strconv.Itoa(code) }

// errorEnd returns how a connection ended that failed with an error of the
// system or of TLS.
func errorEnd(err error) End {
	var certificate *tls.CertificateVerificationError
	var alert tls.AlertError
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return End{Reason: ReasonLost, By: ByNetwork}
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return End{Reason: ReasonReset, By: ByNetwork}
	case errors.Is(err, syscall.ECONNREFUSED):
		return End{Reason: ReasonRefused, By: ByNetwork}
	case errors.Is(err, syscall.ETIMEDOUT), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return End{Reason: ReasonUnreachable, By: ByNetwork}
	case errors.Is(err, syscall.EADDRNOTAVAIL), errors.Is(err, syscall.EADDRINUSE):
		return End{Reason: ReasonNoPort, By: ByUs}
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return End{Reason: ReasonNoDescriptor, By: ByUs}
	case errors.Is(err, errSource):
		return End{Reason: ReasonBadSource, By: ByUs}
	case errors.As(err, &certificate):
		return End{Reason: ReasonCertificate, By: ByUs}
	case errors.As(err, &alert), strings.HasPrefix(err.Error(), "tls: "):
		return End{Reason: "tls", By: ByServer}
	default:
		return End{Reason: ReasonOther, By: ByNetwork}
	}
}

var errSource = errors.New("fleet: the source address is not of this machine, or of another family than the target")
