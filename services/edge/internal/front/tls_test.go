package front

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// writeCertificate makes a certificate for relay.test and writes it and its key.
func writeCertificate(t testing.TB, certFile, keyFile string, serial int64) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "relay.test"}, DNSNames: []string{"relay.test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{
		certFile: {Type: "CERTIFICATE", Bytes: cert},
		keyFile:  {Type: "PRIVATE KEY", Bytes: der},
	} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func startTLS(t testing.TB) *rig {
	t.Helper()
	o := defaults()
	o.TLSCertFile, o.TLSKeyFile = filepath.Join(t.TempDir(), "cert.pem"), filepath.Join(t.TempDir(), "key.pem")
	writeCertificate(t, o.TLSCertFile, o.TLSKeyFile, 1)
	return start(t, o)
}

// TestTLS does a handshake with a frame behind it, and one after the certificate
// has changed.
func TestTLS(t *testing.T) {
	g := startTLS(t)
	serial := func(protocols ...string) int64 {
		t.Helper()
		c := tls.Client(g.dial(), &tls.Config{InsecureSkipVerify: true, NextProtos: protocols})
		defer c.Close()
		if _, err := io.WriteString(c, request("/v1/ws/stocks/")+"early"); err != nil {
			t.Fatal(err)
		}
		g.expect101(bufio.NewReader(c))
		s := g.attached()
		secure, ok := s.conn.(*tls.Conn)
		if !ok {
			t.Fatalf("the engine got a %T, want a *tls.Conn", s.conn)
		}
		if inner, ok := secure.NetConn().(interface{ NetConn() net.Conn }); !ok {
			t.Errorf("a %T under TLS does not lead to the socket", secure.NetConn())
		} else if _, ok := inner.NetConn().(*net.TCPConn); !ok {
			t.Errorf("under TLS is a %T, want a *net.TCPConn", inner.NetConn())
		}
		rest := make([]byte, len("early")-len(s.early))
		if _, err := io.ReadFull(s.conn, rest); err != nil || string(s.early)+string(rest) != "early" {
			t.Errorf("early bytes %q and %q, error %v", s.early, rest, err)
		}
		state := c.ConnectionState()
		if len(protocols) > 0 && state.NegotiatedProtocol != "http/1.1" {
			t.Errorf("protocol %q of %q", state.NegotiatedProtocol, protocols)
		}
		return state.PeerCertificates[0].SerialNumber.Int64()
	}
	if n := serial(); n != 1 {
		t.Errorf("certificate %d, want 1", n)
	}
	writeCertificate(t, g.front.options.TLSCertFile, g.front.options.TLSKeyFile, 2)
	if n := serial("h2", "http/1.1"); n != 2 {
		t.Errorf("certificate %d, want 2", n)
	}
}

// TestTLSRefuses speaks what the TLS listener does not.
func TestTLSRefuses(t *testing.T) {
	g := startTLS(t)
	err := tls.Client(g.dial(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}).Handshake()
	if err == nil || !strings.Contains(err.Error(), "no application protocol") {
		t.Errorf("h2 alone: %v", err)
	}
	err = tls.Client(g.dial(), &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}).Handshake()
	if err == nil {
		t.Error("TLS 1.1 is spoken")
	}
	if answer := g.exchange(request("/v1/ws/stocks/?api_key=" + canary)); !strings.HasPrefix(answer, "HTTP/1.0 400 ") {
		t.Errorf("plain HTTP: %q", answer)
	}
	g.eventually("counted", func() bool {
		return g.counts("relay_edge_http_errors")["tls_handshake"] == 3 && g.front.opening() == 0
	})
	if strings.Contains(g.log.String(), canary) {
		t.Error("the key is in the log")
	}
	if err := refusedOverTLS(g, request("/v1/ws/stocks/", "-Upgrade")); err != nil {
		t.Error(err)
	}
}

func refusedOverTLS(g *rig, raw string) error {
	c := tls.Client(g.dial(), &tls.Config{InsecureSkipVerify: true})
	if _, err := io.WriteString(c, raw); err != nil {
		return err
	}
	answer, err := io.ReadAll(c)
	if err != nil {
		return err
	}
	return refused(string(answer), 400, "bad_request")
}

// TestBadCertificate holds that New fails early.
func TestBadCertificate(t *testing.T) {
	g := startTLS(t)
	o := g.front.options
	o.TLSKeyFile = filepath.Join(t.TempDir(), "none.pem")
	if _, err := New(o, g.front.deps); err == nil {
		t.Error("New takes a key that is not there")
	}
}
