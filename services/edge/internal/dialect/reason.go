package dialect

// Reason is why the edge refused a handshake or a command, or ended a socket.
// Every refusal, drop and close goes through one; its String is the metric
// label and the log field. Each dialect maps it to frames, close code and text.
type Reason uint8

// The reasons. A new one goes before reasonEnd and into reasonNames; each
// dialect's table has a test that enumerates them.
const (
	OK Reason = iota

	// Refused before the upgrade, by an HTTP status.
	BadRequest
	NotFound
	MethodNotAllowed
	UpgradeRequired
	URITooLong
	OriginForbidden
	HandshakeRate
	KeyRate
	FailureRate
	PodDraining

	// Refused before the upgrade, or after it where others took the last places
	// meanwhile.
	PodFull

	// Refused after the upgrade: the credential.
	CredentialMissing
	CredentialTimeout
	CredentialInvalid
	CredentialConflict
	ProductMismatch
	PlanTooLow
	MarketUnsupported
	StreamNotConfigured
	CredentialExpired

	// Refused after the upgrade, or ended: the lock and what we depend on.
	DuplicateConnection
	HolderSilent // the lock is held, and nobody answers for its holder
	LockLost
	LockUnavailable
	AuthUnavailable
	UpstreamGone

	// Ended: the client's doing.
	ClientClosed
	ClientGone
	ProtocolError
	UnsupportedData
	InvalidUTF8
	MessageTooBig
	TooManyFragments
	MessageTimeout
	CommandRate
	ControlRate
	BadCommands
	SlowConsumer
	PongTimeout

	// Ended: our doing.
	Draining
	Internal

	reasonEnd
)

//nolint:gosec // G101 takes the names of reasons for credentials.
var reasonNames = [reasonEnd]string{
	OK:                  "ok",
	BadRequest:          "bad_request",
	NotFound:            "not_found",
	MethodNotAllowed:    "method_not_allowed",
	UpgradeRequired:     "upgrade_required",
	URITooLong:          "uri_too_long",
	OriginForbidden:     "origin_forbidden",
	HandshakeRate:       "handshake_rate",
	KeyRate:             "key_rate",
	FailureRate:         "failure_rate",
	PodDraining:         "pod_draining",
	PodFull:             "pod_full",
	CredentialMissing:   "credential_missing",
	CredentialTimeout:   "credential_timeout",
	CredentialInvalid:   "credential_invalid",
	CredentialConflict:  "credential_conflict",
	ProductMismatch:     "product_mismatch",
	PlanTooLow:          "plan_too_low",
	MarketUnsupported:   "market_unsupported",
	StreamNotConfigured: "stream_not_configured",
	CredentialExpired:   "credential_expired",
	DuplicateConnection: "duplicate_connection",
	HolderSilent:        "holder_silent",
	LockLost:            "lock_lost",
	LockUnavailable:     "lock_unavailable",
	AuthUnavailable:     "auth_unavailable",
	UpstreamGone:        "upstream_gone",
	ClientClosed:        "client_closed",
	ClientGone:          "client_gone",
	ProtocolError:       "protocol_error",
	UnsupportedData:     "unsupported_data",
	InvalidUTF8:         "invalid_utf8",
	MessageTooBig:       "message_too_big",
	TooManyFragments:    "too_many_fragments",
	MessageTimeout:      "message_timeout",
	CommandRate:         "command_rate",
	ControlRate:         "control_rate",
	BadCommands:         "bad_commands",
	SlowConsumer:        "slow_consumer",
	PongTimeout:         "pong_timeout",
	Draining:            "draining",
	Internal:            "internal",
}

// String is the metric label.
func (r Reason) String() string {
	if r < reasonEnd {
		return reasonNames[r]
	}
	return "unknown"
}

// Reasons returns all reasons but OK, for metric labels created at zero and
// for tests of dialect tables.
func Reasons() []Reason {
	all := make([]Reason, 0, reasonEnd-1)
	for r := OK + 1; r < reasonEnd; r++ {
		all = append(all, r)
	}
	return all
}
