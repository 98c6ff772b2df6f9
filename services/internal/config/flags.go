package config

import (
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// Flag describes a flag that the environment can set too.
type Flag struct {
	Name     string // without dashes
	Env      string // name of the variable
	Default  string
	Help     string
	Type     string // the Go type, or the values of an enumeration: json|text
	Required bool
}

// Flags lists the flags of a grammar (a pointer to a struct with kong tags) and
// of all its commands, ordered by variable. Commands that share a variable share
// its entry.
func Flags(grammar any) ([]Flag, error) {
	k, err := newKong(grammar)
	if err != nil {
		return nil, err
	}
	return flagsOf(k.Model.Node), nil
}

func flagsOf(n *kong.Node) []Flag {
	flags := collect(n, nil)
	slices.SortStableFunc(flags, func(a, b Flag) int { return strings.Compare(a.Env, b.Env) })
	return slices.CompactFunc(flags, func(a, b Flag) bool { return a.Env == b.Env })
}

func collect(n *kong.Node, flags []Flag) []Flag {
	for _, f := range n.Flags {
		for _, env := range f.Envs {
			flags = append(flags, Flag{
				Name: f.Name, Env: env, Default: f.Default, Help: f.Help, Type: typeName(f.Value), Required: f.Required,
			})
		}
	}
	for _, child := range n.Children {
		flags = collect(child, flags)
	}
	return flags
}

func typeName(v *kong.Value) string {
	if v.Enum != "" {
		return strings.Join(v.EnumSlice(), "|")
	}
	return v.Target.Type().String()
}
