package version

import (
	"runtime"
	"runtime/debug"
	"testing"
)

func TestDescribe(t *testing.T) {
	build := func(main string, settings ...debug.BuildSetting) *debug.BuildInfo {
		return &debug.BuildInfo{Main: debug.Module{Version: main}, Settings: settings}
	}
	revision := debug.BuildSetting{Key: "vcs.revision", Value: "abc"}
	clean := debug.BuildSetting{Key: "vcs.modified", Value: "false"}
	dirty := debug.BuildSetting{Key: "vcs.modified", Value: "true"}
	for _, tt := range []struct {
		name              string
		release           string
		build             *debug.BuildInfo
		version, revision string
	}{
		{"no build info", "", nil, "devel", "unknown"},
		{"release without build info", "v1.2.3", nil, "v1.2.3", "unknown"},
		{"test binary", "", build(""), "devel", "unknown"},
		{"go run", "", build("(devel)"), "devel", "unknown"},
		{"go install", "", build("v1.0.0"), "v1.0.0", "unknown"},
		{"release wins", "v1.2.3", build("v0.0.0-2026", revision, clean), "v1.2.3", "abc"},
		{"changed tree", "", build("v1.0.0", dirty, revision), "v1.0.0", "abc+dirty"},
		{"changed, no revision", "", build("v1.0.0", dirty), "v1.0.0", "unknown"},
	} {
		want := Info{Version: tt.version, Revision: tt.revision, Go: runtime.Version()}
		if got := describe(tt.release, tt.build); got != want {
			t.Errorf("%s: %+v, want %+v", tt.name, got, want)
		}
	}
}

func TestString(t *testing.T) {
	if got := (Info{"v1", "abc", "go1.26"}).String(); got != "v1 (abc, go1.26)" {
		t.Error(got)
	}
	if Get().Go != runtime.Version() {
		t.Error(Get())
	}
}
