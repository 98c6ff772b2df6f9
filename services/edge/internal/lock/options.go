package lock

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/cutemarkets/relay/services/internal/secret"
)

const (
	dialTimeout = time.Second
	poolTimeout = 250 * time.Millisecond

	// All but a look at whether Redis is there goes by pipelines; a full one goes out
	// by one write.
	pipelineReadBuffer  = 8 << 10
	pipelineWriteBuffer = 48 << 10
	otherBuffer         = 4 << 10
)

// Options say where Redis is.
type Options struct {
	Address       []string `name:"redis-address" default:"localhost:6379" placeholder:"HOST:PORT" help:"Redis server, Sentinels (with --redis-master-name) or Cluster nodes (more than one address). Repeatable."`
	MasterName    string   `name:"redis-master-name" help:"Name of the Sentinels' master. Empty: no Sentinel."`
	Username      string   `name:"redis-username" help:"Redis user. Empty: the default user."`
	PasswordFile  string   `name:"redis-password-file" placeholder:"FILE" help:"File with the password of the Redis user."`
	TLS           bool     `name:"redis-tls" help:"Speak TLS to Redis."`
	TLSCAFile     string   `name:"redis-tls-ca-file" placeholder:"FILE" help:"PEM certificates of the CA that must have signed the certificate of Redis. Empty: the system's."`
	TLSServerName string   `name:"redis-tls-server-name" placeholder:"NAME" help:"Name that the certificate of Redis must have. Empty: the host dialled."`
}

// Validate reports values that make no sense.
func (o Options) Validate() error {
	if len(o.Address) == 0 {
		return errors.New("a Redis address is needed")
	}
	if !o.TLS && (o.TLSCAFile != "" || o.TLSServerName != "") {
		return errors.New("--redis-tls-ca-file and --redis-tls-server-name need --redis-tls")
	}
	if o.Username != "" && o.PasswordFile == "" {
		return errors.New("--redis-username needs --redis-password-file")
	}
	return nil
}

// connectTo makes the kind of client that the options ask for.
func connectTo(o Options, u *redis.UniversalOptions) *client {
	c := &client{generations: generations{runs: map[string]string{}}}
	u.OnConnect = c.generations.onConnect("")
	switch {
	case o.MasterName != "":
		c.UniversalClient = redis.NewFailoverClient(u.Failover())
	case len(o.Address) > 1:
		cluster := u.Cluster()
		cluster.NewClient = func(node *redis.Options) *redis.Client {
			node.OnConnect = c.generations.onConnect(node.Addr)
			return redis.NewClient(node)
		}
		c.UniversalClient = redis.NewClusterClient(cluster)
	default:
		c.UniversalClient = redis.NewClient(u.Simple())
	}
	return c
}

// NewClient makes the Redis client of the locks; name is what Redis calls its
// connections. The client never retries by itself: a retry must know what the
// first try may have done. Nor does it follow redirections: when a node of a
// Cluster is away, trying again would take the time of the others' answers, and
// make their commands fail. It learns from a redirection for the next time. There
// is a connection for each pipeline, so that no acquire waits for scripts.
func NewClient(o Options, name string) (redis.UniversalClient, error) {
	if err := o.Validate(); err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	u := &redis.UniversalOptions{
		Addrs:                    o.Address,
		MasterName:               o.MasterName,
		Username:                 o.Username,
		ClientName:               name,
		Protocol:                 2, // nothing is pushed, so nothing is looked for before each reply
		MaxRetries:               -1,
		MaxRedirects:             -1,
		ContextTimeoutEnabled:    true,
		DialTimeout:              dialTimeout,
		DialerRetries:            1,
		ReadTimeout:              opTimeout,
		WriteTimeout:             opTimeout,
		PoolTimeout:              poolTimeout,
		ReadBufferSize:           otherBuffer,
		WriteBufferSize:          otherBuffer,
		PipelinePoolSize:         turns + buckets/pipelineScripts,
		PipelineReadBufferSize:   pipelineReadBuffer,
		PipelineWriteBufferSize:  pipelineWriteBuffer,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	}
	if o.PasswordFile != "" {
		password, err := secret.Read(o.PasswordFile)
		if err != nil {
			return nil, fmt.Errorf("lock: %w", err)
		}
		u.Password = password.Reveal()
	}
	if o.TLS {
		u.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12, ServerName: o.TLSServerName}
		if o.TLSCAFile != "" {
			pem, err := os.ReadFile(o.TLSCAFile)
			if err != nil {
				return nil, fmt.Errorf("lock: read CA of Redis: %w", err)
			}
			u.TLSConfig.RootCAs = x509.NewCertPool()
			if !u.TLSConfig.RootCAs.AppendCertsFromPEM(pem) {
				return nil, fmt.Errorf("lock: %s holds no PEM certificate", o.TLSCAFile)
			}
		}
	}
	return connectTo(o, u), nil
}
