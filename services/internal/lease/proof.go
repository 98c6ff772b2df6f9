package lease

import "sync"

// Proof tells whether a lease is proven: confirmed lately enough that nobody else
// can have it. A lease that is not proven may have been given to another, or not.
// Safe for concurrent use.
type Proof struct {
	mu sync.Mutex
	// Guarded by mu.
	proven  bool
	changed chan struct{}
}

// NewProof makes the Proof of a lease that has just been given.
func NewProof() *Proof { return &Proof{proven: true, changed: make(chan struct{})} }

// Proven reports whether the lease is proven.
func (p *Proof) Proven() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.proven
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
	if p.proven != proven {
		p.proven = proven
		close(p.changed)
		p.changed = make(chan struct{})
	}
}
