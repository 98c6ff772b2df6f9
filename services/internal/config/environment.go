package config

import (
	_ "embed"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// ErrUnknownVariable says that the environment has a RELAY_* name that no
// program of ours reads.
var ErrUnknownVariable = errors.New("unknown environment variable")

// names are the variables of all programs, one per line.
//
//go:embed names.txt
var names string

// serviceLink matches the variables that Kubernetes gives a pod for each Service
// of its namespace: for one named relay-edge RELAY_EDGE_SERVICE_HOST,
// RELAY_EDGE_SERVICE_PORT[_NAME], RELAY_EDGE_PORT and
// RELAY_EDGE_PORT_80_TCP[_ADDR|_PORT|_PROTO].
// https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
var serviceLink = regexp.MustCompile(`_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(ADDR|PORT|PROTO))?)?)$`)

// reserved reports whether a variable must not be ours.
func reserved(name string) bool {
	return serviceLink.MatchString(name) || strings.HasSuffix(name, "_HOST")
}

// variables lists the variables of a grammar and of all its commands.
func variables(n *kong.Node) []string {
	var own []string
	for _, f := range n.Flags {
		own = append(own, f.Envs...)
	}
	for _, child := range n.Children {
		own = append(own, variables(child)...)
	}
	return own
}

// checkEnvironment refuses the RELAY_* names of environ that are neither in
// names.txt nor of the program's own flags.
func checkEnvironment(environ []string, own []string) error {
	known := append(strings.Fields(names), own...)
	slices.Sort(known)
	var errs []error
	for _, entry := range slices.Sorted(slices.Values(environ)) {
		name, _, _ := strings.Cut(entry, "=")
		if !strings.HasPrefix(name, envPrefix+"_") || serviceLink.MatchString(name) || slices.Contains(known, name) {
			continue
		}
		advice := "unset it"
		if n := nearest(name, known); n != "" {
			advice = "did you mean " + n + "?"
		}
		errs = append(errs, fmt.Errorf("%w %s: %s", ErrUnknownVariable, name, advice))
	}
	return errors.Join(errs...)
}

// nearest returns the known name that is most like name; empty if none is alike.
func nearest(name string, known []string) string {
	found, least := "", len(name)/3+1
	for _, k := range known {
		if d := distance(name, k); d < least {
			found, least = k, d
		}
	}
	return found
}

// distance is the number of bytes to insert, delete or replace to make b of a
// (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replace := diagonal
			if a[i] != b[j] {
				replace++
			}
			diagonal = row[j+1]
			row[j+1] = min(replace, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
