// Package version says which build is running: for --version, relay_build_info,
// the resource of traces and the log record of a panic. It starts no goroutine.
package version

import (
	"cmp"
	"runtime"
	"runtime/debug"
	"sync"
)

// release is set by the linker in release builds:
//
//	-ldflags "-X github.com/cutemarkets/relay/services/internal/version.release=v1.2.3"
var release string

// Info describes the build.
type Info struct {
	Version  string // release, else the main module's version, else "devel"
	Revision string // VCS revision, "+dirty" when the tree was changed; "unknown" outside a repository
	Go       string // toolchain
}

// Get returns the build of the running binary.
var Get = sync.OnceValue(func() Info {
	build, _ := debug.ReadBuildInfo()
	return describe(release, build)
})

// String is the one-line form that --version prints.
func (i Info) String() string { return i.Version + " (" + i.Revision + ", " + i.Go + ")" }

func describe(release string, build *debug.BuildInfo) Info {
	info := Info{Version: cmp.Or(release, "devel"), Revision: "unknown", Go: runtime.Version()}
	if build == nil {
		return info
	}
	if main := build.Main.Version; release == "" && main != "" && main != "(devel)" {
		info.Version = main
	}
	var revision, suffix string
	for _, s := range build.Settings {
		switch {
		case s.Key == "vcs.revision":
			revision = s.Value
		case s.Key == "vcs.modified" && s.Value == "true":
			suffix = "+dirty"
		}
	}
	if revision != "" {
		info.Revision = revision + suffix
	}
	return info
}
