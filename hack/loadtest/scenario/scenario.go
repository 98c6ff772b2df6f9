// Package scenario says what happens in a load test, and when: at which moment
// each connection is due, which topics it asks for, how fast it reads, which
// ones are closed to come back, and how long a client waits before it does.
//
// The package is pure: no clock, no socket, no goroutine. Everything follows
// from the Settings and the number of a connection, so that several workers, each
// with a part of the connections, together do what one worker would do.
package scenario

import (
	"errors"
	"fmt"
	"math"
	"time"
)

// Name is the name of a scenario.
type Name string

// The scenarios.
const (
	Ramp   Name = "ramp"   // connections are opened as Shape says
	Storm  Name = "storm"  // all at once
	Idle   Name = "idle"   // held without topics
	Stream Name = "stream" // held with topics
	Churn  Name = "churn"  // a share of them is closed each second and comes back
	Slow   Name = "slow"   // a share of them reads slowly, or not at all
	Drain  Name = "drain"  // they come back as well-behaved clients while servers are replaced
	Soak   Name = "soak"   // as Drain, for long
)

// Shape is how the connections of a ramp are opened.
type Shape string

// The shapes.
const (
	Linear Shape = "linear" // at the rate
	Step   Shape = "step"   // in equal steps at equal times, each at the rate
	Spike  Shape = "spike"  // a tenth at the rate, and all others at once at half time
)

// spikeBase is the part of the connections that a spike has before it.
const spikeBase = 10

// Settings are what a user chooses. Some have no effect in some scenarios.
type Settings struct {
	Name         Name
	Shape        Shape
	Connections  int           // over all workers
	Rate         float64       // connections opened per second
	Duration     time.Duration // of the run, from its start; 0: as long as is usual for the scenario
	Steps        int           // of the shape Step
	ChurnPercent float64       // connections closed per second
	SlowPercent  float64       // connections that read slowly
	ReadRate     int           // bytes per second that these read; 0: nothing at all
	BackOff      time.Duration // mean of the first wait before a client comes back
	Topics       Topics
}

// Usual durations of scenarios.
const (
	usual      = 30 * time.Second
	usualDrain = 5 * time.Minute
	usualSoak  = time.Hour
)

// Plan is what happens. It does not change, and is safe for concurrent use.
type Plan struct {
	// Static after construction.
	s      Settings
	stride int // of churn, without a common divisor with the connections
	topics chooser
}

// New makes the plan. The error says what to choose instead.
func New(s Settings) (*Plan, error) {
	if s.Duration == 0 {
		s.Duration = usual
		switch s.Name {
		case Drain:
			s.Duration = usualDrain
		case Soak:
			s.Duration = usualSoak
		}
	}
	if err := s.validate(); err != nil {
		return nil, fmt.Errorf("scenario: %w", err)
	}
	topics, err := s.Topics.chooser()
	if err != nil {
		return nil, fmt.Errorf("scenario: %w", err)
	}
	p := &Plan{s: s, topics: topics, stride: stride(s.Connections)}
	if opened := p.Opened(); opened >= s.Duration {
		return nil, fmt.Errorf("scenario: the last of %d connections is due %s after the start, and the run takes %s: raise --rate or --duration",
			s.Connections, opened.Round(time.Second), s.Duration)
	}
	return p, nil
}

func (s Settings) validate() error {
	var errs []error
	if s.Connections < 1 {
		errs = append(errs, fmt.Errorf("--connections is %d, must be at least 1", s.Connections))
	}
	if !(s.Rate > 0) || math.IsInf(s.Rate, 1) {
		errs = append(errs, fmt.Errorf("--rate is %g, must be more than 0 connections a second", s.Rate))
	}
	if s.Duration < time.Second {
		errs = append(errs, fmt.Errorf("--duration is %s, must be at least 1s", s.Duration))
	}
	if s.Name == Ramp && s.Shape == Step && s.Steps < 1 {
		errs = append(errs, fmt.Errorf("--steps is %d, must be at least 1", s.Steps))
	}
	if s.Name == Churn && !(s.ChurnPercent > 0 && s.ChurnPercent <= 100) {
		errs = append(errs, fmt.Errorf("--percent is %g, must be more than 0 and at most 100 a second", s.ChurnPercent))
	}
	if s.Name == Slow && !(s.SlowPercent > 0 && s.SlowPercent <= 100) {
		errs = append(errs, fmt.Errorf("--percent is %g, must be more than 0 and at most 100", s.SlowPercent))
	}
	if s.Name == Slow && s.ReadRate < 0 {
		errs = append(errs, fmt.Errorf("--read-rate is %d, must not be negative", s.ReadRate))
	}
	if s.reconnects() && s.BackOff <= 0 {
		errs = append(errs, fmt.Errorf("--back-off is %s, must be more than 0", s.BackOff))
	}
	return errors.Join(errs...)
}

// Duration is how long the run takes.
func (p *Plan) Duration() time.Duration { return p.s.Duration }

// At is when a connection is due, since the start; connections count from 0.
func (p *Plan) At(connection int) time.Duration {
	switch {
	case p.s.Name == Storm:
		return 0
	case p.s.Name == Ramp && p.s.Shape == Step:
		step := connection * p.s.Steps / p.s.Connections
		return time.Duration(step)*p.s.Duration/time.Duration(p.s.Steps) + p.at(connection-p.first(step))
	case p.s.Name == Ramp && p.s.Shape == Spike:
		if connection >= p.s.Connections/spikeBase {
			return p.s.Duration / 2
		}
	}
	return p.at(connection)
}

// first is the first connection of a step.
func (p *Plan) first(step int) int {
	return (step*p.s.Connections + p.s.Steps - 1) / p.s.Steps
}

// at is when the n-th connection is due at the rate.
func (p *Plan) at(n int) time.Duration {
	return time.Duration(float64(n) / p.s.Rate * float64(time.Second))
}

// Opened is when the last connection is due.
func (p *Plan) Opened() time.Duration {
	last := p.At(p.s.Connections - 1)
	if p.s.Name == Ramp && p.s.Shape == Spike {
		last = max(last, p.at(p.s.Connections/spikeBase))
	}
	return last
}

// Topics is the list of topics that a connection asks for; "": none.
func (p *Plan) Topics(connection int) string { return p.topics.list(connection) }

// ReadLimit is how many bytes a second a connection reads at most; 0: there is
// no limit; -1: it reads nothing.
func (p *Plan) ReadLimit(connection int) int {
	if p.s.Name != Slow {
		return 0
	}
	// As many of the first connections as the share says, whatever their number.
	slow := func(n int) int { return int(float64(n) * p.s.SlowPercent / 100) }
	switch {
	case slow(connection) == slow(connection+1):
		return 0
	case p.s.ReadRate == 0:
		return -1
	default:
		return p.s.ReadRate
	}
}

// Hurried is when slow clients read all there is for them, since the start:
// what became of them, they learn only then. It is the last fifth of the run.
func (p *Plan) Hurried() time.Duration { return p.s.Duration - p.s.Duration/5 }

// Churn is the n-th connection that is closed to come back, and when, since the
// start; false: none is. Each connection has its turn before one is closed again.
func (p *Plan) Churn(n int) (connection int, at time.Duration, ok bool) {
	if p.s.Name != Churn {
		return 0, 0, false
	}
	perSecond := float64(p.s.Connections) * p.s.ChurnPercent / 100
	at = p.Opened() + time.Duration(float64(n+1)/perSecond*float64(time.Second))
	if at >= p.s.Duration {
		return 0, 0, false
	}
	// The remainders first: n times the stride could be too large a number.
	return n % p.s.Connections * p.stride % p.s.Connections, at, true
}

// stride is about 0.6 of n, so that neighbours are far apart, and without a
// common divisor, so that every connection is met.
func stride(n int) int {
	for s := max(1, n*618/1000); ; s++ {
		if divisor(s, n) == 1 {
			return s
		}
	}
}

func divisor(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

func (s Settings) reconnects() bool { return s.Name == Churn || s.Name == Drain || s.Name == Soak }

// Reconnects reports whether a client comes back when its connection has ended.
// Where it does not, the end is counted, and that is all.
func (p *Plan) Reconnects() bool { return p.s.reconnects() }

// longestBackOff bounds the mean of a wait.
const longestBackOff = 30 * time.Second

// BackOff is how long a client waits before it tries again, after so many
// attempts in a row that failed, by a random number from 0 to 1: from a half to
// one and a half of a mean that doubles with each of them, up to 30 s.
func (p *Plan) BackOff(failed int, random float64) time.Duration {
	mean := p.s.BackOff
	for ; failed > 0 && mean < longestBackOff; failed-- {
		mean *= 2
	}
	mean = min(mean, max(longestBackOff, p.s.BackOff))
	return time.Duration((0.5 + random) * float64(mean))
}
