package cutemarkets

import (
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/cutemarkets/relay/services/edge/internal/dialect"
	"github.com/cutemarkets/relay/services/internal/secret"
)

// maxCredential bounds an API key, in bytes.
const maxCredential = 256

// Open implements dialect.Dialect. The market comes from the route's {market}
// or from the path; what is wrong with the market is told before what is wrong
// with the credential.
func (d *Dialect) Open(r *http.Request) dialect.Opening {
	name := r.PathValue("market")
	if name == "" {
		var ok bool
		if name, ok = strings.CutPrefix(r.URL.Path, "/v1/ws/"); !ok {
			name = strings.TrimPrefix(r.URL.Path, "/")
		}
		name = strings.TrimSuffix(name, "/")
	}
	if _, ok := markets[name]; !ok {
		return dialect.Opening{Refuse: dialect.MarketUnsupported}
	}
	at := slices.Index(d.configured, name)
	if at < 0 {
		return dialect.Opening{Refuse: dialect.StreamNotConfigured}
	}
	name = d.configured[at] // lets go of the request, which may have the key in it
	credential, refuse := presented(r)
	if refuse == dialect.OK && credential == "" && !d.inBandAuth {
		refuse = dialect.CredentialMissing
	}
	if refuse != dialect.OK {
		return dialect.Opening{Refuse: refuse}
	}
	// So does the clone.
	return dialect.Opening{
		Market: name, Credential: secret.New(strings.Clone(credential)),
		Conflate: slices.Contains(r.URL.Query()["conflate"], "quotes"),
	}
}

// presented returns the credential of a handshake; empty: there is none.
func presented(r *http.Request) (credential string, refuse dialect.Reason) {
	header, inHeader, ok := fromHeader(r.Header)
	if !ok {
		return "", dialect.CredentialInvalid
	}
	query, inQuery, ok := fromQuery(r.URL.RawQuery)
	if !ok {
		return "", dialect.CredentialInvalid
	}
	switch {
	case inHeader && inQuery && header != query:
		return "", dialect.CredentialConflict
	case inHeader:
		return header, dialect.OK
	default:
		return query, dialect.OK
	}
}

// fromHeader reads `Authorization: Bearer <key>`. The scheme's case does not
// matter and one or more spaces follow it (RFC 9110, section 11).
func fromHeader(h http.Header) (credential string, found, ok bool) {
	values := h.Values("Authorization")
	if len(values) == 0 {
		return "", false, true
	}
	if len(values) > 1 {
		return "", true, false
	}
	scheme, rest, _ := strings.Cut(values[0], " ")
	credential = strings.TrimLeft(rest, " ")
	return credential, true, strings.EqualFold(scheme, "Bearer") && plausible(credential)
}

// fromQuery reads api_key=<percent-encoded key>. Other parameters are not
// looked at, however they are spelled.
func fromQuery(raw string) (credential string, found, ok bool) {
	for raw != "" {
		var pair string
		pair, raw, _ = strings.Cut(raw, "&")
		key, value, _ := strings.Cut(pair, "=")
		if name, err := url.QueryUnescape(key); err != nil || name != "api_key" {
			continue
		}
		if found {
			return "", true, false
		}
		found = true
		var err error
		if credential, err = url.QueryUnescape(value); err != nil || !plausible(credential) {
			return "", true, false
		}
	}
	return credential, found, true
}

// plausible reports whether text can be an API key at all: 1 to 256 printable
// ASCII characters without a space.
func plausible(text string) bool {
	if text == "" || len(text) > maxCredential {
		return false
	}
	for i := range len(text) {
		if text[i] <= ' ' || text[i] > '~' {
			return false
		}
	}
	return true
}
