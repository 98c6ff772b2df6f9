package edge

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/cutemarkets/relay/services/edge/internal/dialect/cutemarkets"
	"github.com/cutemarkets/relay/services/edge/internal/engine"
	"github.com/cutemarkets/relay/services/edge/internal/front"
	"github.com/cutemarkets/relay/services/internal/grpcx"
	"github.com/cutemarkets/relay/services/internal/ops"
	"github.com/cutemarkets/relay/services/internal/redisx"
	"github.com/cutemarkets/relay/services/internal/telemetry"
)

// Options are the flags of the service.
type Options struct {
	Front front.Options `embed:""`

	Markets        []string      `name:"markets" default:"stocks,options" help:"Markets whose stream is served: stocks, options."`
	InBandAuth     bool          `name:"in-band-auth" default:"true" negatable:"" help:"Take the key as first message too, as the vendor's SDKs send it."`
	MaxConnections int           `name:"max-connections" default:"0" help:"Sockets of this edge; further ones get 503. 0: nine tenths of the open files that the system allows."`
	MaxTopics      int           `name:"max-topics" default:"1000" help:"Topics of one socket."`
	MaxQuotes      int           `name:"max-option-quotes" default:"250" help:"Topics of one socket that are quotes of options, of which the vendor serves 1,000 to all clients together."`
	Engine         string        `name:"engine" default:"auto" enum:"auto,epoll,portable" help:"How client sockets are carried: epoll (event loops; Linux, without TLS here), portable (goroutines), or auto: epoll where it can be."`
	QueueBytes     int           `name:"queue-bytes" default:"196608" help:"Bytes that may wait for a client for longer than 0.75 s; it is warned when half of that waits for 0.5 s, and closed with 1008 beyond."`
	BurstBytes     int           `name:"burst-bytes" default:"8388608" help:"Bytes that may wait for a client for a shorter time, if more than --queue-bytes; it is warned at half, and closed with 1008 beyond."`
	QueueAge       time.Duration `name:"queue-age" default:"5s" help:"How long the oldest of these bytes may wait; after 1s the client is warned, after this closed with 1008."`
	UpstreamGrace  time.Duration `name:"upstream-grace" default:"0s" help:"Close sockets (1011) of a market whose upstream has been gone for longer. 0: never; clients are told of the gap."`
	DrainWindow    time.Duration `name:"drain-window" default:"10s" help:"Time over which the closes (1012) are spread when the edge stops."`
	LockGrace      time.Duration `name:"lock-grace" default:"0s" help:"How long sockets live on after the end of their locks (9 to 14 s after the last answer of Redis) while Redis does not answer. Another edge that reaches Redis may then accept a second connection of a user for as long."`
	EdgeID         string        `name:"edge-id" placeholder:"NAME" help:"Name of this edge, unique among live ones. Empty: the host's name and random digits."`

	AuthAddress   string          `name:"auth-address" placeholder:"HOST:PORT" required:"" help:"Address of the auth service."`
	AuthTLS       grpcx.ClientTLS `embed:"" prefix:"auth-"`
	FanoutAddress string          `name:"fanout-address" placeholder:"HOST:PORT" required:"" help:"Address of the fanout pods: a name that resolves to all of them, or a comma-separated list."`
	FanoutTLS     grpcx.ClientTLS `embed:"" prefix:"fanout-"`
	Redis         redisx.Options  `embed:""`

	Operations ops.Options       `embed:""`
	Telemetry  telemetry.Options `embed:""`
}

// Validate reports values that make no sense.
func (o Options) Validate() error {
	errs := []error{
		o.Front.Validate(), o.dialect().Validate(), o.AuthTLS.Validate(), o.FanoutTLS.Validate(), o.Redis.Validate(),
		o.Operations.Validate(), o.Telemetry.Validate(),
	}
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	check(len(o.Markets) > 0, "--markets is empty")
	check(o.AuthAddress != "", "--auth-address is missing: the host:port of the auth service")
	check(o.FanoutAddress != "", "--fanout-address is missing: the host:port of the fanout pods")
	check(!strings.Contains(o.EdgeID, "/"), "--edge-id is %q, must have no slash", o.EdgeID)
	check(o.MaxConnections >= 0, "--max-connections is %d, must be 0 or more", o.MaxConnections)
	check(o.QueueBytes >= engine.MinQueueBytes, "--queue-bytes is %d, must be at least %d", o.QueueBytes, engine.MinQueueBytes)
	check(o.QueueAge > 0, "--queue-age is %s, must be more than 0", o.QueueAge)
	check(o.Engine != string(engine.Epoll) || o.Front.TLSCertFile == "", "--engine epoll does not carry TLS: leave out --tls-cert-file, or choose --engine auto")
	check(o.UpstreamGrace >= 0, "--upstream-grace is %s, must be 0 or more", o.UpstreamGrace)
	check(o.LockGrace >= 0, "--lock-grace is %s, must be 0 or more", o.LockGrace)
	check(o.DrainWindow >= 0, "--drain-window is %s, must be 0 or more", o.DrainWindow)
	if _, err := o.connectionLimit(); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (o Options) dialect() cutemarkets.Options {
	return cutemarkets.Options{Markets: o.Markets, InBandAuth: o.InBandAuth, MaxTopics: o.MaxTopics, MaxQuotes: o.MaxQuotes}
}

// connectionLimit is how many sockets the edge takes: as asked for, if the
// system's limit of open files allows it, or nine tenths of that. The rest is
// for Redis, gRPC, the listeners and files.
func (o Options) connectionLimit() (int, error) {
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		return 0, fmt.Errorf("read the limit of open files: %w", err)
	}
	// Go raises the soft limit to the hard one at the start of a process.
	most := int(min(files.Cur, 1<<30) / 10 * 9)
	if o.MaxConnections > most {
		return 0, fmt.Errorf("--max-connections is %d, but with %d open files allowed at most %d: raise the limit (ulimit -n) or lower the flag",
			o.MaxConnections, files.Cur, most)
	}
	if o.MaxConnections == 0 {
		return most, nil
	}
	return o.MaxConnections, nil
}
