package admin

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/cutemarkets/relay/services/auth/internal/store"
)

// Users are the commands about users.
type Users struct {
	Set  UsersSet  `cmd:"" help:"Create a user, or change the plans of one."`
	List UsersList `cmd:"" help:"List the users and their plans."`
}

// UsersSet creates a user or changes the plans of one.
type UsersSet struct {
	Database `embed:""`
	Format   `embed:""`

	User        string      `name:"user" env:"-" required:"" placeholder:"ID" help:"Id of the user."`
	Numbered    Numbered    `embed:""`
	PlanStocks  *store.Plan `name:"plan-stocks" env:"-" placeholder:"PLAN" help:"Plan for stocks: free, developer, expert or commercial. Unset: as it is; of a new user: free."`
	PlanOptions *store.Plan `name:"plan-options" env:"-" placeholder:"PLAN" help:"Plan for options, likewise."`
}

// Validate reports values that make no sense.
func (c *UsersSet) Validate() error { return c.Numbered.validate(c.User) }

// Run sets the user.
func (c *UsersSet) Run(ctx context.Context, out Output) error {
	return c.with(ctx, func(s store.Store) error {
		change := store.PlanChange{Stocks: c.PlanStocks, Options: c.PlanOptions}
		if c.Numbered.Numbered > 0 {
			created, err := s.SetUsers(ctx, c.Numbered.ids(c.User), change, time.Now())
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(out.Stderr, "set %d users (%d new): %s\n", c.Numbered.users(), created, c.Numbered.describe(c.User))
			return err
		}
		user, created, err := s.SetUser(ctx, c.User, change, time.Now())
		if err != nil {
			return err
		}
		t := newUserTable(c.Format, out.Stdout)
		if err := errors.Join(t.add(newUserRow(user)), t.end()); err != nil {
			return err
		}
		verb := "changed"
		if created {
			verb = "created"
		}
		_, err = fmt.Fprintf(out.Stderr, "%s user %s\n", verb, user.ID)
		return err
	})
}

// UsersList lists the users.
type UsersList struct {
	Database `embed:""`
	Format   `embed:""`
}

// Run lists the users.
func (c *UsersList) Run(ctx context.Context, out Output) error {
	return c.with(ctx, func(s store.Store) error {
		buffered := bufio.NewWriter(out.Stdout)
		t := newUserTable(c.Format, buffered)
		err := s.Users(ctx, func(u store.User) error { return t.add(newUserRow(u)) })
		return errors.Join(err, t.end(), buffered.Flush())
	})
}

type userRow struct {
	User        string     `json:"user"`
	PlanStocks  store.Plan `json:"plan_stocks"`
	PlanOptions store.Plan `json:"plan_options"`
	Created     time.Time  `json:"created"`
	Updated     time.Time  `json:"updated"`
}

func newUserRow(u store.User) userRow {
	return userRow{User: u.ID, PlanStocks: u.Plans.Stocks, PlanOptions: u.Plans.Options, Created: u.Created, Updated: u.Updated}
}

func newUserTable(f Format, w io.Writer) *table[userRow] {
	header := []string{"USER", "STOCKS", "OPTIONS", "CREATED", "UPDATED"}
	return newTable(f, w, header, func(r userRow) []string {
		return []string{r.User, r.PlanStocks.String(), r.PlanOptions.String(), formatTime(r.Created), formatTime(r.Updated)}
	})
}
