package lock

import (
	"testing"
	"time"
)

func TestGuard(t *testing.T) {
	const s = time.Second
	type input struct {
		at        time.Duration
		changed   bool          // else a lock is missing that was
		confirmed time.Duration // then
		want      trigger
		refuses   time.Duration // until then newcomers are refused
	}
	for name, inputs := range map[string][]input{
		"new generation":                          {{10 * s, true, 0, generation, 12500 * time.Millisecond}},
		"another one meanwhile":                   {{10 * s, true, 0, generation, 12500 * time.Millisecond}, {11 * s, true, 0, generation, 13500 * time.Millisecond}},
		"a lock missing":                          {{10 * s, false, 8 * s, vanished, 12500 * time.Millisecond}},
		"many of one loss":                        {{10 * s, false, 8 * s, vanished, 12500 * time.Millisecond}, {11 * s, false, 7 * s, noTrigger, 12500 * time.Millisecond}},
		"new generation, then what was lost":      {{10 * s, true, 0, generation, 12500 * time.Millisecond}, {11 * s, false, 7 * s, noTrigger, 12500 * time.Millisecond}},
		"lost once more after it was set anew":    {{10 * s, false, 8 * s, vanished, 12500 * time.Millisecond}, {12 * s, false, 10 * s, vanished, 14500 * time.Millisecond}},
		"found only when the guard has ended":     {{10 * s, false, 8 * s, vanished, 12500 * time.Millisecond}, {12500 * time.Millisecond, false, 8 * s, vanished, 15 * s}},
		"a generation while the guard of a loss":  {{10 * s, false, 8 * s, vanished, 12500 * time.Millisecond}, {11 * s, true, 0, generation, 13500 * time.Millisecond}},
		"a generation just after the guard ended": {{10 * s, true, 0, generation, 12500 * time.Millisecond}, {13 * s, true, 0, generation, 15500 * time.Millisecond}},
	} {
		t.Run(name, func(t *testing.T) {
			var g guard
			if g.refuses(s) {
				t.Fatal("refuses without a loss")
			}
			for n, in := range inputs {
				var got trigger
				if in.changed {
					got = g.begin(in.at, generation)
				} else {
					got = g.missing(in.at, in.confirmed)
				}
				if got != in.want || !g.refuses(in.refuses-1) || g.refuses(in.refuses) {
					t.Fatalf("input %d: trigger %d, guard %+v; want %d, until %v", n, got, g, in.want, in.refuses)
				}
			}
			if first, last := g.assertAt(0), g.assertAt(buckets-1); first != g.since || last >= g.since+sweepTime || last < g.since+sweepTime*9/10 {
				t.Fatalf("locks are asserted between %v and %v of %+v", first, last, g)
			}
		})
	}
}
