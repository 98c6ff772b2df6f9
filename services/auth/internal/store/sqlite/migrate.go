package sqlite

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/pressly/goose/v3"
)

//go:embed migrations/*.sql
var migrationFiles embed.FS

// migrateAttempts bounds how often Migrate starts over when another process
// migrates the same database.
const migrateAttempts = 5

// Migrate creates the database unless it exists, applies the migrations it
// lacks and returns their file names. Several processes may call it at once.
func Migrate(ctx context.Context, path string) (applied []string, err error) {
	if err := createFile(path); err != nil {
		return nil, err
	}
	db, err := open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	provider, err := newProvider(db)
	if err != nil {
		return nil, err
	}
	// SQLite has no lock that spans goose's several transactions: of two
	// processes that migrate, one fails on what the other has just made, and
	// finds the work done, or the rest of it, when it looks again.
	for range migrateAttempts {
		var results []*goose.MigrationResult
		results, err = provider.Up(ctx)
		if err == nil {
			for _, r := range results {
				applied = append(applied, filepath.Base(r.Source.Path))
			}
			return applied, nil
		}
	}
	return nil, fmt.Errorf("migrate database %s: %w", path, err)
}

// createFile makes an empty database that only its owner can read.
func createFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("create database: the folder %s does not exist", filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("create database: %w", err)
	}
	return f.Close()
}

func newProvider(db *sql.DB) (*goose.Provider, error) {
	files, err := fs.Sub(migrationFiles, "migrations")
	if err != nil {
		return nil, fmt.Errorf("read embedded migrations: %w", err)
	}
	provider, err := goose.NewProvider(goose.DialectSQLite3, db, files, goose.WithSlog(slog.New(slog.DiscardHandler)))
	if err != nil {
		return nil, fmt.Errorf("read embedded migrations: %w", err)
	}
	return provider, nil
}
