package leader

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/apimachinery/pkg/types"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	coordinationv1 "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/klog/v2"

	"github.com/cutemarkets/relay/services/internal/lifecycle"
)

const (
	userAgent = "relay-fanout"
	// namespaceFile is where a pod finds the name of its namespace.
	namespaceFile = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"
	// Requests are paced by the retry period; the limit is for what nobody
	// thought of.
	requestsPerSecond = 20
	requestBurst      = 40
)

// ErrMarket says that an elector was not made for a market.
var ErrMarket = errors.New("leader: unknown market")

// LeaseConfig says which Leases decide, and how fast. RenewDeadline must be more
// than 1.2 times RetryPeriod and less than Duration, as client-go demands. Duration
// should be RetryPeriod, half of RenewDeadline and Closing at least, so that one
// renewal may hang without an end of the proof.
type LeaseConfig struct {
	Namespace string // empty: that of the pod
	Name      string // the Lease of a market is <Name>-<market>
	// Duration is how long a Lease that is not renewed binds the others; whole
	// seconds, for a Lease has no fractions.
	Duration time.Duration
	// RenewDeadline is how long a leader tries to renew at the pace of RetryPeriod;
	// then it does at that of a standby. A request may take half of it.
	RenewDeadline time.Duration
	// RetryPeriod is the pause between two renewals, and the least one between
	// two attempts of a standby, which waits for up to 2.2 of them.
	RetryPeriod time.Duration
	// Closing is by how much the proof of a leadership ends before another may lead:
	// the time that work has to end what needs a proof.
	Closing time.Duration
}

// proof is how long after the start of its last good renewal a leadership is
// proven. The others count Duration from when they see what it has changed.
func (c LeaseConfig) proof() time.Duration { return c.Duration - c.Closing }

// grace is how long it may take a leader to renew when the API server is back: it
// has just made a request that hangs, and waits before the next.
func (c LeaseConfig) grace() time.Duration {
	return time.Duration((1+leaderelection.JitterFactor)*float64(c.RetryPeriod)) + c.requestTimeout()
}

// requestTimeout leaves time for another when a request hangs.
func (c LeaseConfig) requestTimeout() time.Duration { return c.RenewDeadline / 2 }

// Kubernetes elects the leader of a market by a Lease (coordination.k8s.io/v1).
// The Leases must exist: the process gets and updates them and does nothing else.
//
// The epoch is the Lease's creation and its transitions. A leadership is in doubt
// when the Lease could not be renewed in time, and ends when it proves to be
// another's, changed or gone.
type Kubernetes struct {
	// Static after construction.
	tallies
	candidates map[string]*candidate
	client     *http.Client
}

var kubernetesAdvice = [reasonEnd]string{
	ReasonMissing:     "create the Lease with an empty spec, as the Helm chart does; until then nobody leads the market",
	ReasonForbidden:   "allow get and update on the Lease to the service account, as the Role of the Helm chart does",
	ReasonFailed:      "see to the API server; " + withoutStore,
	ReasonUnreachable: "see to the API server and the way to it; " + withoutStore,
}

// InCluster makes a Kubernetes with the service account of the pod it runs in.
// The log of client-go goes to log from then on, for the whole process.
func InCluster(c LeaseConfig, markets []string, log *slog.Logger) (*Kubernetes, error) {
	access, err := rest.InClusterConfig()
	if errors.Is(err, rest.ErrNotInCluster) {
		return nil, fmt.Errorf("leader: --leader kubernetes works in a pod only, and KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set; elsewhere use redis, static or standby: %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("leader: --leader kubernetes needs the token of a service account; the pod must mount it (automountServiceAccountToken): %w", err)
	}
	if c.Namespace == "" {
		namespace, err := os.ReadFile(namespaceFile)
		if err != nil {
			return nil, fmt.Errorf("leader: the namespace of the pod is not known; set --lease-namespace: %w", err)
		}
		c.Namespace = strings.TrimSpace(string(namespace))
	}
	// HTTP/2 would go on using a connection whose other end is gone; by HTTP/1 a
	// request that timed out takes its connection with it.
	access.NextProtos = []string{"http/1.1"}
	klog.SetSlogLogger(log.With(slog.String("component", "client-go")))
	return NewKubernetes(access, c, markets, log)
}

// NewKubernetes makes a Kubernetes with access of any kind. Its identity as a
// holder is the name of the host and something random, so that a container
// restarted in its pod is another holder.
func NewKubernetes(access *rest.Config, c LeaseConfig, markets []string, log *slog.Logger) (*Kubernetes, error) {
	host, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("leader: name of the host: %w", err)
	}
	access = rest.CopyConfig(access)
	access.UserAgent = userAgent
	access.ContentType = "application/json"
	access.QPS, access.Burst = requestsPerSecond, requestBurst
	access.Timeout = c.requestTimeout()
	client, err := rest.HTTPClientFor(access)
	if err != nil {
		return nil, fmt.Errorf("leader: access to Kubernetes: %w", err)
	}
	api, err := coordinationv1.NewForConfigAndClient(access, client)
	if err != nil {
		return nil, fmt.Errorf("leader: access to Kubernetes: %w", err)
	}
	k := &Kubernetes{candidates: make(map[string]*candidate), client: client}
	identity := host + "_" + rand.Text()
	for _, market := range markets {
		name := c.Name + "-" + market
		k.candidates[market] = &candidate{
			tally: tally{
				market:   market,
				identity: identity,
				advice:   kubernetesAdvice,
				log: log.With(slog.String("component", "leader"), slog.String("market", market),
					slog.String("lease", c.Namespace+"/"+name)),
			},
			config: c,
			name:   name,
			leases: api.Leases(c.Namespace),
		}
		k.tallies = append(k.tallies, &k.candidates[market].tally)
	}
	return k, nil
}

// Run implements Elector. It releases the Lease when ctx has ended and work has
// returned. It must not run twice at a time for one market.
func (k *Kubernetes) Run(ctx context.Context, market string, work Work) error {
	c := k.candidates[market]
	if c == nil {
		return fmt.Errorf("%w %q", ErrMarket, market)
	}
	defer utilnet.CloseIdleConnectionsFor(k.client.Transport)
	for ctx.Err() == nil {
		if err := c.campaign(ctx, work); err != nil {
			return fmt.Errorf("leader of %s: %w", market, err)
		}
	}
	return nil
}

// candidate takes part in the election of one market.
type candidate struct {
	// Static after construction.
	config LeaseConfig
	name   string // of the Lease
	leases coordinationv1.LeaseInterface

	tally

	// Owned by the goroutine of the election, or by the caller of Run while
	// there is none; not thread-safe.
	last        Epoch     // the newest in which this process led
	holder      string    // as last seen
	uid         types.UID // of the Lease
	transitions int       // the most it had
	held        bool      // the API server may hold us for the holder
	readOnly    bool      // the last update failed, and nobody's has succeeded since
}

// campaign takes part in the election until this process has led and leads no
// more, or ctx ends.
func (c *candidate) campaign(ctx context.Context, work Work) error {
	// The election outlives ctx: the Lease is renewed until work has returned.
	election, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stop(nil)
	l := newLock(c, stop)
	defer l.proof.Set(false)
	started := make(chan struct{}, 1)
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock:          l,
		Name:          c.name,
		LeaseDuration: c.config.Duration,
		RenewDeadline: c.config.RenewDeadline,
		RetryPeriod:   c.config.RetryPeriod,
		// No ReleaseOnCancel: after failed renewals it would release the Lease
		// while work goes on.
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(context.Context) {
				select {
				case started <- struct{}{}:
				default: // it went on after failed renewals
				}
			},
			OnStoppedLeading: func() {},
		},
	})
	if err != nil {
		return err
	}
	ended := make(chan struct{})
	lifecycle.Go("lease "+c.market, func() {
		defer close(ended)
		// Run returns when renewals have failed for the deadline. What the lock knows
		// of the leadership stays.
		for election.Err() == nil {
			elector.Run(klog.NewContext(election, logr.FromSlogHandler(demoted{c.log.Handler()})))
		}
	})
	select {
	case <-started:
		err = c.lead(ctx, election, l, work)
	case <-ctx.Done():
	case <-election.Done():
	}
	stop(nil)
	<-ended
	if err != nil || ctx.Err() != nil {
		l.release(context.WithoutCancel(ctx))
	}
	return err
}

// lead runs work until the election or ctx ends.
func (c *candidate) lead(ctx, election context.Context, l *lock, work Work) error {
	if election.Err() != nil || ctx.Err() != nil {
		return nil
	}
	working, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(election, cancel)()

	return c.tally.lead(working, Leadership{l.epoch, l.proof}, work, func() error { return context.Cause(election) })
}
