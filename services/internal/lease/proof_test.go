package lease

import (
	"testing"
	"testing/synctest"
	"time"
)

// told reports whether a channel is closed, once all that can happen has.
func told(changed <-chan struct{}) bool {
	synctest.Wait()
	select {
	case <-changed:
		return true
	default:
		return false
	}
}

func TestProof(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewProof()
		changed := p.Changed()
		check := func(what string, proven, change bool) {
			t.Helper()
			if p.Proven() != proven || told(changed) != change {
				t.Errorf("%s: proven %v, told %v", what, p.Proven(), told(changed))
			}
			changed = p.Changed()
		}
		check("new", true, false)
		p.Prove(time.Now().Add(time.Second))
		time.Sleep(time.Second - 1)
		check("before its end", true, false)
		p.Prove(time.Now().Add(time.Second))
		time.Sleep(time.Second - 1)
		check("renewed", true, false)
		time.Sleep(time.Nanosecond)
		check("ended", false, true)
		p.Set(false)
		check("ended twice", false, false)
		p.Prove(time.Now().Add(time.Second))
		check("again", true, true)
		p.Set(false)
		check("ended before its time", false, true)
		time.Sleep(time.Minute)
		check("ended for long", false, false)
		p.Set(true)
		check("set", true, true)
		time.Sleep(time.Minute)
		check("for good", true, false)
	})
}

// Proven is right before anybody has been told, and who was told of neither the end
// nor the return of the proof is told of the latter.
func TestProofAfterAPause(t *testing.T) {
	p := NewProof()
	p.Prove(time.Now().Add(time.Hour))
	p.until = time.Now() // the timer has not run
	changed := p.Changed()
	if p.Proven() {
		t.Error("proven after its end")
	}
	p.Prove(time.Now().Add(time.Hour))
	select {
	case <-changed:
	default:
		t.Error("not told")
	}
	p.Set(false)
}
