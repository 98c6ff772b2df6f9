package telemetry

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"strings"
)

// Options are the flags that every service has.
type Options struct {
	LogLevel        string  `name:"log-level" enum:"debug,info,warn,error" default:"info" help:"Least level that is logged: debug, info, warn or error."`
	LogFormat       string  `name:"log-format" enum:"json,text" default:"json" help:"Form of the log: json or text."`
	OTLPEndpoint    string  `name:"otlp-endpoint" placeholder:"HOST:PORT" help:"Where to send traces by OTLP over gRPC: host:port or http://host:port (plain text), https://host:port (TLS). Empty: no traces."`
	OTLPSampleRatio float64 `name:"otlp-sample-ratio" default:"1" help:"Share of the traces begun here that is sent, 0 to 1."`

	// LogOutput takes the log; nil: standard output.
	LogOutput io.Writer `kong:"-"`
}

// Validate reports values that make no sense. The zero value is valid: level
// info, JSON, no traces.
func (o Options) Validate() error {
	var errs []error
	if _, err := o.level(); err != nil {
		errs = append(errs, err)
	}
	switch o.LogFormat {
	case "", "json", "text":
	default:
		errs = append(errs, fmt.Errorf("--log-format is %q, must be json or text", o.LogFormat))
	}
	if _, _, err := o.endpoint(); err != nil {
		errs = append(errs, err)
	}
	if !(o.OTLPSampleRatio >= 0 && o.OTLPSampleRatio <= 1) {
		errs = append(errs, fmt.Errorf("--otlp-sample-ratio is %v, must be from 0 to 1", o.OTLPSampleRatio))
	}
	return errors.Join(errs...)
}

func (o Options) level() (slog.Level, error) {
	switch o.LogLevel {
	case "debug":
		return slog.LevelDebug, nil
	case "", "info":
		return slog.LevelInfo, nil
	case "warn":
		return slog.LevelWarn, nil
	case "error":
		return slog.LevelError, nil
	}
	return 0, fmt.Errorf("--log-level is %q, must be debug, info, warn or error", o.LogLevel)
}

// endpoint returns the host:port of the collector and whether it speaks TLS.
func (o Options) endpoint() (hostport string, secure bool, err error) {
	if o.OTLPEndpoint == "" {
		return "", false, nil
	}
	raw := o.OTLPEndpoint
	if !strings.Contains(raw, "://") {
		raw = "http://" + raw
	}
	u, err := url.Parse(raw)
	switch {
	case err != nil, u.User != nil, u.Port() == "", u.Path != "" && u.Path != "/", u.RawQuery != "",
		u.Scheme != "http" && u.Scheme != "https":
		return "", false, errors.New("--otlp-endpoint must be host:port, http://host:port or https://host:port")
	}
	return u.Host, u.Scheme == "https", nil
}

// logger makes the service's logger of valid options.
func (o Options) logger(service string) *slog.Logger {
	level, _ := o.level()
	output := o.LogOutput
	if output == nil {
		output = os.Stdout
	}
	options := &slog.HandlerOptions{Level: level}
	var handler slog.Handler = slog.NewJSONHandler(output, options)
	if o.LogFormat == "text" {
		handler = slog.NewTextHandler(output, options)
	}
	return slog.New(handler).With(slog.String("service", service))
}
