package admin

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/cutemarkets/relay/services/auth/internal/apikey"
	"github.com/cutemarkets/relay/services/auth/internal/store"
	"github.com/cutemarkets/relay/services/internal/secret"
)

const (
	maxCount = 1_000_000
	// progressFrom is the count of keys from which on progress is shown.
	progressFrom = 10_000
)

// Keys are the commands about keys.
type Keys struct {
	Create KeysCreate `cmd:"" help:"Create keys of a user and show them, once."`
	List   KeysList   `cmd:"" help:"List keys; the keys themselves are not known any more."`
	Revoke KeysRevoke `cmd:"" help:"Revoke a key for good."`
}

// KeysCreate creates keys.
type KeysCreate struct {
	Database `embed:""`
	Format   `embed:""`

	PepperFile string        `name:"pepper-file" placeholder:"FILE" help:"File with the secret that keys are hashed with, the same as of auth serve."`
	User       string        `name:"user" env:"-" required:"" placeholder:"ID" help:"Id of the user."`
	Product    store.Product `name:"product" env:"-" required:"" placeholder:"PRODUCT" help:"What the keys open: stocks, options or paper."`
	Numbered   Numbered      `embed:""`
	Count      int           `name:"count" env:"-" default:"1" placeholder:"N" help:"How many keys to create for each user, up to 1000000 in all."`
	Label      string        `name:"label" env:"-" placeholder:"TEXT" help:"Text by which to know the keys again."`
}

// Validate reports values that make no sense.
func (c *KeysCreate) Validate() error {
	if err := c.Numbered.validate(c.User); err != nil {
		return err
	}
	if c.Count < 1 || c.Count > maxCount/c.Numbered.users() {
		return fmt.Errorf("--count is %d, must be from 1 to %d", c.Count, maxCount/c.Numbered.users())
	}
	return store.CheckLabel(c.Label)
}

// Run creates the keys, all or none, and prints them once they are stored.
func (c *KeysCreate) Run(ctx context.Context, out Output) error {
	pepper, err := apikey.ReadPepper(c.PepperFile)
	if err != nil {
		return err
	}
	return c.with(ctx, func(s store.Store) error {
		if err := s.BindPepper(ctx, pepper.Fingerprint()); err != nil {
			return err
		}
		keys, batch := c.makeKeys(pepper)
		err := s.CreateKeys(ctx, batch, progress(out.Stderr, len(keys)))
		if errors.Is(err, store.ErrUnknownUser) {
			return unknownUser(c.User)
		}
		if err != nil {
			return err
		}
		if err := c.print(out.Stdout, keys, batch.Keys); err != nil {
			return fmt.Errorf("the keys are stored but could not be printed: find them with: auth keys list --user %s, and revoke them: %w", c.User, err)
		}
		_, err = fmt.Fprintf(out.Stderr, "created %d key(s) of user %s: shown here only, they cannot be shown again\n", len(keys), c.Numbered.describe(c.User))
		return err
	})
}

func (c *KeysCreate) makeKeys(pepper apikey.Pepper) ([]secret.Secret, store.KeyBatch) {
	users := c.Numbered.ids(c.User)
	keys := make([]secret.Secret, c.Count*len(users))
	batch := store.KeyBatch{
		Product: c.Product,
		Label:   c.Label,
		Created: time.Now(),
		Keys:    make([]store.NewKey, len(keys)),
	}
	for i := range keys {
		key, id := apikey.New()
		keys[i] = key
		batch.Keys[i] = store.NewKey{ID: id, UserID: users[i/c.Count], Digest: pepper.Digest(key.Reveal())}
	}
	return keys, batch
}

// print writes one key a line.
func (c *KeysCreate) print(w io.Writer, keys []secret.Secret, stored []store.NewKey) error {
	buffered := bufio.NewWriter(w)
	encoder := json.NewEncoder(buffered)
	for i := range keys {
		var err error
		if c.Format.Format == "json" {
			err = encoder.Encode(createdRow{Key: keys[i].Reveal(), KeyID: stored[i].ID})
		} else {
			_, err = fmt.Fprintln(buffered, keys[i].Reveal())
		}
		if err != nil {
			return err
		}
	}
	return buffered.Flush()
}

type createdRow struct {
	Key   string `json:"key"`
	KeyID string `json:"key_id"`
}

// progress tells every tenth of a large count.
func progress(w io.Writer, count int) func(written int) {
	if count < progressFrom {
		return nil
	}
	tenths := 0
	return func(written int) {
		if now := written * 10 / count; now > tenths {
			tenths = now
			_, _ = fmt.Fprintf(w, "stored %d of %d keys\n", written, count) // Progress is a courtesy.
		}
	}
}

// KeysList lists keys.
type KeysList struct {
	Database `embed:""`
	Format   `embed:""`

	User string `name:"user" env:"-" placeholder:"ID" help:"Only the keys of this user."`
}

// Run lists the keys.
func (c *KeysList) Run(ctx context.Context, out Output) error {
	return c.with(ctx, func(s store.Store) error {
		buffered := bufio.NewWriter(out.Stdout)
		t := newKeyTable(c.Format, buffered)
		err := s.Keys(ctx, c.User, func(k store.Key) error { return t.add(newKeyRow(k)) })
		if errors.Is(err, store.ErrUnknownUser) {
			return unknownUser(c.User)
		}
		return errors.Join(err, t.end(), buffered.Flush())
	})
}

// KeysRevoke revokes a key.
type KeysRevoke struct {
	Database `embed:""`
	Format   `embed:""`

	KeyID string `arg:"" name:"keyid" help:"Id of the key, as auth keys list shows it (not the key)."`
}

// Run revokes the key. Revoking it again changes nothing.
func (c *KeysRevoke) Run(ctx context.Context, out Output) error {
	return c.with(ctx, func(s store.Store) error {
		key, err := s.RevokeKey(ctx, c.KeyID, time.Now())
		if errors.Is(err, store.ErrUnknownKey) {
			// What was given may be a key: it is not repeated.
			return errors.New("no key has this id: find the id (not the key) with: auth keys list")
		}
		if err != nil {
			return err
		}
		t := newKeyTable(c.Format, out.Stdout)
		return errors.Join(t.add(newKeyRow(key)), t.end())
	})
}

type keyRow struct {
	KeyID   string        `json:"key_id"`
	User    string        `json:"user"`
	Product store.Product `json:"product"`
	Label   string        `json:"label"`
	Created time.Time     `json:"created"`
	Revoked time.Time     `json:"revoked,omitzero"`
}

func newKeyRow(k store.Key) keyRow {
	return keyRow{KeyID: k.ID, User: k.UserID, Product: k.Product, Label: k.Label, Created: k.Created, Revoked: k.Revoked}
}

func newKeyTable(f Format, w io.Writer) *table[keyRow] {
	header := []string{"KEY ID", "USER", "PRODUCT", "LABEL", "CREATED", "REVOKED"}
	return newTable(f, w, header, func(r keyRow) []string {
		return []string{r.KeyID, r.User, r.Product.String(), orDash(r.Label), formatTime(r.Created), formatTime(r.Revoked)}
	})
}
