// Package apikey makes API keys and the digests by which they are stored and
// found. It starts no goroutine and keeps no key.
//
// A key is "cm_" and 43 base-62 digits: 256 random bits, so it needs no slow
// hash. Request ids of the product begin with "cm_" too, but go on with 32
// hexadecimal digits; a key never has that length.
package apikey

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/big"
	"strings"

	"github.com/cutemarkets/relay/services/auth/internal/store"
	"github.com/cutemarkets/relay/services/internal/secret"
)

const (
	prefix   = "cm_"
	idPrefix = "key_"

	// keyDigits is what 256 bits need in base 62, idDigits what 96 bits need.
	keyBytes, keyDigits = 32, 43
	idBytes, idDigits   = 12, 17

	// MaxLength is the longest key that is looked up at all, in bytes.
	MaxLength = 256

	minPepper = 16
)

// Errors of ReadPepper and NewPepper.
var (
	// ErrNoPepper says that no pepper file is named.
	ErrNoPepper = errors.New("--pepper-file is missing: make a pepper with " + makePepper)
	// ErrShortPepper says that a pepper has fewer than 16 bytes.
	ErrShortPepper = errors.New("the pepper is shorter than 16 bytes: make one with " + makePepper)
)

const makePepper = "(umask 077; openssl rand -base64 32 > pepper)"

// New makes a key and its public id, which tells nothing about the key.
func New() (key secret.Secret, id string) {
	return secret.New(prefix + randomBase62(keyBytes, keyDigits)), idPrefix + randomBase62(idBytes, idDigits)
}

// randomBase62 writes random bytes as a number of a fixed count of digits.
func randomBase62(size, digits int) string {
	random := make([]byte, size)
	_, _ = rand.Read(random) // never fails: crypto/rand ends the process instead
	text := new(big.Int).SetBytes(random).Text(62)
	return strings.Repeat("0", digits-len(text)) + text
}

// Plausible reports whether a store is worth asking for the key: "cm_" and up
// to 253 letters, digits, "_" and "-".
func Plausible(key string) bool {
	rest, ok := strings.CutPrefix(key, prefix)
	if !ok || rest == "" || len(key) > MaxLength {
		return false
	}
	for i := range len(rest) {
		c := rest[i]
		if c != '_' && c != '-' && (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return true
}

// Pepper is the secret without which a stolen database opens nothing.
type Pepper struct{ value secret.Secret }

// ReadPepper takes the pepper from a file, without the white space around it.
// Errors: ErrNoPepper, ErrShortPepper, and those of reading.
func ReadPepper(path string) (Pepper, error) {
	if path == "" {
		return Pepper{}, ErrNoPepper
	}
	value, err := secret.Read(path)
	if err != nil {
		return Pepper{}, fmt.Errorf("--pepper-file: %w", err)
	}
	pepper, err := NewPepper(value)
	if err != nil {
		return Pepper{}, fmt.Errorf("--pepper-file %s: %w", path, err)
	}
	return pepper, nil
}

// NewPepper makes a pepper of at least 16 bytes. Errors: ErrShortPepper.
func NewPepper(value secret.Secret) (Pepper, error) {
	if len(value.Reveal()) < minPepper {
		return Pepper{}, ErrShortPepper
	}
	return Pepper{value: value}, nil
}

// Digest returns what is stored of a key: HMAC-SHA-256(pepper, key).
func (p Pepper) Digest(key string) store.Digest {
	mac := hmac.New(sha256.New, []byte(p.value.Reveal()))
	mac.Write([]byte(key))
	var d store.Digest
	mac.Sum(d[:0])
	return d
}

// Fingerprint tells peppers apart without telling what they are. It is the
// digest of a text that no key equals.
func (p Pepper) Fingerprint() store.Digest { return p.Digest("pepper fingerprint") }
