// Package secret holds values that must never be printed: API keys, peppers,
// passwords. A Secret formats, logs and marshals as "[redacted]"; only Reveal
// gives the value. The package starts no goroutine.
package secret

import (
	"fmt"
	"log/slog"
	"os"
	"strings"
	"unique"
)

const redacted = "[redacted]"

// Secret is a value that prints as "[redacted]". Its zero value is empty, and
// two Secrets are equal if their values are.
type Secret struct {
	// A handle, not the string: where fmt cannot call Format (an unexported
	// field of another struct, the verbs %p and %w) it prints the fields, and
	// of a handle there is but an address to print.
	value unique.Handle[string]
}

// New wraps a value.
func New(value string) Secret {
	if value == "" {
		return Secret{}
	}
	return Secret{value: unique.Make(value)}
}

// Read takes a secret from a file, without the white space around it. The
// error names the file, never its content.
func Read(path string) (Secret, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return Secret{}, fmt.Errorf("read secret file: %w", err)
	}
	v := strings.TrimSpace(string(b))
	if v == "" {
		return Secret{}, fmt.Errorf("read secret file %s: it is empty", path)
	}
	return New(v), nil
}

// Reveal returns the value.
func (s Secret) Reveal() string {
	if s.Empty() {
		return ""
	}
	return s.value.Value()
}

// Empty reports whether there is no value.
func (s Secret) Empty() bool { return s == Secret{} }

// String implements fmt.Stringer.
func (s Secret) String() string { return redacted }

// GoString implements fmt.GoStringer.
func (s Secret) GoString() string { return redacted }

// Format implements fmt.Formatter, so that no verb prints the value.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// LogValue implements slog.LogValuer.
func (s Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText implements encoding.TextMarshaler (and so JSON).
func (s Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }
