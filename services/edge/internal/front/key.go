package front

import (
	"crypto/rand"
	"crypto/sha256"

	"github.com/cutemarkets/relay/services/internal/secret"
)

// digest tells an API key from others: 128 bits of a SHA-256 that begins with a
// secret of the process.
type digest [16]byte

// digester makes digests. Static after construction.
type digester [sha256.Size]byte

func newDigester() (d digester) {
	_, _ = rand.Read(d[:]) // never fails (crypto/rand)
	return d
}

func (d *digester) digest(key secret.Secret) digest {
	var room [512]byte
	b := append(room[:0], d[:]...)
	b = append(b, key.Reveal()...)
	sum := sha256.Sum256(b)
	return digest(sum[:16])
}
