package cutemarkets

import (
	"time"

	"github.com/cutemarkets/relay/services/edge/internal/dialect"
)

// How long a socket stays open between the last status and its close frame.
// The Go SDK dials again without any delay, thousands of times a second; the
// hold is what slows it down. auth_failed stops it for good, but it has to read
// the status before the close.
const (
	holdCredential = 150 * time.Millisecond
	holdRetried    = time.Second
)

// Close codes of the product, and those of RFC 6455 section 7.4.1 and of its
// registry (1012, 1013) we use. Of our own accord we never send 1000 or 1001:
// the Python SDK then ends without an error and without a reconnect.
const (
	codeProtocol    = 1002
	codeUnsupported = 1003
	codeInvalidUTF8 = 1007
	codePolicy      = 1008
	codeTooBig      = 1009
	codeGateway     = 1011
	codeRestart     = 1012
	codeTryLater    = 1013
	codeCredential  = 4401
	codeDuplicate   = 4409
)

// credentialTexts tells the causes behind close code 4401 apart. Each is also
// what Signin says of a later credential.
var credentialTexts = map[dialect.Reason]string{
	dialect.CredentialMissing:   "missing API key",
	dialect.CredentialInvalid:   "invalid API key",
	dialect.CredentialConflict:  "two different API keys were presented",
	dialect.ProductMismatch:     "the API key is for another product",
	dialect.PlanTooLow:          "the plan has no live stream; Expert or Commercial is needed",
	dialect.MarketUnsupported:   "unsupported market; stocks and options are supported",
	dialect.StreamNotConfigured: "stream access is not configured for this market",
	dialect.CredentialExpired:   "the API key has expired or was revoked",
}

const oneConnection = "Maximum number of websocket connections exceeded. " +
	"A user may have one open connection, across all API keys and markets"

// byes has no entry for reasons that only refuse before the upgrade, nor for
// ClientClosed.
var byes = makeByes()

func makeByes() map[dialect.Reason]dialect.Bye {
	table := map[dialect.Reason]dialect.Bye{
		dialect.CredentialTimeout: {
			Frames: frames("auth_timeout", "No authentication request received."),
			Hold:   holdCredential, Code: codeCredential, Text: "authentication timeout",
		},

		dialect.DuplicateConnection: {
			Frames: frames("max_connections", oneConnection+"; this user already has one."),
			Hold:   holdRetried, Code: codeDuplicate, Text: "this user already has an active connection",
		},
		dialect.HolderSilent: {
			Frames: frames("max_connections", oneConnection+"; this user had one whose end is not known yet, try again."),
			Hold:   holdRetried, Code: codeDuplicate, Text: "an earlier connection of this user has not ended yet",
		},
		dialect.LockLost: {
			Frames: frames("max_connections", oneConnection+"; another one took the place of this one."),
			Code:   codeDuplicate, Text: "another connection of this user took over",
		},

		dialect.LockUnavailable: gateway("the connection lock is not available"),
		dialect.AuthUnavailable: gateway("authentication is not available"),
		dialect.UpstreamGone:    gateway("the upstream feed is not available"),
		dialect.Internal:        gateway("internal error"),

		dialect.ClientGone: {},

		dialect.ProtocolError:    {Code: codeProtocol, Text: "protocol error"},
		dialect.UnsupportedData:  {Code: codeUnsupported, Text: "only text messages are supported"},
		dialect.InvalidUTF8:      {Code: codeInvalidUTF8, Text: "invalid UTF-8"},
		dialect.MessageTooBig:    retried(codeTooBig, "message too big"),
		dialect.TooManyFragments: {Code: codePolicy, Text: "too many fragments"},
		dialect.MessageTimeout:   {Code: codePolicy, Text: "message not finished in time"},
		dialect.CommandRate:      retried(codePolicy, "too many messages"),
		dialect.ControlRate:      {Code: codePolicy, Text: "too many control frames"},
		dialect.BadCommands:      retried(codePolicy, "too many malformed messages"),
		dialect.SlowConsumer: {
			Frames: frames("error", "slow consumer"),
			Code:   codePolicy, Text: "slow consumer",
		},
		dialect.PongTimeout: {Code: codePolicy, Text: "pong timeout"},

		dialect.Draining: {
			Frames: frames("draining", "This server is about to restart. Please connect again."),
			Code:   codeRestart, Text: "service restart",
		},
		dialect.PodFull: {
			Frames: frames("error", "This server has as many connections as it can take. Please connect again a little later."),
			Code:   codeTryLater, Text: "try again later",
		},
	}
	for r, text := range credentialTexts {
		table[r] = dialect.Bye{
			Frames: [][]byte{authFailed(text)},
			Hold:   holdCredential, Code: codeCredential, Text: text,
		}
	}
	return table
}

func frames(kind, message string) [][]byte { return [][]byte{status(kind, message)} }

func authFailed(text string) []byte { return status("auth_failed", "authentication failed: ", text) }

// gateway is the end of a socket we cannot serve.
func gateway(text string) dialect.Bye {
	text = "stream gateway error: " + text
	return dialect.Bye{Frames: frames("error", text), Hold: holdRetried, Code: codeGateway, Text: text}
}

// retried is the end of a socket whose client would do the same again at once.
func retried(code uint16, text string) dialect.Bye {
	return dialect.Bye{Frames: frames("error", text), Hold: holdRetried, Code: code, Text: text}
}

// Bye implements dialect.Dialect.
func (*Dialect) Bye(r dialect.Reason) dialect.Bye {
	bye, ok := byes[r]
	if !ok {
		panic("cutemarkets: no farewell for " + r.String())
	}
	return bye
}
