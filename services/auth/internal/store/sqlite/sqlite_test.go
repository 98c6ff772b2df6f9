package sqlite_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cutemarkets/relay/services/auth/internal/store"
	"github.com/cutemarkets/relay/services/auth/internal/store/sqlite"
	"github.com/cutemarkets/relay/services/auth/internal/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t testing.TB, path string) *sqlite.Store {
	t.Helper()
	if _, err := sqlite.Migrate(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	s, err := sqlite.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store {
		return open(t, filepath.Join(t.TempDir(), "auth.db"))
	})
}

func TestMigrate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "auth.db")
	first, err := sqlite.Migrate(t.Context(), path)
	if err != nil || len(first) != 1 || first[0] != "00001_users_and_keys.sql" {
		t.Fatalf("first: %q, %v", first, err)
	}
	second, err := sqlite.Migrate(t.Context(), path)
	if err != nil || len(second) != 0 {
		t.Fatalf("second: %q, %v", second, err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if mode := info.Mode().Perm(); mode != 0o600 {
		t.Errorf("mode of the database is %o", mode)
	}
}

func TestMigrateConcurrently(t *testing.T) {
	path := filepath.Join(t.TempDir(), "auth.db")
	var group sync.WaitGroup
	for range 6 {
		group.Go(func() {
			if _, err := sqlite.Migrate(t.Context(), path); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	s, err := sqlite.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Ping(t.Context()), s.Close()); err != nil {
		t.Error(err)
	}
}

func TestOpenErrors(t *testing.T) {
	dir := t.TempDir()
	missing := filepath.Join(dir, "missing.db")
	if _, err := sqlite.Open(t.Context(), missing); !errors.Is(err, sqlite.ErrNoDatabase) {
		t.Errorf("missing: %v", err)
	}
	if _, err := os.Stat(missing); !os.IsNotExist(err) {
		t.Errorf("Open made a file: %v", err)
	}
	empty := filepath.Join(dir, "empty.db")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := sqlite.Open(t.Context(), empty); !errors.Is(err, sqlite.ErrNotMigrated) {
		t.Errorf("empty: %v", err)
	}
	text := filepath.Join(dir, "text.db")
	if err := os.WriteFile(text, []byte(strings.Repeat("not a database\n", 100)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := sqlite.Open(t.Context(), text); err == nil || !strings.Contains(err.Error(), text) {
		t.Errorf("not a database: %v", err)
	}
	if _, err := sqlite.Migrate(t.Context(), filepath.Join(dir, "no", "auth.db")); err == nil || !strings.Contains(err.Error(), "does not exist") {
		t.Errorf("no folder: %v", err)
	}
}

func TestPathsAreTakenAsTheyAre(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, path := range []string{":memory:", "a?b#c%20d.db", "file:x.db", "ä ö.db"} {
		s := open(t, path)
		if _, _, err := s.SetUser(t.Context(), "u", store.PlanChange{}, time.Now()); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		if err := s.Close(); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		if info, err := os.Stat(path); err != nil || info.Size() == 0 {
			t.Errorf("%s: %v, %v", path, info, err)
		}
	}
}

// Two stores on a file are like two processes: connections share nothing.
func TestTwoStoresOnOneFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "auth.db")
	reader, writer := open(t, path), open(t, path)
	defer func() {
		if err := errors.Join(reader.Close(), writer.Close()); err != nil {
			t.Error(err)
		}
	}()
	if _, _, err := writer.SetUser(t.Context(), "u", store.PlanChange{}, time.Now()); err != nil {
		t.Fatal(err)
	}
	batch := store.KeyBatch{Product: store.ProductStocks, Created: time.Now(), Keys: manyKeys(5000)}
	lookups := 0
	err := writer.CreateKeys(t.Context(), batch, func(int) {
		// The writer's transaction is open: readers are neither held up nor do
		// they see any of it.
		if _, err := reader.Lookup(t.Context(), batch.Keys[0].Digest); !errors.Is(err, store.ErrUnknownKey) {
			t.Errorf("look-up before the commit: %v", err)
		}
		lookups++
	})
	if err != nil || lookups == 0 {
		t.Fatalf("%d look-ups, %v", lookups, err)
	}
	if _, err := reader.Lookup(t.Context(), batch.Keys[0].Digest); err != nil {
		t.Errorf("look-up after the commit: %v", err)
	}
}

func manyKeys(count int) []store.NewKey {
	keys := make([]store.NewKey, count)
	for i := range keys {
		keys[i].ID, keys[i].UserID = fmt.Sprintf("key_%d", i), "u"
		keys[i].Digest = store.Digest{0: byte(i), 1: byte(i >> 8), 2: byte(i >> 16), 3: 1}
	}
	return keys
}

func BenchmarkCreateKeys(b *testing.B) {
	s := open(b, filepath.Join(b.TempDir(), "auth.db"))
	defer func() { _ = s.Close() }()
	if _, _, err := s.SetUser(b.Context(), "u", store.PlanChange{}, time.Now()); err != nil {
		b.Fatal(err)
	}
	const count = 10_000
	n := 0
	for b.Loop() {
		keys := manyKeys(count)
		for i := range keys {
			n++
			keys[i].ID = fmt.Sprintf("key_%d", n)
			keys[i].Digest[8], keys[i].Digest[9], keys[i].Digest[10], keys[i].Digest[11] = byte(n>>24), byte(n>>16), byte(n>>8), byte(n)
		}
		if err := s.CreateKeys(b.Context(), store.KeyBatch{Product: store.ProductStocks, Created: time.Now(), Keys: keys}, nil); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(count)*float64(b.N)/b.Elapsed().Seconds(), "keys/s")
}

func BenchmarkLookup(b *testing.B) {
	s := open(b, filepath.Join(b.TempDir(), "auth.db"))
	defer func() { _ = s.Close() }()
	if _, _, err := s.SetUser(b.Context(), "u", store.PlanChange{}, time.Now()); err != nil {
		b.Fatal(err)
	}
	keys := manyKeys(100_000)
	if err := s.CreateKeys(b.Context(), store.KeyBatch{Product: store.ProductStocks, Created: time.Now(), Keys: keys}, nil); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for i := 0; pb.Next(); i = (i + 7919) % len(keys) {
			if _, err := s.Lookup(b.Context(), keys[i].Digest); err != nil {
				b.Error(err)
				return
			}
		}
	})
}
