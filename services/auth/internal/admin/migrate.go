package admin

import (
	"context"
	"fmt"

	"github.com/cutemarkets/relay/services/auth/internal/store/sqlite"
)

// Migrate creates the database or brings it up to date.
type Migrate struct {
	Database `embed:""`
}

// Run applies what is missing and names it.
func (c *Migrate) Run(ctx context.Context, out Output) error {
	applied, err := sqlite.Migrate(ctx, c.Path)
	if err != nil {
		return err
	}
	for _, name := range applied {
		if _, err := fmt.Fprintln(out.Stdout, "applied", name); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintf(out.Stderr, "database %s is up to date\n", c.Path)
	return err
}
