package e2e

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// lockStore is the Redis of a fault test: one server, a master with Sentinels, or
// a Cluster.
type lockStore struct {
	address string            // the edges' --redis-address
	args    []string          // further flags of the edges
	redisOf map[string]string // another address for some edges, by name
	servers []*redisProcess
	client  redis.UniversalClient // to look from outside
}

// way is for cluster.Options.
func (s *lockStore) way(from, to, address string) string {
	if other, ok := s.redisOf[from]; ok && to == "redis" {
		return other
	}
	return address
}

// redisProcess is a server that can be killed, stopped and started again with
// what it left on its disk.
type redisProcess struct {
	// Static after construction.
	t       *testing.T
	address string
	port    string
	dir     string
	args    []string

	// Owned by the test; not thread-safe.
	cmd *exec.Cmd
}

// newRedisProcess runs a redis-server until the test ends.
func newRedisProcess(t *testing.T, args ...string) *redisProcess {
	t.Helper()
	p := &redisProcess{t: t, port: freePort(t), dir: t.TempDir(), args: args}
	p.address = net.JoinHostPort("127.0.0.1", p.port)
	p.start()
	t.Cleanup(p.kill)
	return p
}

// freePort is one that leaves room for the bus of a Cluster, 10,000 above.
func freePort(t *testing.T) string {
	t.Helper()
	for range 100 {
		port := 20_000 + rand.IntN(12_000)
		if free(port) && free(port+10_000) {
			return fmt.Sprint(port)
		}
	}
	t.Fatal("no free port below 32000")
	return ""
}

func free(port int) bool {
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return false
	}
	_ = l.Close()
	return true
}

// start returns when the server answers, with its data loaded.
func (p *redisProcess) start() {
	p.t.Helper()
	binary, err := exec.LookPath("redis-server")
	if err != nil {
		p.t.Fatal("redis-server is not installed: run `make deps`")
	}
	p.cmd = exec.Command(binary, append(slices.Clone(p.args), "--port", p.port, "--bind", "127.0.0.1", "--dir", p.dir)...)
	if err := p.cmd.Start(); err != nil {
		p.t.Fatalf("start redis-server: %v", err)
	}
	client := p.connect()
	eventually(p.t, "redis-server answers", func() bool { return client.Ping(p.t.Context()).Err() == nil })
}

// kill ends the server as kill -9 does, also one that stands still.
func (p *redisProcess) kill() {
	if p.cmd == nil {
		return
	}
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
	p.cmd = nil
}

func (p *redisProcess) signal(signal os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(signal); err != nil {
		p.t.Fatal(err)
	}
}

func (p *redisProcess) connect() *redis.Client {
	client := redis.NewClient(&redis.Options{Addr: p.address})
	p.t.Cleanup(func() { _ = client.Close() })
	return client
}

// info returns a field of what INFO says.
func (p *redisProcess) info(client *redis.Client, section, field string) string {
	text, err := client.Info(p.t.Context(), section).Result()
	if err != nil {
		return ""
	}
	for line := range strings.Lines(text) {
		if name, value, _ := strings.Cut(strings.TrimSpace(line), ":"); name == field {
			return value
		}
	}
	return ""
}

// Persistence of a server.
var (
	keepsData = []string{"--save", "", "--appendonly", "yes", "--appendfsync", "everysec"}
	keepsNone = []string{"--save", "", "--appendonly", "no"}
)

func singleStore(t *testing.T, persistence []string) *lockStore {
	t.Helper()
	p := newRedisProcess(t, persistence...)
	return &lockStore{address: p.address, servers: []*redisProcess{p}, client: p.connect()}
}

// sentinelStore is a master, two replicas and three Sentinels, which take it for
// down after a second.
func sentinelStore(t *testing.T) *lockStore {
	t.Helper()
	const name = "locks"
	master := newRedisProcess(t, keepsNone...)
	s := &lockStore{args: []string{"--redis-master-name=" + name}, servers: []*redisProcess{master}}
	for range 2 {
		replica := append(slices.Clone(keepsNone), "--replicaof", "127.0.0.1 "+master.port)
		s.servers = append(s.servers, newRedisProcess(t, replica...))
	}
	view := master.connect()
	eventually(t, "both replicas have caught up", func() bool {
		return strings.Contains(master.info(view, "replication", "slave0"), "state=online") &&
			strings.Contains(master.info(view, "replication", "slave1"), "state=online")
	})
	var sentinels []string
	for range 3 {
		file := filepath.Join(t.TempDir(), "sentinel.conf")
		text := fmt.Sprintf("sentinel monitor %[1]s 127.0.0.1 %[2]s 2\nsentinel down-after-milliseconds %[1]s 1000\n"+
			"sentinel failover-timeout %[1]s 5000\n", name, master.port)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		sentinels = append(sentinels, newRedisProcess(t, file, "--sentinel").address)
	}
	for _, address := range sentinels {
		sentinel := redis.NewSentinelClient(&redis.Options{Addr: address})
		eventually(t, "the Sentinels know each other and the replicas", func() bool {
			m := sentinel.Master(t.Context(), name).Val()
			return m["num-slaves"] == "2" && m["num-other-sentinels"] == "2"
		})
		_ = sentinel.Close()
	}
	s.address = strings.Join(sentinels, ",")
	s.client = redis.NewFailoverClient(&redis.FailoverOptions{MasterName: name, SentinelAddrs: sentinels, DialTimeout: time.Second})
	t.Cleanup(func() { _ = s.client.Close() })
	return s
}

// clusterStore is a Cluster of three masters and three replicas.
func clusterStore(t *testing.T) *lockStore {
	t.Helper()
	s := &lockStore{}
	var addresses []string
	for range 6 {
		args := append(slices.Clone(keepsNone), "--cluster-enabled", "yes", "--cluster-node-timeout", "2000")
		p := newRedisProcess(t, args...)
		s.servers = append(s.servers, p)
		addresses = append(addresses, p.address)
	}
	create := append([]string{"--cluster", "create"}, addresses...)
	create = append(create, "--cluster-replicas", "1", "--cluster-yes")
	if out, err := exec.CommandContext(t.Context(), "redis-cli", create...).CombinedOutput(); err != nil {
		t.Fatalf("create the Cluster: %v\n%s", err, out)
	}
	for _, p := range s.servers {
		view := p.connect()
		eventually(t, "all nodes are in the Cluster, and the replicas have caught up", func() bool {
			state := view.ClusterInfo(t.Context()).Val()
			replicated := p.info(view, "replication", "role") == "master" &&
				strings.Contains(p.info(view, "replication", "slave0"), "state=online") ||
				p.info(view, "replication", "master_link_status") == "up"
			return strings.Contains(state, "cluster_state:ok") && strings.Contains(state, "cluster_known_nodes:6") && replicated
		})
	}
	s.address = strings.Join(addresses, ",")
	s.client = redis.NewClusterClient(&redis.ClusterOptions{Addrs: addresses, DialTimeout: time.Second})
	t.Cleanup(func() { _ = s.client.Close() })
	return s
}

// aMaster is a server that is a master now.
func (s *lockStore) aMaster() *redisProcess {
	for _, p := range s.servers {
		if p.info(p.connect(), "replication", "role") == "master" {
			return p
		}
	}
	s.servers[0].t.Fatal("no server is a master")
	return nil
}

// awaitWrites returns when every bucket of locks can be written again.
func (s *lockStore) awaitWrites(t *testing.T) {
	t.Helper()
	const buckets = 128
	bucket := 0
	var err error
	defer func() {
		if t.Failed() {
			t.Logf("writing a key of bucket %d: %v", bucket, err)
		}
	}()
	eventually(t, "Redis takes writes again", func() bool {
		if c, ok := s.client.(*redis.ClusterClient); ok {
			c.ReloadState(t.Context())
		}
		for ; bucket < buckets; bucket++ {
			key := fmt.Sprintf("probe:{b%d}", bucket)
			if err = s.client.Set(t.Context(), key, "1", time.Second).Err(); err != nil {
				return false
			}
		}
		return true
	})
}
