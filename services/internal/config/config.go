// Package config reads a program's options from its flags and its RELAY_*
// environment, by kong's struct tags. It starts no goroutine and keeps nothing.
// A variable that is set to nothing counts as not set.
//
// A RELAY_* name that no program of ours knows is a mistake that would otherwise
// go unnoticed, so it stops the start-up. The known names are those of the
// program itself and of names.txt, which is generated from all programs: pods of
// one release may share an environment.
package config

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/alecthomas/kong"

	"github.com/cutemarkets/relay/services/internal/version"
)

// envPrefix begins the name of every environment variable of ours.
const envPrefix = "RELAY"

// Validator is an options struct that can tell whether it makes sense.
type Validator interface{ Validate() error }

// UsageError says what is wrong with the flags or the environment. Its ExitCode
// is 2.
type UsageError struct {
	Program string
	Err     error
}

func (e *UsageError) Error() string {
	return fmt.Sprintf("%v (see %s --help)", e.Err, e.Program)
}

// Unwrap returns the cause.
func (e *UsageError) Unwrap() error { return e.Err }

// ExitCode is the exit status that fits the error.
func (*UsageError) ExitCode() int { return 2 }

// Parse fills options (a pointer to a struct with kong tags) from args, then the
// environment, then the defaults, and validates it. --help and --version print
// to standard output and exit with 0. Its errors are of type *UsageError.
func Parse(program, description string, args []string, options Validator) error {
	_, err := ParseCommands(program, description, args, options)
	return err
}

// ParseCommands is Parse for any grammar of kong, with commands and arguments.
// The Validate methods of the grammar and of the selected command are called.
func ParseCommands(program, description string, args []string, grammar any) (*kong.Context, error) {
	p := parser{program: program, description: description, stdout: os.Stdout}
	p.exit = os.Exit //nolint:forbidigo // what --help and --version do, on behalf of main
	return p.parse(args, grammar)
}

type parser struct {
	program     string
	description string
	stdout      io.Writer
	exit        func(int)
}

func (p parser) parse(args []string, grammar any) (*kong.Context, error) {
	k, err := newKong(grammar,
		kong.Name(p.program),
		kong.Description(p.description),
		kong.Vars{"version": p.program + " " + version.Get().String()},
		kong.Writers(p.stdout, os.Stderr),
		kong.Exit(p.exit),
	)
	if err != nil {
		return nil, err
	}
	own := variables(k.Model.Node)
	for _, name := range own {
		if value, set := os.LookupEnv(name); set && value == "" {
			_ = os.Unsetenv(name) // a template with nothing to fill in is no value
		}
	}
	ctx, err := k.Parse(args)
	// A misspelt variable is the cause, a missing flag its effect: tell of both.
	err = errors.Join(checkEnvironment(os.Environ(), own), err)
	if err != nil {
		return nil, &UsageError{Program: p.program, Err: err}
	}
	return ctx, nil
}

// newKong adds --version and the environment to a grammar.
func newKong(grammar any, options ...kong.Option) (*kong.Kong, error) {
	var builtin struct {
		Version kong.VersionFlag `env:"-" help:"Print the version and exit."`
	}
	k, err := kong.New(grammar, append(options, kong.Embed(&builtin), kong.DefaultEnvars(envPrefix))...)
	if err != nil {
		return nil, fmt.Errorf("config: bad grammar: %w", err)
	}
	for _, name := range variables(k.Model.Node) {
		if reserved(name) {
			return nil, fmt.Errorf("config: bad grammar: the variable %s could be set by Kubernetes (service link), choose another name", name)
		}
	}
	return k, nil
}
