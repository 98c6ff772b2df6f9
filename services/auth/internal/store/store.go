// Package store names the users, their plans and their API keys, and the
// interface every database of the auth service implements. It holds data and
// rules about data; it starts no goroutine. A key itself never reaches a
// store: only its digest does (see package apikey).
//
// storetest holds the one test suite that every implementation passes.
package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Errors of a Store. Every other error means that the database did not answer.
var (
	// ErrUnknownUser says that no user has this id.
	ErrUnknownUser = errors.New("store: unknown user")
	// ErrUnknownKey says that no key has this id or digest.
	ErrUnknownKey = errors.New("store: unknown key")
	// ErrPepperMismatch says that the keys of the database were made with
	// another pepper.
	ErrPepperMismatch = errors.New("the keys of this database were made with another pepper, name its file with --pepper-file")
)

// Digest is what is kept of a key: HMAC-SHA-256(pepper, key).
type Digest [32]byte

// User is a customer.
type User struct {
	ID      string
	Plans   Plans
	Created time.Time // UTC, whole milliseconds
	Updated time.Time // UTC, whole milliseconds
}

// Plans holds what a user has subscribed to, per product.
type Plans struct {
	Stocks  Plan
	Options Plan
}

// Of returns the plan for a product. Paper trading has no subscription and
// opens no stream, so its plan is always PlanFree.
func (p Plans) Of(product Product) Plan {
	switch product {
	case ProductStocks:
		return p.Stocks
	case ProductOptions:
		return p.Options
	default:
		return PlanFree
	}
}

// PlanChange names the plans to set; nil leaves a plan as it is.
type PlanChange struct {
	Stocks  *Plan
	Options *Plan
}

// Apply returns the plans after the change.
func (c PlanChange) Apply(p Plans) Plans {
	if c.Stocks != nil {
		p.Stocks = *c.Stocks
	}
	if c.Options != nil {
		p.Options = *c.Options
	}
	return p
}

// Key is what is known about an API key, without the key.
type Key struct {
	ID      string // public, safe to log
	UserID  string
	Product Product
	Label   string
	Created time.Time // UTC, whole milliseconds
	Revoked time.Time // UTC, whole milliseconds; zero: not revoked
}

// NewKey is a key to be stored.
type NewKey struct {
	ID     string
	UserID string
	Digest Digest
}

// KeyBatch is a set of keys that differ only in user, id and digest.
type KeyBatch struct {
	Product Product
	Label   string
	Created time.Time
	Keys    []NewKey
}

// Match is the answer to a look-up: the key and its user's plans.
type Match struct {
	Key    Key
	Plans  Plans
	Digest Digest
}

// Store is a database of users and keys. All methods may be called from
// several goroutines, and other processes may use the same database.
type Store interface {
	// SetUser creates a user (plans that the change does not name: free) or
	// changes the plans of one. It returns the user as stored.
	SetUser(ctx context.Context, id string, change PlanChange, now time.Time) (u User, created bool, err error)
	// SetUsers is SetUser for many, all or none. It returns how many it created.
	SetUsers(ctx context.Context, ids []string, change PlanChange, now time.Time) (created int, err error)
	// Users calls fn for every user, ordered by id, until fn fails.
	Users(ctx context.Context, fn func(User) error) error

	// CreateKeys stores all keys of the batch or, on any error, none.
	// progress, unless nil, hears how many have been written so far.
	// Errors: ErrUnknownUser.
	CreateKeys(ctx context.Context, batch KeyBatch, progress func(written int)) error
	// Keys calls fn for every key of a user ("": of all users), in order of
	// creation, until fn fails. Errors: ErrUnknownUser.
	Keys(ctx context.Context, userID string, fn func(Key) error) error
	// RevokeKey makes a key invalid for good and returns it. A key that has
	// been revoked before keeps its first time. Errors: ErrUnknownKey.
	RevokeKey(ctx context.Context, keyID string, now time.Time) (Key, error)

	// Lookup finds a key, revoked or not, by its digest. Errors: ErrUnknownKey.
	Lookup(ctx context.Context, digest Digest) (Match, error)

	// BindPepper ties the database to a pepper, known by its fingerprint, the
	// first time, and checks it ever after. Errors: ErrPepperMismatch.
	BindPepper(ctx context.Context, fingerprint Digest) error
	// Ping asks the database the same question as Lookup does, for a digest
	// that no key has.
	Ping(ctx context.Context) error
	// Close frees the database. No method may be called afterwards.
	Close() error
}

const (
	maxUserID = 128
	maxLabel  = 128
)

// CheckUserID says what is wrong with a user id. An id is 1 to 128 letters,
// digits, ".", "_", "-", "@", ":" and "+": it becomes part of lock keys and of
// log lines.
func CheckUserID(id string) error {
	if id == "" {
		return errors.New("the user id is missing")
	}
	if len(id) > maxUserID {
		return fmt.Errorf("a user id has 1 to %d characters, this one has %d", maxUserID, len(id))
	}
	for _, c := range id {
		if c > unicode.MaxASCII || !unicode.IsLetter(c) && !unicode.IsDigit(c) && !strings.ContainsRune("._-@:+", c) {
			return fmt.Errorf("user id %q holds %q: use letters, digits, and . _ - @ : +", id, c)
		}
	}
	return nil
}

// CheckLabel says what is wrong with a key's label: up to 128 bytes of
// printable text.
func CheckLabel(label string) error {
	if len(label) > maxLabel {
		return fmt.Errorf("a label has up to %d bytes, this one has %d", maxLabel, len(label))
	}
	for _, c := range label {
		if c == utf8.RuneError || !unicode.IsPrint(c) {
			return fmt.Errorf("label %q holds a character that cannot be printed", label)
		}
	}
	return nil
}
