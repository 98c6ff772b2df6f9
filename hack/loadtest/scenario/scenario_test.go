package scenario

import (
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func settings(change func(*Settings)) Settings {
	s := Settings{Name: Stream, Shape: Linear, Connections: 10, Rate: 10, Duration: 10 * time.Second, Steps: 5, ChurnPercent: 10, SlowPercent: 10, BackOff: time.Second}
	change(&s)
	return s
}

func plan(t *testing.T, change func(*Settings)) *Plan {
	t.Helper()
	p, err := New(settings(change))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestAt(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Settings)
		want   string // seconds
	}{
		"linear":            {func(s *Settings) { s.Name = Ramp }, "0s 100ms 200ms 300ms 400ms 500ms 600ms 700ms 800ms 900ms"},
		"step":              {func(s *Settings) { s.Name, s.Shape = Ramp, Step }, "0s 100ms 2s 2.1s 4s 4.1s 6s 6.1s 8s 8.1s"},
		"uneven step":       {func(s *Settings) { s.Name, s.Shape, s.Steps = Ramp, Step, 4 }, "0s 100ms 200ms 2.5s 2.6s 5s 5.1s 5.2s 7.5s 7.6s"},
		"more steps":        {func(s *Settings) { s.Name, s.Shape, s.Steps = Ramp, Step, 20 }, "0s 1s 2s 3s 4s 5s 6s 7s 8s 9s"},
		"spike":             {func(s *Settings) { s.Name, s.Shape = Ramp, Spike }, "0s 5s 5s 5s 5s 5s 5s 5s 5s 5s"},
		"storm":             {func(s *Settings) { s.Name = Storm }, "0s 0s 0s 0s 0s 0s 0s 0s 0s 0s"},
		"others":            {func(s *Settings) { s.Name, s.Rate = Drain, 2 }, "0s 500ms 1s 1.5s 2s 2.5s 3s 3.5s 4s 4.5s"},
		"shape is a ramp's": {func(s *Settings) { s.Shape = Spike }, "0s 100ms 200ms 300ms 400ms 500ms 600ms 700ms 800ms 900ms"},
	} {
		p := plan(t, c.change)
		var got []string
		last := time.Duration(0)
		for i := range 10 {
			got = append(got, p.At(i).String())
			last = max(last, p.At(i))
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("%s:\n got %s\nwant %s", name, s, c.want)
		}
		if p.Opened() < last || p.Opened() > last+100*time.Millisecond {
			t.Errorf("%s: opened at %s, the last one at %s", name, p.Opened(), last)
		}
	}
}

func TestUsualDurations(t *testing.T) {
	for name, want := range map[Name]time.Duration{Ramp: 30 * time.Second, Idle: 30 * time.Second, Drain: 5 * time.Minute, Soak: time.Hour} {
		if p := plan(t, func(s *Settings) { s.Name, s.Duration = name, 0 }); p.Duration() != want {
			t.Errorf("%s takes %s, want %s", name, p.Duration(), want)
		}
	}
}

func TestReconnects(t *testing.T) {
	for name, want := range map[Name]bool{Ramp: false, Storm: false, Idle: false, Stream: false, Slow: false, Churn: true, Drain: true, Soak: true} {
		if p := plan(t, func(s *Settings) { s.Name = name }); p.Reconnects() != want {
			t.Errorf("%s: %t, want %t", name, p.Reconnects(), want)
		}
	}
}

func TestReadLimit(t *testing.T) {
	for _, c := range []struct {
		percent float64
		rate    int
		want    []int // of ten connections
	}{
		{10, 0, []int{0, 0, 0, 0, 0, 0, 0, 0, 0, -1}},
		{30, 1024, []int{0, 0, 0, 1024, 0, 0, 1024, 0, 0, 1024}},
		{100, 5, []int{5, 5, 5, 5, 5, 5, 5, 5, 5, 5}},
	} {
		p := plan(t, func(s *Settings) { s.Name, s.SlowPercent, s.ReadRate = Slow, c.percent, c.rate })
		var got []int
		for i := range 10 {
			got = append(got, p.ReadLimit(i))
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%g %%: %v, want %v", c.percent, got, c.want)
		}
	}
	if p := plan(t, func(s *Settings) { s.ReadRate = 5 }); p.ReadLimit(9) != 0 {
		t.Error("a stream has slow clients")
	}
}

func TestBackOff(t *testing.T) {
	p := plan(t, func(s *Settings) { s.Name = Drain })
	for _, c := range []struct {
		failed   int
		from, to time.Duration
	}{
		{0, 500 * time.Millisecond, 1500 * time.Millisecond},
		{1, time.Second, 3 * time.Second},
		{4, 8 * time.Second, 24 * time.Second},
		{5, 15 * time.Second, 45 * time.Second},
		{1000, 15 * time.Second, 45 * time.Second},
	} {
		if from, to := p.BackOff(c.failed, 0), p.BackOff(c.failed, 1); from != c.from || to != c.to {
			t.Errorf("after %d failures from %s to %s, want %s to %s", c.failed, from, to, c.from, c.to)
		}
	}
	if p := plan(t, func(s *Settings) { s.Name, s.BackOff = Drain, time.Minute }); p.BackOff(3, 0.5) != time.Minute {
		t.Errorf("%s with a mean of a minute", p.BackOff(3, 0.5))
	}
}

// TestChurn: at the rate asked for, each connection once before one comes again.
func TestChurn(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := settings(func(s *Settings) {
			s.Name = Churn
			s.Connections = rapid.IntRange(1, 3000).Draw(t, "connections")
			s.Rate = 1e6
			s.Duration = time.Duration(rapid.IntRange(2, 100).Draw(t, "seconds")) * time.Second
			s.ChurnPercent = rapid.Float64Range(0.1, 50).Draw(t, "percent")
		})
		p, err := New(s)
		if err != nil {
			t.Fatal(err)
		}
		seen := map[int]bool{}
		last, n := time.Duration(0), 0
		for ; ; n++ {
			number, at, ok := p.Churn(n)
			if !ok {
				break
			}
			if at < last || at < p.Opened() || at >= s.Duration || number < 0 || number >= s.Connections {
				t.Fatalf("connection %d at %s after %s", number, at, last)
			}
			if seen[number] {
				t.Fatalf("connection %d again, after %d of %d", number, len(seen), s.Connections)
			}
			if seen[number] = true; len(seen) == s.Connections {
				clear(seen)
			}
			last = at
		}
		want := float64(s.Connections) * s.ChurnPercent / 100 * (s.Duration - p.Opened()).Seconds()
		if float64(n) > want+1e-6 || float64(n) < want-2 {
			t.Fatalf("%d closes, want %g", n, want)
		}
	})
	if _, _, ok := plan(t, func(*Settings) {}).Churn(0); ok {
		t.Error("a stream churns")
	}
}

// TestSlowShare: the share of slow clients is right for every number of them.
func TestSlowShare(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		percent := rapid.Float64Range(0.1, 100).Draw(t, "percent")
		n := rapid.IntRange(1, 2000).Draw(t, "connections")
		p, err := New(settings(func(s *Settings) { s.Name, s.SlowPercent, s.Connections, s.Rate = Slow, percent, n, 1e6 }))
		if err != nil {
			t.Fatal(err)
		}
		slow := 0
		for i := range n {
			if p.ReadLimit(i) != 0 {
				slow++
			}
		}
		if want := int(float64(n) * percent / 100); slow != want {
			t.Fatalf("%d slow, want %d", slow, want)
		}
	})
}

func TestNewRefuses(t *testing.T) {
	for want, change := range map[string]func(*Settings){
		"--connections is 0":  func(s *Settings) { s.Connections = 0 },
		"--rate is 0":         func(s *Settings) { s.Rate = 0 },
		"--duration is 500ms": func(s *Settings) { s.Duration = 500 * time.Millisecond },
		"--steps is 0":        func(s *Settings) { s.Name, s.Shape, s.Steps = Ramp, Step, 0 },
		"--percent is 0, must be more than 0 and at most 100 a second": func(s *Settings) { s.Name, s.ChurnPercent = Churn, 0 },
		"--percent is 101":           func(s *Settings) { s.Name, s.SlowPercent = Slow, 101 },
		"--read-rate is -1":          func(s *Settings) { s.Name, s.ReadRate = Slow, -1 },
		"--back-off is 0s":           func(s *Settings) { s.Name, s.BackOff = Soak, 0 },
		"raise --rate or --duration": func(s *Settings) { s.Connections = 1000 },
		"exclude each other":         func(s *Settings) { s.Topics = Topics{List: "T.*", Symbols: []string{"A"}, Each: 1} },
		"--topics-per-connection is 2, must be from 1 to 1": func(s *Settings) { s.Topics = Topics{Symbols: []string{"A"}, Each: 2} },
		"--zipf is -1": func(s *Settings) { s.Topics = Topics{Symbols: []string{"A"}, Each: 1, Zipf: -1} },
	} {
		if _, err := New(settings(change)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}
