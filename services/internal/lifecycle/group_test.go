package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errBroken = errors.New("broken")

// journal notes what happened in which order.
type journal struct {
	mu      sync.Mutex
	entries []string
}

func (j *journal) note(entry string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.entries = append(j.entries, entry)
}

// waiting is a part that runs until it is stopped and takes a while to end.
func (j *journal) waiting(name string, result error) func(context.Context) error {
	return func(ctx context.Context) error {
		j.note("start " + name)
		<-ctx.Done()
		j.note("stop " + name)
		time.Sleep(time.Second)
		j.note("end " + name)
		return result
	}
}

func TestGroupStopsInReverseOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, j := NewGroup(slog.New(slog.DiscardHandler)), &journal{}
		g.Add("a", j.waiting("a", nil))
		g.Add("b", j.waiting("b", context.Canceled))
		g.Add("c", j.waiting("c", fmt.Errorf("listen: %w", context.Canceled)))
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Minute, cancel)
		begin := time.Now()
		if err := g.Run(ctx); err != nil {
			t.Fatalf("Run: %v", err)
		}
		if took := time.Since(begin); took != time.Minute+3*time.Second {
			t.Errorf("Run took %v: the parts did not stop one after the other", took)
		}
		slices.Sort(j.entries[:3]) // Goroutines start together.
		want := "start a,start b,start c,stop c,end c,stop b,end b,stop a,end a"
		if got := strings.Join(j.entries, ","); got != want {
			t.Errorf("order %s, want %s", got, want)
		}
	})
}

func TestGroupOutcome(t *testing.T) {
	canceled := context.Canceled
	asked := func(err error) func(context.Context) error {
		return func(ctx context.Context) error { <-ctx.Done(); return err }
	}
	early := func(err error) func(context.Context) error {
		return func(context.Context) error { return err }
	}
	for _, tt := range []struct {
		name   string
		run    func(context.Context) error
		cancel bool
		want   []error // none: Run returns nil
	}{
		{"asked, nil", asked(nil), true, nil},
		{"asked, canceled", asked(canceled), true, nil},
		{"asked, wrapped canceled", asked(fmt.Errorf("x: %w", canceled)), true, nil},
		{"asked, joined canceled", asked(errors.Join(canceled, fmt.Errorf("x: %w", canceled))), true, nil},
		{"asked, canceled beside another", asked(errors.Join(canceled, errBroken)), true, []error{errBroken, canceled}},
		{"asked, other", asked(errBroken), true, []error{errBroken}},
		{"asked, deadline", asked(context.DeadlineExceeded), true, []error{context.DeadlineExceeded}},
		{"early, nil", early(nil), false, []error{ErrEnded}},
		{"early, foreign cancellation", early(canceled), false, []error{canceled}},
		{"early, other", early(errBroken), false, []error{errBroken}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := NewGroup(slog.New(slog.DiscardHandler))
			stopped := false
			g.Add("bystander", func(ctx context.Context) error {
				<-ctx.Done()
				stopped = true
				return nil
			})
			g.Add("subject", tt.run)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if tt.cancel {
				cancel()
			}
			err := g.Run(ctx)
			if (err == nil) != (len(tt.want) == 0) {
				t.Fatalf("Run: %v", err)
			}
			for _, want := range tt.want {
				if !errors.Is(err, want) || !strings.Contains(err.Error(), "subject: ") {
					t.Errorf("Run: %v, want subject: %v", err, want)
				}
			}
			if !stopped {
				t.Error("the other part was not stopped")
			}
		})
	}
}

func TestGroupJoinsErrors(t *testing.T) {
	other := errors.New("other")
	g := NewGroup(slog.New(slog.DiscardHandler))
	g.Add("a", func(ctx context.Context) error { <-ctx.Done(); return other })
	g.Add("b", func(context.Context) error { return errBroken })
	if err := g.Run(t.Context()); !errors.Is(err, other) || !errors.Is(err, errBroken) {
		t.Errorf("Run: %v, want both errors", err)
	}
}

func TestGroupRunsOnce(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	g := NewGroup(slog.New(slog.DiscardHandler))
	if err := g.Run(ctx); err != nil {
		t.Fatalf("Run of an empty group: %v", err)
	}
	if err := g.Run(ctx); !errors.Is(err, ErrRunTwice) {
		t.Errorf("second Run: %v, want ErrRunTwice", err)
	}
}

func TestGroupPassesValues(t *testing.T) {
	type key struct{}
	ctx, cancel := context.WithCancel(context.WithValue(t.Context(), key{}, "value"))
	g := NewGroup(slog.New(slog.DiscardHandler))
	g.Add("a", func(ctx context.Context) error {
		cancel()
		<-ctx.Done()
		if ctx.Value(key{}) != "value" {
			return errBroken
		}
		return nil
	})
	if err := g.Run(ctx); err != nil {
		t.Error(err)
	}
}

// TestGroupNeverRunsAlone checks with random sets of parts that Run returns only
// when all have ended, and reports each failure and nothing else.
func TestGroupNeverRunsAlone(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		kinds := rapid.SliceOfN(rapid.IntRange(0, 3), 1, 6).Draw(rt, "kinds")
		synctest.Test(t, func(t *testing.T) {
			g := NewGroup(slog.New(slog.DiscardHandler))
			var j journal
			failures := make([]error, len(kinds))
			for i, kind := range kinds {
				failures[i] = fmt.Errorf("failure %d", i)
				g.Add(fmt.Sprint(i), func(ctx context.Context) error {
					defer j.note("end")
					switch kind {
					case 0: // fails by itself
						select {
						case <-ctx.Done():
						case <-time.After(time.Duration(i+1) * time.Second):
						}
						return failures[i]
					case 1: // fails when stopped
						<-ctx.Done()
						return failures[i]
					default:
						<-ctx.Done()
						return nil
					}
				})
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			err := g.Run(ctx)
			if len(j.entries) != len(kinds) {
				t.Fatalf("Run returned with %d of %d parts ended", len(j.entries), len(kinds))
			}
			for i, kind := range kinds {
				if errors.Is(err, failures[i]) != (kind < 2) {
					t.Fatalf("kinds %v: Run: %v, part %d", kinds, err, i)
				}
			}
		})
	})
}
