// Package redisx is the Redis client of relay's services. It owns the flags that
// say where Redis is, the settings that make a command's end predictable, and what
// is known of the server at the other end.
//
// A command is sent once, and ends when its context does. The client never retries
// by itself: a retry must know what the first try may have done (Refused). Nor does
// it follow redirections: when a node of a Cluster is away, trying again would take
// the time of the others' answers, and make their commands fail. It learns from a
// redirection for the next time.
//
// The client looks at the run id of each server that it connects to, so that
// whoever keeps rights in Redis can tell that Redis is another process than
// before, and may have lost data.
//
// The package starts no goroutine; go-redis has some that dial. What go-redis would
// log is switched off for the whole process: the errors of commands say the same.
// When all connections are taken, commands wait for a quarter of a second, then fail.
package redisx

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/cutemarkets/relay/services/internal/secret"
)

const (
	poolTimeout = 250 * time.Millisecond
	// reloadInterval is how old what is known of a Cluster's slots may be: a node that
	// has died tells nobody who took its place.
	reloadInterval = time.Second
	bufferSize     = 4 << 10 // of a connection that has no pipelines
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

// Config is what a client is used for.
type Config struct {
	// Name is what Redis calls the connections.
	Name string
	// Timeout of dialling, and of each read and write.
	Timeout time.Duration
	// Pipelines is how many there are at a time, each with a connection of its own;
	// 0: none.
	Pipelines int
	// PipelineReadBuffer and PipelineWriteBuffer are the bytes that a connection of
	// a pipeline reads and writes at a time.
	PipelineReadBuffer, PipelineWriteBuffer int
}

// Client is a Redis client: of a server, of the master that Sentinels name, or of
// a Cluster. It is safe for concurrent use.
type Client struct {
	redis.UniversalClient
	generations generations
}

// NewClient makes a client, which connects when it is first used. It fails when
// options make no sense or their files cannot be read.
func NewClient(o Options, c Config) (*Client, error) {
	if err := o.Validate(); err != nil {
		return nil, fmt.Errorf("redis: %w", err)
	}
	logging.Disable()
	u := &redis.UniversalOptions{
		Addrs:                    o.Address,
		MasterName:               o.MasterName,
		Username:                 o.Username,
		ClientName:               c.Name,
		Protocol:                 2,    // nothing is pushed, so nothing is looked for before each reply
		DisableIdentity:          true, // a round trip less until a connection can be used
		MaxRetries:               -1,
		MaxRedirects:             -1,
		ContextTimeoutEnabled:    true,
		DialTimeout:              c.Timeout,
		DialerRetries:            1,
		ReadTimeout:              c.Timeout,
		WriteTimeout:             c.Timeout,
		PoolTimeout:              poolTimeout,
		ReadBufferSize:           bufferSize,
		WriteBufferSize:          bufferSize,
		PipelinePoolSize:         c.Pipelines,
		PipelineReadBufferSize:   c.PipelineReadBuffer,
		PipelineWriteBufferSize:  c.PipelineWriteBuffer,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	}
	if c.Pipelines == 0 {
		u.PipelinePoolSize = -1
	}
	if o.PasswordFile != "" {
		password, err := secret.Read(o.PasswordFile)
		if err != nil {
			return nil, fmt.Errorf("redis: %w", err)
		}
		u.Password = password.Reveal()
	}
	if o.TLS {
		u.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12, ServerName: o.TLSServerName}
		if o.TLSCAFile != "" {
			pem, err := os.ReadFile(o.TLSCAFile)
			if err != nil {
				return nil, fmt.Errorf("redis: read the CA: %w", err)
			}
			u.TLSConfig.RootCAs = x509.NewCertPool()
			if !u.TLSConfig.RootCAs.AppendCertsFromPEM(pem) {
				return nil, fmt.Errorf("redis: %s holds no PEM certificate", o.TLSCAFile)
			}
		}
	}
	return connectTo(o, u), nil
}

// connectTo makes the kind of client that the options ask for.
func connectTo(o Options, u *redis.UniversalOptions) *Client {
	c := &Client{generations: generations{runs: map[string]string{}}}
	u.OnConnect = c.generations.onConnect("")
	switch {
	case o.MasterName != "":
		c.UniversalClient = redis.NewFailoverClient(u.Failover())
	case len(o.Address) > 1:
		cluster := u.Cluster()
		cluster.ClusterStateReloadInterval = reloadInterval
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

// Refused reports whether a command that failed has certainly not run: Redis was
// not reached, was another than before, or answered with an error. Otherwise it
// may have run, or run later.
func Refused(err error) bool {
	var reply redis.Error
	var dial *net.OpError
	switch {
	case errors.As(err, &reply), errors.Is(err, ErrGeneration), errors.Is(err, redis.ErrPoolTimeout), errors.Is(err, redis.ErrClosed):
		return true
	}
	return errors.As(err, &dial) && dial.Op == "dial"
}
