package front

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

// TestFlags has kong read the flags, so that each type is one it knows.
func TestFlags(t *testing.T) {
	var o Options
	k, err := kong.New(&o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.Parse(nil); err != nil {
		t.Fatalf("the defaults: %v", err)
	}
	if o.Listen != ":8000" || o.HandshakeRate != 0 || o.KeyRate != 5 || o.KeyBurst != 100 || len(o.TrustedProxies)+len(o.AllowedOrigins) != 0 {
		t.Errorf("defaults %+v", o)
	}
	if _, err := k.Parse([]string{"--trusted-proxies=10.0.0.0/8,fd00::/8", "--allowed-origins=https://a.example,null"}); err != nil {
		t.Fatal(err)
	}
	if want := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}; !slices.Equal(o.TrustedProxies, want) {
		t.Errorf("proxies %v, want %v", o.TrustedProxies, want)
	}
	if want := []string{"https://a.example", "null"}; !slices.Equal(o.AllowedOrigins, want) {
		t.Errorf("origins %v, want %v", o.AllowedOrigins, want)
	}
	if _, err := k.Parse([]string{"--trusted-proxies=10.0.0.1"}); err == nil {
		t.Error("an address is no network")
	}
}

func TestValidate(t *testing.T) {
	for flag, change := range map[string]func(o *Options){
		"--listen":                  func(o *Options) { o.Listen = "8000" },
		"--max-handshakes":          func(o *Options) { o.MaxHandshakes = 0 },
		"--handshake-rate-per-ip":   func(o *Options) { o.HandshakeRate = -1 },
		"--handshake-burst-per-ip":  func(o *Options) { o.HandshakeBurst = 0 },
		"--handshake-rate-per-key":  func(o *Options) { o.KeyRate = 2e6 },
		"--handshake-burst-per-key": func(o *Options) { o.KeyBurst = 0 },
		"--failure-rate-per-ip":     func(o *Options) { o.FailureRate = 0 },
		"--failure-burst-per-ip":    func(o *Options) { o.FailureBurst = 0 },
		"--trusted-proxies":         func(o *Options) { o.TrustedProxies = make([]netip.Prefix, 1) },
		"--allowed-origins":         func(o *Options) { o.AllowedOrigins = []string{"https://*.example.com"} },
		"--tls-cert-file":           func(o *Options) { o.TLSKeyFile = "key.pem" },
	} {
		o := defaults()
		if change(&o); o.Validate() == nil || !strings.Contains(o.Validate().Error(), flag) {
			t.Errorf("%s: %v", flag, o.Validate())
		}
		if _, err := New(o, Deps{}); err == nil {
			t.Errorf("%s: New takes it", flag)
		}
	}
	for origin, want := range map[string]bool{
		"https://app.example.com": true, "http://localhost:3000": true, "null": true, "https://[::1]:8443": true,
		"app.example.com": false, "https://app.example.com/": false, "https://App.example.com": false, "*": false,
		"https://u@app.example.com": false, "": false, "https://": false, "https://app.example.com?x": false,
	} {
		if got := validOrigin(origin); got != want {
			t.Errorf("origin %q: %v, want %v", origin, got, want)
		}
	}
}
