// Package sqlite keeps users and keys in one SQLite file, in write-ahead-log
// mode, so that the admin commands can write while the service reads.
//
// It starts no goroutine of its own. Under overload, calls wait for one of
// maxConnections connections until their context ends; a writer waits up to
// busyTimeout for another one, in this or another process.
package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"

	_ "modernc.org/sqlite" // registers the driver "sqlite"

	"github.com/cutemarkets/relay/services/auth/internal/store"
)

// Errors of Open and Migrate.
var (
	// ErrNoDatabase says that the database file does not exist.
	ErrNoDatabase = errors.New("sqlite: no such database")
	// ErrNotMigrated says that the database lacks a migration of this version.
	ErrNotMigrated = errors.New("sqlite: database is not migrated")
)

const (
	busyTimeout    = 5 * time.Second
	maxConnections = 8
)

// Store is a store.Store in a SQLite file.
type Store struct {
	// Static after construction.
	db     *sql.DB
	lookup *sql.Stmt
}

var _ store.Store = (*Store)(nil)

// Open opens a database that exists and is migrated. Errors: ErrNoDatabase,
// ErrNotMigrated.
func Open(ctx context.Context, path string) (*Store, error) {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s", ErrNoDatabase, path)
	}
	db, err := open(path)
	if err != nil {
		return nil, err
	}
	s, err := prepare(ctx, db)
	if err != nil {
		_ = db.Close()
		return nil, fmt.Errorf("open database %s: %w", path, err)
	}
	return s, nil
}

func prepare(ctx context.Context, db *sql.DB) (*Store, error) {
	provider, err := newProvider(db)
	if err != nil {
		return nil, err
	}
	pending, err := provider.HasPending(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the migrations of the database: %w", err)
	}
	if pending {
		return nil, ErrNotMigrated
	}
	lookup, err := db.PrepareContext(ctx, lookupSQL)
	if err != nil {
		return nil, fmt.Errorf("prepare look-up: %w", err)
	}
	return &Store{db: db, lookup: lookup}, nil
}

func open(path string) (*sql.DB, error) {
	absolute, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open database %s: %w", path, err)
	}
	db, err := sql.Open("sqlite", dataSource(absolute))
	if err != nil {
		return nil, fmt.Errorf("open database %s: %w", path, err)
	}
	db.SetMaxOpenConns(maxConnections)
	db.SetMaxIdleConns(maxConnections)
	return db, nil
}

// dataSource names the file as a URI, so that "?", "#" and "%" may occur in its
// absolute path. Transactions begin immediate: one that reads before it writes would
// otherwise fail, unretried, when another writer is quicker. A commit is
// synced to disk (synchronous=FULL), for a key that was shown must be kept.
func dataSource(path string) string {
	uri := url.URL{Path: filepath.ToSlash(path)}
	query := url.Values{
		"mode":    {"rw"},
		"_txlock": {"immediate"},
		"_pragma": {
			"busy_timeout(" + strconv.FormatInt(busyTimeout.Milliseconds(), 10) + ")",
			"journal_mode(WAL)",
			"synchronous(FULL)",
			"foreign_keys(ON)",
		},
	}
	return "file:" + uri.EscapedPath() + "?" + query.Encode()
}

// Close implements store.Store.
func (s *Store) Close() error {
	return errors.Join(s.lookup.Close(), s.db.Close())
}

// inTx runs fn in a transaction and commits unless fn fails. When ctx ends,
// database/sql rolls back by itself, and what fails of it then is only a
// consequence: the error is that of ctx.
func (s *Store) inTx(ctx context.Context, fn func(*sql.Tx) error) error {
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	if err = fn(tx); err == nil {
		err = tx.Commit()
	} else if rollback := tx.Rollback(); !errors.Is(rollback, sql.ErrTxDone) {
		err = errors.Join(err, rollback)
	}
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

func fromMillis(ms int64) time.Time { return time.UnixMilli(ms).UTC() }
