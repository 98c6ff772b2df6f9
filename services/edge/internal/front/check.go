package front

import (
	"encoding/base64"
	"net/http"
	"slices"
	"strings"
)

// Bounds of what a request may be.
const (
	maxURL          = 2 << 10 // bytes of the request target
	maxHeaderBytes  = 8 << 10 // bytes of the header fields
	maxHeaderFields = 64
)

// checkSize refuses a request that is too large, before any look at what is in
// it. net/http has bounded the whole to 12 KiB.
func checkSize(r *http.Request) *refusal {
	if len(r.RequestURI) > maxURL {
		return uriTooLong
	}
	fields, bytes := 0, 0
	for name, values := range r.Header {
		for _, v := range values {
			fields++
			bytes += len(name) + len(": ") + len(v) + len("\r\n")
		}
	}
	if fields > maxHeaderFields || bytes > maxHeaderBytes {
		return headersTooLarge
	}
	return nil
}

// checkOrigin refuses a browser's page that is not on the list. An empty list
// allows all; so does a request without Origin, which is none of a page.
func checkOrigin(r *http.Request, allowed []string) *refusal {
	if len(allowed) == 0 {
		return nil
	}
	for _, origin := range r.Header["Origin"] {
		if !slices.Contains(allowed, origin) {
			return originForbidden
		}
	}
	return nil
}

// checkUpgrade checks the fields of an opening handshake (RFC 6455 §4.2.1) more
// strictly than net/http and gobwas do. What passes, gobwas answers with a 101.
func checkUpgrade(r *http.Request) *refusal {
	h := r.Header
	upgrade, key, version := h["Upgrade"], h["Sec-Websocket-Key"], h["Sec-Websocket-Version"]
	switch {
	case !r.ProtoAtLeast(1, 1):
		return versionUnsupported
	case r.Host == "":
		return badHost
	case len(upgrade) == 0 && len(key) == 0:
		return upgradeRequired // a plain GET
	case !hasToken(upgrade, "websocket") || !hasToken(h["Connection"], "upgrade"):
		return badUpgrade
	case len(version) != 1 || version[0] == "":
		return badVersion
	case version[0] != "13":
		return versionNot13 // RFC 6455 §4.4
	case len(key) != 1 || !validKey(key[0]):
		return badKey
	case r.ContentLength != 0 || len(r.TransferEncoding) != 0:
		return bodyForbidden
	}
	return nil
}

// validKey reports whether a Sec-WebSocket-Key is 16 bytes in base64.
func validKey(key string) bool {
	var text [24]byte
	var nonce [18]byte
	if len(key) != len(text) {
		return false
	}
	copy(text[:], key)
	n, err := base64.StdEncoding.Decode(nonce[:], text[:])
	return err == nil && n == 16
}

// hasToken reports whether a header field that is a list has a token, in any
// case of letters.
func hasToken(values []string, token string) bool {
	for _, list := range values {
		for len(list) > 0 {
			var item string
			item, list, _ = strings.Cut(list, ",")
			if strings.EqualFold(strings.Trim(item, " \t"), token) {
				return true
			}
		}
	}
	return false
}
