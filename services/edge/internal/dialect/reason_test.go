package dialect

import "testing"

func TestReasonsHaveNamesOfTheirOwn(t *testing.T) {
	seen := map[string]bool{"": true, "unknown": true, OK.String(): true}
	for _, r := range Reasons() {
		if seen[r.String()] {
			t.Errorf("reason %d is called %q", r, r)
		}
		seen[r.String()] = true
	}
	if reasonEnd.String() != "unknown" {
		t.Errorf("no reason is called %q", reasonEnd)
	}
}
