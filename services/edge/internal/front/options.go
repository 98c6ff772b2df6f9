package front

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"
)

// Options are the flags of the public listener.
type Options struct {
	Listen         string         `name:"listen" default:":8000" placeholder:"HOST:PORT" help:"Address of the public listener."`
	MaxHandshakes  int            `name:"max-handshakes" default:"4096" help:"Connections that may be opening at once (accepted, not yet upgraded or refused). Beyond it handshakes are answered with 503, beyond twice as many new connections wait to be accepted."`
	HandshakeRate  float64        `name:"handshake-rate-per-ip" default:"0" help:"Handshakes per second of one address (IPv6: one /64), then 429. 0: no limit."`
	HandshakeBurst int            `name:"handshake-burst-per-ip" default:"50" help:"Handshakes of one address at once."`
	KeyRate        float64        `name:"handshake-rate-per-key" default:"5" help:"Handshakes per second with one API key in the header or the query, then 429; a key sent in band comes too late for that. 0: no limit."`
	KeyBurst       int            `name:"handshake-burst-per-key" default:"100" help:"Handshakes with one API key at once."`
	FailureRate    float64        `name:"failure-rate-per-ip" default:"10" help:"Failed handshakes and refused API keys per second of one address (IPv6: one /64), then all its handshakes get 429 until the rate has fallen. Behind a proxy set --trusted-proxies, or all clients share the proxy's address."`
	FailureBurst   int            `name:"failure-burst-per-ip" default:"100" help:"Failed handshakes and refused API keys of one address at once."`
	TrustedProxies []netip.Prefix `name:"trusted-proxies" placeholder:"CIDR,..." help:"Networks of our own proxies, whose X-Forwarded-For is believed. None: the peer is the client."`
	AllowedOrigins []string       `name:"allowed-origins" placeholder:"ORIGIN,..." help:"Origins whose pages may connect, such as https://app.example.com; exact matches. Clients that are no browsers send none and may. Empty: all."`
	Deflate        bool           `name:"deflate" help:"Compress messages to clients that offer permessage-deflate. Events joined in a message shrink to a third and less; each distinct message costs processor time once, whoever gets it."`
	TLSCertFile    string         `name:"tls-cert-file" placeholder:"FILE" help:"Certificate with its intermediates, PEM; read again when it changes. Empty: no TLS here."`
	TLSKeyFile     string         `name:"tls-key-file" placeholder:"FILE" help:"Private key of the certificate, PEM."`
}

// Validate reports values that make no sense.
func (o Options) Validate() error {
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	_, _, err := net.SplitHostPort(o.Listen)
	check(err == nil, "--listen is %q, must be host:port or :port", o.Listen)
	check(o.MaxHandshakes > 0, "--max-handshakes is %d, must be above 0", o.MaxHandshakes)
	check(validRate(o.HandshakeRate) || o.HandshakeRate == 0, "--handshake-rate-per-ip is %v, must be 0 or from 0.001 to 1000000", o.HandshakeRate)
	check(o.HandshakeBurst > 0, "--handshake-burst-per-ip is %d, must be above 0", o.HandshakeBurst)
	check(validRate(o.KeyRate) || o.KeyRate == 0, "--handshake-rate-per-key is %v, must be 0 or from 0.001 to 1000000", o.KeyRate)
	check(o.KeyBurst > 0, "--handshake-burst-per-key is %d, must be above 0", o.KeyBurst)
	check(validRate(o.FailureRate), "--failure-rate-per-ip is %v, must be from 0.001 to 1000000", o.FailureRate)
	check(o.FailureBurst > 0, "--failure-burst-per-ip is %d, must be above 0", o.FailureBurst)
	for _, p := range o.TrustedProxies {
		check(p.IsValid() && !p.Addr().Is4In6(), "--trusted-proxies: %v is no network such as 10.0.0.0/8 or fd00::/8", p)
	}
	for _, origin := range o.AllowedOrigins {
		check(validOrigin(origin), "--allowed-origins: %q is no origin such as https://app.example.com", origin)
	}
	check((o.TLSCertFile == "") == (o.TLSKeyFile == ""), "--tls-cert-file and --tls-key-file go together")
	return errors.Join(errs...)
}

func validRate(r float64) bool { return r >= 0.001 && r <= 1e6 }

// validOrigin reports whether a browser could send this as an Origin: lower
// case, scheme and host alone (RFC 6454 §6.2), or "null".
func validOrigin(origin string) bool {
	if origin == "null" {
		return true
	}
	u, err := url.Parse(origin)
	return err == nil && u.Scheme != "" && u.Host != "" && origin == strings.ToLower(u.Scheme+"://"+u.Host) && !strings.Contains(origin, "*")
}
