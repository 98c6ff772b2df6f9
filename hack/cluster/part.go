package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

const stopTimeout = 30 * time.Second

// part is one program of the cluster: a function of this process or a process
// of its own.
type part struct {
	// Static after construction.
	name    string
	ready   string                              // URL that answers 200 once the part is ready; empty: at once
	run     func(ctx context.Context) error     // in this process
	command func(ctx context.Context) *exec.Cmd // as a process; wins over run
	logFile string

	// Guarded by mu.
	mu       sync.Mutex
	cancel   context.CancelFunc
	process  *os.Process
	stopping bool
	done     chan struct{} // closed when the run has ended
	err      error         // valid once done is closed
}

func (p *part) start(ctx context.Context, fail func(error)) error {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	wait := func() error { return p.run(ctx) }
	var process *os.Process
	if p.command != nil {
		log, err := os.OpenFile(filepath.Clean(p.logFile), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			cancel()
			return fmt.Errorf("cluster: %w", err)
		}
		cmd := p.command(ctx)
		cmd.Stdout, cmd.Stderr = log, log
		cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
		cmd.WaitDelay = stopTimeout
		if err := cmd.Start(); err != nil {
			cancel()
			return errors.Join(fmt.Errorf("cluster: start %s: %w", p.name, err), log.Close())
		}
		process = cmd.Process
		wait = func() error { return errors.Join(cmd.Wait(), log.Close()) }
	}

	p.mu.Lock()
	p.cancel, p.process, p.done, p.stopping = cancel, process, done, false
	p.mu.Unlock()
	go func() {
		err := wait()
		p.mu.Lock()
		stopping := p.stopping
		p.err = err
		p.mu.Unlock()
		close(done)
		if !stopping {
			fail(fmt.Errorf("%s ended by itself (log: %s): %w", p.name, p.logFile, orEnded(err)))
		}
	}()
	return nil
}

var errEnded = errors.New("it returned without an error")

func orEnded(err error) error {
	if err == nil {
		return errEnded
	}
	return err
}

// stop ends the part and returns how it ended: nil for exit status 0.
func (p *part) stop(ctx context.Context) error {
	p.mu.Lock()
	p.stopping = true
	cancel, done := p.cancel, p.done
	p.mu.Unlock()
	if done == nil {
		return nil
	}
	cancel()
	select {
	case <-done:
	case <-ctx.Done():
		return ctx.Err()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.process = nil
	if errors.Is(p.err, context.Canceled) {
		return nil
	}
	return p.err
}

func (p *part) signal(signal os.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.process == nil {
		return fmt.Errorf("cluster: %s is no process of its own", p.name)
	}
	return p.process.Signal(signal)
}

// kill ends the process by a signal; how it ends is no error.
func (p *part) kill(signal os.Signal) error {
	p.mu.Lock()
	p.stopping = true
	done := p.done
	p.mu.Unlock()
	if err := p.signal(signal); err != nil {
		return err
	}
	<-done
	p.mu.Lock()
	defer p.mu.Unlock()
	p.process, p.done = nil, nil
	return nil
}

func (p *part) pid() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.process == nil {
		return os.Getpid()
	}
	return p.process.Pid
}

func (p *part) awaitReady(ctx context.Context) error {
	if p.ready == "" {
		return nil
	}
	p.mu.Lock()
	done := p.done
	p.mu.Unlock()
	ended := make(chan error, 1)
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-done:
			p.mu.Lock()
			defer p.mu.Unlock()
			ended <- orEnded(p.err)
		case <-stop:
		}
	}()
	if err := poll(ctx, ended, func() bool { return getJSON(ctx, p.ready, nil) == nil }); err != nil {
		return fmt.Errorf("cluster: %s did not become ready: %w; the end of its log (%s):\n%s", p.name, err, p.logFile, p.logEnd())
	}
	return nil
}

// logEnd is the last of the part's log, empty if it has none.
func (p *part) logEnd() []byte {
	text, err := os.ReadFile(p.logFile)
	if err != nil {
		return nil
	}
	return text[max(0, len(text)-2000):]
}
