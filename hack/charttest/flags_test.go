package charttest

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"
	corev1 "k8s.io/api/core/v1"

	"github.com/cutemarkets/relay/hack/feedsim"
	"github.com/cutemarkets/relay/hack/feedsim/probe"
	"github.com/cutemarkets/relay/services/auth"
	"github.com/cutemarkets/relay/services/edge"
	"github.com/cutemarkets/relay/services/fanout"
)

// argument is the value of a flag in the arguments of a component.
func argument(t *testing.T, m *manifests, component, name string) string {
	t.Helper()
	for _, arg := range m.pods()[component].Spec.Containers[0].Args {
		if value, ok := strings.CutPrefix(arg, name+"="); ok {
			return value
		}
	}
	t.Fatalf("%s: no %s", component, name)
	return ""
}

// programs are the options of each component and the command before them.
func programs() map[string]struct {
	command string
	options any
} {
	return map[string]struct {
		command string
		options any
	}{
		"edge":    {"", &edge.Options{}},
		"fanout":  {"", &fanout.Options{}},
		"auth":    {"serve", &auth.Options{}},
		"feedsim": {"serve", &feedsim.Options{}},
		"test":    {"probe", &probe.Options{}},
	}
}

// parse reads the arguments and variables of a pod as its program would.
func parse(t *testing.T, pod corev1.PodSpec, command string, options any) {
	t.Helper()
	c := pod.Containers[0]
	args := slices.Clone(c.Args)
	if command != "" {
		if args[0] != command {
			t.Errorf("%s: the command is %s, want %s", c.Name, args[0], command)
		}
		args = args[1:]
	}
	parser, err := kong.New(options, kong.DefaultEnvars("RELAY"))
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]*kong.Flag{}
	for _, group := range parser.Model.AllFlags(false) {
		for _, f := range group {
			for _, name := range f.Envs {
				known[name] = f
			}
		}
	}
	for _, e := range c.Env {
		if strings.HasPrefix(e.Name, "RELAY_") {
			if known[e.Name] == nil {
				t.Errorf("%s: knows no variable %s", c.Name, e.Name)
				continue
			}
			args = append(args, "--"+known[e.Name].Name+"="+e.Value)
		}
	}
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte("a secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for i, arg := range args {
		name, path, _ := strings.Cut(arg, "=")
		if strings.HasSuffix(name, "-file") {
			checkMounted(t, pod, path)
			args[i] = name + "=" + file
		}
	}
	if _, err := parser.Parse(args); err != nil {
		t.Errorf("%s: %v\n%s", c.Name, err, strings.Join(args, "\n"))
	}
}

// checkMounted: a file of a flag is one that a volume of a Secret brings.
func checkMounted(t *testing.T, pod corev1.PodSpec, path string) {
	t.Helper()
	dir, file := filepath.Split(path)
	for _, m := range pod.Containers[0].VolumeMounts {
		for _, v := range pod.Volumes {
			if m.Name == v.Name && m.MountPath+"/" == dir && v.Secret != nil && v.Secret.Items[0].Path == file {
				return
			}
		}
	}
	t.Errorf("%s: nothing mounts %s", pod.Containers[0].Name, path)
}

// TestFlags gives the arguments of every pod to the options of its program.
func TestFlags(t *testing.T) {
	t.Parallel()
	eachSet(t, func(t *testing.T, set string, m *manifests) {
		all := programs()
		for name, pod := range m.pods() {
			if name == "redis" {
				continue
			}
			p, known := all[name]
			if !known {
				t.Fatalf("whose pod is %s?", name)
			}
			parse(t, pod.Spec, p.command, p.options)
		}
		checkEdge(t, set, m, all["edge"].options.(*edge.Options))
		f := all["fanout"].options.(*fanout.Options)
		url := map[string]string{"required": "wss://socket.massive.com", "try": "ws://relay-feedsim:7100", "full": "wss://vendor.example.com"}
		leader := map[string]string{"required": "kubernetes", "try": "redis", "full": "kubernetes"}
		if f.UpstreamURL != url[set] || f.Leader != leader[set] || f.Listen != ":9100" {
			t.Errorf("fanout: %+v", f)
		}
		if e := all["edge"].options.(*edge.Options); set == "try" && !slices.Equal(f.Redis.Address, e.Redis.Address) {
			t.Errorf("fanout: Redis at %s", f.Redis.Address)
		}
		a := all["auth"].options.(*auth.Options)
		if a.Database != "/var/lib/relay/auth.db" || a.PepperFile == "" || a.GRPC.Listen != ":9000" {
			t.Errorf("auth: %+v", a)
		}
		if set == "required" {
			return
		}
		test := all["test"].options.(*probe.Options)
		want := map[string]string{"try": "ws://relay-edge:80/v1/ws/stocks/", "full": "ws://relay-edge:8000/v1/ws/options/"}
		if test.URL != want[set] || test.Key == "" || test.Count != 1 {
			t.Errorf("test: %+v", test)
		}
	})
}

func checkEdge(t *testing.T, set string, m *manifests, e *edge.Options) {
	t.Helper()
	if e.Front.Listen != ":8080" || e.Operations.Listen != ":9090" || e.AuthAddress != "relay-auth:9000" || e.FanoutAddress != "relay-fanout:9100" {
		t.Errorf("edge: %+v", e)
	}
	ports := m.deployments["relay-edge"].Spec.Template.Spec.Containers[0].Ports
	if len(ports) != 2 || ports[0].ContainerPort != 8080 || ports[1].ContainerPort != 9090 {
		t.Errorf("edge: ports %+v", ports)
	}
	redis, window := map[string]string{"required": "redis.example.com:6379", "try": "relay-redis:6379"}[set], time.Minute
	if set == "full" {
		redis, window = "sentinel-0.example.com:26379,sentinel-1.example.com:26379", 2*time.Minute
		if e.Redis.MasterName != "main" || !e.Redis.TLS || e.Redis.Username != "relay" || e.Redis.PasswordFile == "" || len(e.Front.TrustedProxies) != 2 {
			t.Errorf("edge: %+v", e)
		}
	}
	if got := strings.Join(e.Redis.Address, ","); got != redis || e.DrainWindow != window {
		t.Errorf("edge: Redis at %s, drain in %s", got, e.DrainWindow)
	}
}
