// Package storetest is the test suite that every implementation of store.Store
// passes.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cutemarkets/relay/services/auth/internal/store"
)

var (
	now   = time.Date(2026, 3, 1, 12, 30, 0, 123_000_000, time.UTC)
	later = now.Add(time.Hour)
)

// Run runs the suite. open makes an empty store that the suite closes.
func Run(t *testing.T, open func(t *testing.T) store.Store) {
	t.Helper()
	for _, c := range []struct {
		name string
		test func(*testing.T, store.Store)
	}{
		{"set user", setUser},
		{"users are ordered", usersAreOrdered},
		{"create and look up", createAndLookUp},
		{"all products and plans", allProductsAndPlans},
		{"unknown user", unknownUser},
		{"create is all or nothing", createIsAllOrNothing},
		{"create many", createMany},
		{"cancelled create leaves nothing", cancelledCreate},
		{"revoke", revoke},
		{"callback error ends a list", callbackError},
		{"pepper", pepper},
		{"cancelled look-up", cancelledLookup},
		{"concurrent use", concurrentUse},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := open(t)
			defer func() { must(t, s.Close()) }()
			must(t, s.Ping(t.Context()))
			c.test(t, s)
		})
	}
}

func setUser(t *testing.T, s store.Store) {
	expert, developer := store.PlanExpert, store.PlanDeveloper
	for i, step := range []struct {
		change  store.PlanChange
		at      time.Time
		created bool
		want    store.User
	}{
		{store.PlanChange{Options: &expert}, now, true, store.User{
			ID: "u", Plans: store.Plans{Stocks: store.PlanFree, Options: store.PlanExpert}, Created: now, Updated: now}},
		{store.PlanChange{Stocks: &developer}, later, false, store.User{
			ID: "u", Plans: store.Plans{Stocks: store.PlanDeveloper, Options: store.PlanExpert}, Created: now, Updated: later}},
		{store.PlanChange{}, later, false, store.User{
			ID: "u", Plans: store.Plans{Stocks: store.PlanDeveloper, Options: store.PlanExpert}, Created: now, Updated: later}},
	} {
		got, created, err := s.SetUser(t.Context(), "u", step.change, step.at.Local().Add(time.Microsecond))
		must(t, err)
		if created != step.created {
			t.Errorf("step %d: created = %v", i, created)
		}
		same(t, step.want, got)
		same(t, []store.User{step.want}, users(t, s))
	}
}

func usersAreOrdered(t *testing.T, s store.Store) {
	for _, id := range []string{"b", "a", "B", "c", "a1"} {
		addUser(t, s, id)
	}
	var ids []string
	for _, u := range users(t, s) {
		ids = append(ids, u.ID)
	}
	same(t, []string{"B", "a", "a1", "b", "c"}, ids)
}

func createAndLookUp(t *testing.T, s store.Store) {
	addUser(t, s, "u")
	addUser(t, s, "v")
	must(t, s.CreateKeys(t.Context(), batch("u", 1, 2), nil))
	must(t, s.CreateKeys(t.Context(), batch("v", 3), nil))

	want := store.Key{ID: "key_1", UserID: "u", Product: store.ProductStocks, Label: "label of u", Created: now}
	got, err := s.Lookup(t.Context(), digest(1))
	must(t, err)
	same(t, store.Match{Key: want, Plans: store.Plans{Stocks: store.PlanFree, Options: store.PlanFree}, Digest: digest(1)}, got)

	commercial := store.PlanCommercial
	_, _, err = s.SetUser(t.Context(), "u", store.PlanChange{Stocks: &commercial}, later)
	must(t, err)
	got, err = s.Lookup(t.Context(), digest(1))
	must(t, err)
	same(t, store.Plans{Stocks: store.PlanCommercial, Options: store.PlanFree}, got.Plans)

	if _, err := s.Lookup(t.Context(), digest(4)); !errors.Is(err, store.ErrUnknownKey) {
		t.Errorf("unknown digest: %v", err)
	}
	same(t, []string{"key_1", "key_2", "key_3"}, keyIDs(t, s, ""))
	same(t, []string{"key_1", "key_2"}, keyIDs(t, s, "u"))
	same(t, []string{"key_3"}, keyIDs(t, s, "v"))
}

func allProductsAndPlans(t *testing.T, s store.Store) {
	n := 0
	for _, product := range []store.Product{store.ProductStocks, store.ProductOptions, store.ProductPaper} {
		for _, plan := range []store.Plan{store.PlanFree, store.PlanDeveloper, store.PlanExpert, store.PlanCommercial} {
			n++
			id := fmt.Sprintf("u%d", n)
			_, _, err := s.SetUser(t.Context(), id, store.PlanChange{Stocks: &plan, Options: &plan}, now)
			must(t, err)
			b := batch(id, n)
			b.Product = product
			must(t, s.CreateKeys(t.Context(), b, nil))
			got, err := s.Lookup(t.Context(), digest(n))
			must(t, err)
			same(t, product, got.Key.Product)
			same(t, store.Plans{Stocks: plan, Options: plan}, got.Plans)
		}
	}
}

func unknownUser(t *testing.T, s store.Store) {
	if err := s.CreateKeys(t.Context(), batch("nobody", 1), nil); !errors.Is(err, store.ErrUnknownUser) {
		t.Errorf("create: %v", err)
	}
	if err := s.Keys(t.Context(), "nobody", func(store.Key) error { return nil }); !errors.Is(err, store.ErrUnknownUser) {
		t.Errorf("list: %v", err)
	}
	if _, err := s.Lookup(t.Context(), digest(1)); !errors.Is(err, store.ErrUnknownKey) {
		t.Errorf("look-up: %v", err)
	}
}

func createIsAllOrNothing(t *testing.T, s store.Store) {
	addUser(t, s, "u")
	must(t, s.CreateKeys(t.Context(), batch("u", 1), nil))
	if err := s.CreateKeys(t.Context(), batch("u", 2, 3, 1), nil); err == nil {
		t.Error("a digest was stored twice")
	}
	sameID := batch("u", 4)
	sameID.Keys[0].ID = "key_1"
	if err := s.CreateKeys(t.Context(), sameID, nil); err == nil {
		t.Error("a key id was stored twice")
	}
	same(t, []string{"key_1"}, keyIDs(t, s, ""))
}

func createMany(t *testing.T, s store.Store) {
	addUser(t, s, "u")
	const count = 1234
	numbers := make([]int, count)
	var want []string
	for i := range numbers {
		numbers[i] = i + 1
		want = append(want, fmt.Sprintf("key_%d", i+1))
	}
	last := 0
	must(t, s.CreateKeys(t.Context(), batch("u", numbers...), func(written int) {
		if written <= last {
			t.Errorf("progress went from %d to %d", last, written)
		}
		last = written
	}))
	same(t, count, last)
	same(t, want, keyIDs(t, s, "u"))
	for _, n := range []int{1, 500, 501, 1000, count} {
		got, err := s.Lookup(t.Context(), digest(n))
		must(t, err)
		same(t, fmt.Sprintf("key_%d", n), got.Key.ID)
	}
}

func cancelledCreate(t *testing.T, s store.Store) {
	addUser(t, s, "u")
	numbers := make([]int, 2000)
	for i := range numbers {
		numbers[i] = i
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if err := s.CreateKeys(ctx, batch("u", numbers...), func(int) { cancel() }); !errors.Is(err, context.Canceled) {
		t.Errorf("create: %v", err)
	}
	same(t, []string(nil), keyIDs(t, s, ""))
	must(t, s.CreateKeys(t.Context(), batch("u", numbers...), nil))
}

func revoke(t *testing.T, s store.Store) {
	addUser(t, s, "u")
	must(t, s.CreateKeys(t.Context(), batch("u", 1, 2), nil))
	for _, at := range []time.Time{now, later} {
		got, err := s.RevokeKey(t.Context(), "key_1", at)
		must(t, err)
		same(t, now, got.Revoked)
		same(t, "u", got.UserID)
	}
	for n, want := range map[int]time.Time{1: now, 2: {}} {
		got, err := s.Lookup(t.Context(), digest(n))
		must(t, err)
		same(t, want, got.Key.Revoked)
	}
	if _, err := s.RevokeKey(t.Context(), "key_3", now); !errors.Is(err, store.ErrUnknownKey) {
		t.Errorf("unknown key: %v", err)
	}
}

func callbackError(t *testing.T, s store.Store) {
	addUser(t, s, "u")
	addUser(t, s, "v")
	must(t, s.CreateKeys(t.Context(), batch("u", 1, 2), nil))
	enough := errors.New("enough")
	calls := 0
	err := s.Users(t.Context(), func(store.User) error { calls++; return enough })
	if !errors.Is(err, enough) || calls != 1 {
		t.Errorf("users: %v after %d calls", err, calls)
	}
	calls = 0
	err = s.Keys(t.Context(), "", func(store.Key) error { calls++; return enough })
	if !errors.Is(err, enough) || calls != 1 {
		t.Errorf("keys: %v after %d calls", err, calls)
	}
}

func pepper(t *testing.T, s store.Store) {
	for range 2 {
		must(t, s.BindPepper(t.Context(), digest(1)))
	}
	if err := s.BindPepper(t.Context(), digest(2)); !errors.Is(err, store.ErrPepperMismatch) {
		t.Errorf("another pepper: %v", err)
	}
	must(t, s.BindPepper(t.Context(), digest(1)))
}

func cancelledLookup(t *testing.T, s store.Store) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Lookup(ctx, digest(1)); !errors.Is(err, context.Canceled) {
		t.Errorf("look-up: %v", err)
	}
	if err := s.Ping(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("ping: %v", err)
	}
	must(t, s.Ping(t.Context()))
}

func concurrentUse(t *testing.T, s store.Store) {
	addUser(t, s, "u")
	const writers, each = 4, 25
	var group sync.WaitGroup
	for w := range writers {
		group.Go(func() {
			for i := range each {
				n := w*each + i + 1
				if err := s.CreateKeys(t.Context(), batch("u", n), nil); err != nil {
					t.Errorf("create: %v", err)
					return
				}
				if _, err := s.Lookup(t.Context(), digest(n)); err != nil {
					t.Errorf("look-up of what was just stored: %v", err)
				}
				if _, _, err := s.SetUser(t.Context(), "u", store.PlanChange{}, now); err != nil {
					t.Errorf("set user: %v", err)
				}
			}
		})
	}
	group.Wait()
	same(t, writers*each, len(keyIDs(t, s, "u")))
}

func addUser(t *testing.T, s store.Store, id string) {
	t.Helper()
	_, _, err := s.SetUser(t.Context(), id, store.PlanChange{}, now)
	must(t, err)
}

// batch has the keys key_N with digest(N).
func batch(user string, numbers ...int) store.KeyBatch {
	b := store.KeyBatch{Product: store.ProductStocks, Label: "label of " + user, Created: now}
	for _, n := range numbers {
		b.Keys = append(b.Keys, store.NewKey{ID: fmt.Sprintf("key_%d", n), UserID: user, Digest: digest(n)})
	}
	return b
}

func digest(n int) (d store.Digest) {
	copy(d[:], fmt.Sprintf("digest of key_%d", n))
	return d
}

func users(t *testing.T, s store.Store) (all []store.User) {
	t.Helper()
	must(t, s.Users(t.Context(), func(u store.User) error { all = append(all, u); return nil }))
	return slices.Clip(all)
}

func keyIDs(t *testing.T, s store.Store, user string) (ids []string) {
	t.Helper()
	must(t, s.Keys(t.Context(), user, func(k store.Key) error { ids = append(ids, k.ID); return nil }))
	return ids
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func same(t *testing.T, want, got any) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}
