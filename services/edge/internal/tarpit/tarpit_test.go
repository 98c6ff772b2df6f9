package tarpit

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const sec = time.Second

var start = time.Date(2026, 5, 15, 13, 30, 0, 0, time.UTC)

func TestHold(t *testing.T) {
	for name, refusals := range map[string][]struct {
		user            string
		at, least, want time.Duration
	}{
		"an SDK that dials when it is closed": {
			{"a", 0, sec, sec}, {"a", 1 * sec, sec, 2 * sec}, {"a", 3 * sec, sec, 4 * sec}, {"a", 7 * sec, sec, 8 * sec},
			{"a", 15 * sec, sec, 16 * sec}, {"a", 31 * sec, sec, 30 * sec}, {"a", 61 * sec, sec, 30 * sec}, {"a", 91 * sec, sec, 30 * sec},
		},
		"each user on his own": {
			{"a", 0, sec, sec}, {"b", 0, sec, sec}, {"a", 1 * sec, sec, 2 * sec}, {"c", 1 * sec, sec, sec}, {"b", 2 * sec, sec, 2 * sec},
		},
		"forgotten after a minute": {
			{"a", 0, sec, sec}, {"a", 2 * sec, sec, 2 * sec}, {"a", 62*sec - 1, sec, 4 * sec}, {"a", 122*sec - 1, sec, sec},
		},
		"many at once": {
			{"a", 0, sec, sec}, {"a", 0, sec, 2 * sec}, {"a", 0, sec, 4 * sec}, {"a", 0, sec, 8 * sec}, {"a", 0, sec, 16 * sec},
			{"a", 0, sec, 30 * sec}, {"a", 0, sec, 30 * sec}, {"a", 0, sec, 30 * sec}, {"a", 0, sec, 30 * sec},
			{"a", 0, sec, sec}, {"a", 1 * sec, sec, sec}, // eight are held for longer
			{"b", 1 * sec, sec, sec}, {"b", 1 * sec, sec, 2 * sec},
			{"a", 2 * sec, sec, 30 * sec}, {"a", 2 * sec, sec, sec},
		},
		"a protocol without a hold":       {{"a", 0, 0, 0}, {"a", 0, 0, 0}, {"a", 0, sec, sec}, {"a", 0, 0, 0}},
		"a least that is long":            {{"a", 0, time.Minute, time.Minute}, {"a", 0, time.Minute, time.Minute}, {"a", 0, sec, 30 * sec}},
		"protocols with different leasts": {{"a", 0, sec, sec}, {"a", 0, 3 * sec, 3 * sec}, {"a", 0, sec, 6 * sec}},
		"shards whose rounds overlap":     {{"a", sec, sec, sec}, {"a", 0, sec, 2 * sec}, {"a", 61*sec - 1, sec, 4 * sec}},
	} {
		t.Run(name, func(t *testing.T) {
			pit := New(start)
			for i, r := range refusals {
				if got := pit.Hold(r.user, r.least, start.Add(r.at)); got != r.want {
					t.Fatalf("refusal %d: held for %s, want %s", i, got, r.want)
				}
			}
		})
	}
}

// held is a hold longer than the least.
type held struct{ from, until time.Time }

func TestRapid(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pit, now := New(start), start
		last := map[string]time.Time{}
		longer := map[string][]held{}
		t.Repeat(map[string]func(*rapid.T){
			"refusal": func(t *rapid.T) {
				id := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "user")
				hold := pit.Hold(id, sec, now)
				before, known := last[id]
				last[id] = now
				switch {
				case hold < sec || hold > Longest:
					t.Fatalf("held for %s", hold)
				case hold > sec && (!known || now.Sub(before) >= Memory):
					t.Fatalf("held for %s, though not refused within a minute", hold)
				case hold > sec:
					longer[id] = append(longer[id], held{now, now.Add(hold)})
				}
				open := 0
				for _, h := range longer[id] {
					if h.until.After(now) {
						open++
					}
				}
				if open > MaxHeld {
					t.Fatalf("%d of %s are held for longer", open, id)
				}
				if known && hold == sec && now.Sub(before) < Memory && open < MaxHeld {
					t.Fatalf("held for no longer, with %d held and the last refusal %s ago", open, now.Sub(before))
				}
			},
			"time": func(t *rapid.T) {
				now = now.Add(time.Duration(rapid.SampledFrom([]int{1, 100, 1000, 5000, 30_000, 60_000}).Draw(t, "ms")) * time.Millisecond)
			},
		})
	})
}

// TestSequence: one that dials when it is closed, and only then, is never held for
// less than before, whatever else goes on.
func TestSequence(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pit, now, before := New(start), start, time.Duration(0)
		for range rapid.IntRange(1, 20).Draw(t, "dials") {
			for n := range rapid.IntRange(0, 5).Draw(t, "others") {
				pit.Hold(fmt.Sprint("other-", n), sec, now)
			}
			hold := pit.Hold("a", sec, now)
			if want := max(sec, min(2*before, Longest)); hold != want {
				t.Fatalf("held for %s after %s, want %s", hold, before, want)
			}
			before, now = hold, now.Add(hold)
		}
	})
}

func TestBounded(t *testing.T) {
	pit := New(start)
	for n := range MaxUsers {
		pit.Hold(fmt.Sprint("user-", n), sec, start)
	}
	if got := pit.Hold("user-0", sec, start); got != 2*sec { // and is now the one refused last
		t.Fatalf("held for %s, want 2 s", got)
	}
	pit.Hold("one more", sec, start)
	if n := pit.users.Len(); n != MaxUsers {
		t.Fatalf("%d users remembered, want %d", n, MaxUsers)
	}
	if got := pit.Hold("user-0", sec, start); got != 4*sec {
		t.Errorf("held for %s, want 4 s", got)
	}
	if got := pit.Hold("user-1", sec, start); got != sec {
		t.Errorf("who was refused longest ago is held for %s, want him forgotten", got)
	}
}

// TestConcurrent: refusals on several shards count together.
func TestConcurrent(t *testing.T) {
	pit := New(start)
	holds := make([]time.Duration, 100)
	var shards sync.WaitGroup
	for n := range holds {
		shards.Go(func() { holds[n] = pit.Hold("a", sec, start) })
	}
	shards.Wait()
	slices.Sort(holds)
	if least, longer := holds[100-MaxHeld-1], holds[100-MaxHeld]; least != sec || longer != 2*sec {
		t.Errorf("%s, then %s; want %d of 100 held for longer", least, longer, MaxHeld)
	}
}

func TestNoAllocs(t *testing.T) {
	pit, now := New(start), start
	if n := testing.AllocsPerRun(1000, func() {
		now = now.Add(sec)
		pit.Hold("a", sec, now)
	}); n != 0 {
		t.Errorf("%v allocations for a user who is known, want 0", n)
	}
}

func BenchmarkHold(b *testing.B) {
	b.Run("one user", func(b *testing.B) {
		pit, now := New(start), start
		b.ReportAllocs()
		for b.Loop() {
			now = now.Add(sec)
			pit.Hold("0193ab5e-user", sec, now)
		}
	})
	b.Run("more than are remembered", func(b *testing.B) {
		pit := New(start)
		ids := make([]string, 2*MaxUsers)
		for n := range ids {
			ids[n] = fmt.Sprint("0193ab5e-", n)
		}
		b.ReportAllocs()
		for n := 0; b.Loop(); n++ {
			pit.Hold(ids[n%len(ids)], sec, start)
		}
	})
}
