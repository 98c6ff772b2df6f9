package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cutemarkets/relay/services/auth/internal/store"
)

const (
	keyColumns = `keys.id, keys.user_id, keys.product, keys.label, keys.created_ms, keys.revoked_ms`

	lookupSQL = `SELECT ` + keyColumns + `, keys.digest, users.plan_stocks, users.plan_options
		FROM keys JOIN users ON users.id = keys.user_id WHERE keys.digest = ?`

	// insertRows is how many keys one INSERT stores.
	insertRows = 500
	insertSQL  = `INSERT INTO keys (id, user_id, product, label, digest, created_ms) VALUES `
	insertRow  = `(?, ?, ?, ?, ?, ?)`
)

// CreateKeys implements store.Store.
func (s *Store) CreateKeys(ctx context.Context, batch store.KeyBatch, progress func(written int)) error {
	err := s.inTx(ctx, func(tx *sql.Tx) error {
		if err := requireUsers(ctx, tx, batch.Keys); err != nil {
			return err
		}
		whole, err := tx.PrepareContext(ctx, insertStatement(insertRows))
		if err != nil {
			return err
		}
		defer func() { _ = whole.Close() }()
		written := 0
		for chunk := range slices.Chunk(batch.Keys, insertRows) {
			if len(chunk) == insertRows {
				_, err = whole.ExecContext(ctx, insertArguments(batch, chunk)...)
			} else {
				_, err = tx.ExecContext(ctx, insertStatement(len(chunk)), insertArguments(batch, chunk)...)
			}
			if err != nil {
				return err
			}
			written += len(chunk)
			if progress != nil {
				progress(written)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("create keys: %w", err)
	}
	return nil
}

// requireUsers returns store.ErrUnknownUser unless the users of all keys exist.
func requireUsers(ctx context.Context, tx *sql.Tx, keys []store.NewKey) error {
	for i := range keys {
		if i > 0 && keys[i].UserID == keys[i-1].UserID {
			continue
		}
		if err := requireUser(ctx, tx, keys[i].UserID); err != nil {
			return err
		}
	}
	return nil
}

func insertStatement(rows int) string {
	return insertSQL + strings.Repeat(insertRow+", ", rows-1) + insertRow
}

func insertArguments(batch store.KeyBatch, keys []store.NewKey) []any {
	args := make([]any, 0, len(keys)*6)
	for i := range keys {
		args = append(args, keys[i].ID, keys[i].UserID, batch.Product.String(), batch.Label, keys[i].Digest[:], batch.Created.UnixMilli())
	}
	return args
}

// Keys implements store.Store.
func (s *Store) Keys(ctx context.Context, userID string, fn func(store.Key) error) (err error) {
	query, args := `SELECT `+keyColumns+` FROM keys ORDER BY number`, []any(nil)
	if userID != "" {
		if err := requireUser(ctx, s.db, userID); err != nil {
			return fmt.Errorf("list keys: %w", err)
		}
		query, args = `SELECT `+keyColumns+` FROM keys WHERE user_id = ? ORDER BY number`, []any{userID}
	}
	rows, err := s.db.QueryContext(ctx, query, args...)
	if err != nil {
		return fmt.Errorf("list keys: %w", err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var row keyRow
		if err := rows.Scan(row.targets()...); err != nil {
			return fmt.Errorf("list keys: %w", err)
		}
		key, err := row.key()
		if err != nil {
			return fmt.Errorf("list keys: %w", err)
		}
		if err := fn(key); err != nil {
			return err
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("list keys: %w", err)
	}
	return nil
}

// RevokeKey implements store.Store.
func (s *Store) RevokeKey(ctx context.Context, keyID string, now time.Time) (store.Key, error) {
	var row keyRow
	err := s.db.QueryRowContext(ctx,
		`UPDATE keys SET revoked_ms = COALESCE(revoked_ms, ?) WHERE id = ?
			RETURNING id, user_id, product, label, created_ms, revoked_ms`,
		now.UnixMilli(), keyID).Scan(row.targets()...)
	if errors.Is(err, sql.ErrNoRows) {
		return store.Key{}, fmt.Errorf("revoke key: %w", store.ErrUnknownKey)
	}
	if err != nil {
		return store.Key{}, fmt.Errorf("revoke key: %w", err)
	}
	return row.key()
}

// Lookup implements store.Store.
func (s *Store) Lookup(ctx context.Context, digest store.Digest) (store.Match, error) {
	var row keyRow
	var stored []byte
	var stocks, options string
	err := s.lookup.QueryRowContext(ctx, digest[:]).Scan(append(row.targets(), &stored, &stocks, &options)...)
	if errors.Is(err, sql.ErrNoRows) {
		return store.Match{}, store.ErrUnknownKey
	}
	if err != nil {
		return store.Match{}, fmt.Errorf("look up key: %w", err)
	}
	key, err := row.key()
	if err != nil {
		return store.Match{}, fmt.Errorf("look up key: %w", err)
	}
	plans, err := parsePlans(stocks, options)
	if err != nil {
		return store.Match{}, fmt.Errorf("look up key: %w", err)
	}
	return store.Match{Key: key, Plans: plans, Digest: store.Digest(stored)}, nil
}

// Ping implements store.Store.
func (s *Store) Ping(ctx context.Context) error {
	if _, err := s.Lookup(ctx, store.Digest{}); err != nil && !errors.Is(err, store.ErrUnknownKey) {
		return err
	}
	return nil
}

// BindPepper implements store.Store.
func (s *Store) BindPepper(ctx context.Context, fingerprint store.Digest) error {
	var stored []byte
	// Reading first: a service that starts must not wait for a long write.
	err := s.db.QueryRowContext(ctx, `SELECT fingerprint FROM pepper`).Scan(&stored)
	if errors.Is(err, sql.ErrNoRows) {
		err = s.inTx(ctx, func(tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, `INSERT INTO pepper (one, fingerprint) VALUES (1, ?) ON CONFLICT DO NOTHING`, fingerprint[:])
			if err != nil {
				return err
			}
			return tx.QueryRowContext(ctx, `SELECT fingerprint FROM pepper`).Scan(&stored)
		})
	}
	if err != nil {
		return fmt.Errorf("bind pepper: %w", err)
	}
	if store.Digest(stored) != fingerprint {
		return store.ErrPepperMismatch
	}
	return nil
}

// keyRow is a row of keyColumns.
type keyRow struct {
	id, userID, product, label string
	created                    int64
	revoked                    sql.NullInt64
}

func (r *keyRow) targets() []any {
	return []any{&r.id, &r.userID, &r.product, &r.label, &r.created, &r.revoked}
}

func (r *keyRow) key() (store.Key, error) {
	k := store.Key{ID: r.id, UserID: r.userID, Label: r.label, Created: fromMillis(r.created)}
	if err := k.Product.UnmarshalText([]byte(r.product)); err != nil {
		return store.Key{}, err
	}
	if r.revoked.Valid {
		k.Revoked = fromMillis(r.revoked.Int64)
	}
	return k, nil
}
