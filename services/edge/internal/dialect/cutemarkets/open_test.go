package cutemarkets

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/cutemarkets/relay/services/edge/internal/dialect"
)

func both() *Dialect {
	return New(Options{Markets: []string{"stocks", "options"}, InBandAuth: true})
}

func request(target string, authorization ...string) *http.Request {
	r := httptest.NewRequest(http.MethodGet, target, nil)
	for _, a := range authorization {
		r.Header.Add("Authorization", a)
	}
	return r
}

func TestOpen(t *testing.T) {
	long := strings.Repeat("k", 256)
	for _, c := range []struct {
		name   string
		r      *http.Request
		market string
		key    string
		refuse dialect.Reason
	}{
		{"slash", request("/v1/ws/stocks/", "Bearer cm_a"), "stocks", "cm_a", dialect.OK},
		{"no slash", request("/v1/ws/options", "Bearer cm_a"), "options", "cm_a", dialect.OK},
		{"at the root", request("/stocks"), "stocks", "", dialect.OK},
		{"at the root, options", request("/options"), "options", "", dialect.OK},
		{"unknown market", request("/v1/ws/crypto/", "Bearer cm_a"), "", "", dialect.MarketUnsupported},
		{"another case", request("/v1/ws/Stocks/"), "", "", dialect.MarketUnsupported},
		{"path run together", request("/v1/wsstocks"), "", "", dialect.MarketUnsupported},
		{"no market", request("/v1/ws/"), "", "", dialect.MarketUnsupported},
		{"market before credential", request("/v1/ws/crypto/", "Basic x"), "", "", dialect.MarketUnsupported},

		{"scheme in lower case", request("/stocks", "bearer cm_a"), "stocks", "cm_a", dialect.OK},
		{"scheme in upper case", request("/stocks", "BEARER cm_a"), "stocks", "cm_a", dialect.OK},
		{"two spaces", request("/stocks", "Bearer  cm_a"), "stocks", "cm_a", dialect.OK},
		{"tab", request("/stocks", "Bearer\tcm_a"), "", "", dialect.CredentialInvalid},
		{"basic", request("/stocks", "Basic cm_a"), "", "", dialect.CredentialInvalid},
		{"scheme alone", request("/stocks", "Bearer"), "", "", dialect.CredentialInvalid},
		{"scheme and spaces", request("/stocks", "Bearer  "), "", "", dialect.CredentialInvalid},
		{"key without a scheme", request("/stocks", "cm_a"), "", "", dialect.CredentialInvalid},
		{"empty header", request("/stocks", ""), "", "", dialect.CredentialInvalid},
		{"two keys in one header", request("/stocks", "Bearer cm_a cm_b"), "", "", dialect.CredentialInvalid},
		{"two headers", request("/stocks", "Bearer cm_a", "Bearer cm_a"), "", "", dialect.CredentialInvalid},
		{"non-ASCII header", request("/stocks", "Bearer cm_\xc3\xa9"), "", "", dialect.CredentialInvalid},
		{"long header", request("/stocks", "Bearer "+long+"k"), "", "", dialect.CredentialInvalid},
		{"longest header", request("/stocks", "Bearer "+long), "stocks", long, dialect.OK},

		{"query", request("/v1/ws/stocks/?api_key=cm_a"), "stocks", "cm_a", dialect.OK},
		{"query, encoded", request("/v1/ws/stocks/?x=%zz&api_key=cm%5Fa&y"), "stocks", "cm_a", dialect.OK},
		{"query twice", request("/v1/ws/stocks/?api_key=cm_a&api_key=cm_a"), "", "", dialect.CredentialInvalid},
		{"query twice, name encoded", request("/v1/ws/stocks/?api_key=cm_a&api%5fkey=cm_a"), "", "", dialect.CredentialInvalid},
		{"query empty", request("/v1/ws/stocks/?api_key="), "", "", dialect.CredentialInvalid},
		{"query without a value", request("/v1/ws/stocks/?api_key"), "", "", dialect.CredentialInvalid},
		{"query too long", request("/v1/ws/stocks/?api_key=" + long + "k"), "", "", dialect.CredentialInvalid},
		{"query longest", request("/v1/ws/stocks/?api_key=" + long), "stocks", long, dialect.OK},
		{"query with bad encoding", request("/v1/ws/stocks/?api_key=cm_%zz"), "", "", dialect.CredentialInvalid},
		{"query cut within an encoding", request("/v1/ws/stocks/?api_key=cm_%4"), "", "", dialect.CredentialInvalid},
		{"query not ASCII", request("/v1/ws/stocks/?api_key=cm_%C3%A9"), "", "", dialect.CredentialInvalid},
		{"query with NUL", request("/v1/ws/stocks/?api_key=cm_%00"), "", "", dialect.CredentialInvalid},
		{"query with a space", request("/v1/ws/stocks/?api_key=cm+a"), "", "", dialect.CredentialInvalid},
		{"another parameter", request("/v1/ws/stocks/?apiKey=cm_a"), "stocks", "", dialect.OK},

		{"both, equal", request("/stocks?api_key=cm_a", "Bearer cm_a"), "stocks", "cm_a", dialect.OK},
		{"both, different", request("/stocks?api_key=cm_b", "Bearer cm_a"), "", "", dialect.CredentialConflict},
		{"both, one of them bad", request("/stocks?api_key=", "Bearer cm_a"), "", "", dialect.CredentialInvalid},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := both().Open(c.r)
			if got.Market != c.market || got.Credential.Reveal() != c.key || got.Refuse != c.refuse {
				t.Errorf("market %q, key %q, refuse %s", got.Market, got.Credential.Reveal(), got.Refuse)
			}
		})
	}
}

func TestOpenTakesTheRoutesMarket(t *testing.T) {
	var got dialect.Opening
	mux := http.NewServeMux()
	mux.HandleFunc("/v1/ws/{market}", func(_ http.ResponseWriter, r *http.Request) { got = both().Open(r) })
	mux.ServeHTTP(httptest.NewRecorder(), request("/v1/ws/%6fptions"))
	if got.Market != "options" {
		t.Errorf("market %q, refuse %s", got.Market, got.Refuse)
	}
}

func TestOpenByOptions(t *testing.T) {
	d := New(Options{Markets: []string{"stocks"}})
	if got := d.Open(request("/options", "Bearer cm_a")).Refuse; got != dialect.StreamNotConfigured {
		t.Errorf("market that is not configured: %s", got)
	}
	if got := d.Open(request("/stocks")).Refuse; got != dialect.CredentialMissing {
		t.Errorf("no key without in-band auth: %s", got)
	}
	if wait := d.Policy().CredentialWait; wait != 0 {
		t.Errorf("waits %s for a key it does not take", wait)
	}
}

func FuzzOpen(f *testing.F) {
	f.Add("/v1/ws/stocks/", "api_key=cm_a", "Bearer cm_a", "")
	f.Add("/options", "api_key=%zz&api%5fkey=", "Basic", "Bearer x")
	d := both()
	f.Fuzz(func(t *testing.T, path, query, first, second string) {
		r := &http.Request{URL: &url.URL{Path: path, RawQuery: query}, Header: http.Header{}}
		for _, value := range []string{first, second} {
			if value != "" {
				r.Header.Add("Authorization", value)
			}
		}
		o := d.Open(r)
		if (o.Refuse == dialect.OK) != (o.Market != "") {
			t.Fatalf("market %q, refuse %s", o.Market, o.Refuse)
		}
		if key := o.Credential.Reveal(); key != "" && (!plausible(key) || o.Refuse != dialect.OK) {
			t.Fatalf("credential of %d bytes, refuse %s", len(key), o.Refuse)
		}
	})
}
