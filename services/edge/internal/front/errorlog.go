package front

import (
	"bytes"
	"log"
	"log/slog"
)

// errorLog takes the lines net/http logs. They can quote what a client sent, so
// none is passed on: each is counted by its kind and logged as a fixed text.
type errorLog struct {
	log     *slog.Logger
	metrics *metrics
}

func newErrorLog(l *slog.Logger, m *metrics) *log.Logger {
	return log.New(errorLog{log: l, metrics: m}, "", 0)
}

// Write implements io.Writer.
func (e errorLog) Write(line []byte) (int, error) {
	switch {
	case bytes.HasPrefix(line, []byte("http: Accept error")):
		e.metrics.httpErrors[errorAccept].Add(1)
		e.log.Warn("cannot accept connections (too many open files?), trying again within a second")
	case bytes.HasPrefix(line, []byte("http: TLS handshake error")):
		e.metrics.httpErrors[errorTLS].Add(1)
		e.log.Debug("TLS handshake failed")
	default:
		e.metrics.httpErrors[errorOther].Add(1)
		e.log.Debug("net/http reported an error")
	}
	return len(line), nil
}
