package fanout

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"

	"github.com/cutemarkets/relay/services/internal/grpcx"
	"github.com/cutemarkets/relay/services/internal/ops"
	"github.com/cutemarkets/relay/services/internal/telemetry"
)

// Values of --leader.
const (
	leaderStatic  = "static"
	leaderStandby = "standby"
)

// minEdgeQueue is the least bound of an edge's queue: twice what is held back
// during an outage, which is routed at once.
const minEdgeQueue = 8 << 20

// Options are the flags of the service.
type Options struct {
	Listen          string `name:"listen" default:":9100" placeholder:"ADDRESS" help:"Address of the gRPC listener for edges."`
	TLSCertFile     string `name:"tls-cert-file" placeholder:"FILE" help:"PEM certificate of the gRPC listener, re-read when it changes. Empty: plain text."`
	TLSKeyFile      string `name:"tls-key-file" placeholder:"FILE" help:"PEM private key of the certificate."`
	TLSClientCAFile string `name:"tls-client-ca-file" placeholder:"FILE" help:"PEM certificates of the CA that must have signed the certificate of an edge (mutual TLS). Empty: any edge."`

	Markets         []string `name:"markets" default:"stocks,options" help:"Markets that are relayed: stocks, options."`
	UpstreamURL     string   `name:"upstream-url" default:"wss://socket.massive.com" placeholder:"URL" help:"WebSocket of the vendor; the market is appended, as in wss://socket.massive.com/stocks."`
	UpstreamKeyFile string   `name:"upstream-key-file" placeholder:"FILE" help:"File with the vendor's API key, read at each connection. Needed by a process that can lead."`
	Leader          string   `name:"leader" enum:"static,standby" default:"static" help:"Who holds the upstream: static (this process, for every market; there must be no other) or standby (never this process)."`
	EdgeQueueBytes  int      `name:"edge-queue-bytes" default:"16777216" help:"Bytes that may wait for one edge and market; beyond, its stream is cut and its clients are told of a gap."`

	Operations ops.Options       `embed:""`
	Telemetry  telemetry.Options `embed:""`
}

// marketName is what can be an element of a URL's path and a metric label.
var marketName = regexp.MustCompile(`^[a-z]{1,32}$`)

// Validate reports values that make no sense.
func (o Options) Validate() error {
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	check(len(o.Markets) > 0, "--markets is empty")
	for i, market := range o.Markets {
		check(marketName.MatchString(market), "--markets has %q, must be lower-case letters", market)
		check(!slices.Contains(o.Markets[:i], market), "--markets has %q twice", market)
	}
	check(validUpstream(o.UpstreamURL), "--upstream-url must be a ws:// or wss:// URL with a host, without user, query and fragment")
	check(o.Leader == leaderStatic || o.Leader == leaderStandby, "--leader is %q, must be static or standby", o.Leader)
	check(o.Leader != leaderStatic || o.UpstreamKeyFile != "", "--upstream-key-file is missing: the file with the vendor's API key")
	check(o.EdgeQueueBytes >= minEdgeQueue, "--edge-queue-bytes is %d, must be at least %d", o.EdgeQueueBytes, minEdgeQueue)
	return errors.Join(append(errs, o.grpc().Validate(), o.Operations.Validate(), o.Telemetry.Validate())...)
}

// validUpstream refuses what would carry a key in the URL.
func validUpstream(raw string) bool {
	u, err := url.Parse(raw)
	return err == nil && (u.Scheme == "ws" || u.Scheme == "wss") && u.Host != "" &&
		u.User == nil && u.RawQuery == "" && u.Fragment == ""
}

func (o Options) grpc() grpcx.ServerOptions {
	return grpcx.ServerOptions{
		Listen:          o.Listen,
		TLSCertFile:     o.TLSCertFile,
		TLSKeyFile:      o.TLSKeyFile,
		TLSClientCAFile: o.TLSClientCAFile,
	}
}
