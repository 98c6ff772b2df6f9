package front

import (
	"math"
	"net/http"
	"strconv"

	"github.com/cutemarkets/relay/services/edge/internal/dialect"
)

// refusal is an answer of ours instead of a 101.
type refusal struct {
	reason  dialect.Reason
	status  int
	code    string // of the REST envelope
	message string // says what to do
	header  string // one header field that belongs to the status; empty: none
	value   string
	charged bool // it counts as a failure of the client's address
}

var (
	uriTooLong = &refusal{
		reason: dialect.URITooLong, status: http.StatusRequestURITooLong, code: "uri_too_long",
		message: "The URL is longer than 2048 bytes. Use wss://HOST/v1/ws/{stocks|options}/ and send the API key in the Authorization header.",
	}
	headersTooLarge = &refusal{
		reason: dialect.BadRequest, status: http.StatusRequestHeaderFieldsTooLarge, code: "headers_too_large",
		message: "The request has more than 64 header fields or more than 8192 bytes of them. Send fewer, for instance no cookies.",
	}
	versionUnsupported = &refusal{
		reason: dialect.BadRequest, status: http.StatusHTTPVersionNotSupported, code: "http_version_not_supported",
		message: "WebSocket streams need HTTP/1.1. If a proxy is in between, let it speak HTTP/1.1 to this service.",
		charged: true,
	}
	notFound = &refusal{
		reason: dialect.NotFound, status: http.StatusNotFound, code: "not_found",
		message: "There is nothing at this path. Streams are at /v1/ws/stocks/ and /v1/ws/options/.",
	}
	methodNotAllowed = &refusal{
		reason: dialect.MethodNotAllowed, status: http.StatusMethodNotAllowed, code: "method_not_allowed",
		message: "Only GET is allowed here.",
		header:  "Allow", value: http.MethodGet,
	}
	podDraining = &refusal{
		reason: dialect.PodDraining, status: http.StatusServiceUnavailable, code: "service_unavailable",
		message: "This instance is shutting down. Connect again.",
		header:  "Retry-After", value: "1",
	}
	tooManyHandshakes = &refusal{
		reason: dialect.PodFull, status: http.StatusServiceUnavailable, code: "service_unavailable",
		message: "Too many connections are being opened right now. Connect again a little later.",
		header:  "Retry-After", value: "2",
	}
	podFull = &refusal{
		reason: dialect.PodFull, status: http.StatusServiceUnavailable, code: "service_unavailable",
		message: "This instance has as many connections as it can take. Connect again a little later.",
		header:  "Retry-After", value: "5",
	}
	originForbidden = &refusal{
		reason: dialect.OriginForbidden, status: http.StatusForbidden, code: "forbidden",
		message: "Pages of this origin may not connect.",
		charged: true,
	}
	upgradeRequired = &refusal{
		reason: dialect.UpgradeRequired, status: http.StatusUpgradeRequired, code: "upgrade_required",
		message: "This is a WebSocket stream. Connect with a WebSocket client.",
		header:  "Upgrade", value: "websocket",
		charged: true,
	}
	versionNot13 = &refusal{
		reason: dialect.UpgradeRequired, status: http.StatusUpgradeRequired, code: "upgrade_required",
		message: "Sec-WebSocket-Version must be 13.",
		header:  "Sec-WebSocket-Version", value: "13",
		charged: true,
	}
	badUpgrade    = badRequest("The header fields must say Upgrade: websocket and Connection: Upgrade. If a proxy is in between, let it pass them on.")
	badVersion    = badRequest("The header field Sec-WebSocket-Version must be there once and say 13.")
	badKey        = badRequest("The header field Sec-WebSocket-Key must be there once and be 16 bytes in base64.")
	badHost       = badRequest("The header field Host must name a host.")
	bodyForbidden = badRequest("A WebSocket handshake has no body: send neither Content-Length nor Transfer-Encoding.")
)

func badRequest(message string) *refusal {
	return &refusal{
		reason: dialect.BadRequest, status: http.StatusBadRequest, code: "bad_request",
		message: message, charged: true,
	}
}

// tooManyRequests is the refusal by a bucket that gains rate tokens a second.
func tooManyRequests(reason dialect.Reason, rate float64, message string) *refusal {
	return &refusal{
		reason: reason, status: http.StatusTooManyRequests, code: "rate_limit_exceeded",
		message: message,
		header:  "Retry-After", value: strconv.Itoa(int(math.Ceil(1 / rate))),
	}
}
