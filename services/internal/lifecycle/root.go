package lifecycle

import (
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"

	"github.com/cutemarkets/relay/services/internal/version"
)

// Go starts fn as a named goroutine root: a panic in it is logged to standard
// error with its stack and the build, then raised again, which ends the process.
// The caller has means of its own to wait for fn.
func Go(name string, fn func()) {
	go func() {
		defer func() {
			if v := recover(); v != nil {
				logPanic(slog.New(slog.NewJSONHandler(os.Stderr, nil)).With(slog.String("component", "lifecycle")), name, v)
				panic(v)
			}
		}()
		fn()
	}()
}

// Crash is deferred at the root of a goroutine that somebody else has started (a
// gRPC handler, say). It logs a panic with its stack and the build, then raises
// it again.
func Crash(log *slog.Logger, name string) {
	if v := recover(); v != nil {
		logPanic(log, name, v)
		panic(v)
	}
}

func logPanic(log *slog.Logger, name string, v any) {
	log.Error("panic",
		slog.String("goroutine", name),
		slog.String("panic", fmt.Sprint(v)),
		slog.String("build", version.Get().String()),
		slog.String("stack", string(debug.Stack())))
}
