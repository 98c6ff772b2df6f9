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

const (
	ms  = time.Millisecond
	sec = time.Second
)

var start = time.Date(2026, 5, 15, 13, 30, 0, 0, time.UTC)

func TestRefused(t *testing.T) {
	type refusal struct {
		user            string
		at, least, want time.Duration // want 0: not refused but granted
	}
	for name, script := range map[string][]refusal{
		"an SDK that dials when it is closed": {
			{"a", 0, sec, sec}, {"a", 1 * sec, sec, 2 * sec}, {"a", 3 * sec, sec, 4 * sec}, {"a", 7 * sec, sec, 8 * sec},
			{"a", 15 * sec, sec, 16 * sec}, {"a", 31 * sec, sec, 30 * sec}, {"a", 61 * sec, sec, 30 * sec}, {"a", 91 * sec, sec, 30 * sec},
		},
		"one that dials when it is told": {
			{"a", 0, sec, sec}, {"a", 100 * ms, sec, sec}, {"a", 200 * ms, sec, sec}, {"a", 799 * ms, sec, sec},
			{"a", sec, sec, 2 * sec}, {"a", 1100 * ms, sec, sec}, {"a", 2 * sec, sec, sec}, {"a", 3 * sec, sec, 4 * sec},
		},
		"one that waits of its own accord": {
			{"a", 0, sec, sec}, {"a", 6 * sec, sec, sec}, {"a", 12*sec - 1, sec, 2 * sec}, {"a", 19 * sec, sec, sec},
		},
		"one that is let in": {
			{"a", 0, sec, sec}, {"a", 1 * sec, sec, 2 * sec}, {"a", 3 * sec, 0, 0}, {"a", 3 * sec, sec, sec}, {"a", 4 * sec, sec, 2 * sec},
		},
		"one that is let in while another is held": {
			{"a", 0, sec, sec}, {"a", 1 * sec, sec, 2 * sec}, {"a", 2 * sec, 0, 0}, {"a", 2 * sec, sec, sec}, {"a", 3 * sec, sec, sec}, {"a", 4 * sec, sec, 2 * sec},
		},
		"each user on his own": {
			{"a", 0, sec, sec}, {"b", 0, sec, sec}, {"a", 1 * sec, sec, 2 * sec}, {"b", 1 * sec, 0, 0},
			{"c", 1 * sec, sec, sec}, {"b", 2 * sec, sec, sec}, {"a", 3 * sec, sec, 4 * sec},
		},
		"shards whose clocks differ":      {{"a", sec, sec, sec}, {"a", 1800 * ms, sec, 2 * sec}, {"a", 0, sec, sec}, {"a", 3600 * ms, sec, 4 * sec}},
		"a least that is long":            {{"a", 0, time.Minute, time.Minute}, {"a", time.Minute, time.Minute, time.Minute}, {"a", 2 * time.Minute, sec, 30 * sec}},
		"protocols with different leasts": {{"a", 0, sec, sec}, {"a", sec, 3 * sec, 3 * sec}, {"a", 4 * sec, sec, 6 * sec}},
	} {
		t.Run(name, func(t *testing.T) {
			pit := New(start)
			for i, r := range script {
				if r.want == 0 {
					pit.Granted(r.user)
				} else if got := pit.Refused(r.user, r.least, start.Add(r.at)); got != r.want {
					t.Fatalf("refusal %d: held for %s, want %s", i, got, r.want)
				}
			}
		})
	}
}

// TestRapid: a longer hold follows another one directly, and no other is as long at
// the same time.
func TestRapid(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pit, now := New(start), start
		type refusal struct{ from, until time.Time }
		all := map[string][]refusal{}
		user := rapid.SampledFrom([]string{"a", "b", "c"})
		t.Repeat(map[string]func(*rapid.T){
			"refused": func(t *rapid.T) {
				id := user.Draw(t, "user")
				hold := pit.Refused(id, sec, now)
				directly := false
				for _, r := range all[id] {
					directly = directly || !now.Before(r.until.Add(-skew)) && now.Before(r.until.Add(Memory))
					if hold > sec && r.until.Sub(r.from) > sec && now.Before(r.until.Add(-skew)) {
						t.Fatal("two are held for longer")
					}
				}
				if hold < sec || hold > Longest || hold > sec && !directly {
					t.Fatalf("held for %s, directly behind another: %v", hold, directly)
				}
				all[id] = append(all[id], refusal{now, now.Add(hold)})
			},
			"granted": func(t *rapid.T) {
				id := user.Draw(t, "user")
				pit.Granted(id)
				if hold := pit.Refused(id, sec, now); hold != sec {
					t.Fatalf("held for %s, though let in", hold)
				}
				all[id] = append(all[id], refusal{now, now.Add(sec)})
			},
			"time": func(t *rapid.T) {
				now = now.Add(time.Duration(rapid.SampledFrom([]int{1, 100, 1000, 2000, 5000, 30_000}).Draw(t, "ms")) * ms)
			},
		})
	})
}

func TestBounded(t *testing.T) {
	pit, now := New(start), start
	for n := range MaxUsers {
		pit.Refused(fmt.Sprint("user-", n), sec, now)
	}
	now = now.Add(sec)
	if got := pit.Refused("user-0", sec, now); got != 2*sec { // and is now the one refused last
		t.Fatalf("held for %s, want 2 s", got)
	}
	pit.Refused("one more", sec, now)
	if n := pit.users.Len(); n != MaxUsers {
		t.Fatalf("%d users remembered, want %d", n, MaxUsers)
	}
	if got := pit.Refused("user-1", sec, now); got != sec {
		t.Errorf("who was refused longest ago is held for %s, want him forgotten", got)
	}
	if got := pit.Refused("user-0", sec, now.Add(2*sec)); got != 4*sec {
		t.Errorf("held for %s, want 4 s", got)
	}
}

// TestConcurrent: refusals on several shards count together.
func TestConcurrent(t *testing.T) {
	pit := New(start)
	pit.Refused("a", sec, start)
	holds := make([]time.Duration, 100)
	var shards sync.WaitGroup
	for n := range holds {
		shards.Go(func() { holds[n] = pit.Refused("a", sec, start.Add(sec)) })
	}
	shards.Wait()
	slices.Sort(holds)
	if least, longer := holds[98], holds[99]; least != sec || longer != 2*sec {
		t.Errorf("%s, then %s; want one of 100 held for longer", least, longer)
	}
}

func TestNoAllocs(t *testing.T) {
	pit, now := New(start), start
	if n := testing.AllocsPerRun(1000, func() {
		now = now.Add(sec)
		pit.Refused("a", sec, now)
		pit.Granted("a")
	}); n != 0 {
		t.Errorf("%v allocations for a user who is known, want 0", n)
	}
}

func BenchmarkRefused(b *testing.B) {
	b.Run("one user", func(b *testing.B) {
		pit, now := New(start), start
		b.ReportAllocs()
		for b.Loop() {
			now = now.Add(sec)
			pit.Refused("0193ab5e-user", sec, now)
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
			pit.Refused(ids[n%len(ids)], sec, start)
		}
	})
}

func BenchmarkGranted(b *testing.B) {
	pit := New(start)
	b.ReportAllocs()
	for b.Loop() {
		pit.Granted("0193ab5e-user")
	}
}
