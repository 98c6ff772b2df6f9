package secret

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const canary = "canary-5f3a"

// traces are the forms in which the canary could show.
var traces = []string{
	canary,
	fmt.Sprintf("%x", canary),
	fmt.Sprintf("%X", canary),
	fmt.Sprintf("% x", canary),
	strings.Trim(fmt.Sprintf("%d", []byte(canary)), "[]"),
	"Y2FuYXJ5", // base64
}

func checkHidden(t *testing.T, what, output string) {
	t.Helper()
	for _, trace := range traces {
		if strings.Contains(output, trace) {
			t.Errorf("%s shows the value: %s", what, output)
		}
	}
}

func TestNoVerbShowsTheValue(t *testing.T) {
	s := New(canary)
	type holder struct {
		Name    string
		Public  Secret
		private Secret // fmt cannot call its Format
		Ptr     *Secret
	}
	values := map[string]any{
		"value":   s,
		"pointer": &s,
		"struct":  holder{"x", s, s, &s},
		"ptr":     &holder{"x", s, s, &s},
		"slice":   []Secret{s},
		"map":     map[string]Secret{"k": s},
		"any":     []any{s, &s},
	}
	for name, v := range values {
		for verb := rune('A'); verb <= 'z'; verb++ {
			for _, flags := range []string{"", "+", "#", "-10", " ", "0", "20.3", "+#"} {
				format := "%" + flags + string(verb)
				checkHidden(t, name+" "+format, fmt.Sprintf(format, v))
			}
		}
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		if got := fmt.Sprintf(verb, s); got != redacted {
			t.Errorf("%s gives %s", verb, got)
		}
	}
	checkHidden(t, "String", s.String()+s.GoString()+fmt.Sprint(s)+fmt.Sprintln(&s))
}

func TestErrorsHideTheValue(t *testing.T) {
	checkHidden(t, "error", fmt.Errorf("key %v (%+v): %w", New(canary), New(canary), errors.New("x")).Error())
}

func TestEncodersHideTheValue(t *testing.T) {
	s := New(canary)
	v := struct {
		A Secret
		B *Secret
		C map[string]Secret
		D any
	}{s, &s, map[string]Secret{"k": s}, s}
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"A":"[redacted]","B":"[redacted]","C":{"k":"[redacted]"},"D":"[redacted]"}`
	if string(b) != want {
		t.Errorf("JSON %s, want %s", b, want)
	}
	keys, err := json.Marshal(map[Secret]int{s: 1})
	if err != nil {
		t.Fatal(err)
	}
	checkHidden(t, "JSON key", string(keys))
}

func TestLogsHideTheValue(t *testing.T) {
	s := New(canary)
	var buf bytes.Buffer
	for _, handler := range []slog.Handler{slog.NewJSONHandler(&buf, nil), slog.NewTextHandler(&buf, nil)} {
		log := slog.New(handler).With("with", s)
		log.Info("m", "key", s, "ptr", &s, "slice", []Secret{s}, "map", map[string]any{"k": s},
			slog.Group("group", "key", s), "struct", struct{ A any }{s}, "private", struct{ a Secret }{s})
		log.Info(fmt.Sprint(s))
	}
	checkHidden(t, "slog", buf.String())
	if n := strings.Count(buf.String(), redacted); n < 16 {
		t.Errorf("redacted %d times in %s", n, buf.String())
	}
}

func TestReveal(t *testing.T) {
	if s := New(canary); s.Reveal() != canary || s.Empty() {
		t.Error("Reveal does not give the value")
	}
	if s := (Secret{}); s.Reveal() != "" || !s.Empty() || s.String() != redacted {
		t.Error("the zero value is not empty")
	}
}

func TestEqual(t *testing.T) {
	if New(canary) != New(strings.Clone(canary)) || New(canary) == New(canary+"x") || New("") != (Secret{}) {
		t.Error("Secrets are not equal just when their values are")
	}
}

func TestRead(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	s, err := Read(write("good", " \t"+canary+"\r\n"))
	if err != nil || s.Reveal() != canary {
		t.Errorf("Read: %q, %v", s.Reveal(), err)
	}
	for _, content := range []string{"", " \n\t "} {
		if s, err := Read(write("empty", content)); err == nil || !s.Empty() || !strings.Contains(err.Error(), filepath.Join(dir, "empty")) {
			t.Errorf("Read of an empty file: %v", err)
		}
	}
	missing := filepath.Join(dir, "missing")
	if _, err := Read(missing); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), missing) {
		t.Errorf("Read of a missing file: %v", err)
	}
}
