// Package envelope is the form of every HTTP answer of ours that is not a 101:
// the error envelope of the REST interface and its request ids. It starts no
// goroutine and keeps nothing.
package envelope

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"net/http"
)

// RequestID returns a new request id: "cm_" and 32 hexadecimal digits.
func RequestID() string {
	var random [16]byte
	_, _ = rand.Read(random[:]) // never fails, see crypto/rand
	return "cm_" + hex.EncodeToString(random[:])
}

type failure struct {
	Status    string `json:"status"`
	RequestID string `json:"request_id"`
	Error     detail `json:"error"`
}

type detail struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

// Error is the error envelope.
func Error(code, message string) []byte {
	return encode(failure{Status: "ERROR", RequestID: RequestID(), Error: detail{Code: code, Message: message}})
}

// WriteError answers with the error envelope.
func WriteError(w http.ResponseWriter, status int, code, message string) {
	write(w, status, Error(code, message))
}

// Write answers with a value as JSON that no cache may keep. The value must be
// one that encoding/json can encode.
func Write(w http.ResponseWriter, status int, value any) { write(w, status, encode(value)) }

func encode(value any) []byte {
	body, err := json.Marshal(value)
	if err != nil {
		panic("envelope: " + err.Error())
	}
	return body
}

func write(w http.ResponseWriter, status int, body []byte) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = w.Write(body) // a client that has left gets no answer
}
