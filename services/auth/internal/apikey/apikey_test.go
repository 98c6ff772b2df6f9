package apikey_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/cutemarkets/relay/services/auth/internal/apikey"
	"github.com/cutemarkets/relay/services/auth/internal/store"
	"github.com/cutemarkets/relay/services/internal/secret"
)

var (
	keyForm   = regexp.MustCompile(`^cm_[0-9A-Za-z]{43}$`)
	idForm    = regexp.MustCompile(`^key_[0-9A-Za-z]{17}$`)
	requestID = regexp.MustCompile(`^cm_[0-9a-f]{32}$`)
)

func TestNew(t *testing.T) {
	seen := map[string]bool{}
	for range 2000 {
		key, id := apikey.New()
		if !keyForm.MatchString(key.Reveal()) || requestID.MatchString(key.Reveal()) || !apikey.Plausible(key.Reveal()) {
			t.Fatal("a key has not the form of one")
		}
		if !idForm.MatchString(id) {
			t.Fatalf("key id %q", id)
		}
		if seen[key.Reveal()] || seen[id] {
			t.Fatal("made twice")
		}
		seen[key.Reveal()], seen[id] = true, true
	}
}

func TestPlausible(t *testing.T) {
	for key, want := range map[string]bool{
		"cm_a":                              true,
		"cm_" + strings.Repeat("Az09_-", 7): true,
		"cm_" + strings.Repeat("x", 253):    true,
		"cm_" + strings.Repeat("x", 254):    false,
		"":                                  false,
		"cm_":                               false,
		"CM_abc":                            false,
		"sk_abc":                            false,
		" cm_abc":                           false,
		"cm_abc\n":                          false,
		"cm_a b":                            false,
		"cm_ü":                              false,
		"cm_a\x00b":                         false,
		"cm_';DROP TABLE keys":              false,
	} {
		if got := apikey.Plausible(key); got != want {
			t.Errorf("Plausible(%q) = %v", key, got)
		}
	}
}

func pepper(t testing.TB, value string) apikey.Pepper {
	t.Helper()
	p, err := apikey.NewPepper(secret.New(value))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestDigestIsHMAC(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		value := rapid.StringN(16, -1, 200).Draw(r, "pepper")
		key := rapid.String().Draw(r, "key")
		mac := hmac.New(sha256.New, []byte(value))
		mac.Write([]byte(key))
		if got := pepper(t, value).Digest(key); got != store.Digest(mac.Sum(nil)) {
			r.Error("not HMAC-SHA-256(pepper, key)")
		}
	})
}

func TestFingerprint(t *testing.T) {
	a, b := pepper(t, strings.Repeat("a", 16)), pepper(t, strings.Repeat("b", 16))
	if a.Fingerprint() == b.Fingerprint() {
		t.Error("two peppers have one fingerprint")
	}
	if a.Fingerprint() != pepper(t, strings.Repeat("a", 16)).Fingerprint() {
		t.Error("a pepper has two fingerprints")
	}
}

func TestReadPepper(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good, err := apikey.ReadPepper(file("good", "0123456789abcdef\n"))
	if err != nil || good.Digest("k") != pepper(t, "0123456789abcdef").Digest("k") {
		t.Errorf("good: %v", err)
	}
	for name, c := range map[string]struct {
		path string
		is   error
		says string
	}{
		"none":    {path: "", is: apikey.ErrNoPepper, says: "openssl rand"},
		"short":   {path: file("short", "0123456789abcde \n"), is: apikey.ErrShortPepper, says: "openssl rand"},
		"empty":   {path: file("empty", "\n"), says: "empty"},
		"missing": {path: filepath.Join(dir, "missing"), is: os.ErrNotExist, says: "missing"},
	} {
		_, err := apikey.ReadPepper(c.path)
		if err == nil || c.is != nil && !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && strings.Contains(err.Error(), "0123456789") {
			t.Errorf("%s: the error shows the pepper", name)
		}
	}
}

func BenchmarkDigest(b *testing.B) {
	p := pepper(b, strings.Repeat("p", 32))
	key, _ := apikey.New()
	b.ReportAllocs()
	for b.Loop() {
		p.Digest(key.Reveal())
	}
}
