//go:build kubernetes

package kubernetes

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const (
	clients = 200 // half of them for each market

	// folders is where the volume is on the node. A pod that root runs makes it
	// for the user of auth, which the kubelet cannot do for hostPath.
	folders = "/var/tmp/relay-cluster-test"

	// drainWindow and preStopSleep are short: the crowd is small, and nothing
	// stands before the Service.
	drainWindow, preStopSleep = 10, 5
)

// settings come from the environment: the Makefile sets them.
type settings struct {
	registry string // as the cluster sees it
	tag      string
	redis    string // image
	pause    string // command that lets the API server stand still
	resume   string // command that lets it go on
	keep     bool
}

func readSettings(t *testing.T) settings {
	t.Helper()
	for _, tool := range []string{"kubectl", "helm"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%s is not on the PATH", tool)
		}
	}
	s := settings{
		registry: os.Getenv("IMAGE_REGISTRY"), tag: os.Getenv("TAG"), redis: os.Getenv("REDIS_IMAGE"),
		pause: os.Getenv("API_PAUSE"), resume: os.Getenv("API_RESUME"), keep: os.Getenv("KEEP") != "",
	}
	if os.Getenv("KUBECONFIG") == "" || s.registry == "" || s.tag == "" {
		t.Fatal("KUBECONFIG, IMAGE_REGISTRY or TAG is missing: run make cluster-test KUBECONFIG=FILE KO_DOCKER_REPO=registry.example.com/relay")
	}
	return s
}

// install makes a namespace with a relay in it, and takes it down when the test
// ends.
func install(t *testing.T, s settings) *kube {
	t.Helper()
	began := time.Now()
	k := &kube{t: t, namespace: fmt.Sprintf("relay-test-%d", began.Unix()), pause: s.pause, resume: s.resume, logs: t.TempDir()}
	if s.keep {
		k.logs = filepath.Join(os.TempDir(), k.namespace)
		if err := os.Mkdir(k.logs, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	k.serveAPI()
	k.cleanUp(s)
	k.followLogs()
	k.kubectl("create", "namespace", k.namespace)
	k.kubectl("label", "namespace", k.namespace, "pod-security.kubernetes.io/enforce=restricted")
	k.volume(s)
	args := []string{
		"--set", "auth.persistence.ephemeral=false", "--set", "auth.persistence.existingClaim=auth",
		"--set", fmt.Sprintf("edge.drainWindow=%d,edge.preStopSleep=%d", drainWindow, preStopSleep),
		"--set", "feedsim.extraArgs={--number=topic,--stamp,--symbols=60}",
	}
	t.Log("installing the chart")
	deploy := exec.CommandContext(t.Context(), filepath.Join("..", "..", "scripts", "deploy"), args...)
	deploy.Env = append(os.Environ(), "NAMESPACE="+k.namespace)
	if out, err := deploy.CombinedOutput(); err != nil {
		t.Fatalf("hack/scripts/deploy: %v\n%s", err, out)
	}
	for component, replicas := range map[string]int{"edge": 2, "fanout": 2, "auth": 1, "feedsim": 1, "redis": 1} {
		k.settled(component, replicas)
	}
	t.Logf("all pods are ready after %s", time.Since(began).Round(time.Second))
	return k
}

func (k *kube) cleanUp(s settings) {
	k.t.Cleanup(func() {
		if k.t.Failed() {
			k.explain()
		}
		if s.keep {
			k.t.Logf("kept, as KEEP says: namespaces %[1]s and %[1]s-volume, PersistentVolume %[1]s, logs in %[2]s", k.namespace, k.logs)
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
		defer cancel()
		// The folder goes last: its pod removes it when it is told to stop.
		for _, what := range [][]string{
			{"namespace", k.namespace}, {"pv", k.namespace}, {"namespace", k.namespace + "-volume"},
		} {
			if _, err := command(ctx, "", "kubectl", append([]string{"delete", "--ignore-not-found"}, what...)...); err != nil {
				k.t.Error(err)
			}
		}
	})
}

// volume makes a claim on a folder of a node. On a cluster with more of them the
// volume says which, so that auth runs there.
func (k *kube) volume(s settings) {
	k.t.Helper()
	k.apply(fmt.Sprintf(`
apiVersion: v1
kind: Namespace
metadata: {name: %[1]s-volume}
---
apiVersion: v1
kind: Pod
metadata: {name: folder, namespace: %[1]s-volume}
spec:
  automountServiceAccountToken: false
  containers:
    - name: folder
      image: %[2]s/watch:%[3]s
      imagePullPolicy: Always
      args: [folder, /node/%[1]s]
      securityContext: {runAsUser: 0, runAsGroup: 0}
      volumeMounts: [{name: node, mountPath: /node}]
  volumes: [{name: node, hostPath: {path: %[4]s, type: DirectoryOrCreate}}]
`, k.namespace, s.registry, s.tag, folders))
	owner := *k
	owner.namespace += "-volume"
	k.until(2*time.Minute, "the folder of the volume is made", func() bool {
		out, err := owner.try("logs", "folder")
		return err == nil && strings.Contains(out, "made")
	})
	var folder pod
	if err := json.Unmarshal([]byte(owner.kubectl("get", "pod", "folder", "-o", "json")), &folder); err != nil {
		k.t.Fatal(err)
	}
	host := owner.kubectl("get", "node", folder.Spec.NodeName, "-o", `jsonpath={.metadata.labels.kubernetes\.io/hostname}`)
	k.apply(fmt.Sprintf(`
apiVersion: v1
kind: PersistentVolume
metadata: {name: %[1]s}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Retain
  storageClassName: ""
  claimRef: {namespace: %[1]s, name: auth}
  hostPath: {path: %[2]s/%[1]s, type: Directory}
  nodeAffinity:
    required:
      nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [%[3]s]}]}]
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: auth, namespace: %[1]s}
spec:
  accessModes: [ReadWriteOnce]
  storageClassName: ""
  volumeName: %[1]s
  resources: {requests: {storage: 1Gi}}
`, k.namespace, folders, host))
}

// keys makes users, each with a key for a product, and returns the keys.
func (k *kube) keys(user, product string, count int) string {
	k.t.Helper()
	auth := []string{"exec", "deploy/relay-auth", "--", "auth"}
	numbered := fmt.Sprintf("--numbered=%d", count)
	k.kubectl(append(auth, "users", "set", "--user="+user, numbered, "--plan-"+product+"=expert")...)
	return k.kubectl(append(auth, "keys", "create", "--user="+user, numbered, "--product="+product)...)
}

// watch starts the clients, inside the cluster and as restricted as the rest.
func (k *kube) watch(s settings) {
	k.t.Helper()
	dir := k.t.TempDir()
	var files []string
	for _, product := range []string{"stocks", "options"} {
		keys := k.keys("watch-"+product, product, clients/2)
		if n := len(strings.Fields(keys)); n != clients/2 {
			k.t.Fatalf("auth made %d keys, want %d", n, clients/2)
		}
		file := filepath.Join(dir, product)
		if err := os.WriteFile(file, []byte(keys), 0o600); err != nil {
			k.t.Fatal(err)
		}
		files = append(files, "--from-file="+product+"="+file)
	}
	k.kubectl(append([]string{"create", "secret", "generic", "watch"}, files...)...)
	k.apply(fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: watch, namespace: %s}
spec:
  automountServiceAccountToken: false
  enableServiceLinks: false
  securityContext: {runAsNonRoot: true, runAsUser: 65532, runAsGroup: 65532, fsGroup: 65532, seccompProfile: {type: RuntimeDefault}}
  containers:
    - name: watch
      image: %s/watch:%s
      imagePullPolicy: Always
      args: [clients, "ws://relay-edge:80", --stocks-keys=/keys/stocks, --options-keys=/keys/options]
      securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
      ports: [{name: api, containerPort: 8090}]
      readinessProbe: {httpGet: {path: /summary, port: api}, periodSeconds: 1}
      volumeMounts: [{name: keys, mountPath: /keys, readOnly: true}]
  volumes: [{name: keys, secret: {secretName: watch, defaultMode: 0440}}]
`, k.namespace, s.registry, s.tag))
	k.kubectl("wait", "--for=condition=Ready", "pod/watch", "--timeout=120s")
}
