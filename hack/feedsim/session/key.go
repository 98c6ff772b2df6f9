package session

import (
	"fmt"
	"io"
)

const redacted = "[redacted]"

// Key is an API key. Whatever prints or marshals it gets "[redacted]".
type Key string

// Format implements fmt.Formatter, so that no verb prints the key.
func (Key) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// MarshalText implements encoding.TextMarshaler (and so JSON).
func (Key) MarshalText() ([]byte, error) { return []byte(redacted), nil }
