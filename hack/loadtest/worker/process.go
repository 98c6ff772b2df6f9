package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"

	"github.com/cutemarkets/relay/hack/loadtest/tally"
)

// Command is the argument with which RunAll starts this program as a worker:
// it has to call Serve.
const Command = "worker"

// message is what a child says to its parent, one JSON value each.
type message struct {
	Snapshot *tally.Snapshot `json:",omitempty"`
	Outcome  *Outcome        `json:",omitempty"` // the last one
	Error    string          `json:",omitempty"` // the last one
}

// Serve does the assignment it reads from in, and writes to out what comes of
// it. It ends early when in ends.
func Serve(ctx context.Context, in io.Reader, out io.Writer) error {
	var a Assignment
	if err := json.NewDecoder(in).Decode(&a); err != nil {
		return fmt.Errorf("worker: reading the assignment: %w", err)
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		_, _ = io.Copy(io.Discard, in) // until it ends, well or not
		stop()
	}()
	encoder := json.NewEncoder(out)
	outcome, err := Run(ctx, a, func(s tally.Snapshot) {
		if encoder.Encode(message{Snapshot: &s}) != nil {
			stop() // nobody listens any more
		}
	})
	last := message{Outcome: &outcome}
	if err != nil {
		last = message{Error: err.Error()}
	}
	if err := encoder.Encode(last); err != nil {
		return fmt.Errorf("worker: writing the result: %w", err)
	}
	return nil
}

// RunAll does the assignments, a process for each, or in this process if there
// is only one, and merges what comes of them. show is called with the state of
// all of them, never twice at the same time.
func RunAll(ctx context.Context, assignments []Assignment, show func(tally.Snapshot)) (Outcome, error) {
	if len(assignments) == 1 {
		return Run(ctx, assignments[0], show)
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	shown := newBoard(len(assignments), show)
	outcomes, errs := make([]Outcome, len(assignments)), make([]error, len(assignments))
	var children sync.WaitGroup
	for i, a := range assignments {
		children.Go(func() {
			outcomes[i], errs[i] = child(ctx, a, func(s tally.Snapshot) { shown.put(i, s) })
			if errs[i] != nil {
				stop() // without it, the others measure something else
			}
		})
	}
	children.Wait()
	if err := errors.Join(errs...); err != nil {
		return Outcome{}, err
	}
	var results []tally.Result
	var merged Outcome
	for i, o := range outcomes {
		results = append(results, o.Result)
		for _, note := range o.Notes {
			merged.Notes = append(merged.Notes, assignments[i].Tester+": "+note)
		}
	}
	var err error
	merged.Result, err = tally.Merge(results...)
	return merged, err
}

// board has the last state of each worker.
type board struct {
	// Static after construction.
	show func(tally.Snapshot)

	// Guarded by mu.
	mu     sync.Mutex
	states []*tally.Snapshot
}

func newBoard(workers int, show func(tally.Snapshot)) *board {
	return &board{show: show, states: make([]*tally.Snapshot, workers)}
}

// put shows the sum, once all have said something.
func (b *board) put(worker int, s tally.Snapshot) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.states[worker] = &s
	var sum tally.Snapshot
	for i, state := range b.states {
		switch {
		case state == nil:
			return
		case i == 0:
			sum = *state
		default:
			sum = sum.Add(*state)
		}
	}
	b.show(sum)
}

// child does an assignment in a process of its own, in a process group of its
// own too: Ctrl-C in a terminal is for the parent, which tells it.
func child(ctx context.Context, a Assignment, show func(tally.Snapshot)) (Outcome, error) {
	program, err := os.Executable()
	if err != nil {
		return Outcome{}, fmt.Errorf("worker: %w", err)
	}
	cmd := exec.Command(program, Command) //nolint:gosec,noctx // this program; it is not killed but told, by the end of its input
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	in, err := cmd.StdinPipe()
	if err != nil {
		return Outcome{}, fmt.Errorf("worker: %w", err)
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return Outcome{}, fmt.Errorf("worker: %w", errors.Join(err, in.Close()))
	}
	told := context.AfterFunc(ctx, func() { _ = in.Close() })
	defer told()
	outcome, err := converse(a, in, out, show)
	_ = in.Close()
	if ended := cmd.Wait(); ended != nil {
		err = errors.Join(err, fmt.Errorf("worker: process %s: %w", a.Tester, ended))
	}
	return outcome, err
}

// converse hands over the assignment and takes what comes.
func converse(a Assignment, in io.Writer, out io.Reader, show func(tally.Snapshot)) (Outcome, error) {
	if err := json.NewEncoder(in).Encode(a); err != nil {
		return Outcome{}, fmt.Errorf("worker: process %s takes no assignment: %w", a.Tester, err)
	}
	decoder := json.NewDecoder(out)
	for {
		var m message
		if err := decoder.Decode(&m); err != nil {
			return Outcome{}, fmt.Errorf("worker: process %s ended without a result: %w", a.Tester, err)
		}
		switch {
		case m.Outcome != nil:
			return *m.Outcome, nil
		case m.Error != "":
			return Outcome{}, errors.New(m.Error)
		case m.Snapshot != nil:
			show(*m.Snapshot)
		}
	}
}
