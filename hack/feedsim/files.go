package feedsim

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/cutemarkets/relay/hack/feedsim/fault"
	"github.com/cutemarkets/relay/hack/feedsim/recording"
	"github.com/cutemarkets/relay/hack/truth"
)

// flushEvery is the age at which lines are in the files at the latest.
const flushEvery = 50 * time.Millisecond

// files are what the simulator reads and writes while it runs.
type files struct {
	truth  *truth.Writer     // nil: none
	record *recording.Writer // nil: none
	open   []*os.File
}

// openFiles opens what the options name. What it opened is to be closed even if
// it fails.
func openFiles(o Options) (f files, err error) {
	if o.Truth != "" {
		file, err := f.add(o.Truth, os.O_APPEND|os.O_CREATE|os.O_WRONLY)
		if err != nil {
			return f, err
		}
		f.truth = truth.NewWriter(file)
	}
	if o.Record != "" {
		file, err := f.add(o.Record, os.O_APPEND|os.O_CREATE|os.O_WRONLY)
		if err != nil {
			return f, err
		}
		f.record = recording.NewWriter(file)
	}
	return f, nil
}

func (f *files) add(name string, flag int) (*os.File, error) {
	file, err := os.OpenFile(name, flag, 0o600)
	if err == nil {
		f.open = append(f.open, file)
	}
	return file, err
}

// run flushes until ctx is done.
func (f *files) run(ctx context.Context) error {
	ticker := time.NewTicker(flushEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			if err := f.flush(); err != nil {
				return err
			}
		}
	}
}

func (f *files) flush() error {
	var errs []error
	if f.truth != nil {
		errs = append(errs, f.truth.Flush())
	}
	if f.record != nil {
		errs = append(errs, f.record.Flush())
	}
	return errors.Join(errs...)
}

func (f *files) close() error {
	errs := []error{f.flush()}
	for _, file := range f.open {
		errs = append(errs, file.Close())
	}
	return errors.Join(errs...)
}

// script reads the script, if there is one.
func (o *Options) script() ([]fault.Step, error) {
	if o.Script == "" {
		return nil, nil
	}
	file, err := os.Open(o.Script)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	steps, err := fault.ParseScript(file, o.Seed)
	if err != nil {
		return nil, &os.PathError{Op: "script", Path: o.Script, Err: err}
	}
	return steps, nil
}
