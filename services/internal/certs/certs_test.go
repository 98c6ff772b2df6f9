package certs_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/cutemarkets/relay/services/internal/certs"
	"github.com/cutemarkets/relay/services/internal/certs/certstest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func filesIn(dir string) certs.Files {
	return certs.Files{Cert: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key"), CA: filepath.Join(dir, "ca.crt")}
}

// newFiles writes a pair for localhost and the CA that signed it.
func newFiles(t *testing.T, ca *certstest.CA) certs.Files {
	files := filesIn(t.TempDir())
	ca.WritePair(t, "localhost", files.Cert, files.Key)
	ca.WriteCA(t, files.CA)
	return files
}

func open(t *testing.T, files certs.Files) *certs.Source {
	t.Helper()
	s, err := certs.Open(files, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// handshake connects the two over a socket pair and returns what each has seen.
func handshake(t *testing.T, server, client *tls.Config) (tls.ConnectionState, error, error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var state tls.ConnectionState
	done := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			done <- err
			return
		}
		defer conn.Close()
		s := tls.Server(conn, server)
		err = s.Handshake()
		if err == nil {
			_, err = s.Write([]byte("x"))
		}
		done <- err
	}()
	conn, err := (&net.Dialer{}).DialContext(context.Background(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c := tls.Client(conn, client)
	// In TLS 1.3 a client learns with its first read whether its certificate is
	// accepted.
	_, clientErr := c.Read(make([]byte, 1))
	state = c.ConnectionState()
	conn.Close()
	return state, <-done, clientErr
}

func TestMutualTLS(t *testing.T) {
	ca, other := certstest.NewCA(t), certstest.NewCA(t)
	good, foreign := newFiles(t, ca), newFiles(t, other)
	server := open(t, good).Server("h2")
	for _, tt := range []struct {
		name       string
		files      certs.Files
		serverName string
		ok         bool
	}{
		{"good", good, "localhost", true},
		{"no certificate", certs.Files{CA: good.CA}, "localhost", false},
		{"certificate of another CA", certs.Files{Cert: foreign.Cert, Key: foreign.Key, CA: good.CA}, "localhost", false},
		{"server of another CA", certs.Files{Cert: good.Cert, Key: good.Key, CA: foreign.CA}, "localhost", false},
		{"server of no CA of the system", certs.Files{Cert: good.Cert, Key: good.Key}, "localhost", false},
		{"other name", good, "example.com", false},
	} {
		config := open(t, tt.files).Client(tt.serverName)
		config.NextProtos = []string{"h2"}
		state, serverErr, clientErr := handshake(t, server, config)
		if ok := serverErr == nil && clientErr == nil; ok != tt.ok {
			t.Errorf("%s: server %v, client %v", tt.name, serverErr, clientErr)
		}
		if tt.ok && state.NegotiatedProtocol != "h2" {
			t.Errorf("%s: protocol %q", tt.name, state.NegotiatedProtocol)
		}
	}
}

func TestServerWithoutCATakesAnybody(t *testing.T) {
	files := newFiles(t, certstest.NewCA(t))
	server := open(t, certs.Files{Cert: files.Cert, Key: files.Key}).Server()
	if _, serverErr, clientErr := handshake(t, server, open(t, certs.Files{CA: files.CA}).Client("localhost")); serverErr != nil || clientErr != nil {
		t.Errorf("server %v, client %v", serverErr, clientErr)
	}
}

func TestRotation(t *testing.T) {
	first, second := certstest.NewCA(t), certstest.NewCA(t)
	serverFiles, clientFiles := newFiles(t, first), newFiles(t, first)
	server, client := open(t, serverFiles), open(t, clientFiles)
	listening := server.Server()
	connect := func() (*x509.Certificate, error) {
		state, serverErr, clientErr := handshake(t, listening, client.Client("localhost"))
		if err := errors.Join(serverErr, clientErr); err != nil {
			return nil, err
		}
		return state.PeerCertificates[0], nil
	}
	before, err := connect()
	if err != nil {
		t.Fatal(err)
	}
	first.WritePair(t, "localhost", serverFiles.Cert, serverFiles.Key)
	renewed, err := connect()
	if err != nil || renewed.Equal(before) {
		t.Fatalf("the renewed certificate is not in use: %v", err)
	}
	second.WriteCA(t, serverFiles.CA)
	if _, err := connect(); err == nil {
		t.Fatal("the server takes a client of the former CA")
	}
	second.WritePair(t, "localhost", clientFiles.Cert, clientFiles.Key)
	if _, err := connect(); err != nil {
		t.Fatalf("the client does not show its new certificate: %v", err)
	}
	second.WritePair(t, "localhost", serverFiles.Cert, serverFiles.Key)
	if _, err := connect(); err == nil {
		t.Fatal("the client takes a server of another CA")
	}
	second.WriteCA(t, clientFiles.CA)
	if _, err := connect(); err != nil {
		t.Fatalf("the client does not trust its new CA: %v", err)
	}
}

func TestBadFilesKeepTheLastGoodOnes(t *testing.T) {
	ca := certstest.NewCA(t)
	files := newFiles(t, ca)
	var log bytes.Buffer
	source, err := certs.Open(files, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	config := source.Server()
	works := func(what string) {
		t.Helper()
		if _, serverErr, clientErr := handshake(t, config, source.Client("localhost")); serverErr != nil || clientErr != nil {
			t.Errorf("%s: server %v, client %v", what, serverErr, clientErr)
		}
	}
	// Half of a new pair.
	ca.WritePair(t, "localhost", files.Cert, filepath.Join(t.TempDir(), "other.key"))
	works("half of a pair")
	works("half of a pair, again")
	if n := strings.Count(log.String(), "certificate files are bad"); n != 1 {
		t.Errorf("logged %d times: %s", n, log.String())
	}
	ca.WritePair(t, "localhost", files.Cert, files.Key)
	works("the other half")
	if n := strings.Count(log.String(), "have changed"); n != 1 {
		t.Errorf("the change was logged %d times: %s", n, log.String())
	}
	if err := os.Remove(files.CA); err != nil {
		t.Fatal(err)
	}
	works("no CA file")
	if err := os.WriteFile(files.CA, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	works("a CA file without a certificate")
	if n := strings.Count(log.String(), "certificate files are bad"); n != 3 {
		t.Errorf("logged %d times, want each fault once: %s", n, log.String())
	}
}

func TestOpenRefusesBadFiles(t *testing.T) {
	ca := certstest.NewCA(t)
	good, other := newFiles(t, ca), newFiles(t, ca)
	broken := filepath.Join(t.TempDir(), "broken")
	if err := os.WriteFile(broken, []byte("canary"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name  string
		files certs.Files
		want  error
	}{
		{"missing certificate", certs.Files{Cert: "missing", Key: good.Key}, fs.ErrNotExist},
		{"missing CA", certs.Files{CA: "missing"}, fs.ErrNotExist},
		{"key of another", certs.Files{Cert: good.Cert, Key: other.Key}, nil},
		{"certificate without key", certs.Files{Cert: good.Cert}, nil},
		{"broken key", certs.Files{Cert: good.Cert, Key: broken}, nil},
		{"broken CA", certs.Files{CA: broken}, certs.ErrNoCertificate},
	} {
		_, err := certs.Open(tt.files, slog.New(slog.DiscardHandler))
		if err == nil || (tt.want != nil && !errors.Is(err, tt.want)) || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}
