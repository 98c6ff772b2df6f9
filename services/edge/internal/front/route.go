package front

import (
	"net/http"
	"strings"
)

// kind is what a path leads to.
type kind uint8

const (
	kindNone kind = iota
	kindStream
	kindStatus
)

// route tells what a path leads to. It never cleans a path: "//v1/ws/stocks" and
// "/v1/x/../ws/stocks" lead nowhere, so that nobody in front of us who reads a
// path otherwise can be used against us. /v1/ws/X is a stream for any X, as the
// client is told after the upgrade that there is no such market.
func route(path string) kind {
	switch path {
	case "/stocks", "/options":
		return kindStream
	case "/v1/status", "/v1/status/":
		return kindStatus
	}
	market, ok := strings.CutPrefix(path, "/v1/ws/")
	if !ok {
		return kindNone
	}
	market = strings.TrimSuffix(market, "/")
	if market == "" || market == "." || market == ".." || strings.Contains(market, "/") {
		return kindNone
	}
	return kindStream
}

// marketLabel is the market for traces: what the client wrote there is not kept.
func marketLabel(r *http.Request) string {
	switch strings.Trim(strings.TrimPrefix(r.URL.Path, "/v1/ws"), "/") {
	case "stocks":
		return "stocks"
	case "options":
		return "options"
	}
	return "other"
}
