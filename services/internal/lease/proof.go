package lease

import (
	"sync"
	"time"
)

// Proof tells whether a lease is proven: confirmed lately enough that nobody else
// can have it. A lease that is not proven may have been given to another, or not.
// Proven looks at the clock itself, so it is right also when the process has just
// stood still. Safe for concurrent use.
type Proof struct {
	mu sync.Mutex
	// Guarded by mu.
	proven  bool
	until   time.Time // zero: for good
	timer   *time.Timer
	changed chan struct{}
}

// NewProof makes the Proof of a lease that has just been given, for good.
func NewProof() *Proof { return &Proof{proven: true, changed: make(chan struct{})} }

// Proven reports whether the lease is proven.
func (p *Proof) Proven() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.provenLocked()
}

// Changed is closed when Proven may answer otherwise than before the call. Ask for
// it before Proven.
func (p *Proof) Changed() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.changed
}

// Set says whether the lease is proven from now on.
func (p *Proof) Set(proven bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.setLocked(proven, time.Time{})
}

// Prove says that the lease is proven until a moment.
func (p *Proof) Prove(until time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.setLocked(true, until)
	if p.timer == nil {
		p.timer = time.AfterFunc(time.Until(until), p.lapse)
	} else {
		p.timer.Reset(time.Until(until))
	}
}

// lapse tells of the end of the proof, if that has come.
func (p *Proof) lapse() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.proven && !p.provenLocked() {
		p.setLocked(false, time.Time{})
	}
}

// setLocked tells of a change also if it is one back, of what the clock has
// changed.
func (p *Proof) setLocked(proven bool, until time.Time) {
	if p.timer != nil {
		p.timer.Stop()
	}
	before := p.provenLocked()
	told := p.proven
	p.proven, p.until = proven, until
	if proven != before || proven != told {
		close(p.changed)
		p.changed = make(chan struct{})
	}
}

func (p *Proof) provenLocked() bool {
	return p.proven && (p.until.IsZero() || time.Now().Before(p.until))
}
