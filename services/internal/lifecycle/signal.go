package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// SignalContext returns a context that ends with the first SIGINT or SIGTERM,
// which is its cause. A second one ends the process at once, as is the default of
// the system. The cancel function gives the signals back.
func SignalContext(parent context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(parent)
	received := make(chan os.Signal, 1)
	signal.Notify(received, syscall.SIGINT, syscall.SIGTERM)
	Go("signals", func() {
		select {
		case s := <-received:
			// Before the cancellation: who sees that may count on the default.
			signal.Stop(received)
			cancel(fmt.Errorf("received signal: %v", s))
		case <-ctx.Done():
			signal.Stop(received)
		}
	})
	return ctx, func() { cancel(context.Canceled) }
}

// Main runs a program with a SignalContext, prints its error to standard error
// and returns its exit status: 0, or the error's ExitCode() if it has one, or 1.
//
//	func main() { os.Exit(lifecycle.Main("relay-edge", run)) }
func Main(program string, run func(ctx context.Context) error) int {
	ctx, stop := SignalContext(context.Background())
	defer stop()
	err := run(ctx)
	if err == nil {
		return 0
	}
	fmt.Fprintf(os.Stderr, "%s: %v\n", program, err)
	var coder interface{ ExitCode() int }
	if errors.As(err, &coder) {
		return coder.ExitCode()
	}
	return 1
}
