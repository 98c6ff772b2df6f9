// Package admin holds the commands that keep users and keys, as kong grammars
// with a Run method each. They work on the database file itself, so they need
// no running service and disturb none. It starts no goroutine.
//
// What a command was asked for goes to Output.Stdout, everything else to
// Output.Stderr. A key is shown once, by the command that creates it.
package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/cutemarkets/relay/services/auth/internal/store"
	"github.com/cutemarkets/relay/services/auth/internal/store/sqlite"
)

// Output is where commands write.
type Output struct {
	Stdout io.Writer
	Stderr io.Writer
}

// Database names the database of a command.
type Database struct {
	Path string `name:"database" default:"relay-auth.db" help:"SQLite database of users and keys."`
}

// with opens the database for fn, and turns its errors into advice.
func (d Database) with(ctx context.Context, fn func(store.Store) error) error {
	s, err := sqlite.Open(ctx, d.Path)
	switch {
	case errors.Is(err, sqlite.ErrNoDatabase):
		return fmt.Errorf("there is no database at %s: create it with: auth migrate --database %[1]s", d.Path)
	case errors.Is(err, sqlite.ErrNotMigrated):
		return fmt.Errorf("the database at %s is of an older version: bring it up to date with: auth migrate --database %[1]s", d.Path)
	case err != nil:
		return err
	}
	return errors.Join(fn(s), s.Close())
}

func checkUser(id string) error {
	if err := store.CheckUserID(id); err != nil {
		return fmt.Errorf("--user: %w", err)
	}
	return nil
}

// unknownUser says what to do about store.ErrUnknownUser.
func unknownUser(id string) error {
	return fmt.Errorf("unknown user %s: create it with: auth users set --user %[1]s", id)
}

// Format is the form of a command's output.
type Format struct {
	Format string `name:"format" env:"-" enum:"text,json" default:"text" help:"Form of the output: text, or json (one object a line)."`
}

// table writes rows as aligned text under a header, or as one JSON object a
// line.
type table[R any] struct {
	json *json.Encoder     // nil: text
	text *tabwriter.Writer // nil: JSON
	cell func(R) []string
}

func newTable[R any](f Format, w io.Writer, header []string, cells func(R) []string) *table[R] {
	if f.Format == "json" {
		return &table[R]{json: json.NewEncoder(w)}
	}
	t := &table[R]{text: tabwriter.NewWriter(w, 0, 0, 2, ' ', 0), cell: cells}
	_, _ = fmt.Fprintln(t.text, strings.Join(header, "\t")) // An error comes again with Flush.
	return t
}

func (t *table[R]) add(row R) error {
	if t.json != nil {
		return t.json.Encode(row)
	}
	_, err := fmt.Fprintln(t.text, strings.Join(t.cell(row), "\t"))
	return err
}

func (t *table[R]) end() error {
	if t.json != nil {
		return nil
	}
	return t.text.Flush()
}

func formatTime(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Format(time.RFC3339)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
