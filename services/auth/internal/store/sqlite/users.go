package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/cutemarkets/relay/services/auth/internal/store"
)

// SetUser implements store.Store.
func (s *Store) SetUser(ctx context.Context, id string, change store.PlanChange, now time.Time) (store.User, bool, error) {
	var user store.User
	var created bool
	err := s.inTx(ctx, func(tx *sql.Tx) (err error) {
		user, created, err = setUser(ctx, tx, id, change, now)
		return err
	})
	if err != nil {
		return store.User{}, false, fmt.Errorf("set user: %w", err)
	}
	return user, created, nil
}

// SetUsers implements store.Store.
func (s *Store) SetUsers(ctx context.Context, ids []string, change store.PlanChange, now time.Time) (int, error) {
	count := 0
	err := s.inTx(ctx, func(tx *sql.Tx) error {
		for _, id := range ids {
			_, created, err := setUser(ctx, tx, id, change, now)
			if err != nil {
				return err
			}
			if created {
				count++
			}
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("set users: %w", err)
	}
	return count, nil
}

func setUser(ctx context.Context, tx *sql.Tx, id string, change store.PlanChange, now time.Time) (store.User, bool, error) {
	row := tx.QueryRowContext(ctx, `SELECT id, plan_stocks, plan_options, created_ms, updated_ms FROM users WHERE id = ?`, id)
	user, err := scanUser(row)
	created := errors.Is(err, sql.ErrNoRows)
	switch {
	case created:
		user = store.User{
			ID:      id,
			Plans:   store.Plans{Stocks: store.PlanFree, Options: store.PlanFree},
			Created: fromMillis(now.UnixMilli()),
		}
	case err != nil:
		return store.User{}, false, err
	}
	user.Plans = change.Apply(user.Plans)
	user.Updated = fromMillis(now.UnixMilli())
	_, err = tx.ExecContext(ctx, `
		INSERT INTO users (id, plan_stocks, plan_options, created_ms, updated_ms) VALUES (?, ?, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET
			plan_stocks = excluded.plan_stocks, plan_options = excluded.plan_options, updated_ms = excluded.updated_ms`,
		id, user.Plans.Stocks.String(), user.Plans.Options.String(), user.Created.UnixMilli(), user.Updated.UnixMilli())
	return user, created, err
}

// Users implements store.Store.
func (s *Store) Users(ctx context.Context, fn func(store.User) error) (err error) {
	rows, err := s.db.QueryContext(ctx, `SELECT id, plan_stocks, plan_options, created_ms, updated_ms FROM users ORDER BY id`)
	if err != nil {
		return fmt.Errorf("list users: %w", err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		user, err := scanUser(rows)
		if err != nil {
			return fmt.Errorf("list users: %w", err)
		}
		if err := fn(user); err != nil {
			return err
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("list users: %w", err)
	}
	return nil
}

// scanner is a *sql.Row or *sql.Rows.
type scanner interface{ Scan(dest ...any) error }

func scanUser(row scanner) (store.User, error) {
	var u store.User
	var stocks, options string
	var created, updated int64
	if err := row.Scan(&u.ID, &stocks, &options, &created, &updated); err != nil {
		return store.User{}, err
	}
	plans, err := parsePlans(stocks, options)
	if err != nil {
		return store.User{}, err
	}
	u.Plans, u.Created, u.Updated = plans, fromMillis(created), fromMillis(updated)
	return u, nil
}

func parsePlans(stocks, options string) (store.Plans, error) {
	var p store.Plans
	if err := p.Stocks.UnmarshalText([]byte(stocks)); err != nil {
		return store.Plans{}, err
	}
	if err := p.Options.UnmarshalText([]byte(options)); err != nil {
		return store.Plans{}, err
	}
	return p, nil
}

// requireUser returns store.ErrUnknownUser unless the user exists.
func requireUser(ctx context.Context, q queryer, id string) error {
	var one int
	err := q.QueryRowContext(ctx, `SELECT 1 FROM users WHERE id = ?`, id).Scan(&one)
	if errors.Is(err, sql.ErrNoRows) {
		return store.ErrUnknownUser
	}
	return err
}

// queryer is a *sql.DB or *sql.Tx.
type queryer interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}
