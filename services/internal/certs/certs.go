// Package certs makes TLS configurations from files that change while the
// process runs, as cert-manager and Kubernetes replace them. The files are read
// at each handshake and parsed when their content differs. If it is bad, or only
// one half of a pair has been replaced yet, the last good content stays in use
// and the fault is logged once. The package starts no goroutine.
package certs

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
)

// ErrNoCertificate says that a CA file holds no certificate.
var ErrNoCertificate = errors.New("certs: no certificate in PEM form")

// Files name the PEM files of one side of a connection. An empty name means that
// the part is not used; Cert and Key go together.
type Files struct {
	Cert string // own certificate with its intermediates
	Key  string // private key of Cert
	CA   string // certificates that sign those of the other side
}

// Source is the content of Files. Safe for concurrent use.
type Source struct {
	// Static after construction.
	files Files
	log   *slog.Logger

	mu sync.Mutex
	// Guarded by mu.
	content content // what current was parsed from
	current material
	fault   string // text of the fault logged last; empty: the files are good
}

// content is what the files held at one time.
type content struct{ cert, key, ca []byte }

// material is parsed content; immutable.
type material struct {
	certificates []tls.Certificate // one, or none without Cert
	pool         *x509.CertPool    // nil without CA
}

// Open reads the files. It fails if they are bad; later reads do not.
func Open(files Files, log *slog.Logger) (*Source, error) {
	c, err := files.read()
	if err != nil {
		return nil, err
	}
	m, err := c.parse(files)
	if err != nil {
		return nil, err
	}
	return &Source{
		files:   files,
		log:     log.With(slog.String("component", "certs")),
		content: c,
		current: m,
	}, nil
}

// Server returns the configuration of a listener for the given protocols (ALPN).
// With a CA, clients must show a certificate that it signed.
func (s *Source) Server(protocols ...string) *tls.Config {
	forClient := func(*tls.ClientHelloInfo) (*tls.Config, error) {
		m := s.latest()
		c := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: protocols, Certificates: m.certificates}
		if m.pool != nil {
			c.ClientCAs, c.ClientAuth = m.pool, tls.RequireAndVerifyClientCert
			// A resumed session would outlive the CA that admitted it.
			c.SessionTicketsDisabled = true
		}
		return c, nil
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: protocols, GetConfigForClient: forClient}
}

// Client returns a configuration for one handshake with a server that must have
// a certificate for serverName (empty: for the host dialled), signed by the CA
// (without one: by a CA of the system).
func (s *Source) Client(serverName string) *tls.Config {
	m := s.latest()
	return &tls.Config{
		MinVersion:   tls.VersionTLS12,
		ServerName:   serverName,
		RootCAs:      m.pool,
		Certificates: m.certificates,
	}
}

// latest reads the files anew and returns what is good of them.
func (s *Source) latest() material {
	c, err := s.files.read()
	s.mu.Lock()
	defer s.mu.Unlock()
	var m material
	if err == nil {
		if c.equal(s.content) {
			s.fault = ""
			return s.current
		}
		m, err = c.parse(s.files)
	}
	if err != nil {
		if s.fault != err.Error() {
			s.log.Warn("certificate files are bad, the last good ones stay in use", slog.Any("error", err))
			s.fault = err.Error()
		}
		return s.current
	}
	s.log.Info("certificate files have changed and are in use")
	s.content, s.current, s.fault = c, m, ""
	return m
}

func (f Files) read() (content, error) {
	var c content
	for _, file := range []struct {
		name string
		into *[]byte
	}{{f.Cert, &c.cert}, {f.Key, &c.key}, {f.CA, &c.ca}} {
		if file.name == "" {
			continue
		}
		b, err := os.ReadFile(file.name)
		if err != nil {
			return content{}, fmt.Errorf("certs: %w", err)
		}
		*file.into = b
	}
	return c, nil
}

func (c content) equal(d content) bool {
	return bytes.Equal(c.cert, d.cert) && bytes.Equal(c.key, d.key) && bytes.Equal(c.ca, d.ca)
}

// parse never puts content of the key file into its errors.
func (c content) parse(files Files) (material, error) {
	var m material
	if files.Cert != "" || files.Key != "" {
		pair, err := tls.X509KeyPair(c.cert, c.key)
		if err != nil {
			return material{}, fmt.Errorf("certs: %s and %s: %w", files.Cert, files.Key, err)
		}
		m.certificates = []tls.Certificate{pair}
	}
	if files.CA != "" {
		m.pool = x509.NewCertPool()
		if !m.pool.AppendCertsFromPEM(c.ca) {
			return material{}, fmt.Errorf("%w: %s", ErrNoCertificate, files.CA)
		}
	}
	return m, nil
}
