// Command configdoc writes what the README and the services derive from
// elsewhere: the configuration table from the flags, the example clients from
// the files that the tests run, and the list of RELAY_* names that the services
// accept. `make verify` fails when one of them is stale.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/alecthomas/kong"

	"github.com/cutemarkets/relay/services/auth"
	"github.com/cutemarkets/relay/services/edge"
	"github.com/cutemarkets/relay/services/fanout"
)

const (
	readme = "README.md"
	names  = "services/internal/config/names.txt"
	begin  = "<!-- configuration: begin (make generate) -->\n"
	end    = "<!-- configuration: end -->\n"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "configdoc:", err)
		os.Exit(1)
	}
}

func run() error {
	services := []struct {
		name    string
		options any
	}{
		{"edge", &edge.Options{}},
		{"fanout", &fanout.Options{}},
		{"auth serve", &auth.Options{}},
	}
	var table strings.Builder
	var all []string
	for _, s := range services {
		parser, err := kong.New(s.options, kong.DefaultEnvars("RELAY"))
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		fmt.Fprintf(&table, "\n### %s\n\n| Flag | Environment | Default | Meaning |\n|---|---|---|---|\n", s.name)
		for _, group := range parser.Model.AllFlags(true) {
			for _, f := range group {
				if len(f.Envs) == 0 || f.Name == "help" || f.Name == "version" {
					continue
				}
				all = append(all, f.Envs...)
				fmt.Fprintf(&table, "| `--%s` | `%s` | %s | %s |\n", f.Name, f.Envs[0], preset(f), escape(f.Help))
			}
		}
	}
	slices.Sort(all)
	all = slices.Compact(all)
	if err := os.WriteFile(names, []byte(strings.Join(all, "\n")+"\n"), 0o644); err != nil { //nolint:gosec // a source file
		return err
	}
	return rewrite(table.String() + "\n")
}

func preset(f *kong.Flag) string {
	switch {
	case f.Required:
		return "required"
	case f.HasDefault && f.Default != "":
		return "`" + escape(f.Default) + "`"
	default:
		return ""
	}
}

func escape(text string) string { return strings.ReplaceAll(text, "|", "\\|") }

// rewrite puts the table and the example clients between the README's markers.
func rewrite(table string) error {
	text, err := os.ReadFile(readme)
	if err != nil {
		return err
	}
	before, rest, ok1 := bytes.Cut(text, []byte(begin))
	_, after, ok2 := bytes.Cut(rest, []byte(end))
	if !ok1 || !ok2 {
		return fmt.Errorf("%s: the configuration markers are missing", readme)
	}
	text = slices.Concat(before, []byte(begin), []byte(table), []byte(end), after)
	text = example.ReplaceAllFunc(text, func(block []byte) []byte {
		m := example.FindSubmatch(block)
		source, readErr := os.ReadFile(string(m[1]))
		err = errors.Join(err, readErr)
		return fmt.Appendf(nil, "<!-- file: %s -->\n```%s\n%s```\n", m[1], m[2], source)
	})
	if err != nil {
		return err
	}
	return os.WriteFile(readme, text, 0o644) //nolint:gosec // a source file
}

// example is a file marker and the code block behind it.
var example = regexp.MustCompile("(?s)<!-- file: (\\S+) -->\n```(\\w+)\n.*?```\n")
